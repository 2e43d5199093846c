"""The cost of each step of a connection and of a relay, in one process: ``python -m benchmarks.relay_steps``.

A server is driven by hand, one pass of its reactor after the other, over real sockets on the loopback. In each pass 16
connections are ready; the clients are in the same process, and what they take is not counted. Beside each step stands
what the least system calls for it take alone: the rest is Python, ours and Twisted's. The best of the rounds counts,
because nothing makes a step faster than it is.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import partial
from typing import Any, NamedTuple, Protocol, Self

from twisted.internet.epollreactor import EPollReactor
from twisted.logger import LogLevel

from benchmarks.client import CLOSE, frame
from benchmarks.client import text_frame as masked_text_frame
from benchmarks.compare.payloads import Messages, candidates, descriptions, mix
from signaling import Limits, SignalingFactory
from signaling.admission.rate_limit import TokenBucket
from signaling.core import messages as wire
from signaling.websocket.frames import masked_frame_at, text_frame
from signaling.websocket.request_head import take_head

AT_ONCE = 16
_ROUNDS = 40
_READ_BYTES = 65_536
SOME_ID = "01JD0000000000000000000000"
_CLOSE = frame(CLOSE, b"\x03\xe8")
_CLOSED = b"\x88\x02\x03\xe8"
# As long as the answer to a handshake, a welcome and a peer-list.
_JOINED = bytes(220)
SHORT_REQUEST = (
    b"GET /ws/%b HTTP/1.1\r\nHost: localhost:8081\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
CHROMIUM_REQUEST = (
    b"GET /ws/%b HTTP/1.1\r\nHost: localhost:8081\r\nConnection: Upgrade\r\nPragma: no-cache\r\n"
    b"Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"
    b" Chrome/140.0.0.0 Safari/537.36\r\nUpgrade: websocket\r\nOrigin: http://localhost:8081\r\n"
    b"Sec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
)


class Cost(NamedTuple):
    """What a step takes, in microseconds.

    Args:
        system_calls: what the least of them take alone; None for a part of the step before, which makes none.
    """

    step: str
    whole: float
    system_calls: float | None = None

    @property
    def python(self) -> float:
        """What is left of it without them."""
        return self.whole - (self.system_calls or 0.0)

    def __str__(self) -> str:
        if self.system_calls is None:
            return f"| of that: {self.step} | | | {self.python:.2f} |"
        return f"| {self.step} | {self.whole:.2f} | {self.system_calls:.2f} | {self.python:.2f} |"


# The servers


class Work(Enum):
    """What a server has to do for each connection that is ready."""

    ACCEPT = "accept it"
    RELAY = "read, and write to the other connection of its pair"
    ANSWER = "read, and write"
    CLOSE = "read, write, and close it"
    LEAVE = "read that the client closed, and close it"


class Served(Protocol):
    """A server that does something only when it is told to."""

    @property
    def port(self) -> int:
        """Where it listens."""

    def run(self, work: Work, data: bytes) -> None:
        """Handle all connections that are ready.

        Args:
            data: what is to be written for each.
        """


class OurServer:
    """Our server, on a reactor of its own."""

    def __init__(self, limits: Limits) -> None:
        reactor: Any = EPollReactor
        self._reactor = reactor()
        self.factory = SignalingFactory(limits, reactor=self._reactor, log_level=LogLevel.warn)
        self._listening: Any = None
        self.port = 0

    def __enter__(self) -> Self:
        listening = self._reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        self._listening = self.factory.accept_on(listening)
        self.port = listening.getHost().port
        self._reactor.iterate(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.stopListening()
        self._reactor.disconnectAll()
        self._reactor.iterate(0)

    def run(self, work: Work, data: bytes) -> None:
        """Make one pass of the reactor: the clients' bytes say what to do."""
        self._reactor.iterate(0)


class SystemCalls:
    """The least system calls for the same work."""

    def __enter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=2 * AT_ONCE)
        self.port: int = self._listening.getsockname()[1]
        self._poller = select.epoll()
        self._poller.register(self._listening.fileno(), select.EPOLLIN)
        self._accepted: list[int] = []
        self._targets: dict[int, int] = {}
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._accepted:
            os.close(descriptor)
        self._poller.close()
        self._listening.close()

    def run(self, work: Work, data: bytes) -> None:
        """Do the work."""
        ready = [descriptor for descriptor, _ in self._poller.poll(0, AT_ONCE)]
        if work is Work.ACCEPT:
            self._accept()
            return
        for descriptor in ready:
            os.read(descriptor, _READ_BYTES)
            if work is not Work.LEAVE:
                os.write(self._targets[descriptor] if work is Work.RELAY else descriptor, data)
            if work in (Work.CLOSE, Work.LEAVE):
                os.close(descriptor)
        if work in (Work.CLOSE, Work.LEAVE):
            self._accepted.clear()

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            descriptor = self._listening.accept()[0].detach()
            os.set_blocking(descriptor, False)
            self._poller.register(descriptor, select.EPOLLIN)
            self._accepted.append(descriptor)
        self._targets = dict(zip(self._accepted, self._accepted[AT_ONCE:], strict=False))


