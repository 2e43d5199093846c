// Tokens, and the answers of a server that refuses connections: with sockets, a `fetch` and a clock of the test's own.

import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { join } from "../../signaling/browser/client/signaling.js";
import { checks, fakeFetch, FakeSocket, list, sockets, useFakePage, welcome } from "./fakes.mjs";

const URL_OF_ROOM = "wss://example.com/ws/room";
const RESUME = { resume: { token: "a token", window: 30 } };
const EXPIRED = { status: 401, reason: "the token has expired" };
const CHANGED = { status: 401, reason: "the token's signature is wrong" };

const letPass = useFakePage();

/** Lets promises go on: those of a body need a few turns. */
async function settle() {
  for (let turn = 0; turn < 5; turn++) await new Promise((done) => setImmediate(done));
}

async function pass(ms) {
  letPass(ms);
  await settle();
}

/** Joins; returns the signaling and its `refused` and `statechange` events. */
async function joined(options, url = URL_OF_ROOM) {
  const signaling = join(url, options);
  const [refused, states] = [[], []];
  signaling.addEventListener("refused", ({ detail }) => refused.push(detail));
  signaling.addEventListener("statechange", ({ detail }) => states.push(detail));
  await settle();
  return { signaling, refused, states };
}

/** A function that returns t1, t2 and so on, and how often it was asked. */
function counting() {
  const token = mock.fn(() => `t${token.mock.callCount() + 1}`);
  return { token, asked: () => token.mock.callCount() };
}

const presented = () => sockets.map(({ protocols }) => protocols[1]?.replace("signaling.bearer.", ""));

async function lose(code = 1006, reason = "") {
  sockets.at(-1).lose(code, reason);
  await settle();
}

async function open(extra, ...ids) {
  sockets.at(-1).accept();
  sockets.at(-1).receive(welcome("me", extra), list(...ids));
  await settle();
}

// -- Presenting --

test("a token is a subprotocol, and never part of the URL", async () => {
  await joined({ token: "a.b-c_d~e+f" });
  assert.deepEqual(sockets[0].protocols, ["signaling", "signaling.bearer.a.b-c_d~e+f"]);
  assert.equal(sockets[0].url.searchParams.has("token"), false);
});

test("without a token there are no subprotocols", async () => {
  await joined();
  assert.deepEqual(sockets[0].protocols, []);
});

test("what cannot be a token is a TypeError at once", () => {
  for (const token of ["", "a b", "a/b", "a=", "é", "a\n", null, 5, {}]) {
    assert.throws(() => join(URL_OF_ROOM, { token }), { name: "TypeError" }, `${token}`);
  }
  assert.throws(() => join(`${URL_OF_ROOM}?token=x`, { token: "y" }), { name: "TypeError", message: /two tokens/ });
  assert.equal(sockets.length, 0);
});

test("a function is asked before every attempt", async () => {
  const { token } = counting();
  await joined({ token: async () => token() });
  for (let attempt = 0; attempt < 2; attempt++) {
    await lose();
    await pass(60_000);
  }
  assert.deepEqual(presented(), ["t1", "t2", "t3"]);
});

