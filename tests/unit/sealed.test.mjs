// What the JavaScript client does with a secret: payloads are sealed and opened in order, and whatever a server changes is reported.

import assert from "node:assert/strict";
import { cpSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join as path } from "node:path";
import { afterEach, beforeEach, mock, test } from "node:test";

import { join } from "../../signaling/browser/client/signaling.js";
import { Sealing } from "../../signaling/browser/client/sealing.js";
import { FakeSocket, list, sockets, welcome } from "./fakes.mjs";

const SECRET = "correct horse battery staple";
const RESUME = { resume: { token: "a token", window: 30 } };

beforeEach(() => {
  sockets.length = 0;
  globalThis.WebSocket = FakeSocket;
  mock.timers.enable({ apis: ["setTimeout"] });
  mock.method(Math, "random", () => 0);
});

afterEach(() => {
  mock.timers.reset();
  mock.restoreAll();
});

/** Waits for the cryptography, which runs in threads. */
async function until(condition) {
  for (const end = performance.now() + 60_000; performance.now() < end; ) {
    if (condition()) return;
    await new Promise(setImmediate);
  }
  assert.fail(`never: ${condition}`);
}

function joined(options) {
  const signaling = join("wss://example.com/ws/my%2Droom", { secret: SECRET, ...options });
  const told = [];
  const note = (type, what) => signaling.addEventListener(type, ({ detail }) => told.push(what(detail)));
  note("offer", ({ from, payload }) => `${from}: ${payload}`);
  note("tampered", ({ from, type, reason }) => `${from}: ${type}: ${reason}`);
  note("error", ({ code, msgId, message }) => `${code} ${msgId}: ${message}`);
  note("peer-left", ({ peerId }) => `${peerId} left`);
  note("statechange", ({ state }) => state);
  return { signaling, told };
}

function open(extra, ...ids) {
  const made = joined();
  sockets[0].receive(welcome("me", extra), list(...ids));
  return made;
}

/** The other side: seals as a peer with an id, and opens. */
async function other(id, secret = SECRET) {
  const sealing = await Sealing.create(secret, "my-room");
  let number = 0;
  return {
    seal: async (value, to = "me") => {
      const message = { type: "offer", from: id, to, number: ++number };
      const { type, from } = message;
      return { type, from, payload: await sealing.seal(message, JSON.stringify(value)), msgId: `~${number}` };
    },
    open: async (message, from = "me") => (await sealing.open({ ...message, from }, id)).message.payload,
  };
}

const offers = (socket) => socket.sent.filter(({ type }) => type === "offer");

test("payloads are sealed, and written in the order in which they were sent", async () => {
  const { signaling } = joined();
  signaling.send("offer", "peer", "0"); // Before this peer has an id.
  sockets[0].receive(welcome("me"), list("peer"));
  const long = "x".repeat(40_000);
  signaling.send("offer", "peer", long); // Takes longer to seal than the next.
  for (let count = 2; count < 20; count++) signaling.send("offer", "peer", `${count}`);
  await until(() => offers(sockets[0]).length === 20);
  const peer = await other("peer");
  for (const [count, message] of sockets[0].sent.entries()) {
    assert.deepEqual(Object.keys(message), ["type", "to", "payload", "msgId"]);
    assert.deepEqual(Object.keys(message.payload), ["sealed", "number", "data"]);
    assert.equal(message.msgId, `~${count + 1}`);
    assert.equal(await peer.open(message), count === 1 ? long : `${count}`);
  }
});

test("messages are passed on in the order in which they arrived", async () => {
  const { signaling, told } = open({}, "peer");
  const peer = await other("peer");
  const messages = [await peer.seal("x".repeat(30_000)), await peer.seal("b"), await peer.seal("c")];
  sockets[0].receive(...messages, { type: "peer-left", peerId: "peer" });
  sockets[0].lose();
  assert.equal(signaling.state, "open"); // It was lost after the messages.
  await until(() => signaling.state === "waiting");
  assert.deepEqual(told.slice(1).map((text) => text.slice(0, 9)), ["peer: xxx", "peer: b", "peer: c", "peer left", "waiting"]);
});

test("what a server changes, moves, repeats or invents is reported, and the rest goes on", async () => {
  const { told } = open({}, "peer", "another");
  const peer = await other("peer");
  const [first, second, third] = [await peer.seal("1"), await peer.seal("2"), await peer.seal("3")];
  const forged = { type: "offer", from: "peer", payload: "forged", msgId: "~999999" };
  sockets[0].receive(first, forged, { ...second, from: "another" }, { ...second, type: "answer" });
  sockets[0].receive(third, first, { ...first, msgId: "~7" }, second, await peer.seal("4"));
  await until(() => told.includes("peer: 4"));
  const unopened = "it cannot be opened: another secret, or it was changed on its way";
  const repeated = "it came again, or out of order";
  assert.deepEqual(told.slice(1), [
    "peer: 1",
    "peer: offer: it is not sealed",
    `another: offer: ${unopened}`,
    `peer: answer: ${unopened}`,
    "peer: 3",
    `peer: offer: ${repeated}`, // Not the duplicate of the first one.
    `peer: offer: ${repeated}`,
    "peer: 4",
  ]);
});

