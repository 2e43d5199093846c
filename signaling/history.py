"""What one peer was sent and may not have received, so that it can be sent again."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

R = TypeVar("R")

Entry = tuple[bytes | None, R | None]
"""A frame, None where it makes no sense a second time; and what is returned where it is never written."""


class History(Generic[R]):
    """The last frames that were sent, numbered from 1.

    Args:
        max_frames: beyond it the oldest is forgotten.
        max_bytes: the same in bytes.

    Attributes:
        sent: the number of the latest.
    """

    __slots__ = ("_bytes", "_kept", "_max_bytes", "_max_frames", "sent")

    def __init__(self, max_frames: int, max_bytes: int) -> None:
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._kept: deque[Entry[R]] = deque()
        self._bytes = 0
        self.sent = 0

    def add(self, frame: bytes | None, receipt: R | None = None) -> None:
        """Remember what is sent now."""
        self.sent += 1
        self._kept.append((frame, receipt))
        self._bytes += len(frame or b"")
        while len(self._kept) > self._max_frames or self._bytes > self._max_bytes:
            self._forget_oldest()

    def forget(self, number: int) -> None:
        """Forget everything up to ``number``: it has arrived."""
        for _ in range(min(len(self._kept), number - (self.sent - len(self._kept)))):
            self._forget_oldest()

    def reaches(self, number: int) -> bool:
        """Tell whether everything after ``number`` is there."""
        return self.sent - len(self._kept) <= number <= self.sent

    def rewind(self, number: int) -> list[Entry[R]]:
        """Count on from ``number``, which has arrived.

        Returns:
            What was sent after it, oldest first; it is forgotten here, to be sent and added again.
        """
        self.forget(number)
        kept, self._kept, self._bytes, self.sent = self._kept, deque(), 0, number
        return [entry for entry in kept if entry[0] is not None]

    def _forget_oldest(self) -> None:
        frame, _ = self._kept.popleft()
        self._bytes -= len(frame or b"")
