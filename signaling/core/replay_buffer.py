"""What one peer was sent and may not have received, so that it can be sent again."""

from __future__ import annotations


class ReplayBuffer:
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
        # A deque would take 600 bytes for each peer; there is seldom much to move here.
        self._kept: list[bytes | None] = []
        self._bytes = 0
        self.sent = 0

    def add(self, frame: bytes | None) -> None:
        """Remember what is sent now; None where it makes no sense a second time."""
        self.sent += 1
        self._kept.append(frame)
        self._bytes += len(frame or b"")
        while len(self._kept) > self._max_frames or self._bytes > self._max_bytes:
            self._forget_oldest(1)

    def forget(self, number: int) -> None:
        """Forget everything up to ``number``: it has arrived."""
        self._forget_oldest(max(0, number - (self.sent - len(self._kept))))

    def reaches(self, number: int) -> bool:
        """Tell whether everything after ``number`` is there."""
        return self.sent - len(self._kept) <= number <= self.sent

    @property
    def kept(self) -> list[bytes | None]:
        """What is remembered, oldest first."""
        return list(self._kept)

    def restore(self, sent: int, kept: list[bytes | None]) -> None:
        """Go on with what another history remembered, whose latest number was ``sent``; its bounds may be greater."""
        self.sent = sent
        self._kept = list(kept)
        self._bytes = sum(len(frame or b"") for frame in kept)

    def rewind(self, number: int) -> list[tuple[int, bytes]]:
        """Count on from ``number``, which has arrived.

        Returns:
            What was sent after it and makes sense a second time, oldest first, each with the number that it had; it is
            forgotten here, to be sent and added again.
        """
        self.forget(number)
        kept, self._kept, self._bytes, self.sent = self._kept, [], 0, number
        return [(at, frame) for at, frame in enumerate(kept, number + 1) if frame is not None]

    def _forget_oldest(self, count: int) -> None:
        self._bytes -= sum(len(frame or b"") for frame in self._kept[:count])
        del self._kept[:count]
