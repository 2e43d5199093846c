"""The load generator: raw sockets on one epoll, and small tasks that wait for what a connection receives.

It has to cost less than the servers that it measures. So frames are built before they are measured, and a message that
was checked once is known by its bytes when it comes again.
"""

from __future__ import annotations

import itertools
import select
import socket
import struct
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import msgspec

from benchmarks.client import CLOSE, PING, PONG, TEXT, frame

_READ_BYTES = 1 << 18
# When half of an address's ports are taken, the kernel searches long for a free one.
_PORTS_OF_AN_ADDRESS = 5_000
_END_OF_HEAD = b"\r\n\r\n"
_FINAL = 0x80
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_GOODBYE = frame(CLOSE, struct.pack("!H", 1000))
# No frame of a server starts like this.
_UNKNOWN = b"\x00\x00"

Message = dict[str, Any]
Matches = Callable[[Message], bool]


class WrongAnswerError(Exception):
    """A server did not do what was asked of it; its figures would mean nothing."""


class Expected:
    """A message that a connection has to receive, maybe many times.

    Args:
        matches: judges the parsed message when it comes for the first time; the same bytes are known from then on.
    """

    __slots__ = ("matches", "raw")

    def __init__(self, matches: Matches) -> None:
        self.matches = matches
        self.raw = _UNKNOWN


class Link:
    """One connection to a server.

    Attributes:
        ended: whether the server ended its half.
        parse: reads the text of a message; JSON unless a dialect says something else.
        echoes: whether a message is one that the server sends besides what was asked for; it is skipped.
        task: the task that waits for the next bytes.
    """

    __slots__ = ("_buffer", "_passed", "echoes", "ended", "parse", "recv", "send", "sock", "task")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.send = sock.sendall
        self.recv = sock.recv
        self.ended = False
        self.parse: Callable[[bytes], Message] = msgspec.json.decode
        self.echoes: Matches | None = None
        self.task: Task | None = None
        self._buffer = b""
        self._passed: set[bytes] = set()

    def read(self) -> None:
        """Read what is there."""
        try:
            data = self.recv(_READ_BYTES)
        except ConnectionResetError:
            data = b""
        if data:
            self._buffer = self._buffer + data if self._buffer else data
        else:
            self.ended = True

    def takes(self, expected: Expected) -> bool:
        """Take one message, where it is there; it has to be ``expected``.

        Raises:
            WrongAnswerError: if another one is there, or the server ended the connection.
        """
        if self._buffer.startswith(expected.raw):
            self._buffer = self._buffer[len(expected.raw) :]
            return True
        return self._takes_anew(expected)

    def _takes_anew(self, expected: Expected) -> bool:
        while (raw := self._cut()) is not None:
            if raw in self._passed:
                continue
            message = self.parse(raw[_payload_at(raw) :])
            if expected.matches(message):
                expected.raw = raw
                return True
            if self.echoes is None or not self.echoes(message):
                raise WrongAnswerError(f"unexpected message: {str(message)[:300]}")
            self._passed.add(raw)
        return False

    def head(self) -> Task:
        """Wait for the answer to the handshake."""
        while _END_OF_HEAD not in self._buffer:
            self._check_open()
            yield self
        head, _, self._buffer = self._buffer.partition(_END_OF_HEAD)
        if not head.startswith(b"HTTP/1.1 101"):
            raise WrongAnswerError(f"handshake: {head[:200]!r}")

    def message(self) -> Generator[Link, None, Message]:
        """Wait for one message, whatever it is."""
        while (raw := self._cut()) is None:
            yield self
        return self.parse(raw[_payload_at(raw) :])

    def expect(self, expected: Expected) -> Task:
        """Wait for one message, which has to be ``expected``."""
        while not self.takes(expected):
            yield self

    def stay(self) -> Task:
        """Answer pings and do nothing else, for ever.

        Raises:
            WrongAnswerError: if a message comes, or the server ends the connection.
        """
        while True:
            if (raw := self._cut()) is not None:
                raise WrongAnswerError(f"unexpected message: {raw[:300]!r}")
            yield self

    def close(self) -> Task:
        """Close as the protocol wants it: the server ends its half first."""
        self.send(_GOODBYE)
        while not self.ended:
            self._buffer = b""
            yield self
        self.sock.close()

    def drop(self) -> None:
        """Reset the connection."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.sock.close()

    def _cut(self) -> bytes | None:
        """Cut the next text frame off the buffer; pings are answered on the way."""
        while (size := _frame_size(self._buffer)) is not None:
            raw, self._buffer = self._buffer[:size], self._buffer[size:]
            opcode = raw[0] ^ _FINAL
            if opcode == TEXT:
                return raw
            if opcode == PING:
                self.send(frame(PONG, raw[2:]))
            elif opcode != PONG:
                raise WrongAnswerError(f"unexpected frame: {raw[:100]!r}")
        self._check_open()
        return None

    def _check_open(self) -> None:
        if self.ended:
            raise WrongAnswerError("the server ended the connection")


Task = Generator[Link, None, None]


def _payload_at(raw: bytes) -> int:
    length = raw[1]
    return 2 if length < 126 else 4 if length == 126 else 10


def _frame_size(data: bytes) -> int | None:
    """Return the size of the first frame, or None if it is not complete."""
    if len(data) < 2 or len(data) < (at := _payload_at(data)):
        return None
    size = at + (data[1] if at == 2 else int.from_bytes(data[2:at]))
    return size if size <= len(data) else None


class LoadGenerator:
    """Connections to one server, and the tasks that use them.

    Args:
        addresses: where the server's nodes listen; connections go to them in turns.
        patience_seconds: for how long a server may let all tasks wait.
    """

    def __init__(self, addresses: Sequence[tuple[str, int]], patience_seconds: float = 20.0) -> None:
        self._addresses = itertools.cycle(addresses)
        self._patience_seconds = patience_seconds
        self._epoll = select.epoll()
        self._links: dict[int, Link] = {}

    def __enter__(self) -> LoadGenerator:
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._links.values():
            if link.sock.fileno() >= 0:
                link.drop()
        self._epoll.close()

    def connect(self) -> Link:
        """Open a connection."""
        address = next(self._addresses)
        source = len(self._links) // _PORTS_OF_AN_ADDRESS
        own = (f"127.0.0.{1 + source}", 0) if source and address[0].startswith("127.") else None
        sock = socket.create_connection(address, self._patience_seconds, own)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = Link(sock)
        self._links[sock.fileno()] = link
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        return link

    def poll(self, seconds: float = 0.0) -> list[Link]:
        """Read from every connection that has something, and return those."""
        links = self._links
        readable = [links[fd] for fd, _ in self._epoll.poll(seconds)]
        for link in readable:
            link.read()
            if link.ended:
                self._epoll.unregister(link.sock.fileno())
        return readable

    def start(self, task: Task) -> bool:
        """Run a task until it waits, and later on whenever what it waits for comes.

        Returns:
            False if it is done.
        """
        try:
            next(task).task = task
        except StopIteration:
            return False
        return True

    def run(self, tasks: Iterable[Task]) -> None:
        """Run tasks until all of them are done.

        Raises:
            WrongAnswerError: if one of them fails, or nothing comes for too long.
        """
        running = sum([self.start(task) for task in tasks])
        heard_at = time.monotonic()
        while running:
            readable = self.poll(1.0)
            for link in readable:
                task, link.task = link.task, None
                if task is not None and not self.start(task):
                    running -= 1
            if readable:
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > self._patience_seconds:
                raise WrongAnswerError(f"{running} tasks wait in vain")
