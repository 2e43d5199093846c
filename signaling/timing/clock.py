"""Time, as the server asks for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol


class Clock(Protocol):
    """The part of ``IReactorTime`` that is needed; ``twisted.internet.task.Clock`` is one too."""

    def seconds(self) -> float:
        """Return the time now, in seconds."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> Any:  # noqa: A002
        """Call after ``delay`` seconds; returns an ``IDelayedCall``."""


class SteadyClock:
    """A reactor's timers, with a time that nobody sets, whatever ``reactor.seconds`` is.

    Args:
        reactor: has the timers.
    """

    def __init__(self, reactor: Clock) -> None:
        self.callLater = reactor.callLater

    def seconds(self) -> float:
        """Return the time since the machine started, in seconds; that in which it slept counts where that is known."""
        return _steady_seconds()


def use_monotonic_timers(reactor: Any) -> None:
    """Let a reactor's timers run on a clock that nobody sets; call it before anything else uses the reactor.

    Twisted's reactors keep ``callLater`` by ``time.time``: when the wall clock is set back by an hour, no timer runs
    for an hour. From here on ``reactor.seconds()`` is the time since 1970 as of this call, and steadily on from there.
    The second call, and one with a reactor that keeps another time already, changes nothing.

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
