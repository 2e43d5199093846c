"""The queue between one peer and a transport that takes nothing for the moment."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

R = TypeVar("R")


class OutboundQueue(Generic[R]):
    """A bounded first-in, first-out queue of frames.

    While it is not blocked, frames go straight through. An answer to the peer's own message is never refused; the
    peer's messages are not read while ``overfull``, so answers are bounded as well.

    Args:
        write: takes a frame; may call ``block`` before it returns.
        written: takes the receipt of a frame that had waited and was written.
        max_messages: the high-water mark, in messages.
        max_bytes: the high-water mark, in bytes of frames.
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
        """Whether frames have to wait."""
        return self._blocked

    @property
    def receipts(self) -> int:
        """How many frames wait that carry a receipt."""
        return sum(receipt is not None for _, receipt in self._frames or ())

    @property
    def overfull(self) -> bool:
        """Whether answers fill the queue to twice its mark: time to stop reading what they answer."""
        return self._frames is not None and (
            len(self._frames) >= 2 * self._max_messages or self._bytes >= 2 * self._max_bytes
        )

    def offer(self, frame: bytes, receipt: R | None = None) -> bool:
        """Write or queue ``frame``, or refuse it.

        Args:
            receipt: where the frame is queued, handed over once it is written, or by ``abandon`` if it never is.

        Returns:
            False where a mark would be passed: nothing was queued.
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
        """Write or queue ``frame``, whatever the marks say."""
        if self._blocked:
            self._queue(frame, None)
        else:
            self._write(frame)

    def block(self) -> None:
        """Hold everything back from now on."""
        self._blocked = True

    def unblock(self) -> None:
        """Write what waits, oldest first, until there is no more or a write blocks again."""
        self._blocked = False
        while self._frames and not self._blocked:
            frame, receipt = self._frames.popleft()
            self._bytes -= len(frame)
            self._write(frame)
            if receipt is not None:
                self._written(receipt)
        if not self._frames:
            # An empty deque holds 600 bytes; most connections never need one.
            self._frames = None

    def abandon(self) -> list[R]:
        """Forget what waits; returns the receipts of what was never written, oldest first."""
        waiting, self._frames, self._bytes = self._frames or (), None, 0
        return [receipt for _, receipt in waiting if receipt is not None]

    def _queue(self, frame: bytes, receipt: R | None) -> None:
        if self._frames is None:
            self._frames = deque()
        self._frames.append((frame, receipt))
        self._bytes += len(frame)
