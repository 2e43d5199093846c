// What the demo reads from its address, and what it says about a refusal.

import assert from "node:assert/strict";
import { test } from "node:test";

import { addressed, isToken, refusalText } from "../../signaling/browser/demo/demo-text.js";

const at = (hash, search = "") => addressed({ hash, search });

test("everybody is in the same room until another is chosen", () => {
  for (const hash of ["", "#"]) assert.deepEqual(at(hash), { topic: "demo", token: "" });
  assert.deepEqual(at("", "?name=Ada"), { topic: "demo", token: "" });
  assert.deepEqual(at("", "?topic=team%2Fa"), { topic: "team/a", token: "" });
  assert.deepEqual(at("#team-meeting", "?topic=other"), { topic: "team-meeting", token: "" });
});

test("a link may have a token in its fragment, and nowhere else", () => {
  assert.deepEqual(at("#room&token=ey.a-_~+"), { topic: "room", token: "ey.a-_~+" });
  assert.deepEqual(at("#token=ey"), { topic: "demo", token: "ey" });
  assert.deepEqual(at("#room&token=one&token=two"), { topic: "room", token: "one" });
  assert.deepEqual(at("#room", "?token=ey"), { topic: "room", token: "" });
});

test("a room may have any name", () => {
  for (const name of ["a&token=b", "token=b", "100%", "<b>", "/../", "ü?#"]) {
    assert.deepEqual(at(`#${encodeURIComponent(name)}&token=t`), { topic: name, token: "t" });
  }
  assert.equal(at("#100%").topic, "100%");
});

test("a token has no other characters than a page can present", () => {
  for (const token of ["a", "eyJ0.eyJz.SflK-_xw", "~+"]) assert.ok(isToken(token), token);
  for (const text of ["", "a b", "a\n", "\u00e9", "a,b", "a/b", "a="]) assert.ok(!isToken(text), text);
});

const said = (status, reason, hasToken = false) => refusalText({ status, reason }, { topic: "t".repeat(99), hasToken });

test("a refusal names the field to change, and what to do", () => {
  const expected = [
    [401, "a token is needed", false, "token", /needs an access token/],
    [401, "the token has expired", true, "token", /has expired/],
    [401, "the token's signature is wrong", true, "token", /not accept.*the token's signature is wrong/],
    [403, "the token does not cover this topic", true, "topic", /does not open the room “t{39}…”/],
    [403, "the origin http://a is not on the server's list (--allow-origin)", true, "", /from this page's address/],
    [429, "", false, "", /from your network/],
    [503, "the server is full", false, "", /as soon as it has room/],
    [400, "topic: at most 256 bytes, not 300", false, "topic", /refuses this room: topic: at most 256/],
    [404, undefined, false, "topic", /refuses this room: HTTP 404/],
  ];
  for (const [status, reason, hasToken, field, pattern] of expected) {
    const { field: named, text } = said(status, reason, hasToken);
    assert.equal(named, field, `${status} ${reason}`);
    assert.match(text, pattern);
  }
});

test("what a server says about a refusal is one bounded line", () => {
  for (const status of [400, 401, 403, 421]) {
    const { text } = said(status, `\u202e<b>\n${"x".repeat(100_000)}`, true);
    assert.ok(text.length < 300, text);
    assert.doesNotMatch(text, /[\n\u202e]/);
  }
});
