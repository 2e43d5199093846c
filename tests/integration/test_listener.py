"""Connections that are not handed off yet: how long that may take, how many there may be, and who gets them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet import tcp
from twisted.internet.defer import succeed
from twisted.internet.error import ConnectionDone
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure

from signaling.workers.ipc import Handoff, decode_handoff
from signaling.workers.listener import RoutingEndpoint
from tests.integration.workers_harness import WorkersHarness, is_open


@pytest.fixture
def harness() -> Iterator[WorkersHarness]:
    harness = WorkersHarness()
    harness.all_ready()
    yield harness
    harness.end()


def handoff(message: bytes) -> Handoff:
    assert message[:1] == b"C"
    decoded: Handoff = decode_handoff(message[1:])
    return decoded


def line(topic: bytes) -> bytes:
    return b"GET /ws/" + topic + b" HTTP/1.1\r\n"


def test_a_connection_goes_to_the_owner_of_its_topic_with_all_bytes_that_were_read(harness: WorkersHarness) -> None:
    for number, process in enumerate(harness.processes):
        client = harness.connect(line(harness.topic_of(number)) + b"Host: a\r\n")
        (message,) = process.received()
        assert handoff(message).data == line(harness.topic_of(number)) + b"Host: a\r\n"
        assert is_open(client)
    assert not harness.listener.connections


def test_a_trickled_request_line_is_read_to_its_end(harness: WorkersHarness) -> None:
    topic = harness.topic_of(1)
    client = harness.connect()
    for byte in b"GET /ws/" + topic:
        harness.send(client, bytes([byte]))
        assert harness.processes[1].received() == []
    harness.send(client, b" ")
    (message,) = harness.processes[1].received()
    assert handoff(message).data == b"GET /ws/" + topic + b" "


def test_the_worker_gets_how_long_the_handshake_has_taken(harness: WorkersHarness) -> None:
    client = harness.connect()
    harness.advance(3)
    harness.send(client, b"GET /ws/")
    harness.advance(4)
    harness.send(client, harness.topic_of(0) + b" ")
    (message,) = harness.processes[0].received()
    # It counts from the first byte.
    assert handoff(message).handshake_seconds == pytest.approx(4.0)


def test_a_request_line_that_trickles_too_slowly_is_closed(harness: WorkersHarness) -> None:
    client = harness.connect(b"GET /ws/")
    for _ in range(9):
        harness.advance(1)
        harness.send(client, b"a")
    assert is_open(client)
    harness.advance(1)
    assert not is_open(client)
    assert harness.listener.counters.handshake_timeouts == 1


def test_a_silent_connection_is_closed(harness: WorkersHarness) -> None:
    client = harness.connect()
    harness.advance(9.5)
    assert is_open(client)
    harness.advance(0.5)
    assert not is_open(client)


def test_the_oldest_connection_is_evicted_if_there_are_too_many() -> None:
    harness = WorkersHarness(max_connections=2, spare_connections=3)
    clients = [harness.connect() for _ in range(7)]
    assert [is_open(client) for client in clients] == [False, False, True, True, True, True, True]
    assert harness.listener.counters.connections_evicted == 2
    harness.end()


def test_evictions_are_logged_at_a_bounded_rate(logged: list[str]) -> None:
    harness = WorkersHarness(max_connections=2, spare_connections=3)
    logged.clear()
    for _ in range(9):
        harness.connect()
    harness.advance(1)
    harness.connect()
    text = "closed the oldest connection that had not joined, for a newer one: the server is full"
    assert logged == [f"{text} (1 times)", f"{text} (4 times)"]
    harness.end()


def test_a_connection_that_its_client_closes_is_forgotten(harness: WorkersHarness) -> None:
    harness.connect(b"GET /").close()
    harness.reactor.run()
    assert not harness.listener.connections
    assert not harness.listener.gate


def test_a_request_that_names_no_topic_is_answered_by_the_listener(harness: WorkersHarness) -> None:
    client = harness.connect(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = client.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
    assert answer.endswith(b"\r\n\r\nok")


def test_below_a_path_the_listener_reads_topics_and_answers_the_rest() -> None:
    harness = WorkersHarness(path_prefix="/signal")
    harness.all_ready()
    topic = harness.topic_of(1)
    harness.connect(b"GET /signal/ws/%b HTTP/1.1\r\nHost: a\r\n\r\n" % topic)
    (message,) = harness.processes[1].received()
    assert handoff(message).data.startswith(b"GET /signal/ws/")
    for path, status in ((b"/signal/healthz", b"200"), (b"/healthz", b"200"), (b"/ws/%b" % topic, b"404")):
        client = harness.connect(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
        assert client.recv(65_536).startswith(b"HTTP/1.1 " + status)
    harness.end()


def test_a_check_goes_to_the_owner_of_its_topic_and_its_preflight_is_answered_here(harness: WorkersHarness) -> None:
    harness.all_ready()
    topic = harness.topic_of(1)
    harness.connect(b"GET /ws/%b?check HTTP/1.1\r\nHost: a\r\n\r\n" % topic)
    (message,) = harness.processes[1].received()
    assert b"?check" in handoff(message).data
    client = harness.connect(b"OPTIONS /ws/%b?check HTTP/1.1\r\nHost: a\r\n\r\n" % topic)
    assert b"\r\nAccess-Control-Allow-Headers: Authorization\r\n" in client.recv(65_536)


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\r\n\r\n", b"x" * 20_000])
def test_garbage_is_answered_by_the_listener(harness: WorkersHarness, garbage: bytes) -> None:
    client = harness.connect(garbage)
    assert client.recv(12) in (b"HTTP/1.1 400", b"HTTP/1.1 431")


def test_a_connection_waits_for_a_worker_that_starts() -> None:
    harness = WorkersHarness()
    client = harness.connect(line(harness.topic_of(0)))
    harness.advance(5)
    assert harness.processes[0].received() == []
    harness.all_ready()
    (message,) = harness.processes[0].received()
    assert handoff(message).handshake_seconds == pytest.approx(5.0)
    assert is_open(client)
    harness.end()


def test_no_connection_waits_longer_than_the_handshake_timeout() -> None:
    harness = WorkersHarness()
    client = harness.connect(line(harness.topic_of(0)))
    harness.advance(10)
    assert not is_open(client)
    harness.all_ready()
    assert harness.processes[0].received() == []
    harness.end()


def test_waiting_connections_are_handed_off_in_order(harness: WorkersHarness) -> None:
    topic = harness.topic_of(0)
    for number in range(600):
        harness.connect(b"GET /ws/" + topic + b"?%d " % number)
    assert harness.listener.connections
    heard = []
    while messages := harness.processes[0].received():
        heard += messages
        harness.reactor.run()
    assert [message.partition(b"?")[2] for message in heard] == [b"%d " % number for number in range(600)]
    assert not harness.listener.connections


def test_what_a_client_sends_to_its_worker_wakes_the_listener_no_more(harness: WorkersHarness) -> None:
    client, other = harness.connect(b"GET /ws/"), harness.connect(b"GET /ws/")
    harness.send(client, harness.topic_of(0) + b" ")
    client.send(b"for the worker")
    assert not harness.woken()
    other.send(b"a")
    assert harness.woken()


def test_the_descriptors_of_closed_and_handed_off_connections_are_closed(harness: WorkersHarness) -> None:
    kept = harness.connect(b"GET /ws/")
    files = len(os.listdir("/proc/self/fd"))
    for data in (b"", b"GET /ws/", line(harness.topic_of(0)), line(harness.topic_of(1))[:-3]):
        with harness.connect(data):
            pass
        harness.reactor.run()
    for process in harness.processes:
        process.received()
        process.close_descriptors()
    assert len(os.listdir("/proc/self/fd")) == files
    assert is_open(kept)


def test_a_connection_that_is_evicted_in_a_pass_is_not_read_in_it() -> None:
    harness = WorkersHarness(max_connections=1, spare_connections=1)
    harness.all_ready()
    with harness.listen() as connect:
        older = [connect(b"GET /ws/") for _ in range(2)]
        harness.reactor.run()
        # The port is ready before them, and what it accepts evicts the first.
        newer = connect(b"GET /ws/")
        for client in older:
            client.send(harness.topic_of(0) + b" ")
        harness.reactor.run()
        assert [is_open(client) for client in (*older, newer)] == [False, True, True]
        assert len(harness.processes[0].received()) == 1
        assert harness.listener.counters.connections_evicted == 1
    harness.end()


def test_a_tcp_port_accepts_without_a_transport_of_the_reactor(harness: WorkersHarness) -> None:
    with harness.listen() as connect:
        client = connect(line(harness.topic_of(0)))
        silent = connect(b"")
        harness.reactor.run()
        (message,) = harness.processes[0].received()
        assert handoff(message).address == [*client.getsockname()]
        assert harness.listener.poller in harness.reactor.readers
        assert not [reader for reader in harness.reactor.readers if isinstance(reader, tcp.Server | tcp.Port)]
        assert is_open(silent)


def test_the_log_names_the_listener_that_starts(harness: WorkersHarness) -> None:
    lines: list[str | None] = []
    globalLogPublisher.addObserver(observe := lambda event: lines.append(formatEvent(event)))
    try:
        with harness.listen():
            pass
    finally:
        globalLogPublisher.removeObserver(observe)
    assert [line for line in lines if line and line.startswith("WorkerListener starting on ")]


class Wrapping:
    """An endpoint whose port is another's, as one of TLS by somebody else."""

    def __init__(self) -> None:
        self.stopped = False

    def listen(self, factory: Any) -> Any:
        return succeed(self)

    def stopListening(self) -> None:
        self.stopped = True


def test_an_endpoint_that_hides_its_sockets_is_refused(harness: WorkersHarness) -> None:
    endpoint, failures = Wrapping(), []
    RoutingEndpoint(endpoint).listen(harness.listener).addErrback(failures.append)
    assert "run without --workers" in str(failures[0].value)
    assert endpoint.stopped


def test_unrouted_connections_end_with_the_reactor(harness: WorkersHarness) -> None:
    files = len(os.listdir("/proc/self/fd"))
    clients = [harness.connect(b"GET /ws/") for _ in range(3)]
    # One of them ends by itself as well.
    harness.listener.connections.copy().pop().abort("evicted")
    assert harness.listener.poller is not None
    harness.listener.poller.connectionLost(Failure(ConnectionDone()))
    assert not [client for client in clients if is_open(client)]
    assert not harness.listener.connections
    for client in clients:
        client.close()
    assert len(os.listdir("/proc/self/fd")) <= files


def test_a_drain_closes_unrouted_connections(harness: WorkersHarness) -> None:
    client = harness.connect(b"GET /ws/")
    harness.listener.shutdown.drain()
    harness.reactor.run()
    assert not is_open(client)