test("a function that fails is a failed attempt, and statechange says why", async () => {
  const failures = [
    () => { throw new Error("no network"); },
    () => Promise.reject("signed out"),
    () => undefined,
    () => "not a token",
    () => new Promise(() => {}),
  ];
  for (const token of failures) {
    const { states } = await joined({ token });
    await pass(15_000);
    assert.equal(states.at(-1).state, "waiting");
    assert.match(states.at(-1).reason, /^the token function failed: (no network|signed out|not a token|.* in time)/);
    assert.doesNotMatch(states.at(-1).reason, /not a token"/);
  }
  assert.deepEqual([sockets.length, checks.length], [0, 0]);
});

test("a function may throw anything", async () => {
  for (const thrown of [undefined, null, 5, Symbol("x"), Object.create(null), { message: Object.create(null) }]) {
    const { signaling, states } = await joined({ token: () => Promise.reject(thrown) });
    assert.equal(signaling.state, "waiting");
    assert.match(states[0].reason, /^the token function failed: /);
    signaling.leave();
  }
});

test("a function that fails is asked again with backoff, ten times before the first connection", async () => {
  const token = mock.fn(() => Promise.reject(new Error("no network")));
  const { signaling } = await joined({ token });
  for (let minute = 0; minute < 20; minute++) await pass(60_000);
  assert.equal(token.mock.callCount(), 10);
  await assert.rejects(signaling.ready, /no connection in 10 attempts.*no network/);
});

test("a client that leaves while the function is asked makes no connection", async () => {
  let answer;
  const { signaling } = await joined({ token: () => new Promise((done) => (answer = done)) });
  signaling.leave();
  answer("late");
  await pass(60_000);
  assert.deepEqual([signaling.state, sockets.length], ["closed", 0]);
});

// -- Why not? --

test("the check has the query of the attempt and its token, but not the session", async () => {
  await joined({ token: "secret" }, `${URL_OF_ROOM}?x=1`);
  await open(RESUME);
  await lose();
  await pass(60_000);
  assert.equal(checks.length, 0);
  await lose();
  const [{ url, token }] = checks;
  const { url: attempted } = sockets[0];
  assert.equal(url.href, `${attempted.href.replace("wss:", "https:")}&check=`);
  assert.equal(token, "Bearer secret");
});

test("a request that is refused for good ends the client with the server's reason", async () => {
  for (const status of [400, 404, 421, 403, 401]) {
    const before = sockets.length;
    const answer = { status, reason: `why ${status}` };
    globalThis.fetch = fakeFetch(() => answer);
    const { signaling, refused, states } = await joined({ token: "t" });
    await lose();
    await pass(600_000);
    assert.deepEqual(refused, [answer]);
    assert.deepEqual(states.at(-1), { state: "closed", reason: `why ${status}`, code: 1006 });
    await assert.rejects(signaling.ready, { message: `why ${status}`, status });
    assert.equal(sockets.length, before + 1);
  }
});

test("a refused token is asked for once more, at once, before the client ends", async () => {
  globalThis.fetch = fakeFetch(() => CHANGED);
  const { token } = counting();
  const { refused } = await joined({ token });
  await lose();
  assert.deepEqual([presented(), refused], [["t1", "t2"], []]);
  await lose();
  await pass(600_000);
  assert.deepEqual([presented(), refused], [["t1", "t2"], [CHANGED]]);
  assert.deepEqual(checks.map(({ token: checked }) => checked), ["Bearer t1", "Bearer t2"]);
});

test("a token that is right the second time is not the last one that may be refused", async () => {
  globalThis.fetch = fakeFetch(() => CHANGED);
  const { token } = counting();
  const { signaling, refused } = await joined({ token });
  for (let round = 0; round < 3; round++) {
    await lose();
    await open();
    await lose();
    await pass(60_000);
  }
  assert.deepEqual([signaling.state, refused], ["connecting", []]);
});

test("the server is asked once for a streak of failures, and again after five minutes or a sign of a network", async () => {
  await joined();
  await open();
  await lose();
  for (let attempt = 0; attempt < 5; attempt++) {
    await pass(30_000);
    await lose();
  }
  assert.equal(checks.length, 1);
  for (let attempt = 0; attempt < 6; attempt++) {
    await pass(30_000);
    await lose();
  }
  assert.equal(checks.length, 2);
  dispatchEvent(new Event("online"));
  await lose();
  assert.equal(checks.length, 3);
});

test("a server that is too busy is left alone for as long as it asks", async () => {
  for (const status of [429, 503]) {
    const answer = { status, reason: "too many connections", retryAfter: 120 };
    globalThis.fetch = fakeFetch(() => answer);
    const { signaling, refused, states } = await joined();
    await lose();
    const before = sockets.length;
    await pass(119_000);
    dispatchEvent(new Event("online"));
    assert.deepEqual([sockets.length, refused], [before, [answer]]);
    assert.deepEqual(states.at(-1), { state: "waiting", reason: answer.reason, code: 1006, retryInMs: 120_000 });
    await pass(1_000);
    assert.equal(sockets.length, before + 1);
    await lose();
    await pass(119_000);
    assert.equal(sockets.length, before + 1);
    signaling.leave();
  }
});

test("a server that says that it is busy is waited for as long as it takes", async () => {
  for (const status of [429, 503]) {
    globalThis.fetch = fakeFetch(() => ({ status, reason: "the server is full" }));
    const { signaling, refused } = await joined();
    for (let attempt = 0; attempt < 50; attempt++) {
      await lose();
      await pass(30_000);
    }
    assert.equal(signaling.state, "connecting");
    assert.ok(refused.length < 10, `${refused.length} events`); // One in five minutes.
    signaling.leave();
  }
});

test("a server that says no more how long it is busy is tried again with backoff", async () => {
  const answers = [{ status: 503, reason: "later", retryAfter: 600 }];
  globalThis.fetch = fakeFetch(() => answers.shift());
  const { states } = await joined();
  await lose();
  await pass(600_000);
  await lose();
  assert.ok(states.at(-1).retryInMs <= 30_000, `${states.at(-1).retryInMs} ms`);
});

test("a server cannot send a client away for longer than an hour", async () => {
  globalThis.fetch = fakeFetch(() => ({ status: 503, reason: "later", retryAfter: 1e300 }));
  const { states } = await joined();
  await lose();
  assert.equal(states.at(-1).retryInMs, 3_600_000);
});

test("an answer that is not the server's own changes nothing", async () => {
  const answers = [
    new Response("<h1>Not found</h1>", { status: 404 }),
    new Response("null", { status: 404 }),
    Response.json({ status: 404, reason: "x" }, { status: 200 }),
    Response.json({ status: 404, reason: { toString: 1 } }, { status: 404 }),
    Response.json({ status: 404, reason: "x".repeat(10_000) }, { status: 404 }),
    Response.json({ status: 200, reason: "ok" }),
    new Response(null, { status: 404 }),
  ];
  for (const answer of answers) {
    globalThis.fetch = fakeFetch(() => answer);
    const { signaling, refused } = await joined();
    await lose();
    assert.deepEqual([signaling.state, refused], ["waiting", []]);
    const before = sockets.length;
    await pass(500);
    assert.equal(sockets.length, before + 1);
  }
});

test("of an answer without an end a few kilobytes are read", async () => {
  let pulled = 0;
  const endless = new ReadableStream({
    pull(controller) {
      pulled++;
      controller.enqueue(new Uint8Array(1_000).fill(32));
    },
  });
  globalThis.fetch = fakeFetch(() => new Response(endless, { status: 404 }));
  const { signaling } = await joined();
  await lose();
  await pass(500);
  assert.equal(signaling.state, "connecting");
  assert.ok(pulled < 10, `${pulled} chunks`);
});

test("a server that never answers the check delays the next attempt by five seconds at most", async () => {
  globalThis.fetch = (_, { signal }) =>
    new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  const { states } = await joined();
  await lose();
  await pass(4_999);
  assert.equal(sockets.length, 1);
  await pass(1);
  await pass(0);
  assert.equal(sockets.length, 2);
  assert.deepEqual(states.map(({ state }) => state), ["waiting", "connecting"]);
});

test("a connection that the server accepted is not asked about", async () => {
  await joined();
  sockets[0].accept();
  await lose(1013);
  await pass(60_000);
  sockets[1].accept();
  await lose();
  assert.equal(checks.length, 0);
});

test("without reconnecting the check still says why", async () => {
  const answer = { status: 503, reason: "the server is full", retryAfter: 5 };
  globalThis.fetch = fakeFetch(() => answer);
  const { signaling, refused } = await joined({ reconnect: false });
  await lose();
  assert.deepEqual([signaling.state, refused], ["closed", [answer]]);
  await assert.rejects(signaling.ready, { message: "the server is full", status: 503 });
});

test("without reconnecting the first token is asked for anew all the same, once", async () => {
  globalThis.fetch = fakeFetch(() => CHANGED);
  const { token } = counting();
  const { signaling, refused } = await joined({ token, reconnect: false });
  await lose();
  assert.deepEqual([presented(), refused, signaling.state], [["t1", "t2"], [], "connecting"]);
  await lose();
  await pass(600_000);
  assert.deepEqual([presented(), refused, signaling.state], [["t1", "t2"], [CHANGED], "closed"]);
});

test("without reconnecting an expired token is the end", async () => {
  const { signaling, refused } = await joined({ token: counting().token, reconnect: false });
  await open(RESUME);
  await lose(4401, "token expired");
  await pass(600_000);
  assert.deepEqual([presented(), refused, signaling.state], [["t1"], [EXPIRED], "closed"]);
});

// -- Expiry --

test("a string that has expired is refused once, without another request", async () => {
  const { signaling, refused, states } = await joined({ token: "t" });
  await open(RESUME);
  await lose(4401, "token expired");
  await pass(600_000);
  assert.deepEqual([refused, sockets.length, checks.length], [[EXPIRED], 1, 0]);
  assert.deepEqual(states.at(-1), { state: "closed", reason: EXPIRED.reason, code: 4401 });
  assert.equal(signaling.state, "closed");
});

test("with a function an expired token is replaced at once, and the session goes on", async () => {
  const { token } = counting();
  const { signaling, refused, states } = await joined({ token });
  await open(RESUME, "a");
  await pass(5_000);
  await lose(4401, "token expired");
  assert.deepEqual([presented(), signaling.state], [["t1", "t2"], "connecting"]);
  assert.match(sockets[1].url.search, /&resume=a%20token&seen=2$/);
  await open({ resumed: true }, "a");
  assert.deepEqual(refused, []);
  assert.deepEqual(states.map(({ state }) => state), ["open", "connecting", "open"]);
});

test("if the token after an expired one is refused as well, that is the end", async () => {
  globalThis.fetch = fakeFetch(() => CHANGED);
  const { token } = counting();
  const { refused } = await joined({ token });
  await open();
  await pass(5_000);
  await lose(4401);
  await lose();
  await pass(600_000);
  assert.deepEqual([presented(), refused], [["t1", "t2"], [CHANGED]]);
});

test("tokens that expire soon after they were presented make no storm", async () => {
  for (const lastedMs of [0, 1_500, 4_900]) {
    sockets.length = 0;
    const { signaling } = await joined({ token: counting().token });
    if (lastedMs >= 1_000) {
      await open();
      await pass(lastedMs);
      await lose(4401); // Once it connects again at once.
    }
    const first = sockets.length;
    for (let attempt = 0; attempt < 20; attempt++) {
      await open();
      await pass(lastedMs);
      await lose(4401);
      const { length } = sockets;
      await pass(0);
      assert.equal(sockets.length, length);
      await pass(30_000);
    }
    assert.equal(sockets.length, first + 20);
    signaling.leave();
  }
});

// -- Renewal --

/** Joins with a function and a token that expires. */
async function expiring(expiresIn, token = counting().token) {
  const made = await joined({ token });
  const heard = [];
  for (const type of ["received", "sent", "error", "token"]) {
    made.signaling.addEventListener(type, ({ detail }) => heard.push(detail.type));
  }
  await open({ ...RESUME, expiresIn });
  heard.length = 0;
  return { ...made, heard };
}

const answer = (extra) => sockets.at(-1).receive({ msgId: sockets.at(-1).tokens.at(-1).msgId, ...extra });

test("a token is renewed at four fifths of its time, and so is the next one", async () => {
  const { heard } = await expiring(10);
  await pass(7_999);
  assert.deepEqual(sockets[0].tokens, []);
  await pass(1);
  answer({ type: "token", expiresIn: 20 });
  await pass(15_999);
  assert.equal(sockets[0].tokens.length, 1);
  await pass(1);
  assert.deepEqual(sockets[0].tokens.map(({ token }) => token), ["t2", "t3"]);
  assert.deepEqual(heard, []);
});

test("a token without an end is not renewed, nor is a string", async () => {
  await expiring(10);
  await pass(8_000);
  answer({ type: "token" });
  await pass(600_000);
  assert.equal(sockets[0].tokens.length, 1);
  await joined({ token: "t" });
  await open({ expiresIn: 10 });
  await pass(10_000);
  assert.equal(sockets.at(-1).tokens.length, 0);
});

test("a renewal that fails is repeated while there is time", async () => {
  const token = mock.fn(() => "t1");
  const { heard } = await expiring(100, token);
  token.mock.mockImplementationOnce(() => Promise.reject(new Error("no network")), 1);
  await pass(80_000);
  assert.deepEqual([token.mock.callCount(), sockets[0].tokens.length], [2, 0]);
  await pass(4_000);
  answer({ type: "error", code: "invalid_token", message: "the signature is wrong" });
  await pass(16_000);
  const { length } = sockets[0].tokens;
  assert.ok(length >= 2 && length < 10, `${length} tokens`);
  assert.deepEqual(heard, ["error", "error"]);
});

test("the reason of a renewal that fails is an error event", async () => {
  const token = mock.fn(() => "t1");
  const { signaling } = await expiring(100, token);
  const errors = [];
  signaling.addEventListener("error", ({ detail: { code, message } }) => errors.push([code, message]));
  token.mock.mockImplementationOnce(() => Promise.reject(new Error("no network")), 1);
  await pass(80_000);
  await pass(4_000);
  answer({ type: "error", code: "invalid_token", message: "the signature is wrong" });
  const reasons = ["the token function failed: no network", "the signature is wrong"];
  assert.deepEqual(errors, reasons.map((reason) => ["invalid_token", reason]));
});

test("a listener that leaves after a failed renewal ends all of them", async () => {
  const token = mock.fn(() => "t1");
  const { signaling } = await expiring(100, token);
  signaling.addEventListener("error", () => signaling.leave());
  token.mock.mockImplementation(() => Promise.reject(new Error("no network")));
  await pass(600_000);
  assert.equal(token.mock.callCount(), 2);
});

test("however short a time is, a token is renewed once a second at most", async () => {
  for (const expiresIn of [0, 0.001, 1]) {
    const { signaling } = await expiring(expiresIn);
    for (let second = 0; second < 10; second++) {
      await pass(1_000);
      assert.equal(sockets.at(-1).tokens.length, second + 1);
      answer({ type: "token", expiresIn });
    }
    signaling.leave();
  }
});

test("a time that is no number of seconds is none, and a very long one is no short one", async () => {
  for (const expiresIn of [null, "5", -1, {}, 1e300]) {
    await expiring(expiresIn);
    await pass(10_000_000);
    assert.deepEqual(sockets.at(-1).tokens, [], `${expiresIn}`);
  }
});

test("a connection that was lost renews nothing, and the next one does", async () => {
  const { token, asked } = counting();
  await expiring(10, token);
  await lose();
  await pass(7_900);
  await open({ resumed: true, expiresIn: 100 });
  await pass(20_000);
  assert.equal(asked(), 2);
  await pass(60_000);
  assert.deepEqual(sockets.at(-1).tokens.map(({ token: sent }) => sent), ["t3"]);
});

test("a peer's message that has the msgId of a renewal is passed on, and the renewal goes on", async () => {
  const { heard } = await expiring(10);
  await pass(8_000);
  answer({ type: "offer", from: "a" });
  assert.deepEqual(heard, ["offer"]);
  heard.length = 0;
  answer({ type: "token", expiresIn: 10 });
  await pass(8_000);
  assert.equal(sockets[0].tokens.length, 2);
  assert.deepEqual(heard, []);
});

test("the answers to tokens count as messages of the session", async () => {
  await expiring(10);
  await pass(8_000);
  answer({ type: "token", expiresIn: 1_000 });
  await lose();
  await pass(60_000);
  assert.match(sockets[1].url.search, /&seen=3$/);
});

// -- Removed by an operator --

const DISMISSALS = [[4403, /removed this peer/], [4404, /closed the topic/]];

test("a peer that an operator removed stays away, with any token, and says why", async () => {
  for (const [code, unexplained] of DISMISSALS) {
    for (const options of [undefined, { token: "t" }, counting()]) {
      for (const reason of ["", "<b>Enough</b>", "x".repeat(100_000)]) {
        const { signaling, refused, states } = await joined(options);
        await open(RESUME);
        const { length } = sockets;
        await lose(code, reason);
        for (const type of ["online", "pageshow"]) dispatchEvent(new Event(type));
        await pass(600_000);
        assert.deepEqual([sockets.length, refused.length, signaling.state], [length, 1, "closed"]);
        assert.equal(refused[0].status, code);
        if (reason) assert.equal(refused[0].reason, reason.slice(0, 500));
        else assert.match(refused[0].reason, unexplained);
        assert.deepEqual(states.at(-1), { state: "closed", reason: refused[0].reason, code });
      }
    }
  }
  assert.equal(checks.length, 0);
});

test("a peer that is removed before its list learns that from `ready`", async () => {
  for (const [code] of DISMISSALS) {
    const { signaling } = await joined();
    sockets.at(-1).receive(welcome("me"));
    await lose(code, "Enough");
    await assert.rejects(signaling.ready, { message: "Enough", status: code });
  }
});

// -- Another WebSocket --

test("the option WebSocket is used instead of the global one", async () => {
  globalThis.WebSocket = undefined;
  assert.throws(() => join(URL_OF_ROOM), { name: "TypeError", message: /no WebSocket here/ });
  await joined({ WebSocket: FakeSocket, token: "t" });
  assert.deepEqual(presented(), ["t"]);
});

test("a status in the error of a socket counts if the check does not explain it", async () => {
  const { token } = counting();
  const { refused } = await joined({ token });
  for (let attempt = 0; attempt < 2; attempt++) {
    const message = "Unexpected server response: 401";
    sockets.at(-1).dispatchEvent(Object.assign(new Event("error"), { message }));
    await lose();
  }
  await pass(600_000);
  assert.deepEqual(presented(), ["t1", "t2"]);
  assert.deepEqual([refused, checks.length], [[{ status: 401, reason: "the server refuses (HTTP 401)" }], 2]);
});

test("a program with a status in the error of a socket learns the reason and when to come back", async () => {
  const full = { status: 503, reason: "the server is full", retryAfter: 100 };
  globalThis.fetch = fakeFetch(() => full);
  const { refused } = await joined({});
  const { length } = sockets;
  sockets.at(-1).dispatchEvent(Object.assign(new Event("error"), { message: "Unexpected server response: 503" }));
  await lose();
  await pass(99_000);
  assert.deepEqual([refused, sockets.length], [[full], length]);
});

test("a socket that cannot be made is a failed attempt, except the first one", async () => {
  class Failing extends FakeSocket {
    constructor(...given) {
      super(...given);
      if (sockets.length > 1) throw new Error("too many sockets");
    }
  }
  const { signaling, states } = await joined({ WebSocket: Failing });
  await lose();
  await pass(60_000);
  assert.deepEqual([signaling.state, states.at(-1).reason], ["waiting", "too many sockets"]);
  assert.throws(() => join(URL_OF_ROOM, { WebSocket: Failing }), /too many sockets/);
});
