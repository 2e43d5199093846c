"""A channel between two processes of one server: whole messages, and descriptors of connections along with them.

It is one end of a pair of sockets that keep messages apart (``SOCK_SEQPACKET``, unix(7)), so there is no framing, and a
message arrives with its descriptor or not at all. When one process ends, however it does, the other one's end tells.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from typing import Any, Protocol

from twisted.internet.interfaces import IReadDescriptor, IWriteDescriptor
from twisted.internet.main import CONNECTION_LOST
from twisted.logger import Logger
from zope.interface import implementer

MOST_BYTES = 65_536
"""Of one message; the kernel takes more."""

_MESSAGES_PER_PASS = 64
_ONE_DESCRIPTOR = socket.CMSG_SPACE(array.array("i").itemsize)
_log = Logger()


class Correspondent(Protocol):
    """What hears of a channel."""

    def message_received(self, message: bytes, descriptor: int | None) -> None:
        """Take a message.

        Args:
            descriptor: that came along, for the correspondent to close.
        """

    def channel_writable(self) -> None:
        """Hear that the channel takes messages again."""

    def channel_lost(self) -> None:
        """Hear that the other process is gone, or means to go."""


@implementer(IReadDescriptor, IWriteDescriptor)
class Channel:
    """One end.

    Args:
        reactor: watches it.
        end: a connected ``SOCK_SEQPACKET`` socket, which the channel closes.
        correspondent: hears of it.
        most_per_pass: how many messages to take in one pass of the reactor.

    Attributes:
        waiting: messages that the kernel has not taken yet.
    """

    def __init__(
        self, reactor: Any, end: socket.socket, correspondent: Correspondent, most_per_pass: int = _MESSAGES_PER_PASS
    ) -> None:
        self._reactor = reactor
        self._end = end
        self._correspondent = correspondent
        self._most_per_pass = most_per_pass
        self._buffer = bytearray(MOST_BYTES)
        self._fileno = end.fileno()
        self._lost = False
        self.waiting: deque[bytes] = deque()
        end.setblocking(False)
        reactor.addReader(self)

    def fileno(self) -> int:
        """Tell the descriptor, for the reactor; also of a channel that is lost, which the reactor asks again."""
        return self._fileno

    def logPrefix(self) -> str:
        """Name it in a log."""
        return "channel"

    # Writing

    def send(self, message: bytes, descriptor: int | None = None) -> bool:
        """Send a message at once, or not at all.

        Returns:
            False where it was not sent; then the correspondent hears when it is time to try again.

        Raises:
            ValueError: where it is longer than ``MOST_BYTES``.
        """
        if len(message) > MOST_BYTES:
            raise ValueError(f"a message of {len(message)} bytes")
        if self._lost or self.waiting:
            return False
        if self._sent(message, descriptor):
            return True
        self._reactor.addWriter(self)
        return False

    def post(self, message: bytes) -> None:
        """Send a message as soon as the other end takes it; nothing where that is gone."""
        if not self._lost and (self.waiting or not self.send(message)):
            self.waiting.append(message)

    def _sent(self, message: bytes, descriptor: int | None) -> bool:
        rights = []
        if descriptor is not None:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        try:
            self._end.sendmsg([message], rights)
        except OSError:
            # Full, or the other end is gone, which reading will tell.
            return False
        return True

    def doWrite(self) -> None:
        """Send what waits."""
        while self.waiting:
            if not self._sent(self.waiting[0], None):
                return
            self.waiting.popleft()
        self._reactor.removeWriter(self)
        self._correspondent.channel_writable()

    # Reading

    def doRead(self) -> Any:
        """Take some messages."""
        for _ in range(self._most_per_pass):
            if self._lost:
                break
            try:
                size, ancillary, _, _ = self._end.recvmsg_into([self._buffer], _ONE_DESCRIPTOR, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                break
            except OSError:
                return CONNECTION_LOST
            if not size:
                return CONNECTION_LOST
            self._take(bytes(self._buffer[:size]), _descriptor(ancillary))
        return None

    def _take(self, message: bytes, descriptor: int | None) -> None:
        try:
            self._correspondent.message_received(message, descriptor)
        except Exception:
            # One message that nobody understands must not cost the others, and the connections that they bring.
            _log.failure("an error in a message between processes")

    # The end

    def connectionLost(self, reason: Any) -> None:
        """Hear of the other end's end."""
        if not self._lost:
            self.close()
            self._correspondent.channel_lost()

    def close(self) -> None:
        """End it; the other end hears of that."""
        if self._lost:
            return
        self._lost = True
        self.waiting.clear()
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        self._end.close()


def _descriptor(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    for more in found[1:]:
        os.close(more)
    return found[0] if found else None