# Their clients


class Clients:
    """16 clients of one server.

    Attributes:
        ids: of the peers that they are.
        seconds: what the server took so far, by its work.
    """

    def __init__(self, server: Served) -> None:
        self.ids: list[str] = []
        self.seconds = dict.fromkeys(Work, 0.0)
        self._server = server
        self._ends: list[socket.socket] = []

    def work(self, work: Work, data: bytes = b"") -> None:
        """Let the server handle what was done."""
        start = time.thread_time()
        self._server.run(work, data)
        self.seconds[work] += time.thread_time() - start

    def connect(self) -> None:
        """Connect, and have it accepted."""
        for _ in range(AT_ONCE):
            end = socket.create_connection(("127.0.0.1", self._server.port))
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._ends.append(end)
        self.work(Work.ACCEPT)

    def join(self, request: bytes) -> None:
        """Join a topic each, which is always the same."""
        self.send([request % b"%d" % number for number in range(AT_ONCE)])
        self.work(Work.ANSWER, _JOINED)
        found = [re.search(rb'"selfId":"(\w+)"', received) for received in self.receive()]
        self.ids = [match[1].decode() for match in found if match]

    def send(self, data: Sequence[bytes]) -> None:
        """Send a piece of data from each."""
        for end, piece in zip(self._ends, data, strict=True):
            end.send(piece)

    def receive(self) -> list[bytes]:
        """Return what each of them received; the server has written it already."""
        return [end.recv(1 << 20, socket.MSG_DONTWAIT) for end in self._ends]

    def close(self) -> None:
        """Exchange close frames, behind which the server closes."""
        self.send([_CLOSE] * AT_ONCE)
        self.work(Work.CLOSE, _CLOSED)
        self.receive()
        self._end()

    def leave(self) -> None:
        """Close without a close frame."""
        self._end()
        self.work(Work.LEAVE)

    def _end(self) -> None:
        for end in self._ends:
            end.close()
        self._ends.clear()


# A relay


def relay_messages(payloads: Messages, to: str) -> list[bytes]:
    """Return the text that a client sends for each payload."""
    return [b'{"type":"%b","to":"%b","payload":%b}' % (kind.encode(), to.encode(), data) for kind, data in payloads]


class _Pairs:
    """16 pairs of clients, each in a topic of its own."""

    def __init__(self, server: Served, payloads: Messages) -> None:
        self._senders, self._targets = Clients(server), Clients(server)
        for clients in (self._senders, self._targets):
            clients.connect()
            clients.join(SHORT_REQUEST)
        # Without ids it is not our server, which has nothing to announce.
        if self._targets.ids:
            self._senders.receive()
        targets = self._targets.ids or [SOME_ID] * AT_ONCE
        self._sent = [[masked_text_frame(text) for text in relay_messages(payloads, target)] for target in targets]
        self._written = [
            text_frame(wire.relayed(wire.decode(text), SOME_ID)) for text in relay_messages(payloads, SOME_ID)
        ]

    def relay(self, passes: int) -> float:
        """Let every first one of a pair send, again and again; returns the microseconds for each relay."""
        self._senders.seconds[Work.RELAY] = 0.0
        for number in range(passes):
            at = number % len(self._written)
            self._senders.send([frames[at] for frames in self._sent])
            self._senders.work(Work.RELAY, self._written[at])
            self._targets.receive()
        return 1e6 * self._senders.seconds[Work.RELAY] / passes / AT_ONCE

    def leave(self) -> None:
        """Let all of them leave."""
        self._senders.leave()
        self._targets.leave()


def _relay(step: str, payloads: Messages, passes: int, limits: Limits) -> Cost:
    with OurServer(limits) as ours, SystemCalls() as system_calls:
        pairs = [_Pairs(server, payloads) for server in (ours, system_calls)]
        rounds = [[each.relay(passes) for each in pairs] for _ in range(_ROUNDS)]
        for each in pairs:
            each.leave()
    return Cost(step, *(min(values) for values in zip(*rounds, strict=True)))


