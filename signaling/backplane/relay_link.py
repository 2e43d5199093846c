"""Relays between two nodes, and the outcome of each.

The origin numbers them. The node that has the targets reports the outcome of each number, once the relay is written to
a connection or never will be. If an outcome may be lost, the origin asks for it, and a relay that has not come by then
is not delivered any more. So a relay has one outcome, and its sender gets the right one, unless a node dies between
writing the relay and reporting that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from signaling.backplane.messages import OutcomeQuery, Outcomes, Relay, RelayBatch, runs
from signaling.core.interfaces import Forwarding
from signaling.errors import ErrorCode

# Relays without an outcome, of one node for one other; beyond that relays are dropped, as for a peer that reads
# nothing. Those that wait for a slow target there do not count: its own queue bounds them.
_MAX_OPEN = 1024
_MAX_OPEN_BYTES = 8 << 20
_MAX_BATCH_BYTES = 1 << 20

Send = Callable[[RelayBatch | OutcomeQuery, Callable[[int | None], None]], None]
"""Sends to the other node; calls back with the number of listeners, or None if that is not known."""


class _Open:
    """A relay without an outcome.

    Attributes:
        held: whether it waits in its target's queue.
        size: in bytes, as far as it counts; 0 if it is held.
        since: when it was sent, or reported as held.
    """

    __slots__ = ("forwarding", "held", "since", "size")

    def __init__(self, forwarding: Forwarding, size: int, since: float) -> None:
        self.forwarding = forwarding
        self.held = False
        self.size = size
        self.since = since


class OutgoingLink:
    """The relays of one origin for the peers of one other node.

    While one batch is being published the next relays wait, and go together: the busier, the cheaper.

    Args:
        origin: a new one for each link: its numbers begin at 1.
        send: to the other node.
    """

    def __init__(self, origin: str, send: Send) -> None:
        self.origin = origin
        self._send = send
        self._latest = 0
        self._published = 0
        self._open: dict[int, _Open] = {}
        self._open_bytes = 0
        self._held = 0
        self._waiting: list[Relay] = []
        self._publishing = False

    def __len__(self) -> int:
        return len(self._open)

    def send(self, relay: tuple[str, str, str, bytes], forwarding: Forwarding, now: float) -> bool:
        """Send one relay, now or with the next; ``flush`` has to be called.

        Args:
            relay: topic, target, sender and frame.
            forwarding: gets the outcome.

        Returns:
            False if too many have no outcome yet.
        """
        size = len(relay[3])
        if len(self._open) - self._held >= _MAX_OPEN or self._open_bytes + size > _MAX_OPEN_BYTES:
            return False
        self._latest += 1
        self._open[self._latest] = _Open(forwarding, size, now)
        self._open_bytes += size
        self._waiting.append(Relay(self._latest, *relay))
        return True

    def await_outcomes(self, forwardings: Mapping[int, Forwarding], now: float) -> None:
        """Wait for the outcomes of relays that the other node has already, by their numbers."""
        self._open = {number: _Open(forwarding, 0, now) for number, forwarding in sorted(forwardings.items())}
        self._latest = max(self._open, default=0)
        for relay in self._open.values():
            self._hold(relay, now)

    def flush(self, reply_to: str, expires: int, *, at_once: bool = False) -> None:
        """Publish what waits, unless a batch is being published.

        Args:
            reply_to: the node that gets the outcomes.
            expires: as in ``RelayBatch``.
            at_once: publish all of it, even then.
        """
        while self._waiting and (at_once or not self._publishing):
            self._publish_batch(reply_to, expires)

    def _publish_batch(self, reply_to: str, expires: int) -> None:
        batch = self._take_batch()
        self._publishing = True
        self._published = batch[-1].number
        low = next(iter(self._open), self._latest)
        message = RelayBatch(self.origin, reply_to, low, expires, batch)
        self._send(message, lambda listeners: self._published_batch(batch, listeners, reply_to, expires))

    def _take_batch(self) -> list[Relay]:
        size = count = 0
        for relay in self._waiting:
            size += len(relay.frame)
            if count and size > _MAX_BATCH_BYTES:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    def _published_batch(self, batch: list[Relay], listeners: int | None, reply_to: str, expires: int) -> None:
        self._publishing = False
        if listeners == 0:
            # No node got them, and none will.
            self._fail(relay.number for relay in batch)
        if listeners is not None:
            self.flush(reply_to, expires)

    def query(self, reply_to: str, older_than: float) -> None:
        """Ask for the outcomes of all that the other node may have, if one of them has been open for too long."""
        numbers = [number for number, relay in self._open.items() if number <= self._published or relay.held]
        if numbers and any(self._open[number].since <= older_than for number in numbers):
            self._send(OutcomeQuery(self.origin, reply_to, self._published, numbers), lambda listeners: None)

    def apply_outcomes(self, outcomes: Outcomes, now: float) -> None:
        """Report outcomes to senders; a second outcome changes nothing."""
        for first, last in outcomes.delivered:
            for number in range(max(first, next(iter(self._open), last + 1)), min(last, self._latest) + 1):
                relay = self._close(number)
                if relay is not None:
                    relay.forwarding.delivered()
        for number, code in outcomes.failed:
            self._fail(
                [number], ErrorCode.TARGET_NOT_FOUND if code == ErrorCode.TARGET_NOT_FOUND else ErrorCode.DROPPED
            )
        for number in outcomes.held:
            if number in self._open:
                self._hold(self._open[number], now)

    def _hold(self, relay: _Open, now: float) -> None:
        relay.since = now
        if not relay.held:
            relay.held = True
            self._held += 1
            self._open_bytes -= relay.size
            relay.size = 0

    def drop_unpublished(self) -> None:
        """Drop what waits: it cannot be sent for now."""
        waiting, self._waiting = self._waiting, []
        self._publishing = False
        self._fail(relay.number for relay in waiting)

    def give_up(self, older_than: float) -> None:
        """Drop the relays that have been open since before ``older_than``."""
        self._fail([number for number, relay in self._open.items() if relay.since <= older_than])
        # A relay that was dropped must not be sent after all.
        self._waiting = [relay for relay in self._waiting if relay.number in self._open]

    def _fail(self, numbers: Iterable[int], code: ErrorCode = ErrorCode.DROPPED) -> None:
        for number in numbers:
            relay = self._close(number)
            if relay is not None:
                relay.forwarding.failed(code)

    def _close(self, number: int) -> _Open | None:
        relay = self._open.pop(number, None)
        if relay is not None:
            self._held -= relay.held
            self._open_bytes -= relay.size
        return relay


class RemoteSender:
    """The sender of a relay that came from another node.

    Args:
        on_outcome: called with the outcome, None for written.
    """

    def __init__(self, on_outcome: Callable[[ErrorCode | None], None]) -> None:
        self._on_outcome = on_outcome

    def relay_queued(self, msg_id: bytes | None) -> None:
        """No-op: the caller reports that the relay is held."""

    def relay_written(self, msg_id: bytes | None) -> None:
        """Report it."""
        self._on_outcome(None)

    def relay_failed(self, msg_id: bytes | None, code: ErrorCode) -> None:
        """Report it."""
        self._on_outcome(code)


class _Known(NamedTuple):
    code: ErrorCode | None
    since: float


class IncomingLink:
    """The relays of one origin for the peers of this node.

    Args:
        origin: the series that numbers them.
        node: to which they were sent.

    Attributes:
        node: to which they were sent; this one may have another id by now.
        reply_to: the node that waits for their outcomes.
        reported_at: when outcomes were last reported, in seconds.
    """

    def __init__(self, origin: str, node: str) -> None:
        self.origin = origin
        self.node = node
        self.reported_at = float("-inf")
        self.reply_to = ""
        self._highest = 0
        self._known: dict[int, _Known] = {}
        self._held: set[int] = set()
        self._unreported: list[int] = []
        self._unreported_held: list[int] = []

    @property
    def has_report(self) -> bool:
        """Whether there are outcomes to report."""
        return bool(self._unreported or self._unreported_held)

    def receive(self, batch: RelayBatch) -> list[Relay]:
        """Return the relays to deliver; ``finish`` has to be called for each."""
        self.reply_to = batch.reply_to
        self._forget_while(lambda number, known: number < batch.low)
        fresh = []
        for relay in batch.relays:
            # A number that is not greater came late, over a connection that was lost: the origin knows its outcome.
            if relay.number > self._highest:
                self._highest = relay.number
                self._held.add(relay.number)
                fresh.append(relay)
        return fresh

    def adopt(self, numbers: Iterable[int], reply_to: str) -> None:
        """Report the outcomes of relays that are here already; ``finish`` has to be called for each."""
        self.reply_to = reply_to
        self._held.update(numbers)

    def finish(self, number: int, code: ErrorCode | None, now: float) -> None:
        """Record the outcome of a relay for the next report.

        Args:
            code: None if the relay was delivered.
        """
        self._held.discard(number)
        self._known[number] = _Known(code, now)
        self._unreported.append(number)

    def hold(self, number: int) -> None:
        """Record for the next report that a relay waits in its target's queue."""
        self._unreported_held.append(number)

    def answer(self, query: OutcomeQuery, now: float) -> Outcomes:
        """Return the outcomes that are asked for; a relay that has not come by now is refused when it comes."""
        self.reply_to = query.reply_to
        self._highest = max(self._highest, query.high)
        for number in query.numbers:
            if number not in self._known and number not in self._held:
                self._known[number] = _Known(ErrorCode.DROPPED, now)
        self._unreported, self._unreported_held = [], []
        # The origin has the outcomes that it does not ask for. Waiting for the low number instead would keep the
        # outcomes of all behind one relay that is held for long.
        asked = set(query.numbers)
        self._known = {number: known for number, known in self._known.items() if number > query.high or number in asked}
        known = [number for number in query.numbers if number in self._known]
        return self._outcomes(known, sorted(self._held.intersection(asked)))

    def take_report(self) -> Outcomes:
        """Return the outcomes that have not been reported yet."""
        unreported, self._unreported = self._unreported, []
        held, self._unreported_held = self._unreported_held, []
        known = [number for number in unreported if number in self._known]
        return self._outcomes(known, [number for number in held if number in self._held])

    def forget(self, older_than: float) -> None:
        """Forget the outcomes from before ``older_than``: the origin does not wait for them any more."""
        self._forget_while(lambda number, known: known.since <= older_than)

    def _forget_while(self, condition: Callable[[int, _Known], bool]) -> None:
        # In the order in which they were finished, which is nearly that of their numbers.
        while self._known:
            number, known = next(iter(self._known.items()))
            if not condition(number, known):
                break
            del self._known[number]

    @property
    def is_idle(self) -> bool:
        """Whether no relay is held, and no outcome kept."""
        return not (self._known or self._held)

    @property
    def has_batches(self) -> bool:
        """Whether batches come from this origin: while they may, their numbers must not be accepted a second time."""
        return bool(self._highest)

    def _outcomes(self, numbers: list[int], held: list[int]) -> Outcomes:
        delivered = sorted(number for number in numbers if self._known[number].code is None)
        failed = [(number, str(self._known[number].code)) for number in numbers if self._known[number].code]
        return Outcomes(self.origin, self.node, runs(delivered), failed, held)
