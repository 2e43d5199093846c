"""Relays between two nodes, and what became of each.

The origin numbers them; the node that has the targets tells the outcome of each number, once it is written to a
connection or never will be. Where an outcome may be lost, the origin asks, and from then on nothing that it asked about
is delivered. So a relay ends in one way, and its sender hears the right one, unless a node dies between writing and
telling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from signaling.backplane.messages import Ask, Outcomes, Relay, Relays, runs
from signaling.core.interfaces import Forwarding
from signaling.errors import ErrorCode

# Of one node for one other; beyond them relays are dropped, as they are for a peer that takes nothing. What waits for
# its target there does not count: each peer's own queue bounds that, and others must not pay for it.
_MOST_OPEN = 1024
_MOST_OPEN_BYTES = 8 << 20
_MOST_BATCH_BYTES = 1 << 20

Publish = Callable[[Relays | Ask, Callable[[int | None], None]], None]
"""Tells the other node; says how many listened, or None where that is not known."""


class _Open:
    """A relay whose outcome is not known.

    Attributes:
        size: in bytes, as far as it counts; 0 where it waits for its target.
    """

    __slots__ = ("forwarding", "held", "since", "size")

    def __init__(self, forwarding: Forwarding, size: int, since: float) -> None:
        self.forwarding = forwarding
        self.held = False
        self.size = size
        self.since = since


class Outgoing:
    """The relays of one origin for the peers of one other node.

    While one publication is under way the next relays wait for its end, and go together: the busier, the cheaper.

    Args:
        origin: whose numbers these are; a new one for each, for they begin at 1.
        publish: reaches the other node.
    """

    def __init__(self, origin: str, publish: Publish) -> None:
        self.origin = origin
        self._publish = publish
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
            forwarding: hears the outcome.

        Returns:
            False where too many have no outcome yet.
        """
        size = len(relay[3])
        if len(self._open) - self._held >= _MOST_OPEN or self._open_bytes + size > _MOST_OPEN_BYTES:
            return False
        self._latest += 1
        self._open[self._latest] = _Open(forwarding, size, now)
        self._open_bytes += size
        self._waiting.append(Relay(self._latest, *relay))
        return True

    def expect(self, forwardings: Mapping[int, Forwarding], now: float) -> None:
        """Expect the outcomes of relays that the other node has in any case, by their numbers."""
        self._open = {number: _Open(forwarding, 0, now) for number, forwarding in sorted(forwardings.items())}
        self._latest = max(self._open, default=0)
        for relay in self._open.values():
            self._hold(relay, now)

    def flush(self, reply_to: str, expires: int, *, at_once: bool = False) -> None:
        """Publish what waits, unless a publication is under way.

        Args:
            reply_to: the node that hears the outcomes.
            expires: as in ``Relays``.
            at_once: whether even then; all of it.
        """
        while self._waiting and (at_once or not self._publishing):
            self._publish_batch(reply_to, expires)

    def _publish_batch(self, reply_to: str, expires: int) -> None:
        batch = self._take_batch()
        self._publishing = True
        self._published = batch[-1].number
        low = next(iter(self._open), self._latest)
        relays = Relays(self.origin, reply_to, low, expires, batch)
        self._publish(relays, lambda listeners: self._sent(batch, listeners, reply_to, expires))

    def _take_batch(self) -> list[Relay]:
        size = count = 0
        for relay in self._waiting:
            size += len(relay.frame)
            if count and size > _MOST_BATCH_BYTES:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    def _sent(self, batch: list[Relay], listeners: int | None, reply_to: str, expires: int) -> None:
        self._publishing = False
        if listeners == 0:
            # Nobody has them, and nobody will.
            self._fail(relay.number for relay in batch)
        if listeners is not None:
            self.flush(reply_to, expires)

    def ask(self, reply_to: str, older_than: float) -> None:
        """Ask what became of all that the other node may have, where one of those was last heard of too long ago."""
        numbers = [number for number, relay in self._open.items() if number <= self._published or relay.held]
        if numbers and any(self._open[number].since <= older_than for number in numbers):
            self._publish(Ask(self.origin, reply_to, self._published, numbers), lambda listeners: None)

    def hear(self, outcomes: Outcomes, now: float) -> None:
        """Take outcomes; of what is settled already nothing is changed."""
        for first, last in outcomes.delivered:
            for number in range(max(first, next(iter(self._open), last + 1)), min(last, self._latest) + 1):
                relay = self._settle(number)
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
        """Give up on what waits: it was not sent, and cannot be for now."""
        waiting, self._waiting = self._waiting, []
        self._publishing = False
        self._fail(relay.number for relay in waiting)

    def give_up(self, older_than: float) -> None:
        """Give up on what was last heard of before ``older_than``."""
        self._fail([number for number, relay in self._open.items() if relay.since <= older_than])
        # What was given up must not be sent after all.
        self._waiting = [relay for relay in self._waiting if relay.number in self._open]

    def _fail(self, numbers: Iterable[int], code: ErrorCode = ErrorCode.DROPPED) -> None:
        for number in numbers:
            relay = self._settle(number)
            if relay is not None:
                relay.forwarding.failed(code)

    def _settle(self, number: int) -> _Open | None:
        relay = self._open.pop(number, None)
        if relay is not None:
            self._held -= relay.held
            self._open_bytes -= relay.size
        return relay


