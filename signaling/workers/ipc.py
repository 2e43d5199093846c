"""A channel between the listener and a worker: whole messages, and descriptors of connections along with them.

It is a pair of sockets that keep messages apart (``SOCK_SEQPACKET``, unix(7)): a message needs no framing. Its
descriptor is lost if the process that reads it may open no more files. When one process ends, however it does, the
other reads the end of the channel.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import msgspec
from twisted.internet.interfaces import IReadDescriptor, IWriteDescriptor
from twisted.internet.main import CONNECTION_LOST
from twisted.logger import Logger
from zope.interface import implementer

from signaling.core.interfaces import Answers

# The first byte of a message of the listener
CONNECTION, METRICS_REQUEST, DRAIN, ABORT, QUERY = b"C", b"?", b"D", b"A", b"Q"
PREPARE_RELOAD, APPLY_RELOAD = b"P", b"U"
# The first byte of a message of a worker
READY, METRICS, LOG, HEARTBEAT, ANSWER = b"R", b"M", b"L", b"B", b"N"
RELOAD_PREPARED = b"P"

MAX_MESSAGE_BYTES = 65_536
"""The kernel takes more."""

_MESSAGES_PER_PASS = 64
_ONE_DESCRIPTOR = socket.CMSG_SPACE(array.array("i").itemsize)
_log = Logger()


class Handoff(NamedTuple):
    """What goes to a worker along with the descriptor of a connection.

    Args:
        handshake_seconds: how long its handshake has taken so far.
        address: of the other end, as ``socket.accept`` returns it; of a UNIX socket in bytes.
        data: that was read from it.
    """

    handshake_seconds: float
    address: Any
    data: bytes


encode_handoff = msgspec.msgpack.Encoder().encode
decode_handoff = msgspec.msgpack.Decoder(Handoff).decode


class _Part(NamedTuple):
    """A part of something that may be longer than a message.

    Args:
        number: of what it is a part of.
        is_last: whether it is complete with this part.
    """

    number: int
    is_last: bool
    data: bytes


_encode_part = msgspec.msgpack.Encoder().encode
_decode_part = msgspec.msgpack.Decoder(_Part).decode
_MAX_PART_BYTES = MAX_MESSAGE_BYTES - 64


class PartSender:
    """Sends what may be longer than a message, in parts that go between other messages.

    Args:
        kind: the first byte of the messages.
        send: ``Channel.send``; ``channel_writable`` has to call ``send_more``.
    """

    def __init__(self, kind: bytes, send: Callable[[bytes], bool]) -> None:
        self._kind = kind
        self._send = send
        self._waiting: deque[tuple[int, bytes, int]] = deque()

    def send(self, number: int, data: bytes) -> None:
        """Send ``data``, now or as soon as the channel takes it."""
        self._waiting.append((number, data, 0))
        if len(self._waiting) == 1:
            self.send_more()

    def send_more(self) -> None:
        """Send what waits, as far as the channel takes it."""
        while self._waiting:
            number, data, start = self._waiting[0]
            end = start + _MAX_PART_BYTES
            part = _Part(number, end >= len(data), data[start:end])
            if not self._send(self._kind + _encode_part(part)):
                return
            self._waiting.popleft()
            if not part.is_last:
                self._waiting.appendleft((number, data, end))

    def clear(self) -> None:
        """Forget what waits: the other end is gone."""
        self._waiting.clear()


class PartReceiver:
    """Puts together what a ``PartSender`` sends."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def receive(self, message: bytes) -> tuple[int, bytes] | None:
        """Take a message without its first byte; returns the number and the whole with the last part, else None."""
        part = _decode_part(message)
        self._parts.append(part.data)
        if not part.is_last:
            return None
        whole, self._parts = b"".join(self._parts), []
        return part.number, whole


_encode_answers = msgspec.msgpack.Encoder().encode
_decode_answers = msgspec.msgpack.Decoder(tuple[dict[str, bytes], list[str]]).decode


def encode_answers(answers: Answers) -> bytes:
    """Encode what a worker, or all nodes of its cluster, answered to a query."""
    return _encode_answers((answers.answers, answers.missing))


def decode_answers(data: bytes) -> Answers:
    """Decode what ``encode_answers`` returned."""
    return Answers(*_decode_answers(data))


class ChannelOwner(Protocol):
    """Receives what comes on a channel."""

    def message_received(self, message: bytes, descriptor: int | None) -> None:
        """Handle a message.

        Args:
            descriptor: that came along, for the owner to close.
        """

    def channel_writable(self) -> None:
        """Go on sending: the channel takes messages again."""

    def channel_lost(self) -> None:
        """Clean up: the other process has ended, or has closed its end."""


@implementer(IReadDescriptor, IWriteDescriptor)
class Channel:
    """One end.

    Args:
        reactor: watches it.
        end: a connected ``SOCK_SEQPACKET`` socket, which the channel closes.
        owner: receives messages.
        most_per_pass: how many messages to read in one pass of the reactor.

    Attributes:
        waiting: messages that the kernel has not taken yet.
    """

    def __init__(
        self, reactor: Any, end: socket.socket, owner: ChannelOwner, most_per_pass: int = _MESSAGES_PER_PASS
    ) -> None:
        self._reactor = reactor
        self._end = end
        self._owner = owner
        self._most_per_pass = most_per_pass
        self._buffer = bytearray(MAX_MESSAGE_BYTES)
        self._fileno = end.fileno()
        self._lost = False
        self.waiting: deque[bytes] = deque()
        end.setblocking(False)
        reactor.addReader(self)

    def fileno(self) -> int:
        """Return the descriptor; also after the channel was closed, when the reactor still asks."""
        return self._fileno

    def logPrefix(self) -> str:
        """Return its name in a log."""
        return "channel"

    # Writing

    def send(self, message: bytes, descriptor: int | None = None) -> bool:
        """Send a message at once, or not at all.

        Returns:
            False if it was not sent; then ``channel_writable`` is called when it is time to try again.

        Raises:
            ValueError: if it is longer than ``MAX_MESSAGE_BYTES``.
        """
        if len(message) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(message)} bytes")
        if self._lost or self.waiting:
            return False
        if self._sent(message, descriptor):
            return True
        self._reactor.addWriter(self)
        return False

    def post(self, message: bytes) -> None:
        """Send a message as soon as the other end takes it; no-op if the channel is closed."""
        if not self._lost and (self.waiting or not self.send(message)):
            self.waiting.append(message)

    def _sent(self, message: bytes, descriptor: int | None) -> bool:
        rights = []
        if descriptor is not None:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        try:
            self._end.sendmsg([message], rights)
        except OSError:
            # Full, or closed at the other end, which reading will find.
            return False
        return True

    def doWrite(self) -> None:
        """Send what waits."""
        while self.waiting:
            if not self._sent(self.waiting[0], None):
                return
            self.waiting.popleft()
        self._reactor.removeWriter(self)
        self._owner.channel_writable()

    # Reading

    def doRead(self) -> Any:
        """Read a bounded number of messages."""
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
            try:
                self._owner.message_received(bytes(self._buffer[:size]), _descriptor(ancillary))
            except Exception:
                # A message that cannot be handled must not cost the others, and the connections that they bring.
                _log.failure("an error in a message between processes")
        return None

    # The end

    def connectionLost(self, reason: Any) -> None:
        """Close, because the other end did."""
        if not self._lost:
            self.close()
            self._owner.channel_lost()

    def close(self) -> None:
        """Close this end; the other end reads the end of the channel."""
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
