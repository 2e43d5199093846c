"""In what order relays from other nodes reach a peer."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from signaling.backplane.messages import Event, Kind, Other, Relay, Relays
from signaling.backplane.presence import Entrants, Presence
from signaling.backplane.relays import Relaying

HERE, THERE = "h" * 16, "t" * 16


class FakeCluster:
    """A node that has one peer, with its registration and the store."""

    node = HERE
    formers: frozenset[str] = frozenset()
    good = may_deliver = True

    def __init__(self) -> None:
        self.delivered: list[bytes] = []

    def store_ms(self, seconds: float = 0.0) -> int:
        return 0

    def sync(self, topic: str, own: Any, done: Any) -> None: ...

    def tell(self, node: str, message: Any) -> None: ...

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
    entrants = Entrants()
    presence = Presence(here, entrants, lambda topic, peer, node: None)
    relaying = Relaying(lambda: "o" * 16, Clock(), here, presence, entrants, here)
    presence.start(here)
    relaying.start(here)
    view = presence.view("room")

    def relay(number: int) -> None:
        frames = [Relay(number, "room", "target", "sender", b"%d" % number)]
        relaying.take(Relays("origin", THERE, 1, 0, frames))

    def event(number: int) -> None:
        other = Other(THERE, None)
        presence.take_event(Event(Kind.JOINED, (1, 1, number), "room", f"peer {number}", other))

    def snapshot(number: int) -> None:
        presence.take_snapshot("room", view, [b"synced", b"1.1", number, [b"sender", THERE.encode()]])

    relay(1)
    event(4)
    # The sender is known, but the event in between is missing.
    snapshot(2)
    relay(2)
    snapshot(3)
    assert here.delivered == [b"1", b"2"]
