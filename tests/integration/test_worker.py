"""A worker process, with the test in the listener's place."""

from __future__ import annotations

import array
import json
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred
from twisted.logger import Logger, formatEvent, globalLogPublisher
from zope.interface import implementer

from signaling import Grant, GrantRealm, IBearerToken, Limits
from signaling.core.admin_queries import ListTopics, TopicPage, TopicSize, encode, merge
from signaling.log.forwarding import decode
from signaling.workers.ipc import ANSWER, QUERY, PartReceiver, PartSender, decode_answers, encode_handoff
from signaling.workers.topic_router import TopicRouter
from signaling.workers.worker import WorkerFactory, WorkerProcess
from tests.harness.frames import masked
from tests.harness.raw_client import REQUEST, reset, upgrade
from tests.integration.workers_harness import WatchingClock, is_open

COUNT, NUMBER = 3, 1
ROUTER = TopicRouter(COUNT, Limits())
MINE = next(f"t{n}" for n in range(100) if ROUTER.owner(f"t{n}") == NUMBER)
THEIRS = next(f"t{n}" for n in range(100) if ROUTER.owner(f"t{n}") != NUMBER)


class Reactor(WatchingClock):
    """A fake clock that notices that it is stopped."""

    def stop(self) -> None:
        self.running = False


class Reloads:
    """Counts reloads, and refuses those that it is told to refuse."""

    def __init__(self) -> None:
        self.refusal: str | None = None
        self.prepared: list[str] = []
        self.applied = 0

    def prepare_as_worker(self, fingerprint: str) -> str | None:
        self.prepared.append(fingerprint)
        return self.refusal

    def apply_as_worker(self) -> None:
        self.applied += 1


class Listener:
    """The test's end of the channel."""

    def __init__(self, portal: Any = None, **limits: Any) -> None:
        self.reactor = Reactor()
        self.factory = WorkerFactory(NUMBER, COUNT, portal=portal, limits=Limits(**limits), reactor=self.reactor)
        self.end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.end.setblocking(False)
        self.reloads = Reloads()
        self.process = WorkerProcess(self.reactor, self.factory, theirs, lambda: ["metrics"], self.reloads)
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
        self.pass_on(passed, data, handshake_seconds, b"")
        return client

    def pass_on(
        self, passed: socket.socket, data: bytes, handshake_seconds: float = 0.0, address: Any = ("127.0.0.1", 1)
    ) -> None:
        with passed:
            passed.setblocking(False)
            self.say(b"C" + encode_handoff((handshake_seconds, address, data)), passed.fileno())

    def advance(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.25)):
            self.reactor.advance(0.25)
            self.reactor.run()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return a client's end, and the one that was accepted."""
    with socket.create_server(("127.0.0.1", 0)) as port:
        client = socket.create_connection(port.getsockname())
        return client, port.accept()[0]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let only the test itself open files: a limit holds for this process, and a pair that it passes has to exist."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ends = socket.socketpair()
    free = [end.fileno() for end in ends]
    for end in ends:
        end.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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


def check(topic: str, query: str = "check") -> bytes:
    return f"GET /ws/{topic}?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def test_a_check_is_answered_by_the_bounds_of_the_worker() -> None:
    listener = Listener(max_connections=1)
    listener.received()
    with listener.hand_off(check(MINE)) as client:
        assert client.recv(65_536).endswith(b'{"status": 200, "reason": "ok"}')
        assert not is_open(client)
    with listener.hand_off(upgrade(MINE)), listener.hand_off(check(MINE)) as client:
        answer = client.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"reason": "the server is full: it takes 1 connections", "retryAfter": 10}' in answer
    with listener.hand_off(check(THEIRS)) as client:
        assert client.recv(65_536).startswith(b"HTTP/1.1 421 ")
    assert not listener.factory.counters.requests_refused
    listener.end.close()
    listener.reactor.run()
    listener.advance(6)


def test_the_check_of_a_new_token_has_its_own_deadline() -> None:
    asked: list[Deferred[Any]] = []

    @implementer(ICredentialsChecker)
    class Checker:
        credentialInterfaces = (IBearerToken,)

        def requestAvatarId(self, credentials: Any) -> Deferred[Grant]:
            asked.append(Deferred())
            return asked[-1]

    grant = Grant(prefixes=("",), subject="Ada")
    listener = Listener(Portal(GrantRealm(), [Checker()]))
    request = upgrade(MINE).replace(b"Host", b"Authorization: Bearer x\r\nHost")
    with listener.hand_off(request, handshake_seconds=9.0) as client:
        asked[0].callback(grant)
        client.send(masked(0x81, b'{"type":"token","token":"x"}'))
        listener.advance(9.75)
        asked[1].callback(grant)
        listener.reactor.run()
        assert client.recv(65_536).endswith(b'{"type":"token"}')
    listener.end.close()
    listener.reactor.run()
    listener.advance(6)


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


