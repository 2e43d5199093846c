"""What deliveries ask of their connection to the receiver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from twisted.internet.defer import Deferred


class Answer(NamedTuple):
    """What counts of a receiver's answer.

    Args:
        retry_after_seconds: its ``Retry-After``; 0 without one.
    """

    status: int
    retry_after_seconds: float = 0.0


class Sender(Protocol):
    """Sends requests."""

    def send(self, headers: Mapping[bytes, bytes], body: bytes) -> Deferred[Answer]:
        """Send one request; fails if there is no answer. To cancel it ends its connection."""

    def close(self) -> None:
        """Close the connection that is kept for later requests."""
