// How the JavaScript client updates its metadata, and follows the updates of others: with sockets and a clock of its own.

import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { join, Mesh } from "../../signaling/browser/client/signaling.js";
import { fakeFetch, FakeConnection, list, sockets, useFakePage, welcome } from "./fakes.mjs";

const UPDATES = { features: ["metadata-updates"] };
const RESUME = { ...UPDATES, resume: { token: "a token", window: 30 } };
const RESUMED = { ...RESUME, resumed: true };
const ADA = { name: "Ada" };
const GRACE = { name: "Grace" };

const pass = useFakePage();

/** Lets promises go on. */
async function settle() {
  for (let turn = 0; turn < 5; turn++) await new Promise((done) => setImmediate(done));
}

const nameless = ({ instance, ...rest }) => rest;

/** Joins as "me"; returns the signaling, its events, and a function that updates and notes the outcome. */
function joined(options = { metadata: ADA }) {
  const signaling = join("wss://example.com/ws/room", options);
  const [told, outcomes] = [[], []];
  for (const type of ["peer-joined", "peer-left", "peer-updated"]) {
    signaling.addEventListener(type, ({ detail }) => told.push([type, detail.peerId, detail.metadata]));
  }
  signaling.addEventListener("error", ({ detail }) => told.push(["error", detail.code, detail.msgId]));
  const update = (metadata) => {
    const note = (outcome) => outcomes.push(outcome);
    return signaling.updateMetadata(metadata).then(() => note("updated"), ({ code, name }) => note(code ?? name));
  };
  return { signaling, told, outcomes, update };
}

/** The same, in a topic in which `ids` are. */
function open(extra, ...ids) {
  const made = joined();
  sockets[0].receive(welcome("me", extra), list(...ids));
  return made;
}

function reconnect(...messages) {
  sockets.at(-1).lose();
  pass(60_000);
  sockets.at(-1).receive(...messages);
}

const updates = () => sockets.at(-1).sent.filter(({ type }) => type === "metadata");
const sentNames = () => updates().map(({ metadata }) => metadata.name);
const updated = (peerId, metadata) => ({ type: "peer-updated", peerId, metadata });
const refusal = (code) => ({ type: "error", code, message: "no", msgId: updates().at(-1).msgId });
const requested = () => JSON.parse(sockets.at(-1).url.searchParams.get("metadata"));

test("an update ends with the server's word to everybody", async () => {
  const { signaling, told, outcomes, update } = open(UPDATES);
  const sent = [];
  signaling.addEventListener("sent", ({ detail }) => sent.push(detail));
  update(GRACE);
  const { instance } = requested();
  assert.deepEqual(updates(), [{ type: "metadata", metadata: { ...GRACE, instance }, msgId: "metadata 1" }]);
  assert.deepEqual(sent, updates());
  await settle();
  assert.deepEqual([outcomes, nameless(signaling.metadata)], [[], ADA]);
  sockets[0].receive(updated("me", { ...GRACE, instance }));
  await settle();
  assert.deepEqual([outcomes, signaling.metadata], [["updated"], { ...GRACE, instance }]);
  assert.deepEqual(told, [["peer-updated", "me", { ...GRACE, instance }]]);
});

test("an error ends its update, and the former metadata stays", async () => {
  for (const code of ["invalid_metadata", "forbidden", "rate_limited", "topic_full"]) {
    sockets.length = 0;
    const { signaling, told, outcomes, update } = open(UPDATES);
    const received = [];
    signaling.addEventListener("received", ({ detail }) => received.push(detail.code));
    update(GRACE);
    sockets.at(-1).receive(refusal(code));
    await settle();
    assert.deepEqual([outcomes, told, received], [[code], [], [code]]);
    reconnect();
    assert.deepEqual(nameless(requested()), ADA);
    signaling.leave();
  }
});

test("a server that takes no updates is not asked, and joining again changes nothing", async () => {
  const { outcomes, update } = open({ features: ["resume"] });
  await update(GRACE);
  assert.deepEqual([outcomes, updates()], [["unsupported"], []]);
  reconnect();
  assert.deepEqual(nameless(requested()), ADA);
});

