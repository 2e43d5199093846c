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
from signaling.workers.supervisor import ABOUT
from signaling.workers.topic_router import Router
from signaling.workers.worker import WorkerFactory, WorkerProcess
from tests.harness.raw_client import upgrade
from tests.integration.workers_harness import WatchingClock, is_open

COUNT, NUMBER = 3, 1
ROUTER = Router(COUNT, Limits())
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
        self.process = WorkerProcess(self.reactor, self.factory, theirs, lambda: ["numbers"])
        self.process.begin()

    def say(self, message: bytes, descriptor: int | None = None) -> None:
        rights = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        self.end.sendmsg([message], rights)
        self.reactor.run()

    def heard(self) -> list[bytes]:
        messages = []
        while True:
            try:
                message = self.end.recv(65_536)
            except BlockingIOError:
                return messages
            if not message:
                return messages
            messages.append(message)

    def hand_over(self, data: bytes, used: float = 0.0) -> socket.socket:
        """Pass a connection on; returns the client's end."""
        client, passed = socket.socketpair()
        client.setblocking(False)
        with passed:
            self.say(b"C" + ABOUT.pack(used, socket.AF_UNIX) + data, passed.fileno())
        return client

    def advance(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.25)):
            self.reactor.advance(0.25)
            self.reactor.run()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    assert listener.heard() == [b"R"]
    yield listener
    listener.end.close()
    listener.reactor.run()
    listener.factory.shutdown.abort()
    listener.advance(1)


def test_a_connection_becomes_a_peer_by_the_bytes_that_came_with_it(listener: Listener) -> None:
    with listener.hand_over(upgrade(MINE)) as client:
        assert b'"type":"welcome"' in client.recv(65_536)
        assert len(listener.factory.topics) == 1


def test_the_rest_of_a_request_comes_over_the_connection(listener: Listener) -> None:
    head, rest = upgrade(MINE)[:20], upgrade(MINE)[20:]
    with listener.hand_over(head) as client:
        client.send(rest)
        listener.reactor.run()
        assert b'"type":"welcome"' in client.recv(65_536)


def test_a_topic_of_another_worker_is_refused(listener: Listener) -> None:
    with listener.hand_over(upgrade(THEIRS)) as client:
        assert client.recv(65_536).startswith(b"HTTP/1.1 421 Misdirected Request")


def test_the_deadline_goes_on_from_where_the_listener_began(listener: Listener) -> None:
    with listener.hand_over(upgrade(MINE)[:-1], used=7.0) as client:
        listener.advance(2.75)
        assert is_open(client)
        listener.advance(0.25)
        assert not is_open(client)
    assert listener.factory.counters.handshake_timeouts == 1


def test_a_peer_that_was_in_time_stays(listener: Listener) -> None:
    with listener.hand_over(upgrade(MINE), used=9.5) as client:
        listener.advance(1)
        assert is_open(client)


def test_one_that_waited_to_its_last_moment_is_still_read(listener: Listener) -> None:
    with listener.hand_over(upgrade(MINE), used=10.5) as client:
        assert b'"type":"welcome"' in client.recv(65_536)


def test_a_connection_that_has_ended_on_the_way_is_no_error(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def adopt(*_: Any) -> None:
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(listener.reactor, "adoptStreamConnection", adopt)
    files = len(os.listdir("/proc/self/fd"))
    with listener.hand_over(upgrade(MINE)) as client:
        assert not is_open(client)
    assert len(os.listdir("/proc/self/fd")) == files


def test_numbers_are_told(listener: Listener) -> None:
    listener.say(b"?")
    assert listener.heard() == [b"N" + json.dumps(["numbers"]).encode()]


def test_its_log_goes_to_the_listener(listener: Listener) -> None:
    log = Logger(namespace="signaling", observer=listener.process.log)
    log.info("{count} of them", count=1)
    log.info("{count} of them", count=2)
    listener.advance(0.25)
    (message,) = listener.heard()
    assert [formatEvent(event) for event in decode(message[1:])] == ["1 of them", "2 of them"]


def test_peers_are_told_and_waited_for_before_it_ends(listener: Listener) -> None:
    with listener.hand_over(upgrade(MINE)) as client:
        client.recv(65_536)
        listener.say(b"D")
        assert b"\x88" in client.recv(65_536)
        assert listener.reactor.running
        client.shutdown(socket.SHUT_RDWR)
        listener.reactor.run()
        assert not listener.reactor.running


def test_nobody_joins_one_that_ends(listener: Listener) -> None:
    with listener.hand_over(upgrade(MINE)) as client:
        client.recv(65_536)
        listener.say(b"D")
        with listener.hand_over(upgrade(MINE)) as late:
            assert late.recv(65_536).startswith(b"HTTP/1.1 503 ")


def test_peers_that_do_not_go_are_cut_when_time_is_over(listener: Listener) -> None:
    with listener.hand_over(upgrade(MINE)) as client:
        client.recv(65_536)
        listener.say(b"D")
        listener.advance(4.5)
        assert listener.reactor.running
        listener.advance(6)
        assert not listener.reactor.running


def test_a_second_signal_waits_for_nobody(listener: Listener) -> None:
    with listener.hand_over(upgrade(MINE)) as client:
        client.recv(65_536)
        listener.say(b"D")
        listener.say(b"H")
        listener.advance(0.25)
        assert not listener.reactor.running


def test_it_ends_with_its_listener(listener: Listener) -> None:
    with listener.hand_over(upgrade(MINE)) as client:
        client.recv(65_536)
        listener.end.close()
        listener.reactor.run()
        assert b"\x88" in client.recv(65_536)
        client.shutdown(socket.SHUT_RDWR)
        listener.reactor.run()
        assert not listener.reactor.running


def test_its_last_words_are_sent_before_it_ends(listener: Listener) -> None:
    log = Logger(namespace="signaling", observer=listener.process.log)
    log.info("before")
    listener.say(b"D")
    assert not listener.reactor.running
    (message,) = listener.heard()
    assert b"before" in message
