"""The transport for plain TCP on real sockets of the loopback, with a poller that the test moves."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.tcp import Port
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Site
from zope.interface import implementer

from signaling import Limits, SignalingFactory, SignalingResource
from signaling.transport.poller import Poller
from signaling.transport.tcp_connection import TcpConnection, serve, to_address
from signaling.transport.tcp_port import TcpPort
from tests.harness.raw_client import upgrade

HOST = "127.0.0.1"
Handler = Callable[["Recorder"], object]


def nothing(recorder: Recorder) -> None:
    """No-op."""


class Recorder(Protocol):
    """Records what it is told, and does what a test wants when it is told something."""

    def __init__(self) -> None:
        self.received = b""
        self.reads = 0
        self.ends: list[type[BaseException]] = []
        self.on_data: Handler = nothing
        self.on_end: Handler = nothing

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self.reads += 1
        self.on_data(self)

    def connectionLost(self, reason: Failure) -> None:
        assert reason.type is not None
        self.ends.append(reason.type)
        self.on_end(self)


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Recorder):
    """Lives on with one half."""

    def __init__(self) -> None:
        super().__init__()
        self.halves: list[str] = []
        self.on_half: Handler = nothing

    def readConnectionLost(self) -> None:
        self.halves.append("read")
        self.on_half(self)

    def writeConnectionLost(self) -> None:
        self.halves.append("write")
        self.on_half(self)


class Producer:
    """Records what it is asked."""

    def __init__(self, on_resume: Callable[[], object] = lambda: None) -> None:
        self.asked: list[str] = []
        self.on_resume = on_resume

    def pauseProducing(self) -> None:
        self.asked.append("pause")

    def resumeProducing(self) -> None:
        self.asked.append("resume")
        self.on_resume()

    def stopProducing(self) -> None:
        self.asked.append("stop")


class Recorders(Factory):
    """Makes recorders.

    Attributes:
        made: all of them, in order.
        build: makes one.
    """

    noisy = False

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.addresses: list[Any] = []
        self.build: Callable[[], Any] = Recorder

    def buildProtocol(self, addr: Any) -> Any:
        self.addresses.append(addr)
        protocol = self.build()
        if protocol is not None:
            self.made.append(protocol)
        return protocol


class Loop:
    """A poller, what it watches, and the clients.

    Attributes:
        log: what was logged meanwhile.
    """

    def __init__(self) -> None:
        self.reactor = MemoryReactorClock()
        self.poller = Poller(self.reactor)
        self.factory = Recorders()
        self.clients: list[socket.socket] = []
        self.descriptors: list[int] = []
        self.log: list[LogEvent] = []
        self._listening = socket.create_server((HOST, 0), backlog=512)

    @property
    def ready(self) -> bool:
        """Whether a reactor would call the poller."""
        return self.poller in self.reactor.readers and bool(select.select([self.poller], [], [], 0)[0])

    def run_pass(self) -> None:
        """Run one pass of a reactor."""
        self.reactor.advance(0)
        if self.ready:
            self.poller.doRead()

    def run(self) -> None:
        """Run until nothing is left to do."""
        for _ in range(2_000):
            if not self.ready and not any(call.getTime() <= self.reactor.seconds() for call in self.calls):
                return
            self.run_pass()
        raise AssertionError("a busy loop")

    @property
    def calls(self) -> list[Any]:
        """The timers that are to come."""
        return self.reactor.getDelayedCalls()

    def dial(self, address: Any = None, receive_buffer: int | None = None) -> socket.socket:
        """Connect to the test's own socket, or to ``address``."""
        client = socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.clients.append(client)
        client.connect(address or self._listening.getsockname())
        client.settimeout(60)
        return client

    def connect(self, protocol: Any = None, receive_buffer: int | None = None) -> tuple[socket.socket, Any, Any]:
        """Return a client, and the protocol and the transport that serve it."""
        client = self.dial(receive_buffer=receive_buffer)
        accepted, address = self._listening.accept()
        accepted.setblocking(False)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        descriptor = accepted.detach()
        protocol = protocol or Recorder()
        protocol.makeConnection(TcpConnection(descriptor, protocol, self.poller, to_address(address)))
        self.descriptors.append(descriptor)
        return client, protocol, protocol.transport

    def listen(self, most_per_pass: int = 10) -> tuple[TcpPort, Any]:
        """Return a port, and its address."""
        # A memory reactor has no real ports.
        port: Any = Port(0, self.factory, interface=HOST, reactor=self.reactor)
        port.startListening()

        def record(descriptor: int, address: Any) -> None:
            self.descriptors.append(descriptor)
            serve(descriptor, address, self.factory, self.poller)

        return TcpPort(port, self.poller, most_per_pass, record), port.getHost()

    def logged(self, text: str) -> int:
        """Count the events of the log with ``text``."""
        return sum(text in event["log_format"] for event in self.log)

    def close(self) -> None:
        """End everything."""
        self.poller.connectionLost(Failure(ConnectionLost()))
        self.run()
        for client in (*self.clients, self._listening):
            client.close()


