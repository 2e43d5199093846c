"""Who sees to the topics of a node, and how often."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from signaling.backplane.presence import Entrants, Presence


class FakeStore:
    """Knows of nobody, and keeps what it was asked."""

    node = "n" * 16
    good = True

    def __init__(self) -> None:
        self.synced: list[str] = []

    def sync(self, topic: str, own: Any, done: Any) -> None:
        self.synced.append(topic)
        done([b"synced", b"1.1", b"1", []])

    def leave(self, topic: str, peer: str, done: Any) -> bool:
        return True


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


def test_every_topic_is_seen_to_however_many_others_end() -> None:
    store, node = FakeStore(), FakeNode()
    presence = Presence(store, Entrants(), lambda topic, peer, node: None)  # type: ignore[arg-type]
    presence.start(node)  # type: ignore[arg-type]
    older = [f"older{number}" for number in range(1300)]
    lasting = ["first", "second"]
    for topic in older + lasting:
        node.topics.add(topic)
        presence.view(topic)
    for topic in older[:1200]:
        node.topics.discard(topic)
        presence.leave(topic, "peer")
        presence.look()
    assert {*lasting} <= {*store.synced}
