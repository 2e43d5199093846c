"""Time, as the server asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Clock(Protocol):
    """The part of ``IReactorTime`` that is needed; ``twisted.internet.task.Clock`` is one too."""

    def seconds(self) -> float:
        """Return the time now, in seconds."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> Any:  # noqa: A002
        """Call after ``delay`` seconds; returns an ``IDelayedCall``."""