test("a tampered message is no other event", async () => {
  const { signaling, told } = open({}, "peer");
  const received = [];
  signaling.addEventListener("received", ({ detail }) => received.push(detail));
  const sealed = await (await other("peer")).seal({ name: "Ada" });
  sockets[0].receive({ ...sealed, payload: { sdp: "v=0" } }, sealed);
  await until(() => told.length === 3);
  const relayed = received.filter(({ type }) => type === "offer");
  assert.deepEqual(relayed, [{ type: "offer", from: "peer", msgId: "~1", payload: { name: "Ada" } }]);
});

test("after a loss, the same bytes are sent again", async () => {
  const { signaling } = open(RESUME, "peer");
  signaling.send("offer", "peer", "hello");
  await until(() => offers(sockets[0]).length);
  sockets[0].lose();
  await until(() => signaling.state === "waiting");
  mock.timers.tick(60_000);
  sockets[1].receive(welcome("me", { ...RESUME, resumed: true }), list("peer"));
  await until(() => sockets[1].sent.length);
  sockets[1].echo();
  await until(() => offers(sockets[1]).length);
  assert.deepEqual(offers(sockets[1]), offers(sockets[0]));
});

for (const [name, resumed] of [["a new id", {}], ["a new id that the server calls resumed", { resumed: true }]]) {
  test(`what was sealed under a former id is dropped: ${name}`, async () => {
    const { signaling, told } = open(RESUME, "peer");
    signaling.send("offer", "peer", "written");
    await until(() => offers(sockets[0]).length);
    signaling.send("offer", "peer", "is being sealed");
    sockets[0].lose();
    await until(() => signaling.state === "waiting");
    signaling.send("offer", "peer", "waits");
    mock.timers.tick(60_000);
    sockets[1].receive(welcome("me again", { ...RESUME, ...resumed }), list("peer"));
    await until(() => told.filter((text) => text.startsWith("dropped")).length === 3);
    signaling.send("offer", "peer", "new");
    await until(() => offers(sockets[1]).length);
    const peer = await other("peer");
    assert.deepEqual(await peer.open(offers(sockets[1])[0], "me again"), "new");
    assert.equal(offers(sockets[1]).length, 1);
  });
}

test("a message that is being sealed while this peer leaves is reported as dropped", async () => {
  const { signaling, told } = open({}, "peer");
  await until(() => signaling.state === "open");
  const msgId = signaling.send("offer", "peer", "hello");
  signaling.leave();
  assert.equal(told.at(-1), `dropped ${msgId}: not sent`);
  assert.deepEqual(sockets[0].sent, []);
});

test("a message that cannot be sealed is reported, and holds up no other", async () => {
  const { signaling, told } = open({}, "peer");
  await until(() => signaling.state === "open");
  const encrypt = crypto.subtle.encrypt.bind(crypto.subtle);
  // Not the first one that comes: a message of an earlier test may still be on its way.
  mock.method(crypto.subtle, "encrypt", async (cipher, key, text) => {
    if (new TextDecoder().decode(text) === '"1"') throw new Error("no memory");
    return encrypt(cipher, key, text);
  });
  const msgId = signaling.send("offer", "peer", "1");
  signaling.send("offer", "peer", "2");
  await until(() => offers(sockets[0]).length);
  assert.equal(told.at(-1), `not_sealed ${msgId}: the payload was not sealed: no memory`);
  assert.equal(await (await other("peer")).open(offers(sockets[0])[0]), "2");
});

test("nothing is sealed as a peer whose id has no UTF-8, or for one", async () => {
  const { signaling, told } = open({}, "peer");
  const refused = () => told.filter((text) => text.startsWith("not_sealed"));
  signaling.send("offer", "\ud800", "1");
  await until(() => refused().length === 1);
  sockets[0].lose();
  await until(() => signaling.state === "waiting");
  mock.timers.tick(60_000);
  sockets[1].receive(welcome("\udfff"), list("peer"));
  await until(() => signaling.state === "open");
  signaling.send("offer", "peer", "2");
  await until(() => refused().length === 2);
  assert.deepEqual(refused(), [
    "not_sealed ~1: the payload was not sealed: an id is not Unicode",
    "not_sealed ~2: the payload was not sealed: an id is not Unicode",
  ]);
});

