"""What a server did, counted: the numbers behind "no message is lost without a word"."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from signaling.core.messages import RELAYED_TYPES
from signaling.errors import Ending, ErrorCode


class Histogram:
    """How often values fell into each of some ranges.

    Args:
        bounds: the upper ends of the ranges, ascending; the last range has none.

    Attributes:
        counts: of each range, the one without an end last.
        total: of all values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def _round_trips() -> Histogram:
    return Histogram((0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10))


def _depths() -> Histogram:
    return Histogram((1, 2, 4, 8, 16, 32, 64, 128, 256))


@dataclass(slots=True)
class Counters:
    """Counted since the server was made. What was accepted is written, waits, or came back undelivered.

    Args:
        joins: peers that joined.
        leaves: peers that left, by why.
        resumed: peers that came back on another connection.
        relays: relays that were written or queued for their target, by type.
        relayed_bytes: of those, as they were framed.
        relays_delivered_elsewhere: of those and of ``relays_received``, relays that another node wrote.
        relays_received: relays of other nodes' peers that were written or queued here; not among those above.
        relays_undelivered: of all that were written or queued here, those answered ``dropped`` because their target
            went before they were written.
        relays_refused: readable relays that were not accepted, by type and code.
        refused: messages answered with an ``error``, by code.
        events_dropped: ``peer-joined`` and ``peer-left`` that met a full queue.
        requests_refused: requests that did not become peers, by HTTP status.
        requests_late: connections whose request did not come in time.
        connections_evicted: connections of no peer, cut to make room for newer ones.
        round_trips: seconds from a ping to its pong.
        depths: how many messages waited in a queue when it refused one.
    """

    joins: int = 0
    leaves: Counter[Ending] = field(default_factory=Counter)
    resumed: int = 0
    relays: dict[str, int] = field(default_factory=lambda: dict.fromkeys(sorted(RELAYED_TYPES), 0))
    relayed_bytes: int = 0
    relays_delivered_elsewhere: int = 0
    relays_received: int = 0
    relays_undelivered: int = 0
    relays_refused: Counter[tuple[str, ErrorCode]] = field(default_factory=Counter)
    refused: Counter[ErrorCode] = field(default_factory=Counter)
    events_dropped: int = 0
    requests_refused: Counter[int] = field(default_factory=Counter)
    requests_late: int = 0
    connections_evicted: int = 0
    round_trips: Histogram = field(default_factory=_round_trips)
    depths: Histogram = field(default_factory=_depths)

    @property
    def relays_accepted(self) -> int:
        """How many relays were written or queued for their target."""
        return sum(self.relays.values())

    def drop_events(self, number: int) -> None:
        """Count events that were not delivered."""
        self.events_dropped += number
