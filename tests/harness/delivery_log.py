"""What became of every relay of a test or a load: each is delivered, answered by one error, or excused.

Two excuses exist, because connections end. A relay was *cut* if it may have been written to a connection that ended
before its client read it. Its answer is *unread* if its sender went before it could read one. A relay without any of
these ends is *lost*; a relay with two ends, at the wrong peer or out of order is a *breach*.

The log does no I/O and has no lock: asyncio calls it as it is, threads share a lock of their own.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

NOBODY = ""
Peer = Hashable


@dataclass(slots=True, eq=False)
class Relay:
    """One relay. Times are those of the log's clock, None if it did not happen.

    Attributes:
        after_left: whether its sender had been informed that the target left; then only an answer is right.
        excuse: ``cut`` or ``unread``.
    """

    msg_id: str
    sender: Any
    target: Any
    sent_at: float
    after_left: bool = False
    delivered_at: float | None = None
    answered_at: float | None = None
    code: str = ""
    excuse: str = ""

    @property
    def outcome(self) -> str:
        """``delivered``, ``both`` (delivered and answered), the code of the answer, the excuse, or nothing yet."""
        if self.delivered_at is not None:
            return "both" if self.code else "delivered"
        return self.code or self.excuse


@dataclass
class DeliveryLog:
    """All relays of one test or load.

    Args:
        keep: keep relays that have their end, for their times. Otherwise the second end of a relay is a breach like
            one that was never sent, and memory is bounded by what is open.
        notice_seconds: for how long after the end of a connection its node may still write to it. By default until
            the sender was informed that the target left, which is exact with one server.

    Attributes:
        relays: by ``msgId``.
        count: ``sent``, ``delivered``, ``both``, ``cut``, ``unread`` and ``lost``.
        answers: relays that were answered only, by code.
        breaches: what may never happen, and how often; ``examples`` has the first of them in words.
        on_end: by sender, what to call when one of its relays has its end, or needs none any more.
    """

    keep: bool = True
    notice_seconds: float = float("inf")
    clock: Callable[[], float] = time.monotonic
    relays: dict[str, Relay] = field(default_factory=dict)
    count: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    breaches: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    on_end: dict[Peer, Callable[[], None]] = field(default_factory=dict)
    _open_from: dict[Peer, dict[str, Relay]] = field(default_factory=lambda: defaultdict(dict))
    _open_to: dict[Peer, dict[str, Relay]] = field(default_factory=lambda: defaultdict(dict))
    _latest: dict[Peer, dict[Peer, int]] = field(default_factory=lambda: defaultdict(dict))
    _ended: dict[Peer, tuple[float, bool]] = field(default_factory=dict)
    _left: dict[Peer, set[Peer]] = field(default_factory=lambda: defaultdict(set))
    _gone: set[Peer] = field(default_factory=set)

    # What happens

    def sent(self, sender: Peer, target: Peer) -> str:
        """Enter a relay that is about to be sent; returns its ``msgId``, which counts up from 0."""
        msg_id = str(self.count["sent"])
        self.count["sent"] += 1
        relay = Relay(msg_id, sender, target, self.clock(), sender in self._left and target in self._left[sender])
        self.relays[msg_id] = self._open_from[sender][msg_id] = self._open_to[target][msg_id] = relay
        return msg_id

    def delivered(self, msg_id: str, at: Peer) -> Relay | None:
        """Enter that a relay arrived; returns it, or None if no such relay is known."""
        relay = self.relays.get(msg_id)
        if relay is None:
            self.breach("delivered, but not open", f"{msg_id} at {at}")
            return None
        number, latest = int(msg_id), self._latest[at].get(relay.sender, -1)
        if relay.target != at:
            self.breach("delivered to the wrong peer", msg_id)
        elif relay.delivered_at is not None:
            self.breach("delivered twice", msg_id)
            return relay
        elif number < latest:
            self.breach("out of order", msg_id)
        self._latest[at][relay.sender] = max(number, latest)
        relay.delivered_at = self.clock()
        if relay.code:
            self.answers[relay.code] -= 1
            self.count["both"] += 1
        else:
            self.count["delivered"] += 1
            self._close(relay)
        return relay

    def answered(self, msg_id: str, sender: Peer, code: str) -> Relay | None:
        """Enter an error that a sender received; returns the relay, or None if no such relay is known."""
        relay = self.relays.get(msg_id)
        if relay is None or relay.sender != sender:
            self.breach("answered, but not open", f"{msg_id or 'no msgId'} {code}")
            return None
        if relay.code:
            self.breach("answered twice", msg_id)
            return relay
        relay.answered_at, relay.code = self.clock(), code
        if relay.delivered_at is not None:
            self.count["delivered"] -= 1
            self.count["both"] += 1
        else:
            self.answers[code] += 1
            self._close(relay)
        return relay

    def peer_left(self, sender: Peer, target: Peer) -> None:
        """Enter that a sender was informed of the end of a target: what it sends there from now on is answered."""
        self._left[sender].add(target)

    def ended(self, peer: Peer, *, read_all: bool) -> None:
        """Enter that a peer reads nothing more.

        Args:
            read_all: whether it read all that was written to it: then nothing that it did not get was cut.
        """
        self._ended[peer] = self.clock(), read_all
        self._left.pop(peer, None)
        self._latest.pop(peer, None)
        for sender in {relay.sender for relay in self._open_to.get(peer, {}).values()} & self.on_end.keys():
            self.on_end[sender]()

    def leaves(self, sender: Peer) -> None:
        """Enter that a sender goes without waiting for the ends of what it sent."""
        self._gone.add(sender)

    def excuse(self, relay: Relay, why: str) -> None:
        """Give an open relay an end that the caller knows of."""
        relay.excuse = why
        self.count[why] += 1
        self._close(relay)

    def breach(self, what: str, which: str) -> None:
        """Enter something that may never happen."""
        self.breaches[what] += 1
        self.examples.append(f"{what}: {which}")

    def _close(self, relay: Relay) -> None:
        for index, peer in ((self._open_from, relay.sender), (self._open_to, relay.target)):
            index[peer].pop(relay.msg_id, None)
            if not index[peer]:
                del index[peer]
        if not self.keep:
            del self.relays[relay.msg_id]
        if relay.sender in self.on_end:
            self.on_end[relay.sender]()

    # What it says

    def open(self, sender: Peer | None = None) -> list[Relay]:
        """List the relays, of one sender or of all, that have no end and no excuse yet."""
        senders = [sender] if sender is not None else list(self._open_from)
        return [r for each in senders for r in self._open_from.get(each, {}).values() if not self._excuse_of(r)]

    def _excuse_of(self, relay: Relay) -> str:
        if relay.sender in self._gone:
            return "unread"
        at, read_all = self._ended.get(relay.target, (0.0, True))
        if read_all or relay.after_left or relay.sent_at > at + self.notice_seconds:
            return ""
        # It was cut unless it was answered, and a sender that did not read all may have missed the answer.
        return "cut" if self._ended.get(relay.sender, (0.0, True))[1] else "unread"

    def close(self) -> None:
        """Excuse what is open and can be excused, now that nothing more can come; all else is lost."""
        for relay in [relay for relays in self._open_from.values() for relay in relays.values()]:
            why = self._excuse_of(relay)
            if not why:
                self.breach("lost", describe(relay))
            self.excuse(relay, why or "lost")

    def summary(self) -> dict[str, Any]:
        """Return all counts, for the log of another process."""
        return {"count": self.count, "answers": self.answers, "breaches": self.breaches, "examples": self.examples}

    def add(self, summary: dict[str, Any]) -> None:
        """Add the counts of a log that another process has closed."""
        for name in ("count", "answers", "breaches"):
            getattr(self, name).update(summary[name])
        self.examples += summary["examples"]

    def balance(self, server: dict[str, Any]) -> dict[str, bool]:
        """Compare with a server's own counters at rest; returns each equation, with whether it holds.

        Only relays whose answers are unread leave a tolerance, and never more than their number.
        """
        count, answered, unread = self.count, self.answers.total(), self.count["unread"]
        written, refused = server["written"], Counter(server["refused"])
        more_written = written - count["delivered"] - count["cut"]
        more_refused = [refused[code] - self.answers[code] for code in refused | self.answers]
        within = f" (within {unread} unread)" if unread else ""
        return {
            f"server: accepted {server['accepted']} = written {written} + undelivered {server['undelivered']}"
            f" + waiting {server['waiting']}, which is 0": server["accepted"] == written + server["undelivered"]
            and server["waiting"] == 0,
            f"clients: sent {count['sent']} = delivered {count['delivered']} + answered {answered} + cut {count['cut']}"
            f" + unread {unread}": count["sent"] == count["delivered"] + answered + count["cut"] + unread,
            f"written {written} = delivered {count['delivered']} + cut {count['cut']}{within}": 0
            <= more_written
            <= unread,
            f"refused by the server {refused.total()} = answered {answered}, code by code{within}": min(
                more_refused, default=0
            )
            >= 0
            and sum(more_refused) + more_written <= unread,
            f"lost, doubled, misordered or misdirected: {dict(self.breaches) or 0}": not self.breaches,
        }


def describe(relay: Relay) -> str:
    """Say for people what is known of a relay."""
    arrived = f", delivered after {relay.delivered_at - relay.sent_at:.3f} s" if relay.delivered_at is not None else ""
    answered = (
        f", answered {relay.code} after {relay.answered_at - relay.sent_at:.3f} s"
        if relay.answered_at is not None
        else ""
    )
    return f"relay {relay.msg_id} from {relay.sender} to {relay.target or 'nobody'}{arrived}{answered}"
