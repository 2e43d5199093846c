"""Updates of the metadata of this node's peers.

The store decides whether a list would be too long, and the order of a topic's updates is that in which its scripts run.
A peer has its new metadata here as soon as the store has replied. Without the store it has it at once; when the store
is back, the topic is compared, and the other nodes get it. All nodes agree in the end, because a peer's metadata is
what its own node says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

from signaling.backplane.membership import Membership
from signaling.backplane.store import Store, UpdateReply
from signaling.core.topics import LIST_FULL

OnDecided = Callable[[str | None], None]


@dataclass(eq=False, slots=True)
class PeerUpdates:
    """The updates of one peer that the store has not replied to yet, oldest first.

    Attributes:
        may_differ: whether the store may have other metadata than the peer, unless it takes the last of these updates.
        waiting: what to call when there are no more.
    """

    undecided: list[OnDecided] = field(default_factory=list)
    may_differ: bool = False
    waiting: list[Callable[[], None]] = field(default_factory=list)


class PendingUpdates:
    """The pending updates of all peers of this node."""

    def __init__(self) -> None:
        self._by_topic: dict[str, dict[str, PeerUpdates]] = {}

    def add(self, topic: str, peer: str, on_decided: OnDecided) -> PeerUpdates:
        """Add an update; returns those of its peer."""
        updates = self._by_topic.setdefault(topic, {}).setdefault(peer, PeerUpdates())
        updates.undecided.append(on_decided)
        return updates

    def remove(self, topic: str, peer: str) -> PeerUpdates:
        """Remove the updates of a peer, and return them."""
        updates = self._by_topic[topic].pop(peer)
        if not self._by_topic[topic]:
            del self._by_topic[topic]
        return updates

    def peers(self, topic: str) -> Collection[str]:
        """Return the peers of a topic that have any."""
        return self._by_topic.get(topic, {}).keys()

    def leave_out(self, topic: str) -> Collection[str]:
        """Return the peers of a topic that have any; a comparison with the store leaves them as they are there."""
        pending = self._by_topic.get(topic, {})
        for updates in pending.values():
            updates.may_differ = True
        return pending.keys()

    def all_peers(self) -> list[tuple[str, str]]:
        """Return the topic and the id of each peer that has any."""
        return [(topic, peer) for topic, peers in self._by_topic.items() for peer in peers]

    def find(self, topic: str, peer: str) -> PeerUpdates | None:
        """Return the updates of a peer; None if it has none."""
        return self._by_topic.get(topic, {}).get(peer)

    def wait(self, topic: str, peer: str, call: Callable[[], None]) -> bool:
        """Call back when a peer has no updates any more; False if it has none now."""
        updates = self.find(topic, peer)
        if updates is not None:
            updates.waiting.append(call)
        return updates is not None


class Resync(Protocol):
    """Compares topics with the store."""

    def resync(self, topic: str) -> None:
        """Compare a topic as soon as the store is there."""


class Updates:
    """Has the store replace the metadata of this node's peers.

    Args:
        store: asked for each update.
        membership: says whether the store serves this node.
        replicas: compare a topic if the store may have other metadata than a peer.
        pending: where the updates are until they are decided.
    """

    def __init__(self, store: Store, membership: Membership, replicas: Resync, pending: PendingUpdates) -> None:
        self._store = store
        self._membership = membership
        self._replicas = replicas
        self._pending = pending

    def update(self, topic: str, peer: str, metadata: bytes, on_decided: OnDecided) -> None:
        """Begin an update; as ``Backplane.update``."""
        if not self._membership.is_registered:
            on_decided(None)
            self._replicas.resync(topic)
            return
        updates = self._pending.add(topic, peer, on_decided)

        def replied(reply: UpdateReply | None) -> None:
            # Replies come in the order of the calls. It was decided before if the store was silent for too long.
            if on_decided in updates.undecided:
                self._decide(topic, peer, updates, reply)

        self._store.update(topic, peer, metadata, replied)

    def decide_all(self) -> None:
        """Decide all updates without the store: there will be no reply."""
        for topic, peer in self._pending.all_peers():
            updates = self._pending.find(topic, peer)
            while updates is not None and updates.undecided:
                self._decide(topic, peer, updates, None)

    def _decide(self, topic: str, peer: str, updates: PeerUpdates, reply: UpdateReply | None) -> None:
        on_decided = updates.undecided.pop(0)
        if not updates.undecided:
            self._pending.remove(topic, peer)
        # If the store does not have the peer, or there was no reply, the peer has its metadata all the same.
        on_decided(LIST_FULL if reply is UpdateReply.FULL else None)
        if reply is UpdateReply.UPDATED:
            updates.may_differ = False
        elif reply is not UpdateReply.FULL:
            updates.may_differ = True
        if updates.undecided:
            return
        if updates.may_differ:
            self._replicas.resync(topic)
        for call in updates.waiting:
            call()