def open_sockets() -> set[str]:
    """Return which sockets and epoll objects this process has open."""
    links = set()
    for entry in os.scandir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            links.add(f"{entry.name} {os.readlink(entry.path)}")
    return {link for link in links if "socket:" in link or "eventpoll" in link}


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A poller that is moved by hand; it leaves no descriptor behind."""
    before = open_sockets()
    loop = Loop()
    globalLogPublisher.addObserver(loop.log.append)
    try:
        yield loop
    finally:
        loop.close()
        globalLogPublisher.removeObserver(loop.log.append)
    assert open_sockets() == before
    assert not loop.reactor.readers
    assert not loop.calls


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def fill(transport: Any) -> int:
    """Write until bytes wait; returns how many were written."""
    written = 0
    while not transport.pending_bytes:
        transport.write(b"x" * 65_536)
        written += 65_536
    return written


def read(loop: Loop, client: socket.socket, count: int | None = None) -> bytes:
    """Read so many bytes, or to the end, while the server goes on."""
    client.setblocking(False)
    data = bytearray()
    for _ in range(100_000):
        if count is not None and len(data) >= count:
            break
        try:
            received = client.recv(65_536 if count is None else min(65_536, count - len(data)))
        except BlockingIOError:
            loop.run()
            select.select([client], [], [], 0.05)
            continue
        if not received:
            break
        data += received
        loop.run()
    client.settimeout(60)
    return bytes(data)


# Descriptors


def test_a_descriptor_is_not_reused_in_the_pass_that_ends_its_connection(loop: Loop) -> None:
    _, address = loop.listen()
    first_client, first, _ = loop.connect()
    other_client, other, other_transport = loop.connect()
    freed = loop.descriptors[-1]
    order: list[str] = []
    first.on_data = lambda _: other_transport.abortConnection()
    other.on_end = lambda _: order.append("ended")
    loop.factory.build = lambda: order.append("opened") or Recorder()
    # In this order the kernel reports them: the connection that ends the other, the new one, the ended one.
    first_client.send(b"end it")
    loop.dial((HOST, address.port))
    other_client.send(b"too late")
    loop.run_pass()
    assert order == ["opened", "ended"]
    assert loop.descriptors[-1] != freed
    assert (other.received, other.ends) == (b"", [ConnectionAborted])
    assert (loop.factory.made[0].reads, loop.factory.made[0].ends) == (0, [])


def test_a_descriptor_that_is_reused_between_passes_belongs_to_its_new_connection(loop: Loop) -> None:
    _, address = loop.listen()
    client, old, transport = loop.connect()
    freed = loop.descriptors[-1]
    # Not yet accepted: it would take the number itself.
    loop.dial((HOST, address.port)).send(b"new")
    loop.reactor.callLater(0, transport.abortConnection)
    client.send(b"pending")
    loop.reactor.advance(0)
    loop.reactor.advance(0)
    assert old.ends == [ConnectionAborted]
    loop.run()
    assert loop.descriptors[-1] == freed
    assert (old.received, loop.factory.made[0].received) == (b"", b"new")


def test_descriptors_that_a_protocol_opens_and_closes_itself_confuse_nobody(loop: Loop) -> None:
    def open_and_close(_: Recorder) -> None:
        victims[0].abortConnection()
        for _ in range(10):
            for descriptor in os.pipe():
                os.close(descriptor)

    first_client, first, _ = loop.connect()
    others = [loop.connect() for _ in range(3)]
    victims = [transport for _, _, transport in others]
    first.on_data = open_and_close
    for client in (first_client, *(client for client, _, _ in others)):
        client.send(b"x")
    loop.run()
    assert [protocol.received for _, protocol, _ in others] == [b"", b"x", b"x"]
    assert [protocol.ends for _, protocol, _ in others] == [[ConnectionAborted], [], []]


def test_a_connection_that_is_handed_over_in_a_pass_is_not_mistaken_for_a_new_one(loop: Loop) -> None:
    def hand_over(_: Recorder) -> None:
        loop.poller.unwatch(moved)
        os.close(moved)

    _, address = loop.listen()
    first_client, first, _ = loop.connect()
    other_client, _, _ = loop.connect()
    moved = loop.descriptors[-1]
    first.on_data = hand_over
    first_client.send(b"hand it over")
    loop.dial((HOST, address.port))
    other_client.send(b"for somebody else")
    other_client.shutdown(socket.SHUT_WR)
    loop.run()
    assert loop.descriptors[-1] == moved
    assert (loop.factory.made[0].received, loop.factory.made[0].ends) == (b"", [])


def test_connections_end_although_another_process_has_them_too(loop: Loop) -> None:
    client, protocol, _ = loop.connect()
    copy = os.dup(loop.descriptors[-1])
    closing, _, transport = loop.connect()
    other_copy = os.dup(loop.descriptors[-1])
    client.send(b"last words")
    client.close()
    transport.loseConnection()
    loop.run()
    assert (protocol.received, protocol.ends) == (b"last words", [ConnectionDone])
    assert closing.recv(1) == b""
    os.close(copy)
    os.close(other_copy)


# Passes


def test_a_flood_delays_others_by_one_read(loop: Loop) -> None:
    order: list[str] = []
    flooding, flood, _ = loop.connect()
    client, quiet, _ = loop.connect()
    flood.on_data = lambda _: order.append("flood")
    quiet.on_data = lambda _: order.append("quiet")
    flooding.setblocking(False)
    with suppress(BlockingIOError):
        for _ in range(10):
            flooding.send(b"x" * 100_000)
    client.send(b"x")
    loop.run()
    assert len(order) > 2
    assert order.index("quiet") <= 1


def test_a_flood_delays_timers_by_a_bounded_number_of_reads(loop: Loop) -> None:
    client, protocol, _ = loop.connect()
    protocol.on_data = lambda _: client.send(b"again")
    client.send(b"x")
    loop.run_pass()
    assert 1 <= protocol.reads <= 256
    protocol.on_data = nothing


def test_what_comes_in_a_pass_is_read_in_it_once_for_each_connection(loop: Loop) -> None:
    (one, first, _), (other, second, _) = loop.connect(), loop.connect()

    def send_to_both(_: Recorder) -> None:
        one.send(b"more")
        other.send(b"x")
        for descriptor in loop.descriptors:
            assert select.select([descriptor], [], [], 30)[0]

    first.on_data = send_to_both
    one.send(b"x")
    loop.run_pass()
    assert (first.received, second.received) == (b"x", b"x")
    first.on_data = nothing
    loop.run_pass()
    assert first.received == b"xmore"


def test_a_pass_is_bounded_if_each_event_causes_another(loop: Loop) -> None:
    chain = [loop.connect() for _ in range(300)]
    for (_, protocol, _), (client, _, _), descriptor in zip(chain, chain[1:], loop.descriptors[1:], strict=False):

        def send_to_next(_: Recorder, client: socket.socket = client, descriptor: int = descriptor) -> None:
            client.send(b"x")
            assert select.select([descriptor], [], [], 30)[0]

        protocol.on_data = send_to_next
    chain[0][0].send(b"x")
    loop.run_pass()
    assert 1 <= sum(protocol.reads for _, protocol, _ in chain) <= 256
    loop.run()
    assert {protocol.received for _, protocol, _ in chain} == {b"x"}


def test_all_connections_have_their_turn_if_more_are_ready_than_a_pass_handles(loop: Loop) -> None:
    connections = [loop.connect() for _ in range(300)]
    for _ in range(2):
        for client, _, _ in connections:
            client.send(b"x")
        loop.run_pass()
    assert min(protocol.reads for _, protocol, _ in connections) >= 1
    loop.run()
    assert {protocol.received for _, protocol, _ in connections} == {b"xx"}


def test_the_reactor_watches_the_poller_while_there_is_something_to_watch(loop: Loop) -> None:
    assert not loop.reactor.readers
    for _ in range(2):
        client, protocol, _ = loop.connect()
        assert loop.reactor.readers == {loop.poller}
        client.close()
        loop.run()
        assert protocol.ends == [ConnectionDone]
        assert not loop.reactor.readers
        assert loop.poller.fileno() == -1


def test_a_poller_that_the_reactor_could_not_watch_is_watched_later(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(reader: Any) -> None:
        raise OSError(errno.ENOSPC, "no more watches")

    with monkeypatch.context() as patched:
        patched.setattr(loop.reactor, "addReader", refuse)
        client, server = socket.socketpair()
        assert serve(server.detach(), None, loop.factory, loop.poller) is None
        assert client.recv(1) == b""
        client.close()
    client, protocol, _ = loop.connect()
    client.send(b"x")
    loop.run()
    assert protocol.received == b"x"


def test_what_ends_in_the_end_of_another_ends_in_the_same_pass(loop: Loop) -> None:
    chain = [loop.connect() for _ in range(5)]
    for (_, protocol, _), (_, _, following) in pairwise(chain):
        protocol.on_end = lambda _, following=following: following.abortConnection()
    chain[0][0].close()
    loop.run_pass()
    assert [protocol.ends for _, protocol, _ in chain] == [[ConnectionDone]] + [[ConnectionAborted]] * 4


def test_a_reactor_that_stops_ends_everything(loop: Loop) -> None:
    def fail(_: Recorder) -> None:
        raise RuntimeError("an error of a test")

    _, address = loop.listen()
    connections = [loop.connect() for _ in range(3)]
    connections[0][1].on_end = fail
    connections[1][1].on_end = lambda _: connections[2][2].write(b"x" * 1_000_000)
    loop.reactor.removeReader(loop.poller)
    loop.poller.connectionLost(Failure(ConnectionLost()))
    assert [protocol.ends for _, protocol, _ in connections] == [[ConnectionLost]] * 3
    assert loop.logged("an error at the end") == 1
    with pytest.raises(ConnectionRefusedError):
        loop.dial((HOST, address.port))


# What protocols raise


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_an_error_in_a_protocol_ends_its_connection_alone(loop: Loop, error: type[BaseException]) -> None:
    def fail(_: Recorder) -> None:
        raise error

    client, broken, transport = loop.connect()
    other_client, other, _ = loop.connect()
    broken.on_data = broken.on_end = fail
    producer = Producer()
    transport.registerProducer(producer, True)
    client.send(b"x")
    other_client.send(b"x")
    loop.run()
    assert (broken.ends, producer.asked) == ([error], ["stop"])
    assert loop.logged("an error in a connection") == loop.logged("an error at the end") == 1
    assert (other.received, other.ends) == (b"x", [])
    assert client.recv(1) == b""
    other_client.send(b"y")
    loop.run()
    assert other.received == b"xy"


def test_an_error_of_a_producer_that_is_resumed_ends_its_connection(loop: Loop) -> None:
    def fail() -> None:
        raise RuntimeError("an error of a test")

    client, protocol, transport = loop.connect()
    transport.registerProducer(Producer(fail), True)
    read(loop, client, fill(transport))
    loop.run()
    assert protocol.ends == [RuntimeError]


def test_the_protocol_hears_of_the_end_although_its_producer_fails(loop: Loop) -> None:
    class Failing(Producer):
        def stopProducing(self) -> None:
            raise RuntimeError("an error of a test")

    _, protocol, transport = loop.connect()
    transport.registerProducer(Failing(), True)
    transport.abortConnection()
    loop.run()
    assert protocol.ends == [ConnectionAborted]
    assert loop.logged("an error at the end") == 1


@pytest.mark.parametrize("half", ["read", "write"])
def test_an_error_at_the_end_of_one_half_ends_the_connection(loop: Loop, half: str) -> None:
    def fail(_: Recorder) -> None:
        raise RuntimeError("an error of a test")

    client, protocol, transport = loop.connect(HalfCloseable())
    protocol.on_half = fail
    if half == "read":
        client.shutdown(socket.SHUT_WR)
    else:
        transport.loseWriteConnection()
    loop.run()
    assert (protocol.halves, protocol.ends) == ([half], [RuntimeError])


# Reading


def test_what_was_sent_before_the_end_is_received_before_it(loop: Loop) -> None:
    client, protocol, _ = loop.connect()
    client.sendall(b"x" * 200_000)
    client.close()
    loop.run()
    assert (len(protocol.received), protocol.ends) == (200_000, [ConnectionDone])


def test_nothing_is_read_while_reading_is_paused(loop: Loop) -> None:
    client, protocol, transport = loop.connect()
    transport.pauseProducing()
    client.send(b"x")
    client.shutdown(socket.SHUT_WR)
    loop.run()
    assert (protocol.received, protocol.ends) == (b"", [])
    transport.resumeProducing()
    loop.run()
    assert (protocol.received, protocol.ends) == (b"x", [ConnectionDone])


def test_the_end_of_a_connection_that_another_has_just_paused_waits(loop: Loop) -> None:
    first_client, first, _ = loop.connect()
    client, protocol, transport = loop.connect()
    first.on_data = lambda _: transport.pauseProducing()
    first_client.send(b"x")
    client.shutdown(socket.SHUT_WR)
    loop.run()
    assert protocol.ends == []
    transport.resumeProducing()
    loop.run()
    assert protocol.ends == [ConnectionDone]


def test_what_waits_is_written_although_the_other_end_closes_its_half_in_the_same_pass(loop: Loop) -> None:
    first_client, first, _ = loop.connect()
    client, protocol, transport = loop.connect()
    count = fill(transport)
    first.on_data = lambda _: transport.loseConnection()
    first_client.send(b"x")
    client.shutdown(socket.SHUT_WR)
    loop.run()
    assert protocol.ends == []
    assert len(read(loop, client)) == count
    assert protocol.ends == [ConnectionDone]


def test_a_paused_connection_notices_a_reset(loop: Loop) -> None:
    client, protocol, transport = loop.connect()
    transport.pauseProducing()
    reset(client)
    loop.run()
    assert protocol.ends == [ConnectionLost]


@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda client, transport: None,
        lambda client, transport: client.send(b"x" * 200_000),
        lambda client, transport: fill(transport),
        lambda client, transport: (fill(transport), transport.loseConnection()),
        lambda client, transport: (fill(transport), transport.pauseProducing()),
        lambda client, transport: transport.loseWriteConnection(),
        lambda client, transport: (fill(transport), transport.loseWriteConnection()),
        lambda client, transport: transport.registerProducer(Producer(), False),
    ],
    ids=["idle", "sending", "blocked", "closing", "blocked and paused", "half-closed", "half-closing", "pulling"],
)
def test_a_reset_at_any_moment_ends_a_connection_once(loop: Loop, meanwhile: Any) -> None:
    client, protocol, transport = loop.connect()
    meanwhile(client, transport)
    loop.run_pass()
    reset(client)
    transport.write(b"x")
    loop.run()
    assert protocol.ends == [ConnectionLost]
    transport.write(b"x")
    transport.loseConnection()
    transport.abortConnection()
    transport.loseWriteConnection()
    transport.pauseProducing()
    transport.resumeProducing()
    transport.unregisterProducer()
    loop.run()
    assert protocol.ends == [ConnectionLost]
    assert not transport.connected


# Writing


def test_a_large_message_arrives_whole_and_in_order(loop: Loop) -> None:
    client, _, transport = loop.connect(receive_buffer=4_096)
    message = b"".join(number.to_bytes(4, "big") for number in range(500_000))
    transport.write(message[:1_500_000])
    assert transport.pending_bytes
    transport.writeSequence([message[1_500_000:1_700_000], message[1_700_000:]])
    transport.loseConnection()
    assert read(loop, client) == message


def test_progress_grows_whenever_bytes_that_had_to_wait_leave(loop: Loop) -> None:
    client, _, transport = loop.connect()
    transport.write(b"x")
    assert transport.progress == 0
    count = 1 + fill(transport)
    waited = transport.pending_bytes
    client.recv(65_536)
    read(loop, client, count - 65_536)
    assert (transport.progress, transport.pending_bytes) == (waited, 0)


def test_only_bytes_are_written(loop: Loop) -> None:
    _, _, transport = loop.connect()
    with pytest.raises(TypeError):
        transport.write("text")
    with pytest.raises(TypeError):
        transport.writeSequence(["text"])
    fill(transport)
    with pytest.raises(TypeError):
        transport.write("text")


def test_what_is_written_while_bytes_wait_and_it_closes_arrives(loop: Loop) -> None:
    client, protocol, transport = loop.connect()
    count = fill(transport)
    transport.loseConnection()
    transport.write(b"late")
    assert transport.disconnecting
    assert read(loop, client)[count:] == b"late"
    assert protocol.ends == [ConnectionDone]


def test_nothing_is_read_after_it_closes(loop: Loop) -> None:
    client, protocol, transport = loop.connect()
    fill(transport)
    transport.loseConnection()
    transport.resumeProducing()
    client.send(b"x")
    loop.run()
    assert (protocol.received, protocol.ends) == (b"", [])


def test_an_abort_drops_what_waits_even_if_it_closes_already(loop: Loop) -> None:
    client, protocol, transport = loop.connect()
    fill(transport)
    transport.loseConnection()
    transport.abortConnection()
    assert protocol.ends == []
    transport.write(b"x")
    loop.run()
    assert protocol.ends == [ConnectionAborted]
    with pytest.raises(ConnectionResetError):
        read(loop, client)


# Half-closing


def test_a_half_close_follows_what_waits_and_leaves_the_other_half(loop: Loop) -> None:
    client, protocol, transport = loop.connect()
    count = fill(transport)
    transport.loseWriteConnection()
    transport.loseWriteConnection()
    transport.write(b"late")
    assert read(loop, client)[count:] == b"late"
    transport.write(b"too late")
    client.send(b"still read")
    loop.run()
    assert (protocol.received, protocol.ends) == (b"still read", [])
    client.close()
    loop.run()
    assert protocol.ends == [ConnectionDone]


def test_a_protocol_that_lives_with_one_half_writes_after_the_other_end_has_closed_its_own(loop: Loop) -> None:
    client, protocol, transport = loop.connect(HalfCloseable())
    client.shutdown(socket.SHUT_WR)
    loop.run()
    assert (protocol.halves, protocol.ends) == (["read"], [])
    transport.write(b"an answer")
    assert client.recv(100) == b"an answer"
    transport.loseWriteConnection()
    assert protocol.halves == ["read"]
    loop.run()
    assert (protocol.halves, protocol.ends) == (["read", "write"], [ConnectionDone])


def test_a_protocol_may_close_when_its_half_is_closed(loop: Loop) -> None:
    def close(protocol: Recorder) -> None:
        if protocol.halves[-1] == "read":
            protocol.transport.loseWriteConnection()
        else:
            protocol.transport.loseConnection()

    client, protocol, _ = loop.connect(HalfCloseable())
    protocol.on_half = close
    client.shutdown(socket.SHUT_WR)
    loop.run()
    assert (protocol.halves, protocol.ends) == (["read", "write"], [ConnectionDone])


# Producers


def test_a_producer_that_streams_is_paused_while_bytes_wait(loop: Loop) -> None:
    client, _, transport = loop.connect()
    producer = Producer()
    transport.registerProducer(producer, True)
    transport.write(b"x")
    assert producer.asked == []
    count = 1 + fill(transport)
    assert producer.asked == ["pause"]
    transport.write(b"y")
    read(loop, client, count + 1)
    assert producer.asked == ["pause", "resume"]


def test_a_producer_that_streams_is_paused_at_once_if_bytes_wait_already(loop: Loop) -> None:
    _, _, transport = loop.connect()
    fill(transport)
    producer = Producer()
    transport.registerProducer(producer, True)
    assert producer.asked == ["pause"]


def test_a_producer_that_does_not_stream_is_asked_until_it_is_done(loop: Loop) -> None:
    def produce() -> None:
        if pieces:
            transport.write(pieces.pop())
        else:
            transport.unregisterProducer()

    client, protocol, transport = loop.connect()
    pieces = [b"x" * 100_000] * 20
    transport.registerProducer(Producer(produce), False)
    transport.loseConnection()
    assert len(pieces) == 19
    assert len(read(loop, client)) == 2_000_000
    assert protocol.ends == [ConnectionDone]


def test_a_producer_that_does_not_stream_may_write_later(loop: Loop) -> None:
    client, protocol, transport = loop.connect()
    producer = Producer()
    transport.registerProducer(producer, False)
    transport.loseConnection()
    loop.run()
    assert (producer.asked, protocol.ends) == (["resume"], [])
    transport.write(b"later")
    loop.run()
    assert (producer.asked, client.recv(100)) == (["resume"] * 2, b"later")
    transport.unregisterProducer()
    loop.run()
    assert protocol.ends == [ConnectionDone]


def test_a_half_close_waits_for_a_producer_that_does_not_stream(loop: Loop) -> None:
    client, protocol, transport = loop.connect()
    transport.registerProducer(Producer(), False)
    transport.loseWriteConnection()
    transport.write(b"later")
    loop.run()
    transport.unregisterProducer()
    assert read(loop, client) == b"later"
    transport.registerProducer(producer := Producer(), False)
    assert producer.asked == ["stop"]
    assert protocol.ends == []


def test_writes_leave_at_once_again_after_a_producer_that_does_not_stream(loop: Loop) -> None:
    client, _, transport = loop.connect()
    transport.registerProducer(Producer(), False)
    transport.unregisterProducer()
    transport.write(b"x")
    assert client.recv(100) == b"x"


def test_no_second_producer_is_taken(loop: Loop) -> None:
    _, _, transport = loop.connect()
    transport.registerProducer(Producer(), True)
    with pytest.raises(RuntimeError, match="registered already"):
        transport.registerProducer(Producer(), True)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_producer_of_an_ended_connection_is_stopped(loop: Loop, streaming: bool) -> None:
    _, _, transport = loop.connect()
    transport.registerProducer(registered := Producer(), streaming)
    transport.abortConnection()
    loop.run()
    assert registered.asked[-1] == "stop"
    transport.registerProducer(late := Producer(), streaming)
    assert late.asked == ["stop"]


@pytest.mark.parametrize("end", ["abortConnection", "loseConnection", "unregisterProducer"])
def test_a_producer_may_end_its_connection_when_it_is_resumed(loop: Loop, end: str) -> None:
    client, protocol, transport = loop.connect()
    transport.registerProducer(producer := Producer(getattr(transport, end)), True)
    fill(transport)
    transport.loseConnection()
    with suppress(ConnectionResetError):
        read(loop, client)
    assert producer.asked[:2] == ["pause", "resume"]
    assert len(protocol.ends) == 1


# All at once


class Life:
    """One connection, whose two ends do anything that they may."""

    def __init__(self, loop: Loop, random: Random) -> None:
        self.random = random
        self.client, self.protocol, self.transport = loop.connect(random.choice([Recorder, HalfCloseable])())
        self.client.setblocking(False)
        self.closed = False
        self.written = self.sent = self.read = 0
        self.actions: list[Callable[[], object]] = [
            *[self.write, self.send, self.receive] * 4,
            self.transport.pauseProducing,
            *[self.transport.resumeProducing] * 2,
            lambda: self.transport.registerProducer(Producer(), random.random() < 0.7),
            *[self.transport.unregisterProducer] * 2,
            self.transport.loseWriteConnection,
            self.transport.loseConnection,
            self.transport.abortConnection,
            lambda: self.client.shutdown(socket.SHUT_WR),
            self.close,
        ]

    def write(self) -> None:
        """Write the next bytes of a stream that repeats itself every 251 bytes."""
        size = self.random.choice([1, 100, 70_000, 400_000])
        self.transport.write(stream(self.written, size))
        self.written += size

    def send(self) -> None:
        self.sent += self.client.send(stream(self.sent, self.random.choice([1, 100, 200_000])))

    def receive(self) -> None:
        received = self.client.recv(self.random.choice([1, 5_000, 300_000]))
        assert received == stream(self.read, len(received))
        self.read += len(received)

    def close(self) -> None:
        self.closed = True
        if self.random.random() < 0.5:
            reset(self.client)
        else:
            self.client.close()

    def act(self) -> None:
        # A socket that is closed or full, and a second producer.
        with suppress(OSError, RuntimeError):
            self.random.choice(self.actions)()

    def check(self) -> None:
        assert self.protocol.received == stream(0, len(self.protocol.received))
        assert len(self.protocol.received) <= self.sent
        assert len(self.protocol.ends) == (not self.transport.connected)


def stream(start: int, size: int) -> bytes:
    """Return bytes of an endless stream."""
    first = start % 251
    return (bytes(range(251)) * (size // 251 + 2))[first : first + size]


@pytest.mark.parametrize("seed", range(60))
def test_whatever_the_ends_of_connections_do_bytes_keep_their_order_and_each_ends_once(loop: Loop, seed: int) -> None:
    random = Random(seed)
    lives = [Life(loop, random) for _ in range(4)]

    def act_on_any(_: Recorder) -> None:
        if random.random() < 0.3:
            random.choice(lives).act()

    for life in lives:
        life.protocol.on_data = life.protocol.on_end = act_on_any
    for _ in range(random.choice([20, 100, 300])):
        random.choice(lives).act()
        if random.random() < 0.5:
            loop.run_pass()
    loop.run()
    for life in lives:
        life.check()
        life.protocol.on_data = life.protocol.on_end = nothing
        life.transport.unregisterProducer()
        life.transport.loseConnection()
        life.client.close()
    loop.run()
    assert [len(life.protocol.ends) for life in lives] == [1] * 4


# What a socket knows


def test_addresses_and_options_are_those_of_the_socket(loop: Loop) -> None:
    client, _, transport = loop.connect()
    assert (transport.getPeer().host, transport.getPeer().port) == client.getsockname()
    assert (transport.getHost().host, transport.getHost().port) == client.getpeername()
    for enabled in (True, False):
        transport.setTcpNoDelay(enabled)
        transport.setTcpKeepAlive(enabled)
        assert (transport.getTcpNoDelay(), transport.getTcpKeepAlive()) == (enabled, enabled)


@pytest.mark.parametrize(
    ("address", "host"),
    [(("::1", 1, 0, 0), "::1"), (("fe80::1", 1, 0, socket.if_nametoindex("lo")), "fe80::1%lo")],
)
def test_an_ipv6_address_names_its_interface_as_twisted_does(loop: Loop, address: Any, host: str) -> None:
    serve(os.dup(loop.connect() and loop.descriptors[-1]), address, loop.factory, loop.poller)
    assert loop.factory.addresses[0].host == loop.factory.made[0].transport.getPeer().host == host


def test_the_address_of_an_end_that_is_gone_is_empty(loop: Loop) -> None:
    accepted, client = socket.socketpair()
    accepted.setblocking(False)
    left, right = socket.create_server((HOST, 0)), socket.socket()
    right.connect(left.getsockname())
    server, _ = left.accept()
    server.setblocking(False)
    reset(right)
    protocol = Recorder()
    protocol.makeConnection(TcpConnection(server.detach(), protocol, loop.poller))
    assert protocol.transport.getPeer().host == ""
    loop.run()
    assert protocol.transport.getPeer().host == ""
    for end in (accepted, client, left):
        end.close()


# Ports


def test_a_port_accepts_a_few_before_others_are_read(loop: Loop) -> None:
    unread: list[int] = [0]

    class Counting(Recorder):
        def connectionMade(self) -> None:
            unread.append(unread[-1] + 1)

        def dataReceived(self, data: bytes) -> None:
            unread.append(unread[-1] - 1)

    _, address = loop.listen(most_per_pass=2)
    loop.factory.build = Counting
    clients = [loop.dial((HOST, address.port)) for _ in range(20)]
    for client in clients:
        client.send(b"x")
    loop.run()
    assert max(unread) <= 4
    assert unread[-1] == 0
    assert [(address.host, address.port) for address in loop.factory.addresses] == [c.getsockname() for c in clients]
    assert loop.factory.made[0].transport.getTcpNoDelay()


@pytest.mark.parametrize("failing", ["refuses", "build", "makeConnection"])
def test_a_connection_without_a_protocol_is_closed(loop: Loop, failing: str) -> None:
    class Failing(Recorder):
        def connectionMade(self) -> None:
            raise RuntimeError("an error of a test")

    def fail() -> Recorder:
        raise RuntimeError("an error of a test")

    _, address = loop.listen()
    loop.factory.build = {"refuses": lambda: None, "build": fail, "makeConnection": Failing}[failing]
    client = loop.dial((HOST, address.port))
    loop.run()
    assert client.recv(1) == b""
    assert loop.logged("an error in a new connection") == (failing != "refuses")
    loop.factory.build = Recorder
    loop.dial((HOST, address.port)).send(b"x")
    loop.run()
    assert loop.factory.made[-1].received == b"x"


def test_a_port_that_is_closed_while_it_accepts_accepts_no_more(loop: Loop) -> None:
    port, address = loop.listen()
    loop.factory.build = lambda: port.stopListening() and None
    for _ in range(3):
        loop.dial((HOST, address.port))
    loop.run()
    assert len(loop.factory.addresses) == 1
    assert not loop.reactor.readers


def use_up_descriptors(leave: int = 0) -> list[int]:
    """Open files until there are no descriptors left; returns them."""
    taken: list[int] = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        for _ in range(leave):
            os.close(taken.pop())
    return taken


@pytest.fixture
def few_files() -> Iterator[None]:
    """Let this process have 300 files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_files")
