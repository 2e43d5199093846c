"""What a server did, counted: the numbers behind "no message is lost without a word"."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from signaling.errors import ErrorCode


@dataclass(slots=True)
class Counters:
    """Counted since the server was made. What was accepted is written, waits, or came back undelivered.

    Args:
        relays_accepted: relays that were written or queued for their target.
        relays_undelivered: of those, answered ``dropped`` because their target went before they were written.
        refused: messages answered with an ``error``, by code.
        events_dropped: ``peer-joined`` and ``peer-left`` that met a full queue.
        requests_refused: requests that did not become peers, by HTTP status.
        resumed: peers that came back on another connection.
        connections_evicted: connections of no peer, cut to make room for newer ones.
    """

    relays_accepted: int = 0
    relays_undelivered: int = 0
    refused: Counter[ErrorCode] = field(default_factory=Counter)
    events_dropped: int = 0
    requests_refused: Counter[int] = field(default_factory=Counter)
    resumed: int = 0
    connections_evicted: int = 0
