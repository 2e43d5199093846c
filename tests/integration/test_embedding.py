"""A factory in an application: its backplane starts and stops with it, and the application writes no line for that."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from twisted.internet import tcp
from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Site

from signaling import Limits, SignalingFactory, SignalingResource, StartError
from signaling.app.service import SignalingService
from signaling.backplane.cluster import Cluster
from signaling.server.endpoints import ListenAddress
from signaling.server.shutdown import ShutdownState
from tests.integration.backends import MemoryEngine, MemoryStore
from tests.integration.workers_harness import WatchingClock


class ListeningClock(WatchingClock):
    """A fake clock that is a reactor with real ports."""

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> tcp.Port:
        listening = tcp.Port(port, factory, backlog, interface, self)
        listening.startListening()
        return listening


class Application:
    """An application with one node of a cluster."""

    def __init__(self) -> None:
        self.reactor = ListeningClock()
        self.store = MemoryStore(self.reactor.seconds)
        self.engine = MemoryEngine(self.store)
        cluster = Cluster(self.engine, self.reactor, Limits(), prefix=self.store.prefix, choose=Random(1))
        self.factory = SignalingFactory(backplane=cluster, reactor=self.reactor)  # type: ignore[arg-type]
        self.ports: list[tcp.Port] = []

    def listen(self, factory: Any = None) -> None:
        endpoint = TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1")
        endpoint.listen(factory or self.factory).addCallback(self.ports.append)

    def mount(self) -> None:
        root = Resource()
        root.putChild(b"ws", SignalingResource(self.factory))  # type: ignore[arg-type]
        self.listen(Site(root, reactor=self.reactor))

    def run(self) -> None:
        """Let everything happen that takes no time."""
        self.reactor.advance(0)
        while self.engine.step():
            self.reactor.advance(0)

    def close_ports(self) -> None:
        while self.ports:
            self.ports.pop().stopListening()
        self.run()

    @property
    def is_registered(self) -> bool:
        return not self.factory.unready_reasons["backplane"]


@pytest.fixture
def application() -> Iterator[Application]:
    application = Application()
    yield application
    application.close_ports()
    application.store.close()


@pytest.mark.parametrize("way", ["port", "site"])
def test_a_node_registers_when_it_listens_and_says_goodbye_at_the_end_of_a_drain(
    application: Application, way: str
) -> None:
    application.listen() if way == "port" else application.mount()
    assert application.engine.connects == 0
    application.run()
    assert application.is_registered
    application.close_ports()
    drained: list[None] = []
    application.factory.shutdown.drain().addCallback(drained.append)
    calls = application.engine.calls
    application.run()
    assert application.engine.calls > calls
    assert drained == [None]
    assert application.factory.shutdown.state is ShutdownState.STOPPED
    assert not application.reactor.getDelayedCalls()


def test_a_node_with_two_ports_and_a_site_registers_once(application: Application) -> None:
    application.listen()
    application.listen()
    application.mount()
    application.run()
    assert application.engine.connects == 1


def test_a_node_whose_port_is_opened_anew_goes_on_as_the_same(application: Application) -> None:
    application.listen()
    application.run()
    application.close_ports()
    application.listen()
    application.run()
    assert application.engine.connects == 1
    assert application.is_registered


@pytest.mark.parametrize("way", ["port", "site"])
def test_a_node_that_listens_again_after_a_drain_registers_again(application: Application, way: str) -> None:
    application.listen() if way == "port" else application.mount()
    application.run()
    application.close_ports()
    application.factory.shutdown.drain()
    application.run()
    application.listen() if way == "port" else application.mount()
    application.run()
    assert application.factory.shutdown.state is ShutdownState.RUNNING
    assert application.engine.connects == 2


def test_a_node_that_listens_again_during_a_drain_registers_again_after_it(application: Application) -> None:
    application.listen()
    application.run()
    application.close_ports()
    application.factory.shutdown.drain()
    assert application.factory.shutdown.state is ShutdownState.DRAINING
    application.listen()
    application.run()
    assert application.factory.shutdown.state is ShutdownState.RUNNING
    assert application.engine.connects == 2
    assert application.is_registered


def test_a_port_that_is_closed_again_during_a_drain_starts_nothing(application: Application) -> None:
    application.listen()
    application.run()
    application.close_ports()
    application.factory.shutdown.drain()
    application.listen()
    application.close_ports()
    assert application.factory.shutdown.state is ShutdownState.STOPPED
    assert application.engine.connects == 1
    assert not application.reactor.getDelayedCalls()


def test_a_server_without_a_backplane_sets_no_timer_when_it_is_mounted() -> None:
    reactor = ListeningClock()
    factory = SignalingFactory(reactor=reactor)  # type: ignore[arg-type]
    SignalingResource(factory)  # type: ignore[arg-type]
    assert not reactor.getDelayedCalls()
    assert factory.shutdown.drain().called


def test_a_drain_before_the_reactor_runs_leaves_nothing_behind(application: Application) -> None:
    application.listen()
    assert application.factory.shutdown.drain().called
    application.close_ports()
    assert application.engine.connects == 0
    assert not application.reactor.getDelayedCalls()


class TakenEndpoint:
    """An endpoint whose address is in use."""

    def listen(self, factory: Any) -> Deferred[Any]:
        return fail(CannotListenError("127.0.0.1", 1, OSError(errno.EADDRINUSE, "in use")))


@pytest.mark.parametrize("has_another_port", [False, True])
def test_a_service_that_cannot_listen_starts_no_backplane(application: Application, has_another_port: bool) -> None:
    if has_another_port:
        application.listen()
    free: Any = TCP4ServerEndpoint(application.reactor, 0, interface="127.0.0.1")
    taken: Any = TakenEndpoint()
    service = SignalingService(application.factory, [ListenAddress("a port", free), ListenAddress("a port", taken)])
    with pytest.raises(StartError, match="in use"):
        service.startService()
    application.run()
    assert application.is_registered == has_another_port
    application.close_ports()


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/rtc", "/rtc/{topic}"),
        ("/rtc/", "/rtc/{topic}"),
        ("/rtc/a/b", "/rtc/{topic}"),
        ("/rtc/a/b?check", "/rtc/{topic}"),
        ("/my%20app/rtc/", "/my%20app/rtc/{topic}"),
    ],
)
def test_a_path_beside_the_topics_is_told_where_they_are_mounted(path: str, named: str) -> None:
    clock = WatchingClock()
    signaling = SignalingResource(SignalingFactory(reactor=clock))  # type: ignore[arg-type]
    root, folder = Resource(), Resource()
    root.putChild(b"rtc", signaling)
    root.putChild(b"my app", folder)
    folder.putChild(b"rtc", signaling)
    channel, transport = Site(root, reactor=clock).buildProtocol(None), StringTransport()
    channel.makeConnection(transport)
    channel.dataReceived(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert transport.value().startswith(b"HTTP/1.1 404 ")
    assert f"connect to {named}".encode() in transport.value()
    channel.connectionLost(Failure(ConnectionDone()))
