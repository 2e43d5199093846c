"""FairScheduler: many connections with much to do each, and nobody who waits long for their own.

What one connection sends in a burst is handled a few frames at a time, in passes between which the reactor looks after
everyone else. The work of all such connections together is bounded in each pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from signaling.timing.clock import Clock

T = TypeVar("T")


class FairScheduler(Generic[T]):
    """Gives each waiting item a turn, in the order in which they came, a few in each pass of the reactor.

    Args:
        clock: calls for the next pass.
        turns_per_pass: how many turns may be taken before the reactor looks after everyone else.
        take_turn: does a bounded part of an item's work; adds the item again where there is more.
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
        """Let ``item`` wait for its turn, behind all others, unless it waits already."""
        self._waiting.setdefault(item)
        if self._timer is None:
            self._timer = self._clock.callLater(0, self._pass)

    def extend(self, items: Iterable[T]) -> None:
        """Let all of ``items`` wait for their turns."""
        for item in items:
            self.add(item)

    def remove(self, item: T) -> None:
        """Forget ``item``; nothing happens where it was not waiting."""
        if item in self._waiting:
            del self._waiting[item]
            if not self._waiting:
                self._stop()

    def pop(self) -> T | None:
        """Forget the item whose turn is next, and return it: it has its turn now; None if none waits."""
        item = next(iter(self._waiting), None)
        if item is not None:
            self.remove(item)
        return item

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def begin(self) -> None:
        """Give the first turns now instead of in the next pass."""
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
