// What a page may pass by mistake: a TypeError that names it, before anything was connected.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { join, Mesh } from "../../signaling/browser/client/signaling.js";
import { connections, FakeConnection, list, sockets, useFakePage, welcome } from "./fakes.mjs";

const ROOM = "wss://example.com/ws/room";

useFakePage();
beforeEach(() => (globalThis.RTCPeerConnection = FakeConnection));

/** name -> [arguments of `join`, what the error names]. */
const WRONG = {
  "no URL": [[], /URL/],
  "a URL that is null": [[null], /URL/],
  "a URL that is a number": [[5], /URL/],
  "an empty URL": [[""], /URL/],
  "a path without a page": [["/ws/room"], /URL/],
  "a URL without a scheme": [["localhost:8081/ws/room"], /ws:/],
  "another scheme": [["ftp://example.com/ws/room"], /ws:/],
  "options that are a string": [[ROOM, "options"], /options/],
  "options that are null": [[ROOM, null], /options/],
  "metadata that is a string": [[ROOM, { metadata: "Ada" }], /metadata/],
  "metadata that is a list": [[ROOM, { metadata: ["Ada"] }], /metadata/],
  "metadata that is a cycle": [[ROOM, { metadata: cycle() }], /circular|cyclic/i],
  "metadata in the URL that is no JSON": [[`${ROOM}?metadata=Ada`], /metadata/],
  "metadata in the URL that is no object": [[`${ROOM}?metadata=[1]`], /metadata/],
  "a signal that is none": [[ROOM, { signal: {} }], /signal/],
  "a controller in place of its signal": [[ROOM, { signal: new AbortController() }], /signal/],
  "a limit that is no number": [[ROOM, { maxMessageBytes: "64k" }], /maxMessageBytes/],
  "a limit of nothing": [[ROOM, { maxMessageBytes: 0 }], /maxMessageBytes/],
  "a limit that is NaN": [[ROOM, { maxMessageBytes: NaN }], /maxMessageBytes/],
  "a backoff that is a number": [[ROOM, { backoff: 500 }], /backoff/],
  "a first pause that is no number": [[ROOM, { backoff: { first: "1s" } }], /backoff/],
  "a first pause of nothing": [[ROOM, { backoff: { first: 0 } }], /backoff/],
  "a longest pause that is NaN": [[ROOM, { backoff: { most: NaN } }], /backoff/],
  "a longest pause that is negative": [[ROOM, { backoff: { most: -1 } }], /backoff/],
  "a WebSocket that is an object": [[ROOM, { WebSocket: {} }], /WebSocket/],
};

function cycle() {
  const made = {};
  made.self = made;
  return made;
}

for (const [name, [given, message]] of Object.entries(WRONG)) {
  test(`join: ${name}`, () => {
    assert.throws(() => join(...given), { name: "TypeError", message });
    assert.equal(sockets.length, 0);
  });
}

test("join: what is right", () => {
  const { signal } = new AbortController();
  const all = { metadata: {}, signal, reconnect: false, backoff: { first: 1 }, maxMessageBytes: 1, token: "t", WebSocket };
  const none = Object.fromEntries(Object.keys(all).map((key) => [key, undefined]));
  for (const options of [all, none, { ...none, backoff: { first: undefined, most: Infinity } }, {}, undefined]) join(ROOM, options);
  for (const url of ["ws://example.com/ws/room", "http://example.com/ws/room", "https://example.com/ws/room", new URL(ROOM)]) join(url);
  globalThis.location = { href: "https://example.com/page", origin: "https://example.com" };
  join("/ws/room?metadata={}");
  delete globalThis.location;
  assert.deepEqual(new Set(sockets.map(({ url }) => url.protocol)), new Set(["ws:", "wss:"]));
  assert.equal(sockets.length, 10);
  assert.equal(sockets.at(-1).url.origin + sockets.at(-1).url.pathname, ROOM);
});

test("join: options that are null are as good as none", () => {
  join(ROOM, { metadata: null, signal: null, reconnect: null, backoff: null, maxMessageBytes: null });
  assert.equal(sockets.length, 1);
});

test("join: the URL object of another frame, or the page's own location", () => {
  join({ href: ROOM, toString: () => ROOM });
  assert.equal(sockets[0].url.origin + sockets[0].url.pathname, ROOM);
});

test("a mesh: a client of another copy of this module", async () => {
  const copy = await import("../../signaling/browser/client/signaling.js?copy");
  const mesh = new Mesh(copy.join(ROOM));
  sockets.at(-1).receive(welcome("m"), list("a"));
  assert.equal(mesh.peers.size, 1);
});

test("a mesh: as many connections as there are peers", () => {
  const mesh = new Mesh(join(ROOM), { maxConnections: Infinity, configuration: { iceServers: null } });
  sockets.at(-1).receive(welcome("m"), list(...Array.from({ length: 200 }, (_, index) => `p${index}`)));
  assert.equal(mesh.peers.size, 200);
});

test("a mesh: wrong arguments", () => {
  for (const signaling of [undefined, null, {}, "room", ROOM]) assert.throws(() => new Mesh(signaling), { name: "TypeError", message: /join/ });
  const wrong = [
    null, "options", { maxConnections: 0 }, { maxConnections: NaN }, { maxConnections: "64" }, { maxConnections: -1 },
    { configuration: null }, { configuration: "stun:example.com" }, { configuration: { iceServers: "stun:example.com" } },
  ];
  for (const options of wrong) assert.throws(() => new Mesh(join(ROOM), options), { name: "TypeError", message: /options|maxConnections|configuration/ });
});

test("a mesh: what is no track is refused, and the mesh goes on", () => {
  const mesh = new Mesh(join(ROOM));
  for (const track of [undefined, null, {}, "audio", { getTracks() {} }]) {
    assert.throws(() => mesh.addTrack(track), { name: "TypeError", message: /track/ });
  }
  assert.throws(() => mesh.addTrack({ kind: "audio" }, undefined), { name: "TypeError", message: /stream/ });
  sockets.at(-1).receive(welcome("m"), list("a"));
  assert.deepEqual([mesh.peers.size, connections.length], [1, 1]);
});
