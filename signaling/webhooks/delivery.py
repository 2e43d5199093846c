"""When batches of events are delivered, and what follows from each answer.

One delivery is under way at a time, so the order is kept. A batch is sent until it is accepted: at growing times, less
a random part, or when the receiver says (``Retry-After``). The status 410 ends all deliveries.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from signaling.core.presence_events import PresenceEvent
from signaling.log.events import Events
from signaling.server.observer import IPresenceObserver
from signaling.webhooks.interfaces import Answer, Sender
from signaling.webhooks.queue import EventQueue
from signaling.webhooks.signature import signed_headers
from signaling.webhooks.target import WebhookUrl

# So that what happens together is delivered together.
_COLLECT_SECONDS = 0.05
_FIRST_RETRY_SECONDS = 0.5
_MAX_RETRY_SECONDS = 60.0
# For what is left at the end of a drain.
STOP_SECONDS = 5.0
_GONE = 410


class WebhookSettings(NamedTuple):
    """What an operator chooses.

    Args:
        keys: of the secrets.
        max_events: in the queue.
    """

    url: WebhookUrl
    keys: Sequence[bytes]
    max_events: int


class DeliveryState(Enum):
    """What happens to the events in the queue."""

    IDLE = "idle"  # there are none
    WAITING = "waiting"  # for more events, or for the next attempt
    SENDING = "sending"  # a request has no answer yet
    GONE = "gone"  # the receiver wants no more; they are dropped


TRANSITIONS: dict[DeliveryState, frozenset[DeliveryState]] = {
    DeliveryState.IDLE: frozenset({DeliveryState.WAITING}),
    DeliveryState.WAITING: frozenset({DeliveryState.SENDING, DeliveryState.IDLE}),
    DeliveryState.SENDING: frozenset({DeliveryState.WAITING, DeliveryState.IDLE, DeliveryState.GONE}),
    DeliveryState.GONE: frozenset(),
}


@implementer(IPresenceObserver)
class Webhooks:
    """An observer that delivers the events to a URL.

    Args:
        sender: sends requests there.
        keys: of the secrets; a new list replaces them.
        max_events: in the queue.
        clock: runs the timers.
        events: the log.
        wall_clock: seconds since 1970, for signatures.
        chance: returns a random number from 0 to 1.

    Attributes:
        state: changes as ``TRANSITIONS`` allow.
        delivered: how many events the receiver has accepted.
        attempts: how many requests were sent, by outcome: ``success`` or ``failure``.
    """

    def __init__(  # noqa: PLR0913 - what it runs on, and what tests replace
        self,
        sender: Sender,
        keys: Sequence[bytes],
        max_events: int,
        clock: Any,
        events: Events,
        *,
        wall_clock: Callable[[], float],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.state = DeliveryState.IDLE
        self.keys = keys
        self.delivered = 0
        self.attempts = {"success": 0, "failure": 0}
        self._sender = sender
        self._queue = EventQueue(max_events)
        self._clock = clock
        self._events = events
        self._wall_clock = wall_clock
        self._chance = chance
        self._timer: Any = None
        self._sending: Deferred[Any] | None = None
        self._failures = 0
        self._end: Deferred[None] | None = None
        self._end_timer: Any = None

    @property
    def waiting(self) -> int:
        """How many events wait, those that are being sent included."""
        return len(self._queue)

    @property
    def lost(self) -> int:
        """How many events were dropped."""
        return self._queue.lost

    # Events

    def _take(self, event: PresenceEvent) -> None:
        self._queue.add(event)
        if self.state is DeliveryState.IDLE:
            self._send_in(_COLLECT_SECONDS)
        elif self.state is DeliveryState.GONE:
            self._queue.drop_all()

    topic_opened = peer_joined = peer_updated = peer_left = topic_closed = _take

    def stopped(self) -> Deferred[None] | None:
        """Try to deliver what is left, for a bounded time. To cancel it ends that at once."""
        if self.state in (DeliveryState.IDLE, DeliveryState.GONE):
            self._sender.close()
            return None
        end: Deferred[None] = Deferred(lambda _: self._give_up())
        self._end = end
        self._end_timer = self._clock.callLater(STOP_SECONDS, self._give_up)
        if self.state is DeliveryState.WAITING:
            self._timer.cancel()
            self._send()
        return end

    def _give_up(self) -> None:
        self._events.webhook_events_left(self.waiting)
        sending, self._sending = self._sending, None
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._become_idle()
        if sending is not None:
            sending.cancel()

    def _become_idle(self) -> None:
        self._change_to(DeliveryState.IDLE)
        self._finish()

    def _finish(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            if self._end_timer.active():
                self._end_timer.cancel()
            self._sender.close()
            end.callback(None)

    # Deliveries

    def _change_to(self, state: DeliveryState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"deliveries that are {self.state.value} cannot be {state.value}")
        self.state = state

    def _send_in(self, seconds: float) -> None:
        self._change_to(DeliveryState.WAITING)
        self._timer = self._clock.callLater(seconds, self._send)

    def _send(self) -> None:
        batch = self._queue.batch(self._wall_clock())
        if batch is None:
            self._become_idle()
            return
        self._change_to(DeliveryState.SENDING)
        headers = signed_headers(self.keys, batch.id, int(self._wall_clock()), batch.body)
        self._sending = sending = self._sender.send(headers, batch.body)
        sending.addCallbacks(self._answered, self._unanswered, (sending, batch.size), {}, (sending,))

    def _answered(self, answer: Answer, sending: Deferred[Any], count: int) -> None:
        if sending is not self._sending:
            return
        self._sending = None
        if answer.status == _GONE:
            self._fail_for_good()
        elif not 200 <= answer.status < 300:
            self._retry(f"HTTP {answer.status}", answer.retry_after_seconds)
        else:
            self.attempts["success"] += 1
            self.delivered += count
            self._queue.delivered()
            if self._failures:
                self._events.webhook_recovered(self._failures, self.waiting)
            self._failures = 0
            self._change_to(DeliveryState.WAITING)
            self._send()

    def _unanswered(self, failure: Failure, sending: Deferred[Any]) -> None:
        if sending is self._sending:
            self._sending = None
            self._retry(_why(failure), 0.0)

    def _retry(self, reason: str, retry_after_seconds: float) -> None:
        self.attempts["failure"] += 1
        span = min(_MAX_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2.0 ** min(self._failures, 16))
        self._failures += 1
        if self._failures == 1:
            self._events.webhook_failed(reason)
        self._send_in(max(span * (1 - self._chance() / 2), retry_after_seconds))

    def _fail_for_good(self) -> None:
        self.attempts["failure"] += 1
        self._change_to(DeliveryState.GONE)
        self._events.webhook_gone(self.waiting)
        self._queue.drop_all()
        self._finish()


def _why(failure: Failure) -> str:
    """Return the kind of an error: its text may quote what the receiver sent."""
    error = failure.value
    reasons = getattr(error, "reasons", None)
    if reasons:
        return f"{type(error).__name__} ({type(reasons[0].value).__name__})"
    return type(error).__name__
