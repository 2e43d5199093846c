// Compiled, never run: an application that uses everything.

import { join, Mesh, type MeshPeer, type MetadataMessage, type NoticeMessage, type OutgoingMessage, type RelayedMessage, Signaling, type Untrusted, type WireMessage } from "twisted-signaling-client";

const leaving = new AbortController();
const signaling: Signaling = join(new URL("wss://example.com/ws/room"), {
  metadata: { name: "Ada" },
  signal: leaving.signal,
  backoff: { first: 100 },
  maxMessageBytes: 1_000_000,
  secret: "correct horse battery staple",
});

signaling.addEventListener("received", ({ detail }: CustomEvent<WireMessage>) => {
  if (detail.type === "peer-list") detail.peers.map(({ id, metadata }) => `${id} ${metadata.name}`);
});
signaling.addEventListener("offer", ({ detail }: CustomEvent<RelayedMessage>) => detail.from.length);
signaling.addEventListener("notice", ({ detail }: CustomEvent<NoticeMessage>) => detail.data === signaling.features.has("notices"));
signaling.addEventListener("peer-updated", ({ detail: { peerId, metadata } }) => `${peerId} ${metadata.name}`);
signaling.addEventListener("sent", ({ detail }: CustomEvent<OutgoingMessage | MetadataMessage>) =>
  detail.type === "metadata" ? detail.metadata.name : detail.to,
);
signaling.addEventListener("tampered", ({ detail: { from, type, reason } }) => `${from}: ${type}: ${reason}`);
signaling.addEventListener("statechange", ({ detail }) => detail.retryInMs?.toFixed() ?? detail.code === 4401);

const mesh = new Mesh(signaling, { configuration: { iceTransportPolicy: "relay" }, channel: true, maxConnections: 8 });

mesh.addEventListener("peer-added", ({ detail }: CustomEvent<MeshPeer>) => detail.connection.getStats());
mesh.addEventListener("peer-updated", ({ detail }: CustomEvent<MeshPeer>) => detail.metadata.name);
mesh.addEventListener("track", ({ detail: { peer, streams } }) => [peer.id, streams[0]?.id]);
mesh.addEventListener("data", ({ detail }) => detail.data === detail.peer.metadata.name);
mesh.addEventListener("error", ({ detail: { peerId, error } }) => `${peerId}: ${error.message}`);
mesh.broadcast(new Uint8Array([1]));
for (const { channel, polite } of mesh.peers.values()) if (polite) channel?.send("hello");

export async function callee(): Promise<string> {
  await signaling.ready;
  const [first] = signaling.peers.keys();
  return signaling.send("offer", first ?? signaling.selfId, { sdp: "v=0" });
}

// With types for metadata: this peer's own is checked, and the values of others have to be.
interface Person {
  name: string;
}
const typed: Signaling<Person> = join<Person>("/ws/room", { metadata: { name: "Ada" } });
const people = new Mesh<Person>(typed);
export const names = [...people.peers.values(), ...[...typed.peers.values()].map((metadata) => ({ metadata }))].map(
  ({ metadata: { name } }: { metadata: Untrusted<Person> }): string => (typeof name === "string" ? name : "Somebody"),
);
people.addEventListener("data", ({ detail: { peer } }) => {
  // @ts-expect-error: a peer may have written anything.
  const name: string = peer.metadata.name;
  // @ts-expect-error: there is no such key.
  const age = peer.metadata.age;
  return [name, age];
});
typed.addEventListener("peer-joined", ({ detail }) => {
  // @ts-expect-error: a peer may have written anything.
  detail.metadata.name?.length;
});
// @ts-expect-error: this peer's own metadata has a name.
join<Person>("/ws/room", { metadata: {} });

void typed.updateMetadata({ name: "Grace" }).catch(({ code }) => code === "unconfirmed");
// @ts-expect-error: this peer's own metadata has a name.
void typed.updateMetadata({});

// @ts-expect-error: relays are of three types.
signaling.send("hello", signaling.selfId);
// @ts-expect-error: `join` makes them.
new Signaling();
