// What a stranger may send to a page, as a peer or as a server: nothing of it costs the page or the other peers anything.

import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

import { attribute, jsonBytes, oneLine, readable, said, summary } from "../../signaling/static/demo-text.js";
import { join, Mesh } from "../../signaling/static/signaling.js";
import { connections, FakeConnection, FakeSocket, list, sockets, welcome } from "./fakes.mjs";

const RESUME = { resume: { token: "a token", window: 30 } };
const RESUMED = { resume: { token: "another token", window: 30 }, resumed: true };

let now;

beforeEach(() => {
  sockets.length = connections.length = 0;
  now = 0;
  globalThis.WebSocket = FakeSocket;
  globalThis.RTCPeerConnection = FakeConnection;
  mock.timers.enable({ apis: ["setTimeout"] });
  mock.method(Math, "random", () => 0);
  mock.method(performance, "now", () => now);
});

afterEach(() => {
  mock.timers.reset();
  mock.restoreAll();
});

/** Lets promises go on. */
const settle = () => new Promise((done) => setImmediate(done));

async function pass(ms, step = ms) {
  for (let passed = 0; passed < ms; passed += step) {
    now += step;
    mock.timers.tick(step);
    await settle();
  }
}

/** Joins a topic as "m", with a mesh; returns both, what failed, and a function by which the server says something. */
function meet(peers, { extra, mesh: options, url = "wss://example.com/ws/room" } = {}) {
  const signaling = join(url);
  const mesh = new Mesh(signaling, options);
  const failed = [];
  mesh.addEventListener("error", ({ detail }) => failed.push(`${detail.peerId}: ${detail.error.message}`));
  sockets.at(-1).receive(welcome("m", extra), { type: "peer-list", peers });
  return { signaling, mesh, failed, say: (...messages) => sockets.at(-1).receive(...messages) };
}

const shows = (id, instance) => ({ id, metadata: { instance } });
const joins = (id, instance) => ({ type: "peer-joined", peerId: id, ...(instance && { metadata: { instance } }) });
const leaves = (id) => ({ type: "peer-left", peerId: id });
const sdp = (certificate, rest = "") => `v=0\r\na=fingerprint:sha-256 ${certificate}\r\na=ice-ufrag:one\r\n${rest}`;
const offer = (from, certificate, rest) => ({ type: "offer", from, payload: { type: "offer", sdp: sdp(certificate, rest) } });
const candidate = (from, payload) => ({ type: "ice-candidate", from, payload });
const alive = () => connections.filter(({ connectionState }) => connectionState !== "closed");

// -- Time --

const PRINTABLE = Array.from({ length: 95 }, (_, index) => String.fromCharCode(32 + index));
const PATTERNS = [
  ...PRINTABLE, "\t", "\r", "\n", "\r\n", " \n", "é", "\u2028", "m=a 0\n", "m= ", "a=fingerprint: ", "a=fingerprint:\n",
  "a=ice-ufrag: ", "a=bundle-only\n", "candidate:", "1 ", "udp 1 ", " typ host", "~1", "fence 1 ",
];
const description = (text) => ({ type: "offer", payload: { type: "offer", sdp: text } });
const names = { of: (id) => id };

/** Where a peer's text is read: name -> (a text) -> what reads it. */
const READERS = {
  "a certificate": (text) => hears(offer("a", `${text}x`)),
  "after a certificate": (text) => hears(offer("a", "1", `${text}x`)),
  "before a certificate": (text) => hears({ type: "offer", from: "a", payload: { sdp: `${text}x\r\n${sdp("1")}` } }),
  "without a certificate": (text) => hears({ type: "answer", from: "a", payload: { sdp: `a=fingerprint${text}` } }),
  "a path": (text) => hears({ type: "offer", from: "a", payload: { sdp: `${sdp("1").replace("one", text)}x` } }),
  "a candidate": (text) => hears(candidate("a", { candidate: text })),
  "a number": (text) => hears({ ...candidate("a"), msgId: `~${text}` }),
  "a fence": (text) => hears({ ...candidate("a"), msgId: `fence ${text}` }),
  "a fence's number": (text) => hears({ ...candidate("a"), msgId: `fence 1 ${text}` }),
  "a type": (text) => hears({ type: text, from: "a" }),
  "metadata": (text) => hears({ ...joins(`b${Math.random()}`, text), text }),
  "the demo: a description": (text) => [summary(description(text), names), readable(description(text))],
  "the demo: a media line": (text) => summary(description(`m=${text}x`), names),
  "the demo: a port": (text) => summary(description(`m=audio ${text}x`), names),
  "the demo: a path": (text) => attribute(`a=ice-ufrag:${text}x`, "ice-ufrag"),
  "the demo: a candidate": (text) => summary(candidate("a", { candidate: `candidate:${text}x` }), names),
  "the demo: a candidate's port": (text) => summary(candidate("a", { candidate: `candidate:1 1 udp ${text}x` }), names),
  "the demo: a candidate's address": (text) => summary(candidate("a", { candidate: `candidate:1 1 udp 1 ${text}x` }), names),
  "the demo: a name": (text) => [oneLine(`${text}x`, 40), oneLine(text, 64_000)],
  "the demo: a payload": (text) => [jsonBytes(candidate("a", text)), readable(candidate("a", { text }))],
  "the demo: a line of the chat": (text) => [said(text), said(`{"text":"${text}`)],
};