@pytest.mark.parametrize("data", [upgrade(MINE), upgrade(MINE)[:20], REQUEST, b""])
def test_a_connection_that_was_reset_on_the_way_leaves_nothing_behind(listener: Listener, data: bytes) -> None:
    with listener.hand_off(b"GET /"):
        files = open_files()
        client, accepted = tcp_pair()
        reset(client)
        listener.pass_on(accepted, data)
        assert len(listener.factory.connections) == 1
        assert not listener.factory.topics
        assert open_files() == files


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("192.0.2.1", 4000), "192.0.2.1:4000"),
        (("2001:db8::1", 4000, 0, 0), "[2001:db8::1]:4000"),
        (("fe80::1", 4000, 0, 1), "[fe80::1%lo]:4000"),
        (b"/run/client", "unix:/run/client"),
        (b"", "a UNIX socket"),
    ],
)
def test_a_peer_has_the_address_that_the_listener_saw(listener: Listener, address: Any, text: str) -> None:
    joined = []
    globalLogPublisher.addObserver(joined.append)
    client, accepted = tcp_pair()
    reset(client)
    listener.pass_on(accepted, upgrade(MINE), address=address)
    globalLogPublisher.removeObserver(joined.append)
    assert [event["address"] for event in joined if event.get("event") == "joined"] == [text]


def test_a_connection_that_the_worker_has_no_descriptor_for_is_closed_and_logged(listener: Listener) -> None:
    logged = []
    with listener.hand_off(b"GET /"), no_more_files():
        globalLogPublisher.addObserver(logged.append)
        client = listener.hand_off(upgrade(MINE))
        globalLogPublisher.removeObserver(logged.append)
        with client:
            assert not is_open(client)
    assert [event["reason"] for event in logged if event.get("event") == "refused"] == [
        "its worker may open no more files"
    ]
    with listener.hand_off(upgrade(MINE)) as client:
        assert b'"type":"welcome"' in client.recv(65_536)


def test_an_error_in_the_first_bytes_ends_their_connection_alone(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    with listener.hand_off(upgrade(MINE)) as other:
        with monkeypatch.context() as patched:
            patched.setattr(listener.factory, "check", broken)
            with listener.hand_off(upgrade(MINE)) as client:
                assert not is_open(client)
        assert is_open(other)
    assert len(listener.factory.connections) == 1


def test_metrics_are_sent_on_request(listener: Listener) -> None:
    listener.say(b"?")
    assert listener.received() == [b"M" + json.dumps(["metrics"]).encode()]


def test_a_reload_is_prepared_and_applied_when_the_listener_says_so(listener: Listener) -> None:
    listener.say(b'P[3, "abc"]')
    assert listener.received() == [b"P[3, null]"]
    assert (listener.reloads.prepared, listener.reloads.applied) == (["abc"], 0)
    listener.say(b"U")
    assert listener.reloads.applied == 1


def test_a_reload_that_is_refused_is_answered_with_a_bounded_reason(listener: Listener) -> None:
    listener.reloads.refusal = "x" * 100_000
    listener.say(b'P[4, "abc"]')
    assert listener.received() == [b'P[4, "' + b"x" * 1_000 + b'"]']


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


def test_a_query_is_answered_by_the_worker(listener: Listener) -> None:
    with listener.hand_off(upgrade(MINE)):
        listener.received()
        PartSender(QUERY, lambda message: listener.say(message) is None).send(7, encode(ListTopics()))
        listener.reactor.run()
        answers = PartReceiver()
        whole = [answers.receive(message[1:]) for message in listener.received() if message[:1] == ANSWER]
    assert whole[0] is not None
    number, encoded = whole[0]
    merged = merge(ListTopics(), decode_answers(encoded))
    assert (number, merged.answer) == (7, TopicPage([TopicSize(MINE, 1)], None))


def test_a_long_answer_waits_for_the_listener_and_costs_no_line_of_the_log(listener: Listener) -> None:
    listener.factory.local.answer_query = lambda query, on_answer: on_answer(b"x" * 20_000_000)
    PartSender(QUERY, lambda message: listener.say(message) is None).send(7, b"")
    log = Logger(namespace="signaling", observer=listener.process.log)
    parts, whole, logged, lines = PartReceiver(), None, 0, 0
    while whole is None:
        log.info("a line")
        logged += 1
        listener.reactor.run()
        for message in listener.received():
            if message[:1] == ANSWER:
                whole = parts.receive(message[1:])
            elif message[:1] == b"L":
                lines += len(list(decode(message[1:])))
    listener.reactor.run()
    lines += sum(len(list(decode(message[1:]))) for message in listener.received() if message[:1] == b"L")
    assert len(decode_answers(whole[1]).answers[""]) == 20_000_000
    assert lines == logged
