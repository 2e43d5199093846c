"""Books of a load on several nodes, some of which die: what became of each relay.

A relay is *delivered* to its target or *answered* by one error. Where connections end with their node, two more ends
are possible: *cut*, written to a connection that ended before its client read it, and *unheard*, whose sender's own
connection ended first. Whatever has none of these ends is *lost*. One that has both of the first two was written by a
node that died, or was taken for dead, before it could say so; where no node is, it is wrong.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

_NOTICE_SECONDS = 0.5


class Party(Protocol):
    """A peer, as the books need to know it.

    Attributes:
        id: its own.
        node: the name of the node that it is connected to.
        ended_at: when its connection ended, or it began to leave; None where it is there.
        read_all: whether it read everything that was written to it.
    """

    id: str
    node: str
    ended_at: float | None
    read_all: bool


@dataclass(slots=True)
class Relay:
    """One relay; times are the monotonic clock's seconds, 0 where it did not happen."""

    sender: Party
    target: Party
    sent: float
    arrived: float = 0.0
    answered: float = 0.0
    code: str = ""

    @property
    def crosses(self) -> bool:
        """Whether it went from one node to another."""
        return self.sender.node != self.target.node

    @property
    def is_open(self) -> bool:
        """Whether an end of it has to come yet."""
        cut = self.target.ended_at and not self.target.read_all
        return not (self.arrived or self.answered or self.sender.ended_at or cut)


@dataclass
class Books:
    """All relays of a load.

    Attributes:
        relays: by their ``msgId``.
        breaches: what may never happen.
    """

    relays: list[Relay] = field(default_factory=list)
    breaches: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    _latest: dict[tuple[str, str], int] = field(default_factory=dict)

    def enter(self, sender: Party, target: Party) -> int:
        """Enter one relay, and return its ``msgId``."""
        self.relays.append(Relay(sender, target, time.monotonic()))
        return len(self.relays) - 1

    def arrived(self, msg_id: str, at: Party) -> None:
        """Take note that a relay arrived."""
        number = int(msg_id)
        relay = self.relays[number]
        way = relay.sender.id, at.id
        if relay.target is not at:
            self.breach("delivered to the wrong peer", msg_id)
        elif relay.arrived:
            self.breach("delivered twice", msg_id)
        elif number < self._latest.get(way, -1):
            self.breach("out of order", msg_id)
        self._latest[way] = max(number, self._latest.get(way, -1))
        relay.arrived = relay.arrived or time.monotonic()

    def answered(self, msg_id: str, sender: Party, code: str) -> None:
        """Take note of an error that a sender heard."""
        if not msg_id or self.relays[int(msg_id)].sender is not sender:
            self.breach("answered to the wrong peer", f"{msg_id} {code}")
            return
        relay = self.relays[int(msg_id)]
        if relay.answered:
            self.breach("answered twice", msg_id)
        relay.answered, relay.code = time.monotonic(), code

    def breach(self, what: str, which: str) -> None:
        """Take note of what may never happen."""
        self.breaches[what] += 1
        self.examples.append(f"{what}: {which}")

    def open(self, since: int = 0) -> Iterator[Relay]:
        """List the relays that have no end yet."""
        return (relay for relay in self.relays[since:] if relay.is_open)

    def close(self) -> Ends:
        """Sort all relays by their ends, now that nothing more can come."""
        ends = Ends()
        for number, relay in enumerate(self.relays):
            end = _end(relay)
            ends.count[end] += 1
            if end == "both":
                ends.both.append(relay)
            elif end == "lost":
                self.breach("lost without a word", f"{number}, {describe(relay)}")
        return ends


@dataclass
class Ends:
    """How many relays ended in which way.

    Attributes:
        count: by ``delivered``, ``both``, ``cut``, ``unheard``, ``lost``, or the code of the answer.
        both: those that were delivered and answered.
    """

    count: Counter[str] = field(default_factory=Counter)
    both: list[Relay] = field(default_factory=list)

    @property
    def answered(self) -> dict[str, int]:
        """Those that were answered only, by code."""
        others = ("delivered", "both", "cut", "unheard", "lost")
        return {code: count for code, count in sorted(self.count.items()) if code not in others}


def _end(relay: Relay) -> str:
    target = relay.target
    if relay.arrived:
        return "both" if relay.answered else "delivered"
    if relay.answered:
        return relay.code
    if relay.sender.ended_at:
        return "unheard"
    # Nothing can be written to a connection that its node knows to have ended.
    if target.ended_at and not target.read_all and relay.sent <= target.ended_at + _NOTICE_SECONDS:
        return "cut"
    return "lost"


def describe(relay: Relay) -> str:
    """Say for people what is known of a relay."""
    sender, target = relay.sender, relay.target
    ended = f", whose connection ended {target.ended_at - relay.sent:+.3f} s after it" if target.ended_at else ""
    arrived = f", arrived after {relay.arrived - relay.sent:.3f} s" if relay.arrived else ""
    answered = f", answered {relay.code} after {relay.answered - relay.sent:.3f} s" if relay.answered else ""
    return f"from {sender.id} at {sender.node} to {target.id} at {target.node}{ended}{arrived}{answered}"
