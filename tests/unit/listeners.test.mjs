// A page whose listeners leave, close the mesh or throw: at whichever event they do it, nothing is left over.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { join, Mesh } from "../../signaling/browser/client/signaling.js";
import { connections, FakeConnection, fakeFetch, list, sockets, useFakePage, welcome } from "./fakes.mjs";

const OF_SIGNALING = [
  "welcome", "peer-list", "peer-joined", "peer-updated", "peer-left", "ice-servers", "notice", "error", "offer", "answer",
  "ice-candidate", "received", "sent", "refused", "statechange",
];
const OF_MESH = ["peer-added", "peer-updated", "peer-removed", "track", "data", "connectionstatechange", "error"];

const letPass = useFakePage();
beforeEach(() => (globalThis.RTCPeerConnection = FakeConnection));

const nextTurn = () => new Promise((done) => setImmediate(done));

async function pass(ms) {
  letPass(ms);
  for (let turn = 0; turn < 5; turn++) await nextTurn();
}

const alive = () => connections.filter(({ connectionState }) => connectionState !== "closed");
const shows = (id, instance) => ({ id, metadata: { instance } });
const offer = (from, certificate, rest = "") => {
  const sdp = `v=0\r\na=fingerprint:sha-256 ${certificate}\r\na=ice-ufrag:one\r\n${rest}`;
  return { type: "offer", from, payload: { type: "offer", sdp } };
};
const NOT_ICE = { iceServers: [{ urls: "http://example.com" }] };
const EXTRA = { features: ["metadata-updates"], resume: { token: "a token", window: 30 } };

/** Lives through everything: peers that come, go, change, restart and fail, losses and refusals. */
async function live(signaling) {
  const say = (...messages) => sockets.at(-1).receive(...messages);
  sockets.at(-1).accept();
  say(welcome("m", EXTRA), { type: "peer-list", peers: [shows("a", "A"), shows("b", "B")] });
  signaling.send("offer", "a", 1);
  signaling.updateMetadata({ name: "Ada" });
  await pass(0);
  say({ type: "error", code: "dropped", message: "", msgId: "~1" }, { type: "notice", data: 1 });
  for (const connection of connections) connection.connect();
  connections[0]?.channel.dispatchEvent(Object.assign(new Event("message"), { data: "hello" }));
  connections[0]?.dispatchEvent(Object.assign(new Event("track"), { track: {}, streams: [] }));
  say(offer("a", "1"), { type: "answer", from: "b", payload: 1 }, { type: "ice-candidate", from: "a", payload: {} });
  await pass(0);
  say(offer("a", "2")); // It made a new connection.
  await pass(0);
  say(offer("b", "3", "rejected"));
  await pass(0);
  say({ type: "ice-servers", ...NOT_ICE }, { type: "peer-joined", peerId: "c", metadata: { instance: "C" } });
  await pass(0);
  say(offer("c", "4"));
  await pass(0);
  connections.at(-1)?.connect();
  say({ type: "peer-left", peerId: "c" }, { type: "peer-joined", peerId: "d", metadata: { instance: "C" } }, offer("d", "4"));
  say({ type: "peer-joined", peerId: "e", metadata: {} }, offer("e", "5"), { type: "peer-updated", peerId: "e", metadata: { instance: "C" } });
  await pass(0);
  say(offer("e", "4")); // The certificate of another peer.
  say({ type: "peer-updated", peerId: "b", metadata: {} }, { type: "peer-left", peerId: "b" });
  for (let peer = 0; peer < 5; peer++) say({ type: "peer-joined", peerId: `full ${peer}`, metadata: {} });
  await pass(40_000);
  sockets.at(-1).lose(1006);
  await pass(60_000);
  globalThis.fetch = fakeFetch(() => ({ status: 503, reason: "full" }));
  sockets.at(-1).lose();
  await pass(120_000);
  say(welcome("m2", NOT_ICE), { type: "peer-list", peers: [shows("a", "A"), shows("z", "Z")] });
  await pass(10_000);
  globalThis.dispatchEvent(Object.assign(new Event("pagehide"), { persisted: true }));
  globalThis.dispatchEvent(Object.assign(new Event("pageshow"), { persisted: true }));
  await pass(60_000);
  say(welcome("m3"), list("a"));
  await pass(10_000);
  sockets.at(-1).lose(4403);
  await pass(60_000);
}

