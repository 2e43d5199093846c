// What a hostile peer or server may send to a page: nothing of it costs the page or the other peers anything.

import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

import { attribute, jsonBytes, oneLine, readable, said, summary } from "../../signaling/browser/demo/demo-text.js";
import { join, Mesh } from "../../signaling/browser/client/signaling.js";
import { connections, FakeConnection, list, sockets, useFakePage, welcome } from "./fakes.mjs";

const RESUME = { resume: { token: "a token", window: 30 } };
const RESUMED = { resume: { token: "another token", window: 30 }, resumed: true };

const letPass = useFakePage();
beforeEach(() => (globalThis.RTCPeerConnection = FakeConnection));

/** Lets promises go on. */
const nextTurn = () => new Promise((done) => setImmediate(done));

async function pass(ms, step = ms) {
  for (let passed = 0; passed < ms; passed += step) {
    letPass(step);
    await nextTurn();
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
  "other metadata": (text) => hears({ type: "peer-updated", peerId: "a", metadata: { text, [text]: "", instance: text } }),
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
    const before = process.cpuUsage();
    reads(text);
    await nextTurn();
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

const deep = (levels) => JSON.parse("[".repeat(levels) + "]".repeat(levels));
const ODD = [undefined, null, true, 5, "", "x", [], [null], [5], {}, { toString: 1 }, deep(3_000), JSON.parse('{"__proto__":{"id":"x"}}')];
const KEYS = {
  welcome: ["selfId", "iceServers", "resume", "resumed", "features"],
  "peer-list": ["peers"],
  "peer-joined": ["peerId", "metadata"],
  "peer-updated": ["peerId", "metadata"],
  "peer-left": ["peerId"],
  "ice-servers": ["iceServers"],
  notice: ["data", "from"],
  error: ["code", "message", "msgId"],
  offer: ["from", "payload", "msgId"],
  answer: ["from", "payload", "msgId"],
  "ice-candidate": ["from", "payload", "msgId"],
};
const COMMON = {
  selfId: "m", peers: [{ id: "a" }], peerId: "b", iceServers: [], code: "dropped", message: "", from: "a", payload: { sdp: sdp("1") },
};

/** Every message of the protocol with every key of every wrong kind, and what is no message at all. */
function* oddTexts() {
  yield* ["", "x", "null", "5", "[]", "{", '"text"', "[".repeat(60_000), '{"type":"constructor"}', '{"type":"__proto__","from":"a"}'];
  for (const odd of ODD) yield JSON.stringify({ type: odd }) ?? "";
  for (const [type, keys] of Object.entries(KEYS)) {
    for (const key of keys) for (const odd of ODD) yield JSON.stringify({ type, ...COMMON, [key]: odd });
  }
  for (const odd of ODD) {
    yield JSON.stringify({ type: "peer-list", peers: [odd, { id: odd }, { id: "a", metadata: odd }] });
    yield JSON.stringify({ type: "welcome", selfId: "m", resume: { token: odd } });
    yield JSON.stringify({ type: "welcome", selfId: "m", features: [odd, "notices"] });
    yield JSON.stringify({ type: "welcome", selfId: "m", resume: { token: "\ud800" } });
    yield JSON.stringify({ type: "ice-servers", iceServers: [odd, { urls: odd }] });
    for (const type of ["offer", "answer"]) {
      yield JSON.stringify({ type, from: "a", payload: { sdp: odd } });
      yield JSON.stringify({ type, from: "nobody", payload: { sdp: sdp("1") } });
    }
  }
}

test("messages of any form throw nothing, and leave the client as it was", async () => {
  const { signaling, mesh } = meet([{ id: "a" }]);
  const said = [];
  signaling.addEventListener("received", ({ detail }) => said.push(summary(detail, names), readable(detail), jsonBytes(detail)));
  for (const text of oddTexts()) {
    sockets.at(-1).receiveText(text);
    await nextTurn();
    if (!/^{"type":"(welcome|peer-list)"/.test(text)) continue;
    sockets.at(-1).lose();
    await pass(60_000);
    if (text.startsWith('{"type":"peer-list"')) sockets.at(-1).receive(welcome("m"));
    sockets.at(-1).receiveText(text);
    await nextTurn();
    sockets.at(-1).receive(welcome("m"), list("a"));
  }
  sockets.at(-1).lose();
  await pass(60_000);
  sockets.at(-1).receive(welcome("m"), list("a", "z"), offer("z", "9"));
  await nextTurn();
  assert.deepEqual([...signaling.peers.keys()], ["a", "z"]);
  assert.equal(mesh.peers.get("z").certificate, "sha-256 9");
  sockets.at(-1).lose();
  await pass(60_000);
  sockets.at(-1).receive(welcome("m"), list("a"));
  assert.equal(signaling.state, "open");
});

test("a second welcome or list of a connection is ignored, and so is what comes before the first", () => {
  const { signaling, say } = meet([{ id: "a" }], { extra: RESUME });
  signaling.send("offer", "a", 1);
  signaling.send("offer", "a", 2);
  say(welcome("another", RESUME), list("b"));
  assert.equal(signaling.selfId, "m");
  assert.deepEqual([...signaling.peers.keys()], ["a"]);
  sockets.at(-1).echo();
  sockets.at(-1).echo();
  signaling.send("offer", "a", 3);
  assert.deepEqual(sockets.at(-1).texts, [1, 2, 3]);
  const early = join("wss://example.com/ws/room");
  const told = [];
  for (const type of ["received", "offer", "peer-list", "peer-joined"]) early.addEventListener(type, () => told.push(type));
  say(list("a"), offer("a", "1"), joins("b"));
  assert.equal(early.state, "connecting");
  assert.deepEqual(told, []);
});

test("metadata is an object, whatever the server shows of a peer", () => {
  const { signaling, mesh, say } = meet([{ id: "a" }, { id: "b", metadata: null }, { id: "c", metadata: "x" }]);
  const heard = [];
  signaling.addEventListener("peer-joined", ({ detail }) => heard.push(detail.metadata));
  say(joins("d"));
  assert.deepEqual([...signaling.peers.values()], [{}, {}, {}, {}]);
  assert.deepEqual([...mesh.peers.values()].map(({ metadata }) => metadata.name), Array(4).fill(undefined));
  assert.deepEqual(heard, [{}]);
});

test("of what a server says of peers, a bounded part is kept", () => {
  const crowd = Array.from({ length: 20_000 }, (_, index) => ({ id: `${index}` }));
  const { signaling, say } = meet(crowd);
  assert.equal(signaling.peers.size, 16_384);
  say(joins("one more"));
  assert.equal(signaling.peers.has("one more"), false);
  say(leaves("7"), joins("x".repeat(4_097)), joins("another"));
  assert.equal(signaling.peers.size, 16_384);
  assert.ok(signaling.peers.has("another"));
});

test("of the features of a welcome a bounded number of short names is kept", () => {
  const names = Array.from({ length: 100_000 }, (_, index) => `feature ${index}`);
  const { signaling } = meet([], { extra: { features: ["x".repeat(1_000), 5, null, "notices", ...names] } });
  assert.ok(signaling.features.has("notices"));
  assert.ok(signaling.features.size <= 64, `${signaling.features.size} names`);
  assert.equal(typeof [...signaling.features].find((name) => typeof name !== "string" || name.length > 64), "undefined");
});

test("of long metadata as much is kept as one list may have", () => {
  const { signaling, say } = meet([{ id: "first", metadata: { text: "x".repeat(16_000) } }]);
  const metadata = { text: "x".repeat(16_000) };
  for (let id = 0; id < 3_000; id++) say({ type: "peer-joined", peerId: `${id}`, metadata });
  const { size } = signaling.peers;
  assert.ok(size > 2_000 && size * 16_000 < 32 * 2 ** 20, `${size} peers`);
  say({ type: "peer-joined", peerId: "late", metadata }, leaves("first"), { type: "peer-joined", peerId: "next", metadata });
  assert.deepEqual([signaling.peers.has("late"), signaling.peers.has("next"), signaling.peers.size], [false, true, size]);
});

test("a flood of updates and notices changes nothing but what they name", async () => {
  const { signaling, mesh, say } = meet([{ id: "a" }], { extra: { features: ["metadata-updates"] } });
  const own = { ...signaling.metadata };
  const update = signaling.updateMetadata({ name: "Ada" });
  for (let number = 0; number < 1_000; number++) {
    say({ type: "peer-updated", peerId: `unknown ${number}`, metadata: { number } });
    say({ type: "peer-updated", peerId: "a", metadata: { number } }, { type: "notice", data: number });
  }
  assert.deepEqual([...signaling.peers], [["a", { number: 999 }]]);
  assert.deepEqual([...mesh.peers.keys()], ["a"]);
  assert.deepEqual(signaling.metadata, own);
  say({ type: "peer-updated", peerId: "m", metadata: "none" });
  assert.deepEqual(signaling.metadata, {});
  say({ type: "peer-updated", peerId: "m", metadata: { name: "Ada", instance: own.instance } });
  await update;
});

test("updated metadata takes no more room than that of a list", () => {
  const { signaling, say } = meet(Array.from({ length: 3_000 }, (_, id) => ({ id: `${id}` })));
  const text = "x".repeat(16_000);
  for (let id = 0; id < 3_000; id++) say({ type: "peer-updated", peerId: `${id}`, metadata: { text } });
  const long = [...signaling.peers.values()].filter((metadata) => metadata.text).length;
  assert.ok(long > 2_000 && long * 16_000 < 32 * 2 ** 20, `${long} peers`);
  say({ type: "peer-updated", peerId: "0", metadata: {} }, { type: "peer-updated", peerId: "2999", metadata: { text } });
  assert.equal(signaling.peers.get("2999").text, text);
});

test("metadata that is too long or too deep counts as none, and the peer is there all the same", () => {
  const metadata = [{ text: "x".repeat(20_000) }, { text: "x".repeat(16_000) }];
  const texts = metadata.map((value, index) => ({ type: "peer-joined", peerId: `${index}`, metadata: value }));
  const { signaling } = meet([]);
  const levels = (count) => "[".repeat(count) + "]".repeat(count);
  sockets[0].receive(...texts);
  sockets[0].receiveText(`{"type":"peer-joined","peerId":"2","metadata":{"deep":${levels(20_000)}}}`);
  assert.deepEqual([...signaling.peers].map(([id, { text }]) => [id, text?.length]), [["0", undefined], ["1", 16_000], ["2", undefined]]);
});

test("a message that is too long, or no text, is ignored", () => {
  const { signaling } = meet([{ id: "a" }]);
  const text = JSON.stringify(joins("b"));
  sockets[0].receiveText(text.padEnd(33 * 2 ** 20));
  sockets[0].receiveText({ toString: () => text });
  assert.deepEqual([...signaling.peers.keys()], ["a"]);
});

test("of messages that a server does not take, a bounded number waits", async () => {
  for (const stuck of [false, true]) {
    const { signaling } = meet([{ id: "a" }], { extra: stuck ? {} : RESUME });
    const dropped = [];
    signaling.addEventListener("error", ({ detail }) => dropped.push([detail.code, detail.msgId]));
    if (stuck) sockets.at(-1).bufferedAmount = 17 * 2 ** 20;
    const sent = Array.from({ length: 5_000 }, (_, number) => signaling.send("offer", "a", "x", `${number}`));
    await nextTurn();
    const own = dropped.filter(([, msgId]) => !msgId.startsWith("~"));
    assert.deepEqual(own, sent.slice(stuck ? 0 : 4_096).map((msgId) => ["dropped", msgId]));
  }
});

// -- Connections --

test("a peer that begins anew all the time gets a few connections, and costs the others none", async () => {
  const { mesh, say, failed } = meet([{ id: "a" }, { id: "b" }]);
  say(offer("b", "b"));
  await nextTurn();
  for (let number = 0; number < 1200; number++) say(offer("a", number));
  await nextTurn();
  assert.ok(connections.length <= 8, `${connections.length} connections`);
  assert.equal(alive().length, 2);
  assert.equal(mesh.peers.get("b").connection.connectionState, "new");
  assert.match(failed[0], /^a: no new connection/);
  say(joins("c"));
  assert.ok(mesh.peers.has("c"));
  // A page that was reloaded again and again is met again after a while.
  await pass(20_000);
  say(offer("a", "the last"));
  assert.equal(mesh.peers.get("a").certificate, "sha-256 the last");
});

test("peers that come and go all the time get a bounded number of connections, and who stays is met", async () => {
  const { mesh, say } = meet([], { mesh: { maxConnections: 10 } });
  for (let number = 0; number < 2000; number++) say(joins(`${number}`), leaves(`${number}`));
  assert.ok(connections.length <= 20, `${connections.length} connections`);
  say(joins("b"));
  for (let number = 0; number < 100; number++) {
    say(joins(`again ${number}`));
    await pass(100);
    say(leaves(`again ${number}`));
  }
  assert.ok(mesh.peers.has("b"));
});

test("a mesh keeps as many connections as it may, and meets the next peer once there is room", async () => {
  const { mesh, say, failed } = meet(Array.from({ length: 5000 }, (_, index) => ({ id: `${index}` })));
  assert.equal(mesh.peers.size, 64);
  assert.equal(connections.length, 64);
  assert.match(failed[0], /^64: no connection: there are 64 already$/);
  say(offer("4000", "1"));
  assert.equal(mesh.peers.size, 64);
  say(leaves("7"));
  await pass(1_000);
  assert.deepEqual([mesh.peers.size, mesh.peers.has("64")], [64, true]);
});

test("strangers that never connect do not keep a peer out of a full mesh", async () => {
  const { mesh, say } = meet([{ id: "friend" }, { id: "a" }, { id: "b" }], { mesh: { maxConnections: 3 } });
  connections[0].connect();
  say(joins("newcomer"));
  await pass(29_000, 1_000);
  assert.deepEqual([...mesh.peers.keys()], ["friend", "a", "b"]);
  await pass(1_000);
  assert.deepEqual([...mesh.peers.keys()], ["friend", "b", "newcomer"]);
  assert.equal(connections[0].connectionState, "connected");
  await pass(5_000, 1_000);
  assert.ok(mesh.peers.has("friend") && mesh.peers.has("a"), "who lost its place has another turn");
});

test("where the browser makes no more connections an event says so, and it is tried again", async () => {
  for (let number = 0; number < 500; number++) connections.push({ connectionState: "closed" });
  const { mesh, failed } = meet([{ id: "a" }]);
  assert.deepEqual(failed, ["a: Cannot create so many PeerConnections"]);
  connections.length = 0;
  await pass(1_000);
  assert.ok(mesh.peers.has("a"));
});

test("an operator who removes this peer, or closes its topic, ends its connections; a lost server does not", () => {
  for (const [code, left] of [[1006, 1], [4403, 0], [4404, 0]]) {
    const { mesh } = meet([{ id: "a" }]);
    connections.at(-1).connect();
    sockets.at(-1).lose(code, "Enough");
    assert.equal(mesh.peers.size, left, `${code}`);
  }
});

test("a peer is not taken over by who shows its instance", async () => {
  const { mesh, say } = meet([shows("a", "one")]);
  say(offer("a", "its"));
  await nextTurn();
  const [connection] = connections;
  connection.connect();
  say(joins("thief", "one"));
  say(candidate("thief", { candidate: "" }));
  await pass(5_000);
  assert.deepEqual([mesh.peers.size, mesh.peers.get("a").connection], [1, connection]);
  say(offer("thief", "another"));
  assert.deepEqual([mesh.peers.size, mesh.peers.get("a").connection], [2, connection]);
  assert.deepEqual([connection.connectionState, connections.length], ["connected", 2]);
});

test("a peer that came back is known at once by its certificate, and by its instance once the old id is gone", async () => {
  for (const proof of ["certificate", "instance"]) {
    connections.length = 0;
    const { mesh, say } = meet([shows("a", "one")]);
    say(offer("a", "its"));
    await nextTurn();
    connections[0].connect();
    say(joins("b", "one"));
    assert.deepEqual([...mesh.peers.keys()], ["a"]);
    say(proof === "certificate" ? offer("b", "its") : leaves("a"));
    assert.deepEqual([...mesh.peers.keys()], ["b"]);
    assert.deepEqual([mesh.peers.get("b").connection, connections.length], [connections[0], 1]);
    say(leaves("a"));
    assert.deepEqual([...mesh.peers.keys()], ["b"]);
  }
});

test("what was to be negotiated while a server restarted is, once the peer is back", async () => {
  const { say } = meet([shows("x", "one")]);
  say(offer("x", "its"));
  await nextTurn();
  connections[0].connect();
  sockets[0].lose(1001);
  connections[0].dispatchEvent(new Event("negotiationneeded")); // A track was added.
  await pass(1_000);
  say(welcome("n"), list(), joins("y", "one"));
  await nextTurn();
  assert.deepEqual(sockets.at(-1).sent.map(({ type, to }) => [type, to]), [["offer", "y"]]);
});

test("if several show the instance of a peer that is gone, none is believed, and each is met in the end", async () => {
  const { mesh, say } = meet([shows("a", "one")]);
  say(offer("a", "its"));
  await nextTurn();
  connections[0].connect();
  say(joins("thief", "one"), leaves("a"), joins("b", "one"));
  // "thief" was alone when "a" left; its own certificate shows that it is somebody else.
  say(offer("b", "its"));
  assert.equal(mesh.peers.get("b").connection, connections[0]);
  await pass(70_000, 1_000);
  assert.deepEqual(new Set(mesh.peers.keys()), new Set(["thief", "b"]));
  assert.equal(mesh.peers.get("b").connection, connections[0]);
});

test("after a description that the browser rejects there is a new connection, and an event says why", async () => {
  const { mesh, say, failed } = meet([{ id: "a" }]);
  say(offer("a", "1"));
  await nextTurn();
  connections[0].connect();
  const removed = [];
  mesh.addEventListener("peer-removed", ({ detail }) => removed.push(detail.connection));
  say(offer("a", "1", "rejected"));
  await nextTurn();
  assert.deepEqual(failed, ["a: rejected"]);
  assert.deepEqual([removed, mesh.peers.get("a").connection], [[connections[0]], connections[1]]);
  assert.equal(sockets[0].sent.at(-1).payload.sdp, "a=fingerprint:own 1");
  // What the other side offered before it heard of that is of the connection that is gone.
  say(offer("a", "1"));
  await nextTurn();
  assert.equal(connections[1].remoteDescription, null);
  say({ type: "answer", from: "a", payload: { sdp: sdp("2") } });
  await nextTurn();
  assert.equal(connections[1].remoteDescription.sdp, sdp("2"));
});

test("descriptions that are rejected all the time make few connections", async () => {
  const { say } = meet([{ id: "a" }]);
  for (let number = 0; number < 1000; number++) {
    say(offer("a", "1", "rejected"));
    await nextTurn();
  }
  assert.ok(connections.length <= 6, `${connections.length} connections`);
});

test("two peers that both rejected the first offer of the other still connect", async () => {
  const { mesh, say } = meet([{ id: "a" }]);
  say(offer("a", "1", "rejected"));
  await nextTurn();
  // "a" has the older id and rejected this side's offer as well, so it goes on with its own.
  await pass(2_500);
  say(offer("a", "1"));
  await pass(1_000);
  assert.equal(mesh.peers.get("a").connection.remoteDescription?.sdp, sdp("1"));
  assert.equal(sockets[0].sent.at(-1).type, "answer");
});

test("peers that begin anew all the time do not keep a newcomer waiting", async () => {
  const hostile = Array.from({ length: 40 }, (_, index) => ({ id: `${index}` }));
  const { mesh, say } = meet(hostile);
  connections.length = 0;
  for (let number = 0; number < 160; number++) say(offer(`${number % 40}`, number));
  // Each as often as a peer may, one after the other.
  const attack = async (from, to) => {
    for (let number = from; number < to; number++) {
      say(offer(`${number % 40}`, number));
      await pass(250);
      connections.length = 0;
    }
  };
  await attack(160, 322);
  await pass(100);
  say(joins("newcomer"));
  await pass(150);
  await attack(323, 560);
  assert.ok(mesh.peers.has("newcomer"));
});

test("of candidates without end a few hundred are used, before a description and after it", async () => {
  const { say } = meet([{ id: "a" }]);
  const flood = () => {
    for (let number = 0; number < 10_000; number++) say(candidate("a", { candidate: `${number}` }));
  };
  flood();
  say(offer("a", "1"));
  await nextTurn();
  flood();
  say(offer("a", "1"));
  await nextTurn();
  flood();
  await nextTurn();
  assert.equal(connections[0].candidates, 256);
});

test("a candidate that is too long or too deep is ignored", async () => {
  const { say } = meet([{ id: "a" }]);
  say(offer("a", "1"));
  await nextTurn();
  say(candidate("a", { candidate: "x".repeat(5_000) }), candidate("a", deep(3_000)), candidate("a", { candidate: "x" }));
  await nextTurn();
  assert.equal(connections[0].candidates, 1);
});

test("a description of so many sections that the browser would be busy with it is an error, and is not applied", async () => {
  const { say, failed } = meet([{ id: "a" }]);
  const sections = (count, end) => `m=audio 9 UDP/TLS/RTP/SAVPF 0${end}`.repeat(count);
  for (const end of ["\r\n", "\n", "\r"]) say(offer("a", "1", sections(65, end)));
  await nextTurn();
  assert.deepEqual(failed, Array(3).fill("a: the offer has more than 64 media sections"));
  assert.equal(connections[0].remoteDescription, null);
  say(offer("a", "1", sections(64, "\r\n")));
  await pass(1_000);
  assert.notEqual(connections[0].remoteDescription, null);
});

test("a peer that negotiates many sections all the time keeps the browser busy for a bounded part of the time", async () => {
  const { say, failed } = meet([{ id: "a" }, { id: "b" }]);
  say(offer("a", "1"), offer("b", "2"));
  await pass(2_000); // The offers of both sides crossed.
  const applied = connections.map((connection) => mock.method(connection, "setRemoteDescription").mock);
  const many = "m=video 9 UDP/TLS/RTP/SAVPF 0\r\n".repeat(64);
  for (let round = 0; round < 100; round++) {
    say(offer("a", "1", many));
    await nextTurn();
  }
  assert.equal(applied[0].callCount(), 16);
  assert.deepEqual(new Set(failed), new Set(["a: the offer was ignored: too many media sections were negotiated just now"]));
  say(offer("b", "2", many));
  await nextTurn();
  assert.equal(applied[1].callCount(), 1);
  for (let second = 0; second < 20; second++) {
    await pass(1_000);
    say(offer("a", "1", many), offer("a", "1", many));
    await nextTurn();
  }
  assert.equal(applied[0].callCount(), 16 + 10);
});

test("of ICE servers without end a bounded number is used", () => {
  const urls = Array.from({ length: 1_000 }, (_, number) => `stun:${number}.example.com`);
  const iceServers = [
    { urls: urls[0], credential: "x".repeat(5_000) }, { urls: urls[0], deep: deep(3_000) }, null,
    ...urls.map(() => ({ urls: urls.slice(0, 100) })),
  ];
  const { signaling, say } = meet([{ id: "a" }], { extra: { iceServers } });
  const bounded = [...Array(2).fill({ urls: urls.slice(0, 100) }), { urls: urls.slice(0, 56) }];
  assert.deepEqual(signaling.iceServers, bounded);
  say({ type: "ice-servers", iceServers: [{ urls: urls[1], username: "u", credential: "c" }] });
  assert.deepEqual(signaling.iceServers, [{ urls: urls[1], username: "u", credential: "c" }]);
  const told = [];
  signaling.addEventListener("ice-servers", ({ detail }) => told.push(detail.iceServers));
  say({ type: "ice-servers", iceServers });
  assert.deepEqual([told, signaling.iceServers], [[bounded], bounded]);
});

test("an operator's TURN servers, with a URL for each port and transport, are all used", () => {
  const ports = ["3478?transport=udp", "3478?transport=tcp", "443?transport=tcp"];
  const urls = ["eu", "us", "asia", "africa"].flatMap((region) => ports.map((port) => `turn:${region}.example.com:${port}`));
  const iceServers = [{ urls: "stun:example.com" }, { urls, username: "u", credential: "c" }];
  assert.deepEqual(meet([], { extra: { iceServers } }).signaling.iceServers, iceServers);
});

test("ICE servers that the browser does not take are told, and peers meet without them", async () => {
  const bad = { iceServers: [{ urls: "http://example.com" }] };
  const { mesh, say, failed } = meet([{ id: "a" }], { extra: bad });
  assert.equal(mesh.peers.size, 1);
  say({ type: "ice-servers", ...bad });
  assert.deepEqual(failed, Array(2).fill("a: no URL of an ICE server"));
});

test("a peer that takes no data keeps nothing from the others", () => {
  const { mesh, failed } = meet([{ id: "a" }, { id: "b" }]);
  for (const connection of connections) connection.connect();
  connections[0].channel.send = () => {
    throw new DOMException("the queue is full", "OperationError");
  };
  mesh.broadcast("hello");
  assert.deepEqual(connections[1].channel.sent, ["hello"]);
  assert.deepEqual(failed, ["a: the queue is full"]);
});

test("of what a peer that takes nothing would be sent, a bounded number waits", async () => {
  const { say } = meet([{ id: "a" }]);
  await pass(2_000);
  const drop = () => {
    for (const { msgId, type } of sockets[0].sent.splice(0)) if (type === "ice-candidate") say({ type: "error", code: "dropped", msgId });
  };
  for (let number = 0; number < 1_000; number++) {
    const found = { toJSON: () => ({ candidate: `${number}` }) };
    connections[0].dispatchEvent(Object.assign(new Event("icecandidate"), { candidate: found }));
    drop();
  }
  await pass(5_000);
  const numbers = sockets[0].sent.filter(({ type }) => type === "ice-candidate").map(({ payload }) => Number(payload.candidate));
  assert.deepEqual([numbers[0], numbers.at(-1), numbers.length], [744, 999, 256]);
});

test("without WebRTC a mesh says so at once", () => {
  globalThis.RTCPeerConnection = undefined;
  assert.throws(() => new Mesh(join("wss://example.com/ws/room")), /no WebRTC here/);
});

// -- Ends --

const isText = (payload) => typeof payload === "string";

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

test("a page whose server does not answer goes on, with a token and without", async () => {
  for (const url of [withToken("opaque"), "wss://example.com/ws/room"]) {
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
  const refuse = async (status) => {
    const made = watched("wss://example.com/ws/room");
    const message = `Unexpected server response: ${status}`;
    sockets.at(-1).dispatchEvent(Object.assign(new Event("error"), { message }));
    sockets.at(-1).lose();
    await nextTurn();
    return made.signaling.state;
  };
  for (const status of [400, 401, 403, 404]) assert.equal(await refuse(status), "closed", `${status}`);
  for (const status of [408, 429, 500, 503]) assert.equal(await refuse(status), "waiting", `${status}`);
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
    await nextTurn();
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

test("a description that is too large is told by the mesh", async () => {
  FakeConnection.prototype.setLocalDescription = async function () {
    this.localDescription = { type: "offer", sdp: "x".repeat(70_000) };
  };
  const { failed } = meet([{ id: "a" }], { mesh: {} });
  await pass(2_000);
  assert.deepEqual(failed, ["a: offer not delivered: too_large"]);
});

// -- Memory --

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc");

test("thousands of reconnections leave nothing behind", async () => {
  const { say } = meet([]);
  const long = (number) => `${number}`.padStart(4_000, "x");
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
  assert.ok(whole - half < 2_000_000, `${whole - half} bytes more`);
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