test("what is no object, no JSON or too long is refused at once", async () => {
  const { outcomes, update } = open(UPDATES);
  const cycle = {};
  cycle.cycle = cycle;
  for (const metadata of [undefined, null, "x", [], 5, { big: 1n }, cycle, { text: "x".repeat(65_536) }]) await update(metadata);
  assert.deepEqual(outcomes, [...Array(5).fill("TypeError"), "TypeError", "TypeError", "too_large"]);
  assert.deepEqual(updates(), []);
});

test("one update is under way, and the latest of the others waits for it", async () => {
  const { outcomes, update } = open(UPDATES);
  for (const name of ["a", "b", "c", "d"]) update({ name });
  await settle();
  assert.deepEqual([sentNames(), outcomes], [["a"], ["replaced", "replaced"]]);
  sockets[0].receive(updated("me", { name: "a" }));
  assert.deepEqual(sentNames(), ["a", "d"]);
  sockets[0].receive(refusal("forbidden"));
  await settle();
  assert.deepEqual(outcomes, ["replaced", "replaced", "updated", "forbidden"]);
  reconnect();
  assert.equal(requested().name, "a");
});

test("of two equal updates the second one counts, although the first is refused", () => {
  const { update } = open(RESUME);
  update(GRACE);
  update(GRACE);
  sockets[0].receive(refusal("rate_limited"), updated("me", GRACE));
  reconnect(welcome("me", RESUMED), list());
  assert.deepEqual([sentNames(), nameless(requested())], [[], GRACE]);
});

test("an answer that comes late is known to a resumed session", () => {
  const { update } = open(RESUME);
  update(GRACE);
  const [{ metadata }] = updates();
  pass(10_000);
  sockets[0].receive(updated("me", metadata));
  reconnect(welcome("me", RESUMED), list());
  assert.deepEqual(sentNames(), []);
});

test("an update that is not answered ends after ten seconds, and the next one is sent", async () => {
  const { outcomes, update } = open(UPDATES);
  update({ name: "a" });
  pass(9_999);
  update({ name: "b" });
  await settle();
  assert.deepEqual(outcomes, []);
  pass(1);
  await settle();
  assert.deepEqual([outcomes, sentNames()], [["unconfirmed"], ["a", "b"]]);
  sockets[0].receive(updated("me", { name: "b" }));
  pass(20_000);
  await settle();
  assert.deepEqual(outcomes, ["unconfirmed", "updated"]);
});

test("a loss ends updates, and a new peer joins with the latest metadata", async () => {
  const { signaling, outcomes, update } = open(UPDATES, "a");
  const { instance } = requested();
  update(GRACE);
  update({ name: "Mary" });
  reconnect();
  await settle();
  assert.deepEqual(outcomes, ["unconfirmed", "unconfirmed"]);
  assert.deepEqual(requested(), { name: "Mary", instance });
  sockets[1].receive(welcome("me again", UPDATES), list("a"));
  assert.deepEqual([updates(), signaling.metadata], [[], { name: "Mary", instance }]);
});

test("a resumed session repeats an update that was not confirmed, once", async () => {
  const { outcomes, update, told } = open(RESUME);
  update(GRACE);
  reconnect(welcome("me", RESUMED), list());
  assert.deepEqual(sentNames(), ["Grace"]);
  sockets[1].receive(updated("me", GRACE));
  reconnect(welcome("me", RESUMED), list());
  await settle();
  assert.deepEqual([sentNames(), outcomes], [[], ["unconfirmed"]]);
  assert.deepEqual(told, [["peer-updated", "me", GRACE]]);
});

test("an error about a repeated update is an event, and the former metadata stays", () => {
  const { told, update } = open(RESUME);
  update(GRACE);
  reconnect(welcome("me", RESUMED), list());
  sockets[1].receive(refusal("rate_limited"));
  assert.deepEqual(told, [["error", "rate_limited", "metadata 2"]]);
  reconnect();
  assert.deepEqual(nameless(requested()), ADA);
});

test("without a connection the next one has the latest metadata, resumed or not", async () => {
  const { signaling, outcomes, update } = joined();
  sockets[0].lose();
  await update(GRACE);
  pass(60_000);
  assert.deepEqual([outcomes, nameless(requested())], [["unconfirmed"], GRACE]);
  sockets[1].receive(welcome("me", RESUME), list());
  assert.deepEqual([updates(), nameless(signaling.metadata)], [[], GRACE]);
  sockets[1].lose();
  update(ADA);
  pass(60_000);
  sockets[2].receive(welcome("me", RESUMED), list());
  assert.deepEqual(sentNames(), ["Ada"]);
});