def test_without_descriptors_a_port_pauses_and_goes_on(loop: Loop) -> None:
    port, address = loop.listen()
    client, quiet, _ = loop.connect()
    for _ in range(3):
        loop.dial((HOST, address.port))
    taken = use_up_descriptors(leave=1)
    loop.run()
    assert (len(loop.factory.made), loop.logged("no connections are accepted")) == (1, 1)
    client.send(b"x")
    loop.run()
    assert (quiet.received, loop.logged("no connections are accepted")) == (b"x", 1)
    loop.reactor.advance(0.5)
    loop.run()
    assert (len(loop.factory.made), loop.logged("no connections are accepted")) == (1, 1)
    for descriptor in taken:
        os.close(descriptor)
    loop.reactor.advance(0.5)
    loop.run()
    assert (len(loop.factory.made), loop.logged("no connections are accepted")) == (3, 1)
    loop.dial((HOST, address.port))
    taken = use_up_descriptors()
    loop.run()
    assert loop.logged("no connections are accepted") == 2
    for descriptor in taken:
        os.close(descriptor)
    port.stopListening()
    loop.run()


def test_a_port_that_another_process_has_shut_down_causes_no_busy_loop(loop: Loop) -> None:
    listening: Any = Port(0, loop.factory, interface=HOST, reactor=loop.reactor)
    listening.startListening()
    port = TcpPort(listening, loop.poller, 10, lambda descriptor, address: os.close(descriptor))
    with listening.socket.dup() as shared:
        shared.shutdown(socket.SHUT_RDWR)
    loop.run()
    loop.reactor.advance(0.5)
    loop.run()
    assert loop.logged("no connections are accepted") == 1
    port.stopListening()
    loop.run()


