"""Lets ``twistd`` find the server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.application.service import ServiceMaker


class _SignalingMaker(ServiceMaker):
    """Ends ``twistd`` with one line where the server cannot be imported, as on a system without POSIX."""

    @property
    def options(self) -> Any:
        """The command line's options."""
        with _one_line():
            return super().options

    @property
    def makeService(self) -> Any:
        """Makes the service of parsed options."""
        with _one_line():
            return super().makeService


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise SystemExit(f"signaling: {error}") from None


signaling = _SignalingMaker(
    "WebRTC signaling server",
    "signaling",
    "A WebRTC signaling server: peers meet in topics and exchange offers, answers and ICE candidates.",
    "signaling",
)
