// What the JavaScript client does with what a server says, and when: with sockets and a clock of its own.

import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { join } from "../../signaling/browser/client/signaling.js";
import { list, sockets, useFakePage, welcome } from "./fakes.mjs";

const RESUME = { resume: { token: "a token", window: 30 } };
const RESUMED = { resume: { token: "another token", window: 30 }, resumed: true };

const pass = useFakePage();

/** Lets promises go on. */
const nextTurn = () => new Promise((done) => setImmediate(done));

/** Joins; returns the signaling, and what it told. */
function joined(options) {
  const signaling = join("wss://example.com/ws/room", options);
  const told = [];
  const note = (type, what) => signaling.addEventListener(type, ({ detail }) => told.push(`${type} ${what(detail)}`));
  note("peer-joined", ({ peerId }) => peerId);
  note("peer-left", ({ peerId }) => peerId);
  note("offer", ({ payload }) => payload);
  note("error", ({ code, msgId }) => `${code} ${msgId}`);
  return { signaling, told };
}

/** Joins a topic in which `ids` are; returns the same. */
function open(extra, ...ids) {
  const made = joined();
  sockets[0].receive(welcome("me", extra), list(...ids));
  return made;
}

/** The same for features of the server. */
const features = (...names) => ({ features: names });

function reconnect(...messages) {
  pass(60_000);
  sockets.at(-1).receive(...messages);
}

test("a join names the topic, the metadata and a name of its own", () => {
  join("https://example.com/ws/a%2Fb?x=1#y", { metadata: { name: "Zoë & co" } });
  const { url } = sockets[0];
  const metadata = JSON.parse(url.searchParams.get("metadata"));
  assert.equal(url.href.split("metadata")[0], "wss://example.com/ws/a%2Fb?x=1&");
  assert.equal(metadata.name, "Zoë & co");
  assert.match(metadata.instance, /^\w{20,}$/);
});

test("an error before the welcome belongs to no session", () => {
  open(RESUME);
  sockets[0].lose();
  pass(60_000);
  sockets[1].receive({ type: "error", code: "topic_full", message: "the topic is full" });
  sockets[1].lose(1013);
  pass(60_000);
  assert.match(sockets[2].url.search, /&resume=a%20token&seen=2$/);
});

test("a resumed session goes on where it was, with what was not confirmed", () => {
  const { signaling, told } = open(RESUME, "a", "b");
  signaling.send("offer", "a", 1);
  sockets[0].receive({ type: "offer", from: "a", payload: "x" });
  sockets[0].lose();
  signaling.send("offer", "a", 2);
  pass(60_000);
  assert.equal(sockets[1].url.search.split("&").slice(1).join("&"), "resume=a%20token&seen=3");
  sockets[1].receive(welcome("me", RESUMED), list("a", "c"), { type: "peer-left", peerId: "b" });
  sockets[1].receive({ type: "peer-joined", peerId: "c" }, { type: "offer", from: "c", payload: "y" });
  assert.deepEqual(sockets[1].texts, []);
  sockets[1].echo();
  assert.deepEqual(sockets[1].texts, [1, 2]);
  assert.deepEqual(told, ["offer x", "peer-left b", "peer-joined c", "offer y"]);
  sockets[1].lose();
  pass(60_000);
  assert.match(sockets[2].url.search, /&resume=another%20token&seen=9$/);
});

test("a session that is not resumed is another peer's", () => {
  const { signaling, told } = open(RESUME, "a");
  sockets[0].lose();
  const msgId = signaling.send("offer", "a", 1);
  reconnect(welcome("me again", RESUME), list("a", "me", "b"));
  assert.equal(signaling.selfId, "me again");
  assert.deepEqual(sockets[1].sent, []);
  // The server has not noticed yet that "me" is gone; nobody needs to hear of that.
  sockets[1].receive({ type: "peer-left", peerId: "me" });
  assert.deepEqual([...signaling.peers.keys()], ["a", "b"]);
  assert.deepEqual(told, [`error dropped ${msgId}`, "peer-joined b"]);
  sockets[1].lose();
  pass(60_000);
  assert.match(sockets[2].url.search, /&seen=3$/);
});

test("the features of a server are those of its latest welcome", () => {
  const { signaling } = joined();
  assert.deepEqual([...signaling.features], []);
  sockets[0].receive(welcome("me", features("notices", "resume")), list());
  assert.deepEqual([...signaling.features], ["notices", "resume"]);
  sockets[0].lose();
  reconnect(welcome("me again", features("token")), list());
  assert.deepEqual([...signaling.features], ["token"]);
  sockets[1].lose();
  reconnect(welcome("me once more"), list());
  assert.deepEqual([...signaling.features], []);
});

