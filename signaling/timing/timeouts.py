"""Timeouts of one length for many items, on one timer.

All items wait for the same time, so the order in which they were set is the order in which they are due: a dict keeps
both the order and each item's time, and only its first entry needs a timer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from signaling.timing.clock import Clock

T = TypeVar("T")

# What expires together, as all peers behind a proxy that fails, must not hold up everyone else.
_MOST_IN_ONE_PASS = 16


class Timeouts(Generic[T]):
    """Calls back for every item that stays set for the whole time.

    Args:
        clock: tells the time and waits.
        seconds: how long an item may stay; 0 means for ever.
        on_expired: called with an item whose time is over, after the item was cleared.
    """

    def __init__(self, clock: Clock, seconds: float, on_expired: Callable[[T], None]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._on_expired = on_expired
        self._due: dict[T, float] = {}
        self._timer: Any = None

    def set(self, item: T) -> None:
        """Give ``item`` the whole time from now on."""
        if not self._seconds:
            return
        self._due.pop(item, None)
        self._due[item] = self._clock.seconds() + self._seconds
        if self._timer is None:
            self._timer = self._clock.callLater(self._seconds, self._expire)

    def set_once(self, item: T) -> None:
        """Give ``item`` the whole time from now on, unless its time is running."""
        if item not in self._due:
            self.set(item)

    def clear(self, item: T) -> float | None:
        """Forget ``item``; nothing happens where it was not set.

        The timer is left alone: to let it find nothing costs less than to cancel and start one for each connection.

        Returns:
            When it was due, in the clock's seconds; None where it was not set.
        """
        return self._due.pop(item, None)

    def expire_all(self) -> None:
        """Let the time of all items be over, a few in each pass from the next one on."""
        if self._due:
            self._due = dict.fromkeys(self._due, self._clock.seconds())
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._clock.callLater(0, self._expire)

    def cancel_if_idle(self) -> None:
        """Take no timer where no item is set."""
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
            # What expired may have set items anew, with a timer for the whole time; what is due first was there before.
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._due:
                due = next(iter(self._due.values()))
                self._timer = self._clock.callLater(max(0.0, due - now), self._expire)
