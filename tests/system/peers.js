// What the tests of the JavaScript client do in their pages.

import { join, Mesh } from "/signaling.js";

export const made = []; // of {signaling, mesh, got, sent, removed}, in joining order

export const pause = (ms) => new Promise((done) => setTimeout(done, ms));

export async function until(test, what = test, ms = 55_000) {
  for (const end = performance.now() + ms; !test(); await pause(10)) {
    if (performance.now() > end) throw new Error(`not within ${ms} ms: ${what}`);
  }
}

/** Records the types of what a signaling sent and received, and what it was told. */
export function watch(signaling) {
  const seen = { sent: [], received: [], joined: [], left: [], errors: [], states: [], relayed: [] };
  signaling.addEventListener("sent", ({ detail }) => seen.sent.push(detail.type));
  signaling.addEventListener("received", ({ detail }) => seen.received.push(detail.type));
  signaling.addEventListener("peer-joined", ({ detail }) => seen.joined.push(detail.peerId));
  signaling.addEventListener("peer-left", ({ detail }) => seen.left.push(detail.peerId));
  signaling.addEventListener("error", ({ detail }) => seen.errors.push(detail.code));
  signaling.addEventListener("statechange", ({ detail }) => seen.states.push(detail.state));
  signaling.addEventListener("ice-candidate", ({ detail }) => seen.relayed.push(detail));
  return seen;
}

export function peer(url, options = {}, meshOptions = {}) {
  const signaling = join(url, { backoff: { first: 50, most: 400 }, ...options });
  const mesh = new Mesh(signaling, meshOptions);
  const one = { signaling, mesh, ...watch(signaling), got: [], added: [], removed: [] };
  mesh.addEventListener("data", ({ detail }) => one.got.push({ from: detail.peer, data: detail.data }));
  mesh.addEventListener("peer-added", ({ detail }) => one.added.push(detail));
  mesh.addEventListener("peer-removed", ({ detail }) => one.removed.push(detail));
  made.push(one);
  return one;
}

export const linked = ({ mesh }, count) =>
  mesh.peers.size === count && [...mesh.peers.values()].every(({ channel }) => channel.readyState === "open");

export const allLinked = (peers) => until(() => peers.every((one) => linked(one, peers.length - 1)), "all are linked");

export const connections = ({ mesh }) => [...mesh.peers.values()].map(({ connection }) => connection);