let hears;

/** The CPU time of a reading, in microseconds: the least of some, as a busy machine only adds. */
async function cost(reads, text, times) {
  let least = Infinity;
  for (let time = 0; time < times; time++) {
    connections.length = 0;
    const before = process.cpuUsage();
    reads(text);
    await settle();
    const { user, system } = process.cpuUsage(before);
    least = Math.min(least, user + system);
  }
  return least;
}

test("whatever a peer writes is read in a time proportional to its length", async () => {
  const { say } = meet([{ id: "a" }]);
  hears = say;
  const FLOOR = 4_000; // below which nothing is told from noise
  const LENGTH = 20_000;
  const slow = [];
  for (const [place, reads] of Object.entries(READERS)) {
    for (const pattern of PATTERNS) {
      const [half, whole] = [1, 2].map((times) => pattern.repeat((times * LENGTH) / pattern.length));
      const costs = async (times) => [await cost(reads, half, times), await cost(reads, whole, times)];
      const isSlow = ([one, two]) => two > FLOOR && two > 3 * one;
      if ((await cost(reads, whole, 1)) <= FLOOR) continue;
      const measured = await costs(3);
      if (isSlow(measured) && isSlow(await costs(9))) slow.push(`${place}: ${JSON.stringify(pattern)} ${measured}`);
    }
  }
  assert.deepEqual(slow, []);
});

// -- Forms --

test("metadata is an object, whatever the server shows of a peer", () => {
  const { signaling, mesh, say } = meet([{ id: "a" }, { id: "b", metadata: null }, { id: "c", metadata: "x" }]);
  const heard = [];
  signaling.addEventListener("peer-joined", ({ detail }) => heard.push(detail.metadata));
  say(joins("d"));
  assert.deepEqual([...signaling.peers.values()], [{}, {}, {}, {}]);
  assert.deepEqual([...mesh.peers.values()].map(({ metadata }) => metadata.name), Array(4).fill(undefined));
  assert.deepEqual(heard, [{}]);
});

// -- Ends --

const isText = (payload) => typeof payload === "string";

const jwt = (exp) => `x.${btoa(JSON.stringify({ exp, sub: "ÿ>?" }))}.x`.replaceAll("+", "-").replaceAll("/", "_");
const withToken = (token) => `wss://example.com/ws/room?token=${token}`;

/** Joins; returns the signaling, and why it closed once it has. */
function watched(url) {
  const signaling = join(url);
  const ends = [];
  signaling.addEventListener("statechange", ({ detail }) => detail.state === "closed" && ends.push(detail));
  return { signaling, ends };
}

test("a token that expires on an open connection is the end", async () => {
  const { signaling, ends } = watched(withToken("opaque"));
  sockets[0].receive(welcome("m"), list());
  sockets[0].lose(4401, "token expired");
  await pass(600_000, 30_000);
  assert.deepEqual([ends, sockets.length], [[{ state: "closed", reason: "the token has expired", code: 4401 }], 1]);
  assert.equal(signaling.state, "closed");
});

test("a JWT that has expired is not presented again once the server does not take it", async () => {
  mock.method(Date, "now", () => 2_000_000);
  const { signaling, ends } = watched(withToken(jwt(2_001)));
  sockets[0].receive(welcome("m"), list());
  Date.now.mock.mockImplementation(() => 2_002_000);
  sockets[0].lose();
  await pass(1_000);
  assert.equal(signaling.state, "connecting");
  sockets[1].lose();
  assert.deepEqual(ends.map(({ reason }) => reason), ["the token has expired"]);
});