class RemoteSender:
    """The sender of a relay that another node waits for.

    Args:
        settle: takes the outcome, None for written.
    """

    def __init__(self, settle: Callable[[ErrorCode | None], None]) -> None:
        self._settle = settle

    def relay_queued(self, msg_id: bytes | None) -> None:
        """No-op: its node is told that the relay is held."""

    def relay_written(self, msg_id: bytes | None) -> None:
        """Pass it on."""
        self._settle(None)

    def relay_failed(self, msg_id: bytes | None, code: ErrorCode) -> None:
        """Pass it on."""
        self._settle(code)


class _Known(NamedTuple):
    code: ErrorCode | None
    since: float


class Incoming:
    """The relays of one origin for the peers of this node.

    Args:
        origin: whose numbers these are.
        node: that they were sent to.

    Attributes:
        node: that they were sent to; this one may have another id by now.
        reply_to: the node that waits for their outcomes.
        told_at: when it was told some the last time, in seconds.
    """

    def __init__(self, origin: str, node: str) -> None:
        self.origin = origin
        self.node = node
        self.told_at = float("-inf")
        self.reply_to = ""
        self._highest = 0
        self._known: dict[int, _Known] = {}
        self._held: set[int] = set()
        self._untold: list[int] = []
        self._untold_held: list[int] = []

    @property
    def untold(self) -> bool:
        """Whether there are outcomes to tell."""
        return bool(self._untold or self._untold_held)

    def receive(self, relays: Relays) -> list[Relay]:
        """Take what came; returns what is to be delivered, each of which has to be settled."""
        self.reply_to = relays.reply_to
        self._forget_while(lambda number, known: number < relays.low)
        fresh = []
        for relay in relays.relays:
            # A number that is not greater came late, over a connection that was lost: the origin was told of it.
            if relay.number > self._highest:
                self._highest = relay.number
                self._held.add(relay.number)
                fresh.append(relay)
        return fresh

    def owe(self, numbers: Iterable[int], reply_to: str) -> None:
        """Owe another node the outcomes of relays that are here in any case; each of them has to be settled."""
        self.reply_to = reply_to
        self._held.update(numbers)

    def settle(self, number: int, code: ErrorCode | None, now: float) -> None:
        """Take note of an outcome.

        Args:
            code: None where the relay was delivered.
        """
        self._held.discard(number)
        self._known[number] = _Known(code, now)
        self._untold.append(number)

    def hold(self, number: int) -> None:
        """Take note that a relay waits for its target."""
        self._untold_held.append(number)

    def asked(self, ask: Ask, now: float) -> Outcomes:
        """Say what became of what is asked about; what has not come by now is refused when it does."""
        self.reply_to = ask.reply_to
        self._highest = max(self._highest, ask.high)
        for number in ask.numbers:
            if number not in self._known and number not in self._held:
                self._known[number] = _Known(ErrorCode.DROPPED, now)
        self._untold, self._untold_held = [], []
        # What is not asked about is settled there; one relay that waits for long must not keep the outcomes of all.
        asked = set(ask.numbers)
        self._known = {number: known for number, known in self._known.items() if number > ask.high or number in asked}
        return self._outcomes(
            [number for number in ask.numbers if number in self._known], sorted(self._held.intersection(ask.numbers))
        )

    def tell(self) -> Outcomes:
        """Say what has not been told yet."""
        untold, self._untold = self._untold, []
        held, self._untold_held = self._untold_held, []
        known = [number for number in untold if number in self._known]
        return self._outcomes(known, [number for number in held if number in self._held])

    def forget(self, older_than: float) -> None:
        """Forget the outcomes from before ``older_than``: nobody waits for those any more."""
        self._forget_while(lambda number, known: known.since <= older_than)

    def _forget_while(self, condition: Callable[[int, _Known], bool]) -> None:
        # They are in the order of their settling, which is nearly that of their numbers.
        while self._known:
            number, known = next(iter(self._known.items()))
            if not condition(number, known):
                break
            del self._known[number]

    @property
    def idle(self) -> bool:
        """Whether nothing is left to be known of."""
        return not (self._known or self._held)

    @property
    def is_link(self) -> bool:
        """Whether relays come from this origin: as long as they may, their numbers must not begin anew."""
        return bool(self._highest)

    def _outcomes(self, numbers: list[int], held: list[int]) -> Outcomes:
        delivered = sorted(number for number in numbers if self._known[number].code is None)
        failed = [(number, str(self._known[number].code)) for number in numbers if self._known[number].code]
        return Outcomes(self.origin, self.node, runs(delivered), failed, held)
