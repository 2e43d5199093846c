"""A bounded queue of frames for a connection whose transport is not writable."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

R = TypeVar("R")


class OutboundQueue(Generic[R]):
    """A bounded first-in, first-out queue of frames.

    While it is not blocked, frames are written at once. An answer to the peer's own message is never refused; the
    peer's messages are not read while the queue is ``overfull``, so answers are bounded as well.

    Args:
        write: writes a frame; may call ``block`` before it returns.
        written: called with the receipt of a frame that had waited and was written.
        max_messages: high-water mark, in messages.
        max_bytes: high-water mark, in bytes of frames.
    """

    __slots__ = ("_blocked", "_bytes", "_frames", "_max_bytes", "_max_messages", "_write", "_written")

    def __init__(
        self, write: Callable[[bytes], None], written: Callable[[R], None], max_messages: int, max_bytes: int
    ) -> None:
        self._write = write
        self._written = written
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._frames: deque[tuple[bytes, R | None]] | None = None
        self._bytes = 0
        self._blocked = False

    def __len__(self) -> int:
        return len(self._frames or ())

    @property
    def blocked(self) -> bool:
        """Whether frames are queued instead of written."""
        return self._blocked

    @property
    def receipts(self) -> int:
        """How many frames with a receipt wait."""
        return sum(receipt is not None for _, receipt in self._frames or ())

    @property
    def overfull(self) -> bool:
        """Whether answers fill the queue to twice its high-water mark: no more messages should be read."""
        return self._frames is not None and (
            len(self._frames) >= 2 * self._max_messages or self._bytes >= 2 * self._max_bytes
        )

    def offer(self, frame: bytes, receipt: R | None = None) -> bool:
        """Write or queue ``frame``, or refuse it.

        Args:
            receipt: if the frame is queued, passed to ``written`` later, or returned by ``abandon``.

        Returns:
            False if a high-water mark would be exceeded: nothing was queued.
        """
        if not self._blocked:
            self._write(frame)
            return True
        if self._frames is not None and (
            len(self._frames) >= self._max_messages or self._bytes + len(frame) > self._max_bytes
        ):
            return False
        self._queue(frame, receipt)
        return True

    def answer(self, frame: bytes) -> None:
        """Write or queue ``frame``, regardless of the high-water marks."""
        if self._blocked:
            self._queue(frame, None)
        else:
            self._write(frame)

    def block(self) -> None:
        """Queue all frames from now on."""
        self._blocked = True

    def unblock(self) -> None:
        """Write what waits, oldest first, until the queue is empty or a write blocks again."""
        self._blocked = False
        while self._frames and not self._blocked:
            frame, receipt = self._frames.popleft()
            self._bytes -= len(frame)
            self._write(frame)
            if receipt is not None:
                self._written(receipt)
        if not self._frames:
            # An empty deque takes 600 bytes; most connections never need one.
            self._frames = None

    def abandon(self) -> list[R]:
        """Empty the queue; returns the receipts of frames that were never written, oldest first."""
        waiting, self._frames, self._bytes = self._frames or (), None, 0
        return [receipt for _, receipt in waiting if receipt is not None]

    def _queue(self, frame: bytes, receipt: R | None) -> None:
        if self._frames is None:
            self._frames = deque()
        self._frames.append((frame, receipt))
        self._bytes += len(frame)