test("a page whose server does not answer goes on while its token is good, and for ever without", async () => {
  for (const url of [withToken(jwt(1e10)), withToken("opaque"), "wss://example.com/ws/room"]) {
    const { signaling } = watched(url);
    sockets.at(-1).receive(welcome("m"), list());
    for (let attempt = 0; attempt < 100; attempt++) {
      sockets.at(-1).lose();
      await pass(30_000);
    }
    assert.equal(signaling.state, "connecting");
  }
});

test("a first connection that is refused ten times is the end", async () => {
  const { signaling, ends } = watched("wss://example.com/ws/room");
  for (let attempt = 0; attempt < 20; attempt++) {
    sockets.at(-1).lose();
    await pass(30_000);
  }
  assert.equal(sockets.length, 10);
  assert.match(ends[0].reason, /^no connection in 10 attempts/);
  await assert.rejects(signaling.ready, /no connection in 10 attempts/);
});

test("a page waits for a place in a full topic as long as it likes", async () => {
  const { signaling } = watched("wss://example.com/ws/room");
  for (let attempt = 0; attempt < 20; attempt++) {
    sockets.at(-1).receive({ type: "error", code: "topic_full", message: "the topic is full" });
    sockets.at(-1).lose(attempt % 2 ? 1006 : 1013);
    await pass(30_000);
  }
  assert.equal(signaling.state, "connecting");
});

test("a status that a program in Node is told of is the end if it speaks of the request", async () => {
  const refuse = (status) => {
    const made = watched("wss://example.com/ws/room");
    const message = `Unexpected server response: ${status}`;
    sockets.at(-1).dispatchEvent(Object.assign(new Event("error"), { message }));
    sockets.at(-1).lose();
    return made.signaling.state;
  };
  assert.deepEqual([400, 401, 403, 404].map(refuse), Array(4).fill("closed"));
  assert.deepEqual([408, 429, 500, 503].map(refuse), Array(4).fill("waiting"));
});

test("a message that is too large is an error, is never sent, and does no harm to what comes after it", async () => {
  for (const extra of [{}, RESUME]) {
    const { signaling, say } = meet([{ id: "a" }], { extra });
    const errors = [];
    signaling.addEventListener("error", ({ detail }) => errors.push([detail.code, detail.msgId]));
    const longest = 65_536 - JSON.stringify({ type: "offer", to: "a", payload: "", msgId: "1" }).length;
    signaling.send("offer", "a", "x".repeat(longest), "1");
    signaling.send("offer", "a", "x".repeat(longest + 1), "2");
    signaling.send("offer", "a", "é".repeat(longest / 2 + 1), "3");
    const own = signaling.send("offer", "a", "x".repeat(70_000));
    signaling.send("offer", "a", "after", "4");
    await settle();
    assert.deepEqual(errors, [["too_large", "2"], ["too_large", "3"], ["too_large", own]]);
    const sent = () => sockets.at(-1).sent.filter(({ payload }) => isText(payload)).map(({ msgId }) => msgId);
    assert.deepEqual(sent(), ["1", "4"]);
    sockets.at(-1).lose();
    await pass(60_000);
    say(welcome("m", extra === RESUME ? RESUMED : {}), list("a"));
    if (extra === RESUME) sockets.at(-1).echo();
    assert.deepEqual(sent(), extra === RESUME ? ["1", "4"] : []);
  }
});

// -- Memory --

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc");

test("thousands of reconnections leave nothing behind", async () => {
  const { say } = meet([]);
  const long = (number) => `${number}`.padStart(20_000, "x");
  const used = [];
  for (let number = 0; number < 2_000; number++) {
    sockets.at(-1).lose(1001);
    sockets.length = connections.length = 0;
    await pass(6_000);
    // The ghost of the former id, somebody who sends and leaves while this side is away, and one more who only sends.
    say(welcome(long(number), RESUME), list(long(number - 1)));
    say(joins(`a${long(number)}`), { ...candidate(`a${long(number)}`), msgId: "~1" });
    say({ ...candidate(`b${long(number)}`), msgId: "~1" });
    for (const { mock } of [Math.random, performance.now]) mock.resetCalls();
    if (number % 1_000 === 999) {
      collect();
      used.push(process.memoryUsage().heapUsed);
    }
  }
  const [half, whole] = used;
  assert.ok(whole - half < 4_000_000, `${whole - half} bytes more`);
});

test("connections to a server that is silent are closed but for the last few", async () => {
  meet([], { extra: RESUME });
  for (let number = 0; number < 200; number++) {
    sockets.at(-1).readyState = 1;
    await pass(15_000);
    await pass(30_000);
  }
  assert.ok(sockets.filter(({ closed }) => closed === undefined).length <= 5);
});
