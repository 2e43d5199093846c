"""A worker process, with the test in the listener's place."""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet import unix
from twisted.logger import Logger, formatEvent

from signaling import Limits
from signaling.log.forwarding import decode
from signaling.workers.ipc import CONNECTION_HEADER
from signaling.workers.topic_router import TopicRouter
from signaling.workers.worker import WorkerFactory, WorkerProcess
from tests.harness.raw_client import upgrade
from tests.integration.workers_harness import WatchingClock, is_open

COUNT, NUMBER = 3, 1
ROUTER = TopicRouter(COUNT, Limits())
MINE = next(f"t{n}" for n in range(100) if ROUTER.owner(f"t{n}") == NUMBER)
THEIRS = next(f"t{n}" for n in range(100) if ROUTER.owner(f"t{n}") != NUMBER)


class Reactor(WatchingClock):
    """A fake clock that adopts connections as Twisted's reactors do, and notices that it is stopped."""

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Any) -> Any:
        assert family == socket.AF_UNIX
        return unix.Server._fromConnectedSocket(descriptor, factory, self)

    def stop(self) -> None:
        self.running = False


class Listener:
    """The test's end of the channel."""

    def __init__(self, **limits: Any) -> None:
        self.reactor = Reactor()
        self.factory = WorkerFactory(NUMBER, COUNT, limits=Limits(**limits), reactor=self.reactor)
        self.end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.end.setblocking(False)
        self.process = WorkerProcess(self.reactor, self.factory, theirs, lambda: ["metrics"])
        self.process.start()

    def say(self, message: bytes, descriptor: int | None = None) -> None:
        rights = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        self.end.sendmsg([message], rights)
        self.reactor.run()

    def received(self) -> list[bytes]:
        messages = []
        while True:
            try:
                message = self.end.recv(65_536)
            except BlockingIOError:
                return messages
            if not message:
                return messages
            messages.append(message)

    def hand_off(self, data: bytes, handshake_seconds: float = 0.0) -> socket.socket:
        """Pass a connection on; returns the client's end."""
        client, passed = socket.socketpair()
        client.setblocking(False)
        with passed:
            self.say(b"C" + CONNECTION_HEADER.pack(handshake_seconds, socket.AF_UNIX) + data, passed.fileno())
        return client

    def advance(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.25)):
            self.reactor.advance(0.25)
            self.reactor.run()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    assert listener.received() == [b"R"]
    yield listener
    listener.end.close()
    listener.reactor.run()
    listener.factory.shutdown.abort()
    listener.advance(1)


def test_a_connection_joins_by_the_bytes_that_were_handed_off_with_it(listener: Listener) -> None:
    with listener.hand_off(upgrade(MINE)) as client:
        assert b'"type":"welcome"' in client.recv(65_536)
        assert len(listener.factory.topics) == 1


def test_the_rest_of_a_request_is_read_from_the_connection(listener: Listener) -> None:
    head, rest = upgrade(MINE)[:20], upgrade(MINE)[20:]
    with listener.hand_off(head) as client:
        client.send(rest)
        listener.reactor.run()
        assert b'"type":"welcome"' in client.recv(65_536)


def test_a_topic_of_another_worker_is_refused(listener: Listener) -> None:
    with listener.hand_off(upgrade(THEIRS)) as client:
        assert client.recv(65_536).startswith(b"HTTP/1.1 421 Misdirected Request")


def test_the_handshake_timeout_counts_from_the_first_byte_at_the_listener(listener: Listener) -> None:
    with listener.hand_off(upgrade(MINE)[:-1], handshake_seconds=7.0) as client:
        listener.advance(2.75)
        assert is_open(client)
        listener.advance(0.25)
        assert not is_open(client)
    assert listener.factory.counters.handshake_timeouts == 1


def test_a_peer_whose_handshake_was_in_time_stays(listener: Listener) -> None:
    with listener.hand_off(upgrade(MINE), handshake_seconds=9.5) as client:
        listener.advance(1)
        assert is_open(client)


def test_a_connection_whose_handshake_is_nearly_over_is_still_read(listener: Listener) -> None:
    with listener.hand_off(upgrade(MINE), handshake_seconds=10.5) as client:
        assert b'"type":"welcome"' in client.recv(65_536)


def test_a_connection_that_ended_before_the_hand_off_is_no_error(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def adopt(*_: Any) -> None:
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(listener.reactor, "adoptStreamConnection", adopt)
    files = len(os.listdir("/proc/self/fd"))
    with listener.hand_off(upgrade(MINE)) as client:
        assert not is_open(client)
    assert len(os.listdir("/proc/self/fd")) == files


def test_metrics_are_sent_on_request(listener: Listener) -> None:
    listener.say(b"?")
    assert listener.received() == [b"M" + json.dumps(["metrics"]).encode()]


def test_the_log_goes_to_the_listener(listener: Listener) -> None:
    log = Logger(namespace="signaling", observer=listener.process.log)
    log.info("{count} of them", count=1)
    log.info("{count} of them", count=2)
    listener.advance(0.25)
    (message,) = listener.received()
    assert [formatEvent(event) for event in decode(message[1:])] == ["1 of them", "2 of them"]


def test_peers_are_closed_before_the_worker_ends(listener: Listener) -> None:
    with listener.hand_off(upgrade(MINE)) as client:
        client.recv(65_536)
        listener.say(b"D")
        assert b"\x88" in client.recv(65_536)
        assert listener.reactor.running
        client.shutdown(socket.SHUT_RDWR)
        listener.reactor.run()
        assert not listener.reactor.running


def test_nobody_joins_a_worker_that_drains(listener: Listener) -> None:
    with listener.hand_off(upgrade(MINE)) as client:
        client.recv(65_536)
        listener.say(b"D")
        with listener.hand_off(upgrade(MINE)) as late:
            assert late.recv(65_536).startswith(b"HTTP/1.1 503 ")


def test_peers_that_do_not_close_are_aborted_after_the_shutdown_timeout(listener: Listener) -> None:
    with listener.hand_off(upgrade(MINE)) as client:
        client.recv(65_536)
        listener.say(b"D")
        listener.advance(4.5)
        assert listener.reactor.running
        listener.advance(6)
        assert not listener.reactor.running


def test_an_abort_waits_for_nobody(listener: Listener) -> None:
    with listener.hand_off(upgrade(MINE)) as client:
        client.recv(65_536)
        listener.say(b"D")
        listener.say(b"A")
        listener.advance(0.25)
        assert not listener.reactor.running


def test_a_worker_ends_with_its_listener(listener: Listener) -> None:
    with listener.hand_off(upgrade(MINE)) as client:
        client.recv(65_536)
        listener.end.close()
        listener.reactor.run()
        assert b"\x88" in client.recv(65_536)
        client.shutdown(socket.SHUT_RDWR)
        listener.reactor.run()
        assert not listener.reactor.running


def test_the_last_lines_of_the_log_are_sent_before_the_worker_ends(listener: Listener) -> None:
    log = Logger(namespace="signaling", observer=listener.process.log)
    log.info("before")
    listener.say(b"D")
    assert not listener.reactor.running
    (message,) = listener.received()
    assert b"before" in message
