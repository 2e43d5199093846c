"""Turns for items that have much to do, so that no other one waits long.

What one connection sends in a burst, for example, is handled a few frames at a time. The reactor handles its other
events between two passes, and the work of all items together is bounded in each pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from signaling.timing.clock import Clock

T = TypeVar("T")


class FairScheduler(Generic[T]):
    """Gives each waiting item a turn, first in, first out, and a few turns in each pass of the reactor.

    Args:
        clock: schedules the next pass.
        turns_per_pass: how many turns are given before the reactor handles its other events.
        take_turn: does a bounded part of an item's work, and adds the item again if there is more.
    """

    def __init__(self, clock: Clock, turns_per_pass: int, take_turn: Callable[[T], None]) -> None:
        self._clock = clock
        self._turns_per_pass = turns_per_pass
        self._take_turn = take_turn
        self._waiting: dict[T, None] = {}
        self._timer: Any = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: T) -> None:
        """Add ``item`` behind all others, unless it waits already."""
        self._waiting.setdefault(item)
        if self._timer is None:
            self._timer = self._clock.callLater(0, self._pass)

    def extend(self, items: Iterable[T]) -> None:
        """Add all of ``items``."""
        for item in items:
            self.add(item)

    def remove(self, item: T) -> None:
        """Remove ``item``; no-op if it does not wait."""
        if item in self._waiting:
            del self._waiting[item]
            if not self._waiting:
                self._stop()

    def pop(self) -> T | None:
        """Remove the item whose turn is next, and return it instead of giving it the turn; None if none waits."""
        item = next(iter(self._waiting), None)
        if item is not None:
            self.remove(item)
        return item

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def begin(self) -> None:
        """Give the first turns now, instead of in the next pass."""
        self._stop()
        self._pass()

    def finish(self) -> None:
        """Give all turns now."""
        while self._waiting:
            item = next(iter(self._waiting))
            self.remove(item)
            self._take_turn(item)

    def _pass(self) -> None:
        self._timer = None
        try:
            for _ in range(min(self._turns_per_pass, len(self._waiting))):
                if self._waiting:
                    item = next(iter(self._waiting))
                    del self._waiting[item]
                    self._take_turn(item)
        finally:
            if self._waiting and self._timer is None:
                self._timer = self._clock.callLater(0, self._pass)
