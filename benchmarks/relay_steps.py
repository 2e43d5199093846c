"""The cost of each step of a relay alone, in one process: ``python -m benchmarks.relay_steps``.

A step is repeated over the benchmark's mix of messages, one SDP to ten candidates. The best of its rounds counts,
because nothing makes a step faster than it is. Sockets are real ones, on the loopback.
"""

from __future__ import annotations

import argparse
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet import tcp
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel
from twisted.python import log
from twisted.python.failure import Failure

from benchmarks.compare.payloads import mix
from signaling import Limits, SignalingFactory
from signaling.admission.rate_limit import TokenBucket
from signaling.core import messages as wire
from signaling.websocket.frames import masked_frame_at, text_frame, unmask

_MASK = b"\x17\x2a\x99\x04"
_ID = "01JD0000000000000000000000"
_REQUEST = (
    b"GET /ws/topic HTTP/1.1\r\nHost: localhost:8081\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
_CLOSE = b"\x88\x82\0\0\0\0\x03\xe8"
_READ_BYTES = 65_536
_READY = 16
_IDLE = 84

Step = Callable[[int], object]


def _client_frame(message: bytes) -> bytes:
    size = len(message)
    head = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return head + _MASK + unmask(message, _MASK)


class _Socket:
    """A socket that takes everything at once, and costs nothing."""

    send = staticmethod(len)

    def fileno(self) -> int:
        """Return no descriptor."""
        return -1

    def setblocking(self, flag: bool) -> None:
        """No-op: it never blocks."""

    def shutdown(self, how: int) -> None:
        """No-op."""

    def setsockopt(self, *option: object) -> None:
        """No-op."""


class _Lines:
    """What Twisted's log context needs of a connection."""

    def logPrefix(self) -> str:
        """Return its name."""
        return "SignalingProtocol,3,127.0.0.1"


def _pair(port: socket.socket) -> tuple[socket.socket, socket.socket]:
    near = socket.create_connection(port.getsockname())
    far, _ = port.accept()
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.setblocking(False)
    return near, far


@contextmanager
def _connections(count: int) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    with socket.create_server(("127.0.0.1", 0)) as port:
        pairs = [_pair(port) for _ in range(count)]
        try:
            yield pairs
        finally:
            for pair in pairs:
                for end in pair:
                    end.close()


def _microseconds(step: Step, repeats: int, rounds: int = 9) -> float:
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        for number in range(repeats):
            step(number)
        best = min(best, time.perf_counter() - start)
    return 1e6 * best / repeats


def _kernel(frames: list[bytes], sent: list[bytes], repeats: int) -> Iterator[tuple[str, float]]:
    with _connections(1) as [(near, far)]:
        many = len(frames)

        def there_and_back(number: int) -> None:
            near.send(frames[number % many])
            far.recv(_READ_BYTES)

        def send_alone(number: int) -> None:
            near.send(sent[number % many])
            if number % 32 == 31:
                far.recv(1 << 20)

        sending = _microseconds(send_alone, repeats)
        yield "send: the kernel carries the frame to its receiver's socket", sending
        yield "receive: the kernel hands over what came", max(0.0, _microseconds(there_and_back, repeats) - sending)
    with _connections(_READY + _IDLE) as pairs:
        poller = select.epoll()
        for _, far in pairs:
            poller.register(far, select.EPOLLIN)
        for near, _ in pairs[:_READY]:
            near.send(b"x")
        yield (
            "wait: epoll reports 16 connections at once, one of them",
            _microseconds(lambda _: poller.poll(-1, len(pairs)), repeats // _READY) / _READY,
        )
        poller.close()


def _ours(messages: list[bytes], frames: list[bytes], repeats: int) -> Iterator[tuple[str, float]]:
    many = len(frames)
    longest = Limits().max_message_bytes
    bucket = TokenBucket(1e9, 1000)
    decoded = [wire.decode(message) for message in messages]
    members = {_ID: None}

    yield (
        "read the frame, unmask it, check its UTF-8",
        _microseconds(lambda number: masked_frame_at(frames[number % many], 0, longest), repeats),
    )
    yield (
        "the sender's rate limit, if there is one",
        _microseconds(lambda _: bucket.take(time.monotonic()), repeats),
    )
    yield (
        "check the JSON, take `type`, `to` and `msgId` out of it",
        _microseconds(lambda number: wire.decode(messages[number % many]), repeats),
    )
    yield "find the target", _microseconds(lambda number: members.get(decoded[number % many].to), repeats)
    yield (
        "write and frame what is relayed",
        _microseconds(lambda number: text_frame(wire.relayed(decoded[number % many], _ID)), repeats),
    )


class _Server:
    """A server whose connections cost the kernel nothing."""

    def __init__(self, limits: Limits) -> None:
        self._reactor = MemoryReactorClock()
        self.factory = SignalingFactory(limits, reactor=self._reactor, log_level=LogLevel.warn)

    def connect(self) -> Any:
        """Let a peer join."""
        connection = self.factory.buildProtocol(None)
        connection.makeConnection(tcp.Server(_Socket(), connection, ("127.0.0.1", 1), None, 1, self._reactor))
        connection.dataReceived(_REQUEST)
        return connection


def _whole_relay(repeats: int, limits: Limits) -> float:
    server = _Server(limits)
    sender, _ = server.connect(), server.connect()
    (topic,) = server.factory.topics
    target = list(topic)[1].id.encode()
    frames = [
        _client_frame(b'{"type":"%b","to":"%b","payload":%b}' % (kind.encode(), target, payload))
        for kind, payload in mix(0)
    ]
    receive, many = sender.dataReceived, len(frames)
    took = _microseconds(lambda number: receive(frames[number % many]), repeats)
    if not server.factory.counters.total_relays_accepted:
        raise RuntimeError("nothing was relayed")
    return took


def _whole_connection(repeats: int) -> float:
    server = _Server(Limits())
    server.connect()
    lost = Failure(ConnectionDone())

    def join_and_leave(_: int) -> None:
        connection = server.connect()
        connection.dataReceived(_CLOSE)
        connection.connectionLost(lost)

    return _microseconds(join_and_leave, repeats)


def steps(repeats: int) -> list[tuple[str, float]]:
    """Measure every step; returns its name and its microseconds."""
    messages = [
        b'{"type":"%b","to":"%b","payload":%b}' % (kind.encode(), _ID.encode(), payload) for kind, payload in mix(0)
    ]
    frames = [_client_frame(message) for message in messages]
    sent = [text_frame(wire.relayed(wire.decode(message), _ID)) for message in messages]
    nothing = _microseconds(lambda number: frames[number % len(frames)], repeats)
    lines = _Lines()
    return [
        *_kernel(frames, sent, repeats),
        ("Twisted's log context around each event", _microseconds(lambda _: log.callWithLogger(lines, id, 0), repeats)),
        *((name, took - nothing) for name, took in _ours(messages, frames, repeats)),
        ("all of ours, from `dataReceived` to the socket's `send`", _whole_relay(repeats, Limits()) - nothing),
        (
            "the same with a rate limit",
            _whole_relay(repeats, Limits(max_messages_per_second=1, message_burst=10**9)) - nothing,
        ),
        ("all of ours for a connection: accept, join, close frame, leave", _whole_connection(repeats // 10)),
    ]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay_steps", description=__doc__)
    parser.add_argument("--repeats", type=int, default=22_000, help="of each step and round; default: %(default)s")
    repeats = parser.parse_args().repeats
    print("| step of a relay | µs |\n|---|--:|")
    for name, took in steps(repeats):
        print(f"| {name} | {took:.2f} |")


if __name__ == "__main__":
    main()
