"""The clock interface of the server, and clocks that setting the wall clock does not change."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol


class Clock(Protocol):
    """The part of ``IReactorTime`` that the server uses; ``twisted.internet.task.Clock`` provides it."""

    def seconds(self) -> float:
        """Return the time now, in seconds."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> Any:  # noqa: A002
        """Call after ``delay`` seconds; returns an ``IDelayedCall``."""


class SteadyClock:
    """A reactor's timers, with a monotonic time, whatever ``reactor.seconds`` is.

    Args:
        reactor: runs the timers.
    """

    def __init__(self, reactor: Clock) -> None:
        self.callLater = reactor.callLater

    def seconds(self) -> float:
        """Return the seconds since the machine started; time that it was suspended counts if the system knows it."""
        return _steady_seconds()


def use_monotonic_timers(reactor: Any) -> None:
    """Make a reactor's timers independent of the wall clock; call it before anything else uses the reactor.

    Twisted's reactors measure ``callLater`` by ``time.time``: if the wall clock is set back by an hour, no timer runs
    for an hour. From here on ``reactor.seconds()`` is the time since 1970 as of this call, and monotonic from then on.
    A second call, and one with a reactor that measures another time, is a no-op.

    Args:
        reactor: one that this process owns; an application decides for its own.
    """
    # Twisted's own is this very function, for every reactor that is based on ``ReactorBase``.
    if reactor.seconds is time.time:
        # Timers that are set already stay where they are.
        ahead = time.time() - _steady_seconds()
        reactor.seconds = lambda: _steady_seconds() + ahead


def _steady_seconds() -> float:
    return time.clock_gettime(_STEADY)


_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