test("the size of the sealed message counts", async () => {
  const sizeOf = async (maxMessageBytes) => {
    const { signaling, told } = joined({ maxMessageBytes });
    const socket = sockets.at(-1);
    socket.receive(welcome("me"), list("peer"));
    signaling.send("offer", "peer", { text: "žluť" });
    await until(() => offers(socket).length || told.some((text) => text.startsWith("too_large")));
    return offers(socket).length && Buffer.byteLength(JSON.stringify(offers(socket)[0]));
  };
  const size = await sizeOf(65_536);
  assert.equal(await sizeOf(size), size);
  assert.equal(await sizeOf(size - 1), 0);
});

test("fences are not sealed, and confirm what was sealed", async () => {
  const { signaling } = open(RESUME, "peer");
  signaling.send("offer", "peer", "hello");
  await until(() => sockets[0].sent.length === 2);
  const [, fence] = sockets[0].sent;
  assert.deepEqual(fence, { type: "ice-candidate", to: "me", msgId: "fence 1 1" });
});

test("a server that sends faster than payloads are opened loses the connection", async () => {
  const { signaling, told } = open(RESUME, "peer");
  await until(() => signaling.state === "open");
  const sealed = await (await other("peer")).seal("1");
  for (let count = 0; count <= 1_024; count++) sockets[0].receive(sealed);
  assert.equal(signaling.state, "waiting");
  assert.equal(told.at(-1), "waiting");
});

test("of long messages only a few wait to be opened, and none of a connection that was given up", async () => {
  const { signaling } = open(RESUME, "peer");
  await until(() => signaling.state === "open");
  const peer = await other("peer");
  const opened = mock.method(Sealing.prototype, "open");
  const long = { ...(await peer.seal("1")), padding: "x".repeat(12 * 2 ** 20) };
  for (let count = 0; count < 4; count++) sockets[0].receive(long);
  assert.equal(signaling.state, "waiting");
  for (let count = 0; count < 4; count++) sockets[0].receive(long);
  mock.timers.tick(60_000);
  sockets[1].receive(welcome("me", { ...RESUME, resumed: true }), list("peer"), await peer.seal("2"));
  await until(() => signaling.state === "open" && opened.mock.callCount() === 2);
  assert.deepEqual(opened.mock.calls.map(({ arguments: [{ msgId }] }) => msgId), ["~1", "~2"]);
});

test("a secret that is no secret is refused at once", () => {
  assert.throws(() => joined({ secret: "too short" }), /TypeError: the secret is shorter than 16 bytes; make one with: /);
  assert.throws(() => joined({ secret: "\ud800".repeat(16) }), /TypeError: the secret is not Unicode/);
  assert.throws(() => joined({ secret: 5 }), /TypeError: the secret is no string/);
  assert.throws(() => join("wss://example.com/ws/%ff", { secret: SECRET }), /TypeError: the topic in the URL/);
  assert.equal(sockets.length, 0);
});

test("a page without cryptography is refused at once", () => {
  mock.getter(globalThis.crypto, "subtle", () => undefined);
  assert.throws(() => joined(), /https: pages and on localhost only/);
  assert.equal(sockets.length, 0);
});

test("a client without sealing.js ends, and says so", async () => {
  const folder = mkdtempSync(path(tmpdir(), "signaling-"));
  try {
    cpSync(new URL("../../signaling/browser/client/signaling.js", import.meta.url), path(folder, "signaling.mjs"));
    const alone = await import(path(folder, "signaling.mjs"));
    const signaling = alone.join("wss://example.com/ws/room", { secret: SECRET });
    const told = [];
    signaling.addEventListener("error", ({ detail }) => told.push(detail.code));
    sockets[0].receive(welcome("me"), list("peer"));
    signaling.send("offer", "peer", "hello");
    signaling.addEventListener("statechange", ({ detail }) => told.push(`${detail.state}: ${detail.reason}`));
    await until(() => signaling.state === "closed");
    await new Promise(setImmediate);
    assert.match(told[1], /^closed: sealing\.js could not be loaded beside signaling\.js: /);
    assert.deepEqual([told[0], ...told.slice(2)], ["open: undefined", "dropped"]);
    assert.equal(sockets[0].closed, 1000);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("metadata and notices are not sealed, and come in their order behind messages that are opened", async () => {
  const { signaling, told } = open({ features: ["metadata-updates"] }, "a");
  signaling.addEventListener("peer-updated", ({ detail }) => told.push(`${detail.peerId} is ${detail.metadata.name}`));
  signaling.addEventListener("notice", ({ detail }) => told.push(detail.data));
  await until(() => signaling.state === "open");
  signaling.updateMetadata({ name: "Grace" });
  assert.equal(sockets[0].sent.find(({ type }) => type === "metadata").metadata.name, "Grace");
  const { seal } = await other("a");
  told.length = 0;
  sockets[0].receive(await seal("hello"), { type: "peer-updated", peerId: "a", metadata: { name: "Ada" } }, { type: "notice", data: "Soon" });
  await until(() => told.length === 3);
  assert.deepEqual(told, ["a: hello", "a is Ada", "Soon"]);
});
