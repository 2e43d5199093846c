"""Timers by the wall clock, for many items on one timer of the reactor; and a watch for changes of that clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any, Generic, TypeVar

from signaling.timing.clock import Clock

T = TypeVar("T")

# Many may expire together, for example tokens that were minted together; others must not wait for all of them.
_MOST_IN_ONE_PASS = 16
# The wall clock may be set meanwhile, and a reactor cannot wait for a thousand years.
_LONGEST_WAIT_SECONDS = 60.0
# How many entries of cleared items are kept until they are removed together.
_MOST_CLEARED = 64
_CHECK_INTERVAL_SECONDS = 10.0
# A clock that NTP adjusts runs faster or slower by less than this between two checks.
_STEP_SECONDS = 1.0


class WallClockTimers(Generic[T]):
    """Calls back for each item that is not cleared before its time.

    Args:
        clock: runs the timer.
        wall_clock: returns the time, in seconds since 1970.
        on_expired: called with an item whose time has come, after the item was cleared.
    """

    def __init__(self, clock: Clock, wall_clock: Callable[[], float], on_expired: Callable[[T], None]) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._on_expired = on_expired
        # If two are due at once, the number decides: items need not be comparable.
        self._numbers = count()
        self._set: dict[T, int] = {}
        self._heap: list[tuple[float, int, T]] = []
        self._timer: Any = None

    def set(self, item: T, at: float) -> None:
        """Set the time of ``item``, which is not set, in seconds since 1970; a past time expires in the next pass."""
        number = self._set[item] = next(self._numbers)
        heapq.heappush(self._heap, (at, number, item))
        if self._heap[0][1] == number:
            self._wait()

    def clear(self, item: T) -> None:
        """Clear ``item``; no-op if it is not set."""
        if self._set.pop(item, None) is not None and len(self._heap) > 2 * len(self._set) + _MOST_CLEARED:
            self._heap = [entry for entry in self._heap if self._is_set(entry)]
            heapq.heapify(self._heap)

    def cancel_if_idle(self) -> None:
        """Cancel the timer if nothing is pending."""
        if not self._set:
            self._heap.clear()
            self._stop()

    def _is_set(self, entry: tuple[float, int, T]) -> bool:
        return self._set.get(entry[2]) == entry[1]

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._stop()
        if self._heap:
            seconds = min(max(self._heap[0][0] - self._wall_clock(), 0.0), _LONGEST_WAIT_SECONDS)
            self._timer = self._clock.callLater(seconds, self._expire)

    def _expire(self) -> None:
        self._timer = None
        expired = 0
        try:
            while self._heap and self._heap[0][0] <= self._wall_clock() and expired < _MOST_IN_ONE_PASS:
                entry = heapq.heappop(self._heap)
                if self._is_set(entry):
                    expired += 1
                    del self._set[entry[2]]
                    self._on_expired(entry[2])
        finally:
            self._wait()


class ClockSteps:
    """Notices within about ten seconds that the wall clock was set.

    Args:
        clock: a monotonic clock.
        wall_clock: returns the time, in seconds since 1970.
        on_step: called when the wall clock was set, forward or back.
    """

    def __init__(self, clock: Clock, wall_clock: Callable[[], float], on_step: Callable[[], None]) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._on_step = on_step
        self._ahead = 0.0
        self._timer: Any = None

    def watch(self) -> None:
        """Start to watch; no-op if it does already."""
        if self._timer is None:
            self._ahead = self._wall_clock() - self._clock.seconds()
            self._timer = self._clock.callLater(_CHECK_INTERVAL_SECONDS, self._check)

    def stop(self) -> None:
        """Stop to watch."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = self._clock.callLater(_CHECK_INTERVAL_SECONDS, self._check)
        before, self._ahead = self._ahead, self._wall_clock() - self._clock.seconds()
        if abs(self._ahead - before) > _STEP_SECONDS:
            self._on_step()