@pytest.mark.usefixtures("few_files")
def test_a_port_goes_on_although_there_was_no_descriptor_for_its_poller(loop: Loop) -> None:
    _, address = loop.listen()
    loop.dial((HOST, address.port))
    taken = use_up_descriptors()
    loop.run()
    taken += use_up_descriptors()
    loop.reactor.advance(0.5)
    loop.run()
    assert loop.logged("no connections are accepted") == 1
    for descriptor in taken:
        os.close(descriptor)
    loop.reactor.advance(0.5)
    loop.run()
    assert len(loop.factory.made) == 1


@pytest.mark.usefixtures("few_files")
@pytest.mark.parametrize("others", [0, 1])
def test_a_port_may_be_closed_in_a_pause(loop: Loop, others: int) -> None:
    port, address = loop.listen()
    for _ in range(others):
        loop.connect()
    loop.dial((HOST, address.port))
    taken = use_up_descriptors()
    loop.run()
    for descriptor in taken:
        os.close(descriptor)
    port.stopListening()
    loop.run()
    assert not loop.calls
    assert len(loop.reactor.readers) == others


# Twisted's own transports


def run_twisted(loop: Loop) -> None:
    """Run until neither the poller nor Twisted's own transports have anything to do."""
    for _ in range(1_000):
        readers, writers = loop.reactor.readers, loop.reactor.writers
        readable, writable, _ = select.select(readers, writers, [], 0)
        loop.reactor.advance(0)
        if not readable and not writable:
            return
        for ends, kind, method in ((readable, readers, "doRead"), (writable, writers, "doWrite")):
            for end in ends:
                lost = getattr(end, method)() if end in kind else None
                if lost is not None:
                    end.connectionLost(Failure(lost))
    raise AssertionError("a busy loop")


