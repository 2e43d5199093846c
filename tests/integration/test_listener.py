"""Connections in the listener's hands: how long they may take, how many they may be, and who gets them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import succeed

from signaling.workers.listener import PeekedEndpoint
from signaling.workers.supervisor import ABOUT
from tests.integration.workers_harness import WorkersHarness, is_open


@pytest.fixture
def shop() -> Iterator[WorkersHarness]:
    shop = WorkersHarness()
    shop.all_ready()
    yield shop
    shop.end()


def line(topic: bytes) -> bytes:
    return b"GET /ws/" + topic + b" HTTP/1.1\r\n"


def test_a_connection_goes_to_the_worker_of_its_topic_with_all_that_was_read(shop: WorkersHarness) -> None:
    for number, process in enumerate(shop.processes):
        client = shop.connect(line(shop.topic_of(number)) + b"Host: a\r\n")
        (message,) = process.heard()
        assert message[:1] == b"C"
        assert message[1 + ABOUT.size :] == line(shop.topic_of(number)) + b"Host: a\r\n"
        assert is_open(client)
    assert not shop.dispatcher.connections


def test_a_trickled_line_waits_for_its_end(shop: WorkersHarness) -> None:
    topic = shop.topic_of(1)
    client = shop.connect()
    for byte in b"GET /ws/" + topic:
        shop.send(client, bytes([byte]))
        assert shop.processes[1].heard() == []
    shop.send(client, b" ")
    (message,) = shop.processes[1].heard()
    assert message.endswith(b"GET /ws/" + topic + b" ")


def test_the_worker_hears_how_much_of_the_deadline_is_over(shop: WorkersHarness) -> None:
    client = shop.connect()
    shop.advance(3)
    shop.send(client, b"GET /ws/")
    shop.advance(4)
    shop.send(client, shop.topic_of(0) + b" ")
    (message,) = shop.processes[0].heard()
    # It counts from the first byte.
    assert ABOUT.unpack_from(message, 1)[0] == pytest.approx(4.0)


def test_a_line_that_trickles_too_slowly_is_cut(shop: WorkersHarness) -> None:
    client = shop.connect(b"GET /ws/")
    for _ in range(9):
        shop.advance(1)
        shop.send(client, b"a")
    assert is_open(client)
    shop.advance(1)
    assert not is_open(client)
    assert shop.dispatcher.counters.handshake_timeouts == 1


def test_a_silent_connection_is_cut(shop: WorkersHarness) -> None:
    client = shop.connect()
    shop.advance(9.5)
    assert is_open(client)
    shop.advance(0.5)
    assert not is_open(client)


def test_the_oldest_of_too_many_is_cut() -> None:
    shop = WorkersHarness(max_connections=2, spare_connections=3)
    clients = [shop.connect() for _ in range(7)]
    assert [is_open(client) for client in clients] == [False, False, True, True, True, True, True]
    assert shop.dispatcher.counters.connections_evicted == 2
    shop.end()


def test_a_client_that_goes_is_forgotten(shop: WorkersHarness) -> None:
    shop.connect(b"GET /").close()
    shop.reactor.run()
    assert not shop.dispatcher.connections
    assert not shop.dispatcher.gate


def test_what_names_no_topic_is_answered_here(shop: WorkersHarness) -> None:
    client = shop.connect(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = client.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
    assert answer.endswith(b"\r\n\r\nok")


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\r\n\r\n", b"x" * 20_000])
def test_garbage_is_answered_here(shop: WorkersHarness, garbage: bytes) -> None:
    client = shop.connect(garbage)
    assert client.recv(12) in (b"HTTP/1.1 400", b"HTTP/1.1 431")


def test_a_worker_that_is_not_there_is_waited_for() -> None:
    shop = WorkersHarness()
    client = shop.connect(line(shop.topic_of(0)))
    shop.advance(5)
    assert shop.processes[0].heard() == []
    shop.all_ready()
    (message,) = shop.processes[0].heard()
    assert ABOUT.unpack_from(message, 1)[0] == pytest.approx(5.0)
    assert is_open(client)
    shop.end()


def test_nobody_waits_for_a_worker_longer_than_for_a_request() -> None:
    shop = WorkersHarness()
    client = shop.connect(line(shop.topic_of(0)))
    shop.advance(10)
    assert not is_open(client)
    shop.all_ready()
    assert shop.processes[0].heard() == []
    shop.end()


def test_those_who_wait_are_handed_over_in_order(shop: WorkersHarness) -> None:
    topic = shop.topic_of(0)
    for number in range(600):
        shop.connect(b"GET /ws/" + topic + b"?%d " % number)
    assert shop.dispatcher.connections
    heard = []
    while messages := shop.processes[0].heard():
        heard += messages
        shop.reactor.run()
    assert [message.partition(b"?")[2] for message in heard] == [b"%d " % number for number in range(600)]
    assert not shop.dispatcher.connections


class Wrapping:
    """An endpoint whose port is another's, as one of TLS by somebody else."""

    def __init__(self) -> None:
        self.stopped = False

    def listen(self, factory: Any) -> Any:
        return succeed(self)

    def stopListening(self) -> None:
        self.stopped = True


def test_an_endpoint_that_shows_no_sockets_is_refused(shop: WorkersHarness) -> None:
    endpoint, failures = Wrapping(), []
    PeekedEndpoint(endpoint).listen(shop.dispatcher).addErrback(failures.append)
    assert "run without --workers" in str(failures[0].value)
    assert endpoint.stopped


def test_the_drain_ends_those_that_nobody_has(shop: WorkersHarness) -> None:
    client = shop.connect(b"GET /ws/")
    shop.dispatcher.shutdown.drain()
    shop.reactor.run()
    assert not is_open(client)