test("metadata that a server does not take in a URL is given up, and the client joins with the former one", async () => {
  for (const status of [400, 414, 431]) {
    const { signaling, told, update } = joined();
    update({ name: "too long" });
    sockets.at(-1).lose();
    await settle();
    pass(60_000);
    assert.equal(requested().name, "too long");
    globalThis.fetch = fakeFetch(() => ({ status, reason: "metadata: at most 4096 bytes" }));
    sockets.at(-1).lose();
    dispatchEvent(new Event("online"));
    sockets.at(-1).lose();
    await settle();
    assert.deepEqual([signaling.state, nameless(requested())], ["connecting", ADA]);
    assert.deepEqual(told, [["error", "invalid_metadata", undefined]]);
    sockets.at(-1).lose();
    await settle();
    assert.equal(signaling.state, "closed", "the former one is refused as well");
    globalThis.fetch = fakeFetch();
  }
});

test("an update for which a server closes the connection is not repeated", async () => {
  const { outcomes, update } = open(RESUME);
  update(GRACE);
  sockets[0].lose(1009);
  pass(60_000);
  sockets[1].receive(welcome("me", RESUMED), list());
  await settle();
  assert.deepEqual([outcomes, updates(), nameless(requested())], [["too_large"], [], ADA]);
});

test("leaving ends updates, and later ones fail", async () => {
  const { signaling, outcomes, update } = open(UPDATES);
  update(GRACE);
  signaling.leave();
  await update(GRACE);
  await settle();
  assert.deepEqual(outcomes, ["dropped", "dropped"]);
});

test("an application that does not wait for an update gets no error", async () => {
  const { signaling } = joined();
  const unhandled = mock.fn();
  process.on("unhandledRejection", unhandled);
  signaling.updateMetadata("no object");
  signaling.updateMetadata(GRACE);
  await settle();
  process.off("unhandledRejection", unhandled);
  assert.equal(unhandled.mock.callCount(), 0);
});

test("updates of others are told, and change what is known of them", () => {
  const { signaling, told } = open({}, "a");
  sockets[0].receive(updated("a", GRACE), updated("nobody", GRACE), updated("a"));
  assert.deepEqual(told, [["peer-updated", "a", GRACE], ["peer-updated", "a", {}]]);
  assert.deepEqual([...signaling.peers], [["a", {}]]);
});

test("changes during a loss are told as updates", () => {
  const { told } = open(RESUME, "a", "b");
  sockets[0].receive(updated("b", ADA));
  told.length = 0;
  const peers = [{ id: "b", metadata: GRACE }, { id: "c", metadata: ADA }];
  reconnect(welcome("me", RESUMED), { type: "peer-list", peers });
  assert.deepEqual(told, [["peer-left", "a", undefined], ["peer-joined", "c", ADA], ["peer-updated", "b", GRACE]]);
  told.length = 0;
  reconnect(welcome("me", RESUMED), { type: "peer-list", peers });
  assert.deepEqual(told, []);
});

test("a mesh shows the latest metadata of a peer, and recognises it by the latest instance", () => {
  globalThis.RTCPeerConnection = FakeConnection;
  const { signaling } = joined();
  const mesh = new Mesh(signaling);
  const shown = [];
  mesh.addEventListener("peer-updated", ({ detail }) => shown.push([detail.id, detail.metadata.name]));
  sockets[0].receive(welcome("me"), list("a", "b"));
  const peer = mesh.peers.get("a");
  peer.connection.connect();
  sockets[0].receive(updated("a", { ...GRACE, instance: "one" }), updated("me", GRACE), updated("nobody", GRACE));
  assert.deepEqual(shown, [["a", "Grace"]]);
  sockets[0].receive({ type: "peer-left", peerId: "a" });
  sockets[0].receive({ type: "peer-joined", peerId: "c", metadata: { instance: "one" } });
  assert.equal(mesh.peers.get("c"), peer);
});
