"""Timeouts of one length for many items, on one timer.

All items wait for the same time, so the order in which they were set is the order in which they are due: a dict keeps
both the order and each item's time, and only its first entry needs a timer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from signaling.timing.clock import Clock

T = TypeVar("T")

# Many may expire together, for example all peers behind a proxy that fails; others must not wait for all of them.
_MOST_IN_ONE_PASS = 16


class Timeouts(Generic[T]):
    """Calls back for each item that is not cleared in time.

    Args:
        clock: the clock and its timers.
        seconds: the timeout of every item; 0 means no timeout.
        on_expired: called with an item whose timeout is over, after the item was cleared.
    """

    def __init__(self, clock: Clock, seconds: float, on_expired: Callable[[T], None]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._on_expired = on_expired
        self._due: dict[T, float] = {}
        self._timer: Any = None

    def set(self, item: T) -> None:
        """Start the timeout of ``item``, anew if it is running."""
        if not self._seconds:
            return
        self._due.pop(item, None)
        self._due[item] = self._clock.seconds() + self._seconds
        if self._timer is None:
            self._timer = self._clock.callLater(self._seconds, self._expire)

    def set_once(self, item: T) -> None:
        """Start the timeout of ``item``, unless it is running."""
        if item not in self._due:
            self.set(item)

    def clear(self, item: T) -> float | None:
        """Cancel the timeout of ``item``; no-op if it is not running.

        The timer stays: letting it find nothing costs less than cancelling and starting one for each connection.

        Returns:
            When the timeout would have been over, in the clock's seconds; None if it was not running.
        """
        return self._due.pop(item, None)

    def expire_all(self) -> None:
        """End all timeouts now; ``on_expired`` is called for a few items in each pass, from the next one on."""
        if self._due:
            self._due = dict.fromkeys(self._due, self._clock.seconds())
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._clock.callLater(0, self._expire)

    def change(self, seconds: float) -> None:
        """Let timeouts take another time, also those that are running; with 0, these are cleared."""
        if seconds == self._seconds:
            return
        longer, self._seconds = seconds - self._seconds, seconds
        self._due = {item: due + longer for item, due in self._due.items()} if seconds else {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._start_timer()

    def cancel_if_idle(self) -> None:
        """Cancel the timer if nothing is pending."""
        if not self._due and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        try:
            for _ in range(min(_MOST_IN_ONE_PASS, len(self._due))):
                if not self._due:
                    break
                item, due = next(iter(self._due.items()))
                if due > now:
                    break
                del self._due[item]
                self._on_expired(item)
        finally:
            # on_expired may have set items, with a timer for the whole timeout; older items are due before that.
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._start_timer()

    def _start_timer(self) -> None:
        if self._due:
            due = next(iter(self._due.values()))
            self._timer = self._clock.callLater(max(0.0, due - self._clock.seconds()), self._expire)
