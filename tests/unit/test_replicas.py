"""Which topics of a node are compared with the store, how often, and what an observer learns from the store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from signaling.backplane.pending_joins import PendingJoins
from signaling.backplane.replicas import Replicas
from signaling.backplane.store import Departure, Snapshot
from signaling.backplane.updates import PendingUpdates


class FakeStore:
    """A store without members, and the membership of a node that it serves."""

    node = "n" * 16
    is_connected = is_registered = True

    def __init__(self, departure: Departure | None = None, removed: Iterable[str] = ()) -> None:
        self.synced: list[str] = []
        self.departure = departure
        self.removed = tuple(removed)

    def sync(self, topic: str, own: Any, done: Any) -> None:
        self.synced.append(topic)
        done(Snapshot((1, 1, 1), {}, self.removed))

    def leave(self, topic: str, peer: str, done: Any) -> None:
        done(self.departure)


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


class FakeListener:
    """What an observer learns: calls, with their arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments))


def observed(store: FakeStore) -> tuple[Replicas, FakeListener]:
    """Make the replicas of a node without peers, and an observer."""
    replicas = Replicas(store, store, PendingJoins(), PendingUpdates(), lambda *_: None)  # type: ignore[arg-type]
    replicas.start(FakeNode())  # type: ignore[arg-type]
    replicas.observed = listener = FakeListener()
    return replicas, listener


def test_every_topic_is_compared_however_many_others_end() -> None:
    store, node = FakeStore(), FakeNode()
    replicas = Replicas(store, store, PendingJoins(), PendingUpdates(), lambda *_: None)  # type: ignore[arg-type]
    replicas.start(node)  # type: ignore[arg-type]
    older = [f"older{number}" for number in range(1300)]
    lasting = ["first", "second"]
    for topic in older + lasting:
        node.topics.add(topic)
        replicas.replica(topic)
    for topic in older[:1200]:
        node.topics.discard(topic)
        replicas.leave(topic, "peer")
        replicas.check()
    assert {*lasting} <= {*store.synced}


@pytest.mark.parametrize(
    ("departure", "has_left"),
    [(Departure.OPEN, True), (Departure.CLOSED, True), (Departure.ELSEWHERE, False), (None, None)],
)
def test_an_observer_learns_from_the_store_whether_a_peer_has_left(
    departure: Departure | None, has_left: bool | None
) -> None:
    replicas, listener = observed(FakeStore(departure))
    replicas.leave("room", "ada")
    assert listener.calls[0] == ("leave_decided", "room", "ada", has_left)


def test_a_peer_that_the_store_moved_here_in_vain_is_reported_once() -> None:
    replicas, listener = observed(FakeStore(removed=["ada", "bob"]))
    replicas.move_unanswered("room", "ada", b"the session")
    replicas.resync("room")
    reports = [call for call in listener.calls if call[0] == "peer_lost_on_its_way"]
    assert reports == [("peer_lost_on_its_way", "room", "ada", None, b"the session")]


def test_a_move_that_the_store_makes_later_is_reported_as_well() -> None:
    store = FakeStore()
    replicas, listener = observed(store)
    replicas.move_unanswered("room", "ada", b"the session")
    replicas.resync("room")
    store.removed = ("ada",)
    replicas.resync("room")
    assert ("peer_lost_on_its_way", "room", "ada", None, b"the session") in listener.calls