test("a notice has any data, and counts as a message of the session", () => {
  const { signaling } = open(RESUME);
  const notices = [];
  signaling.addEventListener("notice", ({ detail }) => notices.push(detail.data));
  for (const data of [{ text: "soon" }, null, [1]]) sockets[0].receive({ type: "notice", data, from: "operator", msgId: "~1" });
  assert.deepEqual(notices, [{ text: "soon" }, null, [1]]);
  sockets[0].lose();
  pass(60_000);
  assert.match(sockets[1].url.search, /&seen=5$/);
});

test("what waits for a peer that is gone is not sent", () => {
  const { signaling, told } = open(RESUME, "a", "b");
  sockets[0].lose();
  const [lost] = ["a", "b"].map((id) => signaling.send("offer", id, id));
  reconnect(welcome("me", RESUMED), list("b"));
  assert.deepEqual(sockets[1].texts, ["b"]);
  assert.deepEqual(told, [`error target_not_found ${lost}`, "peer-left a"]);
});

test("a bounded number of messages waits", async () => {
  const { signaling, told } = open(RESUME, "a");
  sockets[0].lose();
  const ids = Array.from({ length: 258 }, (_, number) => signaling.send("offer", "a", number));
  await Promise.resolve();
  assert.deepEqual(told, ids.slice(256).map((id) => `error dropped ${id}`));
  reconnect(welcome("me", RESUMED), list("a"));
  assert.equal(sockets[1].texts.length, 256);
});

test("a message to itself tells what arrived, and nobody hears of it", () => {
  const { signaling, told } = open(RESUME, "a");
  let received = 0;
  signaling.addEventListener("received", () => received++);
  signaling.send("offer", "a", 1);
  const [, fence] = sockets[0].sent;
  signaling.send("offer", "a", 2);
  assert.equal(fence.to, "me");
  sockets[0].receive({ type: fence.type, from: "me", msgId: fence.msgId });
  sockets[0].lose();
  reconnect(welcome("me", RESUMED), list("a"));
  sockets[1].echo();
  assert.deepEqual(sockets[1].texts, [2]);
  assert.equal(received, 2);
  assert.deepEqual(told, []);
  sockets[1].lose();
  pass(60_000);
  assert.match(sockets[2].url.search, /&seen=6$/);
});

test("what the server answered, or turns out to have, is not sent again", () => {
  const { signaling } = open(RESUME, "a");
  const [refused] = [1, 2, 3].map((number) => signaling.send("offer", "a", number));
  const [, { msgId }] = sockets[0].sent;
  sockets[0].lose();
  signaling.send("offer", "a", 4);
  reconnect(welcome("me", RESUMED), list("a"));
  sockets[1].receive({ type: "ice-candidate", from: "me", msgId });
  sockets[1].receive({ type: "error", code: "dropped", msgId: refused });
  assert.deepEqual(sockets[1].texts, []);
  sockets[1].echo();
  assert.deepEqual(sockets[1].texts, [2, 3, 4]);
});

test("without resuming a sent message is a sent message", () => {
  const { signaling } = open({}, "a");
  signaling.send("offer", "a", 1);
  assert.equal(sockets[0].sent.length, 1);
  sockets[0].lose();
  reconnect(welcome("me", {}), list("a"));
  assert.deepEqual(sockets[1].sent, []);
});

test("what a sender repeats after its own loss is heard once", () => {
  const { told } = open({}, "a", "b");
  for (const [from, msgId] of [["a", "~1"], ["a", "~2"], ["b", "~1"], ["a", "~1"], ["a", "~2"], ["a", "~3"]]) {
    sockets[0].receive({ type: "offer", from, msgId, payload: from + msgId });
  }
  sockets[0].receive({ type: "offer", from: "a", msgId: "1", payload: "own" });
  sockets[0].receive({ type: "offer", from: "a", msgId: "1", payload: "own" });
  assert.deepEqual(told, ["offer a~1", "offer a~2", "offer b~1", "offer a~3", "offer own", "offer own"]);
});

test("a server that falls silent is left for a new connection, which takes the session over", async () => {
  const { signaling } = open(RESUME);
  pass(29_999);
  assert.equal(sockets[0].sent.length, 0);
  pass(1);
  assert.equal(sockets[0].sent.length, 1);
  pass(10_000);
  assert.equal(signaling.state, "waiting");
  pass(500);
  assert.equal(sockets.length, 2);
  // A close frame that arrives after all would end the session.
  assert.equal(sockets[0].closed, undefined);
  pass(15_000);
  await nextTurn();
  pass(1_000);
  assert.deepEqual(sockets.map(({ closed }) => closed), [undefined, "without a code", undefined]);
  sockets[2].receive(welcome("me", RESUMED));
  assert.equal(sockets[0].closed, "without a code");
});

