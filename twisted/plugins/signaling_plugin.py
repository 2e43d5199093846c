"""The plugin for ``twistd signaling``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.application.service import ServiceMaker


class _SignalingServiceMaker(ServiceMaker):
    """Ends ``twistd`` with one line if the server cannot be imported, for example on a system without POSIX."""

    @property
    def options(self) -> Any:
        """The options class."""
        with _import_errors_as_one_line():
            return super().options

    @property
    def makeService(self) -> Any:
        """The function that makes the service from parsed options."""
        with _import_errors_as_one_line():
            return super().makeService


@contextmanager
def _import_errors_as_one_line() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise SystemExit(f"signaling: {error}") from None


signaling = _SignalingServiceMaker(
    "WebRTC signaling server",
    "signaling",
    "A WebRTC signaling server: peers join topics and exchange offers, answers and ICE candidates.",
    "signaling",
)
