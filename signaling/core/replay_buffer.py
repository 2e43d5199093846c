"""The messages that a session's client may not have received, so that they can be sent again."""

from __future__ import annotations


class ReplayBuffer:
    """The latest frames that were sent, numbered from 1. None stands for a frame that is not sent again.

    Args:
        max_frames: beyond it the oldest frame is removed.
        max_bytes: the same in bytes.

    Attributes:
        sent: the number of the latest frame.
    """

    __slots__ = ("_bytes", "_frames", "_max_bytes", "_max_frames", "sent")

    def __init__(self, max_frames: int, max_bytes: int) -> None:
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        # A deque would take 600 bytes for each session, and there are seldom many frames to move here.
        self._frames: list[bytes | None] = []
        self._bytes = 0
        self.sent = 0

    @property
    def frames(self) -> list[bytes | None]:
        """The frames in the buffer, oldest first."""
        return list(self._frames)

    def add(self, frame: bytes | None) -> None:
        """Add the frame that is sent now."""
        self.sent += 1
        self._frames.append(frame)
        self._bytes += len(frame or b"")
        while len(self._frames) > self._max_frames or self._bytes > self._max_bytes:
            self._remove_oldest(1)

    def acknowledge(self, number: int) -> None:
        """Remove all frames up to ``number``: they have arrived."""
        self._remove_oldest(max(0, number - (self.sent - len(self._frames))))

    def reaches(self, number: int) -> bool:
        """Return whether all frames after ``number`` are in the buffer."""
        return self.sent - len(self._frames) <= number <= self.sent

    def restore(self, sent: int, frames: list[bytes | None]) -> None:
        """Continue another node's buffer, whose bounds may have been greater.

        Args:
            sent: the number of its latest frame.
            frames: of ``frames``.
        """
        self.sent = sent
        self._frames = list(frames)
        self._bytes = sum(len(frame or b"") for frame in frames)

    def rewind(self, number: int) -> list[tuple[int, bytes]]:
        """Count on from ``number``, the latest frame that has arrived.

        Returns:
            The frames after it with their numbers, oldest first; they are removed here, to be sent and added again.
        """
        self.acknowledge(number)
        frames, self._frames, self._bytes, self.sent = self._frames, [], 0, number
        return [(at, frame) for at, frame in enumerate(frames, number + 1) if frame is not None]

    def _remove_oldest(self, count: int) -> None:
        self._bytes -= sum(len(frame or b"") for frame in self._frames[:count])
        del self._frames[:count]