test("a server that answers is not left until it falls silent", () => {
  const { signaling } = open({});
  for (let minute = 0; minute < 10; minute++) {
    pass(30_000);
    const { type, msgId } = sockets[0].sent.at(-1);
    sockets[0].receive({ type, from: "me", msgId });
    pass(10_000);
  }
  assert.equal(signaling.state, "open");
  pass(20_000);
  pass(10_000);
  assert.equal(signaling.state, "waiting");
});

test("a connection that does not open is given up", () => {
  const { signaling } = joined();
  pass(15_000);
  assert.equal(signaling.state, "waiting");
});

/** Returns how long it waits after each of some losses in a row. */
function waits(codes, lasted = 0) {
  const { signaling } = joined();
  const times = [];
  signaling.addEventListener("statechange", ({ detail }) => detail.retryInMs !== undefined && times.push(detail.retryInMs));
  for (const code of codes) {
    sockets.at(-1).receive(welcome("me"), list());
    pass(lasted);
    sockets.at(-1).lose(code);
    pass(60_000);
  }
  return times;
}

test("the time to the next attempt doubles up to a bound", () => {
  assert.deepEqual(waits(Array(8).fill(1006)), [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
});

test("after a connection that lasted the backoff starts anew", () => {
  assert.deepEqual(waits([1006, 1006, 1006], 5_000), [500, 500, 500]);
});

test("at most half of the time is left out at random", () => {
  Math.random.mock.mockImplementation(() => 1);
  assert.deepEqual(waits([1006, 1006]), [250, 500]);
});

test("after a restart everybody comes back within two seconds, spread at random", () => {
  Math.random.mock.mockImplementation(() => 0.5);
  assert.deepEqual([...waits([1001], 5_000), ...waits([1012], 5_000)], [1000, 1000]);
});

test("a full topic is left alone for a while, and a server that threw us out for longer", () => {
  assert.deepEqual([...waits([1013]), ...waits([1008])], [7500, 30_000]);
});

test("it connects at once when there is a network again", () => {
  const { signaling } = open({});
  for (const type of ["online", "pageshow"]) {
    sockets.at(-1).lose(1008);
    assert.equal(signaling.state, "waiting");
    dispatchEvent(new Event(type));
    assert.equal(signaling.state, "connecting");
  }
});

const hide = (persisted) => dispatchEvent(Object.assign(new Event("pagehide"), { persisted }));

test("a page that the browser keeps for a way back leaves the topic, and joins it again when it is shown", () => {
  const { signaling } = open({});
  hide(true);
  assert.deepEqual([sockets[0].closed, signaling.state], [1000, "waiting"]);
  dispatchEvent(new Event("pageshow"));
  assert.deepEqual([sockets.length, signaling.state], [2, "connecting"]);
});

test("a page that is closed for good leaves its connection to the browser", () => {
  const { signaling } = open({});
  hide(false);
  assert.deepEqual([sockets[0].closed, signaling.state], [undefined, "open"]);
});

test("a page that is kept while it waits goes on when it is shown", () => {
  const { signaling } = open({});
  sockets[0].lose(1006);
  hide(true);
  assert.equal(signaling.state, "waiting");
  dispatchEvent(new Event("pageshow"));
  assert.equal(signaling.state, "connecting");
});

test("it asks whether the server is there when there is a network again", () => {
  const { signaling } = open({});
  dispatchEvent(new Event("online"));
  assert.equal(sockets[0].sent.length, 1);
  pass(10_000);
  assert.equal(signaling.state, "waiting");
});

test("who leaves does not come back", async () => {
  const { signaling } = open({}, "a");
  signaling.leave();
  assert.equal(sockets[0].closed, 1000);
  sockets[0].lose(1000);
  pass(60_000);
  assert.deepEqual([signaling.state, sockets.length], ["closed", 1]);
  await signaling.ready;
});

test("without reconnecting a loss is the end, and ready says why", async () => {
  const { signaling } = joined({ reconnect: false });
  sockets[0].lose(1013, "the topic is full");
  assert.equal(signaling.state, "closed");
  await assert.rejects(signaling.ready, /the topic is full/);
});

for (const event of ["error", "statechange", "peer-list", "peer-left", "peer-joined"]) {
  test(`a listener of ${event} can leave while the changes of a loss are told, and nothing comes after that`, async () => {
    const { signaling } = open(RESUME, "gone");
    sockets[0].lose();
    signaling.send("offer", "gone", 1);
    pass(60_000);
    let after = 0;
    const note = ({ type, detail }) => {
      if (signaling.state === "closed") after += detail.state !== "closed";
      else if (type === event) signaling.leave();
    };
    for (const type of ["error", "statechange", "peer-list", "peer-left", "peer-joined"]) signaling.addEventListener(type, note);
    sockets[1].receive(welcome("me", RESUMED), list("new", "another"));
    await nextTurn();
    assert.equal(signaling.state, "closed");
    assert.equal(after, 0);
    pass(60_000);
    assert.equal(sockets.length, 2);
  });
}