/** Begins a life, in which `react` is called with each event. */
function begin(react) {
  sockets.length = connections.length = 0;
  globalThis.fetch = fakeFetch();
  const signaling = join("wss://example.com/ws/room");
  // The listeners before those of the mesh: an event that is on its way goes on to the later ones.
  for (const type of OF_SIGNALING) signaling.addEventListener(type, ({ detail }) => react(`signaling ${type}`, detail));
  const mesh = new Mesh(signaling, { maxConnections: 4 });
  for (const type of OF_MESH) mesh.addEventListener(type, ({ detail }) => react(`mesh ${type}`, detail));
  return { signaling, mesh };
}

/** How many events there are in a life of which nobody ends anything. */
async function countEvents() {
  const types = new Set();
  let events = 0;
  const { signaling } = begin((type) => (types.add(type), events++));
  await live(signaling);
  assert.deepEqual([...OF_SIGNALING.map((type) => `signaling ${type}`), ...OF_MESH.map((type) => `mesh ${type}`)].filter((type) => !types.has(type)), []);
  return events;
}

for (const [first, how] of ["close", "leave"].entries()) {
  test(`a page that calls ${how} at any event gets only ends after it`, async () => {
    const count = await countEvents();
    // Each at every second event, for time: most events come more than once.
    for (let chosen = first; chosen < count; chosen += 2) {
      let events = 0;
      let ending;
      const after = [];
      const { signaling, mesh } = begin((type, detail) => {
        if (ending && (type.startsWith("mesh") || how === "leave")) after.push(`${type} ${detail.code ?? detail.state ?? ""}`.trim());
        if (events++ !== chosen) return;
        ending = type;
        if (how === "close") mesh.close();
        else signaling.leave();
      });
      await live(signaling);
      const isEnd = (event) => /^(mesh peer-removed|signaling statechange closed|signaling error (dropped|too_large))$/.test(event);
      assert.deepEqual(after.filter((event) => !isEnd(event)), [], `${chosen}: ${ending}`);
      assert.equal(mesh.peers.size, 0, `${chosen}: ${ending}`);
      assert.equal(alive().length, 0, `${chosen}: ${ending}`);
    }
  });
}

test("a page whose listeners throw at every event gets the same events", async () => {
  const count = await countEvents();
  const uncaught = [];
  const listeners = process.listeners("uncaughtException");
  process.removeAllListeners("uncaughtException");
  process.on("uncaughtException", ({ message }) => uncaught.push(message));
  try {
    let events = 0;
    const { signaling } = begin(() => {
      events++;
      throw new Error("by the page");
    });
    await live(signaling);
    await nextTurn();
    assert.deepEqual([events, uncaught.length, new Set(uncaught)], [count, count, new Set(["by the page"])]);
  } finally {
    process.removeAllListeners("uncaughtException");
    for (const listener of listeners) process.on("uncaughtException", listener);
  }
});

test("a page may send and update at every event", async () => {
  let isInside = false; // Sending is an event as well.
  const failed = [];
  const { signaling, mesh } = begin((type, { msgId }) => {
    if (isInside || msgId?.startsWith("~")) return;
    isInside = true;
    try {
      signaling.send("ice-candidate", "a", 1);
      signaling.updateMetadata({ name: type });
      mesh.broadcast("hello");
    } catch (error) {
      failed.push(`${type}: ${error.message}`);
    }
    isInside = false;
  });
  await live(signaling);
  assert.deepEqual(failed, []);
  assert.equal(signaling.state, "closed");
});

test("a page may send, and update its metadata, while it learns that it was removed", async () => {
  const outcomes = [];
  const { signaling } = begin((type) => {
    if (type !== "signaling refused") return;
    try {
      globalThis.dispatchEvent(new Event("online"));
      outcomes.push(typeof signaling.send("offer", "a", 1));
      signaling.updateMetadata({}).catch(({ code }) => outcomes.push(code));
    } catch (error) {
      outcomes.push(error.message);
    }
  });
  sockets[0].receive(welcome("m", EXTRA), list("a"));
  sockets[0].lose(4403);
  await pass(0);
  assert.deepEqual(outcomes, ["string", "unconfirmed"]);
  assert.equal(signaling.state, "closed");
});
