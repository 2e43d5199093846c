// What the demo reads from its address, and what it says about a refusal.

import assert from "node:assert/strict";
import { test } from "node:test";

import { addressed, isToken, noticeText, refusalText, renamingText, summary } from "../../signaling/browser/demo/demo-text.js";

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
    [403, "the owner of this token may not join this topic for 60 s more", true, "topic", /were removed.*for 60 s more/],
    [429, "", false, "", /from your network/],
    [503, "the server is full", false, "", /as soon as it has room/],
    [400, "topic: at most 256 bytes, not 300", false, "topic", /refuses this room: topic: at most 256/],
    [404, undefined, false, "topic", /refuses this room: HTTP 404/],
    [4403, "Enough", true, "topic", /^An operator removed you from this room: Enough\.$/],
    [4403, "an operator removed this peer from the topic", false, "topic", /^An operator removed you from this room\.$/],
    [4404, "We meet elsewhere", false, "topic", /^An operator closed this room: We meet elsewhere\.$/],
  ];
  for (const [status, reason, hasToken, field, pattern] of expected) {
    const { field: named, text } = said(status, reason, hasToken);
    assert.equal(named, field, `${status} ${reason}`);
    assert.match(text, pattern);
  }
});

test("what a server says about a refusal is one bounded line", () => {
  for (const status of [400, 401, 403, 421, 4403, 4404]) {
    const { text } = said(status, `\u202e<b>\n${"x".repeat(100_000)}`, true);
    assert.ok(text.length < 300, text);
    assert.doesNotMatch(text, /[\n\u202e]/);
  }
});

test("why a name was not changed is one bounded line, and no news if another name follows", () => {
  for (const code of ["forbidden", "rate_limited", "invalid_metadata", "too_large", "topic_full", "unconfirmed", "unsupported", "x"]) {
    const text = renamingText({ code, message: `\u202e<b>\n${"x".repeat(100_000)}` });
    assert.ok(text && text.length < 300, code);
    assert.doesNotMatch(text, /[\n\u202e]/);
  }
  assert.deepEqual(["replaced", "dropped"].map((code) => renamingText({ code, message: "no" })), ["", ""]);
});

test("a notice of any form is one bounded line", () => {
  const deep = JSON.parse("[".repeat(3_000) + "]".repeat(3_000));
  const shown = [
    ["Soon", "Soon"], [{ text: "Soon", at: 5 }, "Soon"], [{ message: "<b>\nSoon" }, "<b> Soon"], [{ text: 5 }, '{"text":5}'],
    [null, "null"], [undefined, ""], [[1], "[1]"], [deep, "(nested too deeply to show)"], ["\u202ex".repeat(100_000), `${"x ".repeat(149)}x…`],
  ];
  for (const [data, text] of shown) {
    assert.equal(noticeText(data), text);
    assert.ok(text.length <= 300);
  }
});

test("an update is summed up by the name in it", () => {
  for (const type of ["metadata", "peer-updated"]) {
    assert.equal(summary({ type, metadata: { name: "Ada" } }), "Ada");
    for (const name of [undefined, null, 5, {}]) assert.equal(summary({ type, metadata: { name } }), "");
  }
});
