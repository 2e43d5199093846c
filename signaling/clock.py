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
    """A reactor's timers, with a time that nobody sets: ``reactor.seconds`` is the wall clock's.

    Args:
        reactor: has the timers.
    """

    def __init__(self, reactor: Clock) -> None:
        self.callLater = reactor.callLater

    def seconds(self) -> float:
        """Return the time since the machine started, in seconds; that in which it slept counts where that is known."""
        return time.clock_gettime(_STEADY)


_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