def listen_with_twisted(loop: Loop, factory: Any) -> tuple[Port, tuple[str, int]]:
    """Let one of Twisted's own ports serve ``factory``."""
    port: Any = Port(0, factory, interface=HOST, reactor=loop.reactor)
    port.startListening()
    return port, (HOST, port.getHost().port)


def test_a_connection_of_an_applications_own_port_is_taken_over(loop: Loop) -> None:
    factory = SignalingFactory(reactor=loop.reactor)  # type: ignore[arg-type]
    port, address = listen_with_twisted(loop, factory)
    client = loop.dial(address)
    client.send(upgrade())
    run_twisted(loop)
    (connection,) = factory.connections
    assert isinstance(connection.transport, TcpConnection)
    assert b'"selfId"' in client.recv(65_536)
    client.close()
    port.stopListening()
    run_twisted(loop)
    assert not factory.connections


@pytest.mark.usefixtures("few_files")
def test_a_connection_that_cannot_be_taken_over_is_served_by_twisted(loop: Loop) -> None:
    factory = SignalingFactory(reactor=loop.reactor)  # type: ignore[arg-type]
    port, address = listen_with_twisted(loop, factory)
    client = loop.dial(address)
    client.send(upgrade())
    # One for the connection, and none for the poller's epoll object.
    taken = use_up_descriptors(leave=1)
    run_twisted(loop)
    for descriptor in taken:
        os.close(descriptor)
    (connection,) = factory.connections
    assert not isinstance(connection.transport, TcpConnection)
    assert b'"selfId"' in client.recv(65_536)
    port.stopListening()
    client.close()
    run_twisted(loop)
    assert not factory.connections