def _parts_of_a_relay(repeats: int) -> Iterator[Cost]:
    messages = relay_messages(mix(0), SOME_ID)
    frames = [masked_text_frame(message) for message in messages]
    many, longest = len(frames), Limits().max_message_bytes
    decoded = [wire.decode(message) for message in messages]
    bucket = TokenBucket(1e9, 1000)
    parts: dict[str, Callable[[int], object]] = {
        "read the frame, unmask it, check its UTF-8": lambda number: masked_frame_at(frames[number % many], 0, longest),
        "check the JSON, take `type`, `to` and `msgId` out of it": lambda number: wire.decode(messages[number % many]),
        "write and frame what is relayed": lambda number: text_frame(wire.relayed(decoded[number % many], SOME_ID)),
        "the sender's rate limit, if there is one": lambda _: bucket.take(time.monotonic()),
    }
    nothing = _microseconds(lambda number: frames[number % many], repeats)
    for name, part in parts.items():
        yield Cost(name, _microseconds(part, repeats) - nothing)


# A connection


def lives(server: Served, request: bytes, passes: int) -> dict[Work, float]:
    """Let connections come and go; returns the microseconds of each work for one of them.

    Args:
        request: to join, with a place for a number.
        passes: how often 16 of them end in each of two ways.
    """
    clients = Clients(server)
    for _ in range(passes):
        for end in (clients.close, clients.leave):
            clients.connect()
            clients.join(request)
            end()
    # Each connection is accepted and answered, and half of them end in one of the two ways.
    halves = {work: 1 if work in (Work.CLOSE, Work.LEAVE) else 2 for work in Work}
    return {work: 1e6 * clients.seconds[work] / passes / AT_ONCE / halves[work] for work in Work}


def _connection(passes: int, repeats: int) -> Iterator[Cost]:
    with OurServer(Limits()) as ours, SystemCalls() as system_calls:
        servers: list[tuple[Served, bytes]] = [
            (ours, SHORT_REQUEST),
            (ours, CHROMIUM_REQUEST),
            (system_calls, SHORT_REQUEST),
        ]
        rounds = [[lives(server, request, passes) for server, request in servers] for _ in range(_ROUNDS)]
        short, chromium, alone = (
            {work: min(each[work] for each in same) for work in Work} for same in zip(*rounds, strict=True)
        )
        head, long_head = (
            _microseconds(partial(read_head, ours.factory, request % b"0"), repeats)
            for request in (SHORT_REQUEST, CHROMIUM_REQUEST)
        )
    yield Cost("accept", short[Work.ACCEPT], alone[Work.ACCEPT])
    yield Cost("a request: join, welcome and peer-list", short[Work.ANSWER], alone[Work.ANSWER])
    yield Cost("read and check the head", head)
    yield Cost("a request as Chromium sends it", chromium[Work.ANSWER], alone[Work.ANSWER])
    yield Cost("read and check the head", long_head)
    yield Cost("a close frame: answer, leave and close", short[Work.CLOSE], alone[Work.CLOSE])
    yield Cost("leave and close without a close frame", short[Work.LEAVE], alone[Work.LEAVE])
    whole, kernel = (sum(each[work] for work in (Work.ACCEPT, Work.ANSWER, Work.CLOSE)) for each in (short, alone))
    yield Cost("a whole connection, with a close frame", whole, kernel)


def read_head(factory: SignalingFactory, request: bytes, _: int) -> None:
    """Read the head of a request to join, and check it."""
    taken = take_head(request, 0, factory.limits.max_header_bytes)
    assert taken is not None
    head, _ = taken
    factory.check(b"0", b"", head.values, head.key)


def _microseconds(step: Callable[[int], object], repeats: int) -> float:
    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.thread_time()
        for number in range(repeats):
            step(number)
        best = min(best, time.thread_time() - start)
    return 1e6 * best / repeats


def steps(passes: int) -> Iterator[Cost]:
    """Measure every step.

    Args:
        passes: of the server in each round; each of them handles 16 connections.
    """
    plain = Limits()
    limited = Limits(max_messages_per_second=1, message_burst=10**9)
    yield _relay("a relay: one SDP to ten candidates", mix(0), passes, plain)
    yield from _parts_of_a_relay(AT_ONCE * passes)
    yield _relay("a relay of a candidate", candidates(0), passes, plain)
    yield _relay("a relay of an SDP", descriptions(0), passes, plain)
    yield _relay("a relay with a rate limit", mix(0), passes, limited)
    yield from _connection(max(1, passes // 8), AT_ONCE * passes)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay_steps", description=__doc__)
    parser.add_argument("--passes", type=int, default=110, help="of each step and round; default: %(default)s")
    passes = parser.parse_args().passes
    print("| step | µs | system calls alone | Python |\n|---|--:|--:|--:|")
    for cost in steps(passes):
        print(cost)


if __name__ == "__main__":
    main()
