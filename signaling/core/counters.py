"""What a server has counted since it started; ``/metrics`` is made of it.

Every accepted relay is accounted for: it was written, is queued, or was returned undelivered.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from signaling.core.messages import RELAYED_TYPES
from signaling.errors import ErrorCode, LeaveReason


class Histogram:
    """A histogram with fixed buckets.

    Args:
        bounds: the upper bounds of the buckets, ascending; one more bucket has none.

    Attributes:
        counts: values in each bucket, not cumulative.
        total: the sum of all values.
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


def _ping_round_trips() -> Histogram:
    return Histogram((0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10))


def _queue_depths() -> Histogram:
    return Histogram((1, 2, 4, 8, 16, 32, 64, 128, 256))


@dataclass(slots=True)
class Counters:
    """The counters of one server.

    Args:
        joins: peers that joined.
        leaves: peers that left, by reason.
        resumes: peers that resumed on another connection.
        metadata_updates: of peers of this server.
        relays_accepted: relays that were written or queued for their target, here or on another node, by type.
        relayed_bytes: the same in bytes of frames.
        relays_delivered_remotely: of ``relays_accepted`` and ``relays_received``, those that another node wrote.
        relays_received: relays from peers of other nodes that were written or queued here; ``relays_accepted`` does not
            include them.
        relays_undelivered: queued relays whose target left before they were written; the sender got ``dropped``.
        relays_rejected: well-formed relays that were not accepted, by type and error code.
        errors_sent: ``error`` messages sent, by code.
        admin_requests: requests of the admin API, by operation and HTTP status.
        notices_received: notices that were written or queued for a peer.
        events_dropped: ``peer-joined``, ``peer-updated`` and ``peer-left`` that were dropped because a queue was full.
        requests_refused: HTTP requests that did not become WebSocket connections, by status.
        checks_refused: ``?check`` that were answered that the client could not join, by status.
        handshake_timeouts: connections whose request was not complete in time.
        connections_evicted: connections that had not joined, closed to make room for newer ones.
        ping_round_trips: seconds from a ping to its pong.
        queue_depths_at_drop: messages in an outbound queue when it refused one.
    """

    joins: int = 0
    leaves: Counter[LeaveReason] = field(default_factory=Counter)
    resumes: int = 0
    metadata_updates: int = 0
    relays_accepted: dict[str, int] = field(default_factory=lambda: dict.fromkeys(sorted(RELAYED_TYPES), 0))
    relayed_bytes: int = 0
    relays_delivered_remotely: int = 0
    relays_received: int = 0
    relays_undelivered: int = 0
    relays_rejected: Counter[tuple[str, ErrorCode]] = field(default_factory=Counter)
    errors_sent: Counter[ErrorCode] = field(default_factory=Counter)
    admin_requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    notices_received: int = 0
    events_dropped: int = 0
    requests_refused: Counter[int] = field(default_factory=Counter)
    checks_refused: Counter[int] = field(default_factory=Counter)
    handshake_timeouts: int = 0
    connections_evicted: int = 0
    ping_round_trips: Histogram = field(default_factory=_ping_round_trips)
    queue_depths_at_drop: Histogram = field(default_factory=_queue_depths)

    @property
    def total_relays_accepted(self) -> int:
        """Accepted relays of all types."""
        return sum(self.relays_accepted.values())

    def count_dropped_events(self, number: int) -> None:
        """Count events that a full queue dropped."""
        self.events_dropped += number