class Page(Resource):
    """A page of the application."""

    def render_GET(self, request: Any) -> bytes:
        return b"a page"


def test_an_answer_that_waits_in_a_foreign_site_is_sent_before_the_upgrade(loop: Loop) -> None:
    factory = SignalingFactory(reactor=loop.reactor)  # type: ignore[arg-type]
    root = Resource()
    root.putChild(b"ws", SignalingResource(factory))
    root.putChild(b"page", Page())
    port, address = listen_with_twisted(loop, Site(root, reactor=loop.reactor))
    client = loop.dial(address)
    client.send(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n" + upgrade())
    run_twisted(loop)
    received = client.recv(65_536)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.count(b"HTTP/1.1 101 ") == received.count(b'"selfId"') == 1
    client.close()
    port.stopListening()
    run_twisted(loop)
    assert not factory.connections


class Switching(Recorder):
    """Passes everything on to a protocol of another factory, as an application does that serves several on one port."""

    def __init__(self, factory: Any) -> None:
        super().__init__()
        self.inner = factory.buildProtocol(None)

    def connectionMade(self) -> None:
        self.inner.makeConnection(self.transport)

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.inner.dataReceived(data)

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        self.inner.connectionLost(reason)


def test_who_upgrades_behind_bytes_that_wait_and_takes_nothing_is_cut_off(loop: Loop) -> None:
    limits = Limits(write_timeout_seconds=5, ping_interval_seconds=0)
    factory: Any = SignalingFactory(limits, reactor=loop.reactor)  # type: ignore[arg-type]
    connection = factory.buildProtocol(None)
    _, _, transport = loop.connect(connection, receive_buffer=4_096)
    transport.write(bytes(1_000_000))
    connection.dataReceived(upgrade())
    assert len(factory.topics) == 1
    loop.reactor.advance(5)
    loop.run()
    assert len(factory.topics) == 0


def test_a_connection_stays_with_the_protocol_that_passes_it_on(loop: Loop) -> None:
    factory = SignalingFactory(reactor=loop.reactor)  # type: ignore[arg-type]
    loop.factory.build = lambda: Switching(factory)
    port, address = listen_with_twisted(loop, loop.factory)
    client = loop.dial(address)
    client.send(upgrade())
    run_twisted(loop)
    assert loop.factory.made[0].received == upgrade()
    assert b'"selfId"' in client.recv(65_536)
    loop.factory.made[0].transport.loseConnection()
    port.stopListening()
    run_twisted(loop)
    assert loop.factory.made[0].ends == [ConnectionDone]
    assert not factory.connections
