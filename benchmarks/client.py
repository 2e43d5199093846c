"""A raw WebSocket client for loads, and one that keeps a delivery log.

It parses the envelope of a message and never its payload, so that one core can load a whole server.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple, Self

import msgspec

from tests.harness import raw_client
from tests.harness.delivery_log import NOBODY, DeliveryLog
from tests.harness.server import HOST

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA

_FINAL = 0x80
_MASKED = 0x80
# One key for the whole process: no cache between a benchmark and its server could be poisoned.
_KEY = os.urandom(4)
_END_OF_HEAD = b"\r\n\r\n"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@lru_cache(maxsize=4096)
def _mask(size: int) -> int:
    return int.from_bytes((_KEY * (size // 4 + 1))[:size], "little")


def frame(opcode: int, payload: bytes, first: int = _FINAL) -> bytes:
    """Frame ``payload`` as a client has to: masked.

    Args:
        first: the bits beside the opcode; the final bit alone is a whole message.
    """
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", first | opcode, _MASKED | size)
    elif size < 65_536:
        head = struct.pack("!BBH", first | opcode, _MASKED | 126, size)
    else:
        head = struct.pack("!BBQ", first | opcode, _MASKED | 127, size)
    return head + _KEY + (int.from_bytes(payload, "little") ^ _mask(size)).to_bytes(size, "little")


def text_frame(payload: bytes) -> bytes:
    """Frame one text message; a frame may be sent any number of times."""
    return frame(TEXT, payload)


class Entry(msgspec.Struct):
    """One entry of a ``peer-list``."""

    id: str


class Resume(msgspec.Struct):
    """What resumes the session after a lost connection."""

    token: str


class Message(msgspec.Struct):
    """What the server sent, without its payload; a key that it did not send is empty."""

    type: str
    self_id: str = msgspec.field(default="", name="selfId")
    peer_id: str = msgspec.field(default="", name="peerId")
    sender: str = msgspec.field(default="", name="from")
    msg_id: str = msgspec.field(default="", name="msgId")
    code: str = ""
    peers: tuple[Entry, ...] = ()
    resume: Resume | None = None
    resumed: bool = False


_decode = msgspec.json.Decoder(Message).decode


class End(NamedTuple):
    """How a connection ended.

    Args:
        code: the server's close code, or None if it sent no close frame.
        complete: whether everything was read that the server wrote: its close frame and the end of its half.
    """

    code: int | None
    complete: bool


class NotJoinedError(Exception):
    """The server did not let a client join; the text is its status line, or what happened instead."""


class Client(asyncio.Protocol):
    """One peer of a topic. Subclasses override ``received`` and ``connection_ended``.

    Attributes:
        id: its own id, once it joined.
        peers: the ids of the peers that were there before it.
        ended: done when the connection is gone.
    """

    def __init__(self) -> None:
        self.id = ""
        self.peers: tuple[str, ...] = ()
        self._waiters: list[tuple[Callable[[Message], bool], asyncio.Future[Message]]] = []
        self._begin()

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[End] = loop.create_future()
        self._joined: asyncio.Future[None] = loop.create_future()
        self._rest = b""
        self._upgraded = False
        self._code: int | None = None
        self._at_end = False
        self._writable = asyncio.Event()
        self._writable.set()

    @classmethod
    async def join(cls, port: int, topic: str, *args: object, receive_buffer: int = 0) -> Self:
        """Connect and join ``topic``.

        Args:
            args: the subclass's own.
            receive_buffer: bytes of ``SO_RCVBUF``; 0 leaves it to the kernel.

        Raises:
            NotJoinedError: if the server refuses or ends the connection.
        """
        client = cls(*args)
        await client._connect(port, topic, receive_buffer)
        return client

    async def _connect(self, port: int, target: str, receive_buffer: int = 0) -> None:
        sock = await _connected(port, receive_buffer)
        await asyncio.get_running_loop().create_connection(lambda: self, sock=sock)
        self.send(raw_client.upgrade(target, HOST))
        await self._joined

    async def rejoin(self, port: int, target: str) -> None:
        """Join again, on a new connection, once the one before has ended.

        Args:
            target: the topic, and what else the request says.

        Raises:
            NotJoinedError: as ``join`` does.
        """
        self._begin()
        await self._connect(port, target)

    # What a scenario does

    def send(self, data: bytes) -> None:
        """Send frames; never waits, see ``drain``."""
        self._transport.write(data)

    @property
    def writable(self) -> bool:
        """Whether less is unsent than the transport's high-water mark."""
        return self._writable.is_set()

    async def drain(self) -> None:
        """Wait until the server takes data again."""
        await self._writable.wait()

    def next_message(self, wanted: Callable[[Message], bool]) -> asyncio.Future[Message]:
        """Return the first message from now on that is wanted; ``ConnectionError`` if the connection ends first."""
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiters.append((wanted, future))
        return future

    def stop_reading(self) -> None:
        """Take nothing from now on; then the end of the connection is not noticed either."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take what waits."""
        self._transport.resume_reading()

    def half_close(self) -> None:
        """End our half of the connection without a close frame."""
        self._transport.write_eof()

    def reset(self) -> None:
        """Reset the connection, and lose what was not read."""
        with suppress(OSError):
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()

    async def close(self, code: int = 1000) -> End:
        """Close as the protocol wants it, and read on until the server ended its half."""
        self.send(frame(CLOSE, struct.pack("!H", code)))
        return await self.ended

    # What a subclass handles

    def received(self, message: Message) -> None:
        """Handle one message; ``welcome`` and ``peer-list`` as well."""

    def connection_ended(self, end: End) -> None:
        """Handle the end of the connection."""

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse the frames that are complete."""
        if self._rest:
            data = self._rest + data
        if not self._upgraded:
            data = self._read_head(data)
        if self._upgraded:
            data = self._read_frames(data)
        self._rest = data

    def eof_received(self) -> None:
        """Note that the server ended its half; the transport closes ours."""
        self._at_end = True

    def pause_writing(self) -> None:
        """Note that the server takes nothing for now."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Note that it takes data again."""
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake all that wait."""
        self._writable.set()
        lost = NotJoinedError(f"the connection ended: {exc or 'closed by the server'}")
        if not self._joined.done():
            self._joined.set_exception(lost)
        for _, future in self._waiters:
            if not future.done():
                future.set_exception(ConnectionError(str(lost)))
        end = End(self._code, exc is None and self._at_end and self._code is not None)
        if not self.ended.done():
            self.ended.set_result(end)
        self.connection_ended(end)

    # Frames

    def _read_head(self, data: bytes) -> bytes:
        head, found, rest = data.partition(_END_OF_HEAD)
        if not found:
            return data
        if head.startswith(b"HTTP/1.1 101 "):
            self._upgraded = True
        else:
            self._joined.set_exception(NotJoinedError(head.partition(b"\r\n")[0].decode("latin-1")))
            self._transport.abort()
        return rest

    def _read_frames(self, data: bytes) -> bytes:
        at, size = 0, len(data)
        while size - at >= 2:
            length, start = data[at + 1], at + 2
            if length >= 126:
                start += 2 if length == 126 else 8
                if start > size:
                    break
                length = int.from_bytes(data[at + 2 : start])
            end = start + length
            if end > size:
                break
            self._take_frame(data[at], data[start:end])
            at = end
        return data[at:]

    def _take_frame(self, first: int, payload: bytes) -> None:
        opcode = first ^ _FINAL
        if opcode == TEXT:
            self._take_message(_decode(payload))
        elif opcode == PING:
            self.send(frame(PONG, payload))
        elif opcode == CLOSE:
            self._code = int.from_bytes(payload[:2]) if payload else 1005
        elif opcode != PONG:
            raise ValueError(f"the server sent a frame that starts with {first:#x}")

    def _take_message(self, message: Message) -> None:
        if not self._joined.done():
            self._note_join(message)
        self.received(message)
        if self._waiters:
            self._wake(message)

    def _note_join(self, message: Message) -> None:
        if message.type == "welcome":
            self.id = message.self_id
        elif message.type == "peer-list":
            self.peers = tuple(entry.id for entry in message.peers)
            self._joined.set_result(None)

    def _wake(self, message: Message) -> None:
        for waiter in tuple(self._waiters):
            wanted, future = waiter
            if future.done():
                self._waiters.remove(waiter)
            elif wanted(message):
                self._waiters.remove(waiter)
                future.set_result(message)


async def _connected(port: int, receive_buffer: int) -> socket.socket:
    sock = socket.socket()
    try:
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, (HOST, port))
    except OSError as error:
        sock.close()
        raise NotJoinedError(str(error)) from error
    return sock


class LoggedClient(Client):
    """A client that enters its relays in a delivery log, under its id."""

    def __init__(self, log: DeliveryLog) -> None:
        super().__init__()
        self.log = log
        self._unreadable: list[str] = []

    def relay(self, kind: str, to: str, payload: bytes) -> None:
        """Send one relay.

        Args:
            payload: JSON text.
        """
        self.send(self.relay_frame(kind, to, payload))

    def relay_frame(self, kind: str, to: str, payload: bytes) -> bytes:
        """Enter one relay and return its frame, to be sent with others."""
        text = b'{"type":"%b","to":"%b","payload":%b,"msgId":"%b"}'
        return text_frame(text % (kind.encode(), to.encode(), payload, self.log.sent(self.id, to).encode()))

    def send_unreadable(self, data: bytes) -> None:
        """Send a frame that the server answers with an error that names no ``msgId``."""
        self._unreadable.append(self.log.sent(self.id, NOBODY))
        self.send(data)

    async def all_ended(self, seconds: float = 30.0) -> None:
        """Wait until everything that it has sent is delivered, answered or excused.

        Raises:
            TimeoutError: after ``seconds``.
        """
        changed = asyncio.Event()
        self.log.on_end[self.id] = changed.set
        try:
            async with asyncio.timeout(seconds):
                while self.log.open(self.id):
                    changed.clear()
                    await changed.wait()
        finally:
            del self.log.on_end[self.id]

    def leave_early(self) -> None:
        """Reset the connection without waiting for what is open."""
        self.log.leaves(self.id)
        self.reset()

    def received(self, message: Message) -> None:
        """Enter relays, errors, and who left."""
        if message.type == "error":
            if not message.msg_id and self._unreadable:
                message.msg_id = self._unreadable.pop(0)
            self.log.answered(message.msg_id, self.id, message.code)
        elif message.sender:
            self.log.delivered(message.msg_id, self.id)
        elif message.type == "peer-left":
            self.log.peer_left(self.id, message.peer_id)

    def connection_ended(self, end: End) -> None:
        """Enter that it reads nothing more."""
        if self.id:
            self.log.ended(self.id, read_all=end.complete)
