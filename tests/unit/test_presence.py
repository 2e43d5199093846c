"""Which topics of a node are compared with the store, and how often."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from signaling.backplane.pending_joins import PendingJoins
from signaling.backplane.presence import Presence
from signaling.backplane.store import Snapshot
from signaling.backplane.updates import PendingUpdates


class FakeStore:
    """A store without members, and the membership of a node that it serves."""

    node = "n" * 16
    is_connected = is_registered = True

    def __init__(self) -> None:
        self.synced: list[str] = []

    def sync(self, topic: str, own: Any, done: Any) -> None:
        self.synced.append(topic)
        done(Snapshot((1, 1, 1), {}))

    def leave(self, topic: str, peer: str, done: Any) -> None: ...


class FakeNode:
    """Has a peer in some topics."""

    def __init__(self) -> None:
        self.topics: set[str] = set()

    def members(self, topic: str) -> Iterable[tuple[str, bytes | None]]:
        return [("peer", None)] if topic in self.topics else []

    def has(self, topic: str, peer: str) -> bool:
        return topic in self.topics

    def is_handing_off(self, topic: str, peer: str) -> bool:
        return False


def test_every_topic_is_compared_however_many_others_end() -> None:
    store, node = FakeStore(), FakeNode()
    presence = Presence(store, store, PendingJoins(), PendingUpdates(), lambda *_: None)  # type: ignore[arg-type]
    presence.start(node)  # type: ignore[arg-type]
    older = [f"older{number}" for number in range(1300)]
    lasting = ["first", "second"]
    for topic in older + lasting:
        node.topics.add(topic)
        presence.replica(topic)
    for topic in older[:1200]:
        node.topics.discard(topic)
        presence.leave(topic, "peer")
        presence.check()
    assert {*lasting} <= {*store.synced}
