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
/** The server's answers to the update that was sent last, or to another one: with all of its metadata, or with an error. */
const accepted = (update = updates().at(-1)) => updated("me", update.metadata);
const refusal = (code, { msgId } = updates().at(-1)) => ({ type: "error", code, message: "no", msgId });
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
  sockets[0].receive(accepted());
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
  sockets[0].receive(refusal("rate_limited"));
  sockets[0].receive(accepted());
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
  sockets[0].receive(accepted());
  pass(20_000);
  await settle();
  assert.deepEqual(outcomes, ["unconfirmed", "updated"]);
});

test("an answer that comes late is that of no later update", async () => {
  const { told, outcomes, update } = open(UPDATES);
  update({ name: "a" });
  pass(10_000);
  update({ name: "b" });
  const [first, second] = updates();
  sockets[0].receive(accepted(first));
  await settle();
  assert.deepEqual([outcomes, sentNames()], [["unconfirmed"], ["a", "b"]]);
  sockets[0].receive(refusal("topic_full", second));
  await settle();
  assert.deepEqual([outcomes, told.length], [["unconfirmed", "topic_full"], 1]);
  reconnect();
  assert.equal(requested().name, "a");
});

test("of two equal updates each has an answer of its own", async () => {
  const { outcomes, update } = open(UPDATES);
  update(GRACE);
  pass(10_000);
  update(GRACE);
  sockets[0].receive(accepted());
  await settle();
  assert.deepEqual(outcomes, ["unconfirmed"]);
  sockets[0].receive(accepted());
  await settle();
  assert.deepEqual(outcomes, ["unconfirmed", "updated"]);
});

test("an update ends although no answer is its own", async () => {
  const { outcomes, update } = open(UPDATES);
  update({ name: "a" });
  update({ name: "b" });
  for (const metadata of [{ name: "x" }, {}, undefined]) sockets[0].receive(updated("me", metadata));
  pass(10_000);
  sockets[0].receive(updated("me", { name: "x" }), refusal("forbidden", { msgId: "metadata 1" }));
  pass(10_000);
  await settle();
  assert.deepEqual(outcomes, ["unconfirmed", "unconfirmed"]);
});

test("an update after one that is not answered may be refused: then the earlier one counts", async () => {
  const { told, update } = open(RESUME);
  update({ name: "a" });
  pass(10_000);
  update({ name: "b" });
  const [first] = updates();
  sockets[0].receive(refusal("rate_limited"));
  reconnect(welcome("me", RESUMED), list());
  assert.deepEqual([sentNames(), requested().name], [["a"], "a"]);
  pass(10_000);
  sockets[1].receive(refusal("topic_full"));
  assert.deepEqual([told, first.msgId], [[["error", "topic_full", "metadata 3"]], "metadata 1"]);
  reconnect();
  assert.deepEqual(nameless(requested()), ADA);
});

test("an update that is longer than what is kept of one is answered all the same", async () => {
  const { signaling, outcomes, update } = open(UPDATES);
  update({ name: "x".repeat(20_000) });
  sockets[0].receive(accepted());
  await settle();
  assert.deepEqual([outcomes, signaling.metadata], [["updated"], {}]);
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
  sockets[1].receive(accepted());
  reconnect(welcome("me", RESUMED), list());
  await settle();
  assert.deepEqual([sentNames(), outcomes], [[], ["unconfirmed"]]);
  assert.deepEqual(told.map(([type, id, metadata]) => [type, id, nameless(metadata)]), [["peer-updated", "me", GRACE]]);
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

test("if a longer message was sent, that is what was too long for the server", async () => {
  const { told, outcomes, update, signaling } = open(RESUME, "a");
  signaling.send("ice-candidate", "a", "short");
  const msgId = signaling.send("offer", "a", "x".repeat(1_000));
  update(GRACE);
  sockets[0].lose(1009, "at most 500 bytes");
  await settle();
  assert.deepEqual([outcomes, told], [["unconfirmed"], [["error", "too_large", msgId]]]);
  pass(60_000);
  sockets[1].receive(welcome("me", RESUMED), list("a"));
  sockets[1].echo();
  assert.deepEqual([sentNames(), sockets[1].texts.filter(Boolean)], [["Grace"], ["short"]]);
});

test("lengths are compared in bytes", async () => {
  const { outcomes, update, signaling } = open(RESUME, "a");
  signaling.send("offer", "a", "x".repeat(1_500));
  update({ name: "\u20ac".repeat(1_000) });
  sockets[0].lose(1009);
  await settle();
  assert.deepEqual(outcomes, ["too_large"]);
});

test("without sessions a longer message, which may have been too long, clears an update", async () => {
  for (const [length, outcome, name] of [[1_000, "unconfirmed", "Grace"], [1, "too_large", "Ada"]]) {
    sockets.length = 0;
    const { outcomes, update, signaling } = open(UPDATES, "a");
    signaling.send("offer", "a", "x".repeat(length));
    update(GRACE);
    sockets[0].lose(1009);
    pass(60_000);
    await settle();
    assert.deepEqual([outcomes, requested().name], [[outcome], name]);
    signaling.leave();
  }
});

test("a message that is too long for the server is not repeated", async () => {
  const { told, signaling } = open(RESUME, "a");
  const msgId = signaling.send("offer", "a", "x".repeat(1_000));
  signaling.send("ice-candidate", "a", "short");
  signaling.addEventListener("error", () => signaling.send("answer", "a", "later"), { once: true });
  sockets[0].lose(1009);
  await settle();
  assert.deepEqual(told, [["error", "too_large", msgId]]);
  pass(60_000);
  sockets[1].receive(welcome("me", RESUMED), list("a"));
  sockets[1].echo();
  assert.deepEqual(sockets[1].texts, ["short", "later"]);
});

test("an update for which nobody waits any more can be what was too long", async () => {
  const { told, outcomes, update } = open(RESUME);
  update({ name: "x".repeat(1_000) });
  pass(10_000);
  update(GRACE);
  sockets[0].lose(1009);
  await settle();
  assert.deepEqual([outcomes, told], [["unconfirmed", "unconfirmed"], [["error", "too_large", "metadata 1"]]]);
  assert.equal(sentNames().length, 2);
  pass(60_000);
  sockets[1].receive(welcome("me", RESUMED), list());
  assert.deepEqual(sentNames(), ["Grace"]);
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
