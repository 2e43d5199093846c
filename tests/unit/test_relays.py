"""The order in which relays from other nodes reach a peer."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from signaling.backplane.messages import EventKind, Member, Relay, RelayBatch, TopicEvent
from signaling.backplane.pending_joins import PendingJoins
from signaling.backplane.relays import RemoteRelays
from signaling.backplane.replicas import Replicas
from signaling.backplane.store import Snapshot
from signaling.backplane.updates import PendingUpdates

HERE, THERE = "h" * 16, "t" * 16


class FakeCluster:
    """A node that has one peer, with its membership and the store."""

    node = HERE
    former_nodes: frozenset[str] = frozenset()
    is_registered = has_lease = True

    def __init__(self) -> None:
        self.delivered: list[bytes] = []

    def store_ms(self, seconds: float = 0.0) -> int:
        return 0

    def sync(self, topic: str, own: Any, done: Any) -> None: ...

    def send(self, node: str, message: Any) -> None: ...

    def members(self, topic: str) -> list[tuple[str, bytes | None]]:
        return [("target", None)]

    def has(self, topic: str, peer: str) -> bool:
        return peer == "target"

    def is_handing_off(self, topic: str, peer: str) -> bool:
        return False

    def joined(self, topic: str, peer: str, metadata: bytes | None) -> None: ...

    def deliver(self, topic: str, to: str, frame: bytes, receipt: Any) -> bool:
        self.delivered.append(frame)
        return True


def test_a_relay_does_not_overtake_one_that_waits_for_the_snapshot() -> None:
    here: Any = FakeCluster()
    pending = PendingJoins()
    replicas = Replicas(here, here, pending, PendingUpdates(), lambda topic, peer, node: None)
    relays = RemoteRelays(lambda: "o" * 16, Clock(), here, here, replicas, pending)
    replicas.start(here)
    relays.start(here)
    replica = replicas.replica("room")

    def relay(number: int) -> None:
        frames = [Relay(number, "room", "target", "sender", b"%d" % number)]
        relays.receive(RelayBatch("origin", THERE, 1, 0, frames))

    def event(number: int) -> None:
        member = Member(THERE, None)
        replicas.apply_event(TopicEvent(EventKind.JOINED, (1, 1, number), "room", f"peer {number}", member))

    def snapshot(number: int) -> None:
        replicas.apply_snapshot("room", replica, Snapshot((1, 1, number), {"sender": Member(THERE, None)}))

    relay(1)
    event(4)
    # The sender is known, but the event in between is missing.
    snapshot(2)
    relay(2)
    snapshot(3)
    assert here.delivered == [b"1", b"2"]
