"""What the domain asks of the world at its rim."""

from __future__ import annotations

from typing import Protocol

from signaling.errors import Rejected


class Sender(Protocol):
    """Whoever sent a relay and has to hear of its end."""

    def reject(self, rejected: Rejected) -> None:
        """Answer one of its messages with an error."""


Receipt = tuple[Sender, bytes | None]
"""Who is told when a queued relay is never written, and the JSON text of the relay's ``msgId``, or None."""


class Outbound(Protocol):
    """The way to one peer: a bounded queue in front of its connection. Neither method closes or calls back."""

    def offer(self, frame: bytes, receipt: Receipt | None = None) -> bool:
        """Take ``frame``, or return False where its queue is full or it is closing."""

    def answer(self, frame: bytes) -> None:
        """Take ``frame``, however full the queue is."""
