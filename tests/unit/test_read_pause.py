"""A connection does not read while there is a reason not to."""

from __future__ import annotations

from operator import xor
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from signaling.limits import Limits
from signaling.websocket.protocol import WebSocketConnection, WebSocketConnectionFactory
from signaling.websocket.read_pause import ReadPause

MESSAGE = b"\x81\x84\0\0\0\0text"


class Connection(WebSocketConnection[None]):
    def __init__(self) -> None:
        super().__init__()
        self.received: list[bytes] = []

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.received.append(payload)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def connection(clock: Clock) -> Any:
    factory = WebSocketConnectionFactory(Limits(), clock)
    factory.protocol = Connection
    connection = factory.buildProtocol(None)
    connection.makeConnection(StringTransport())
    return connection


def state(connection: Any) -> str:
    return str(connection.transport.producerState)


def test_reading_resumes_when_the_last_reason_is_gone(connection: Any) -> None:
    connection.accept(b"")
    connection.pause_reading(ReadPause.JOIN)
    connection.pause_reading(ReadPause.QUEUE_FULL)
    connection.pause_reading(ReadPause.JOIN)
    assert state(connection) == "paused"
    connection.resume_reading(ReadPause.JOIN)
    assert state(connection) == "paused"
    connection.resume_reading(ReadPause.QUEUE_FULL)
    assert state(connection) == "producing"


def test_what_came_during_a_pause_is_handled_before_more_is_read(connection: Any, clock: Clock) -> None:
    connection.accept(b"")
    connection.pause_reading(ReadPause.JOIN)
    connection.dataReceived(MESSAGE * 20)
    assert connection.received == []
    connection.resume_reading(ReadPause.JOIN)
    assert (len(connection.received), state(connection)) == (0, "paused")
    clock.advance(0)
    assert (len(connection.received), state(connection)) == (20, "producing")


def test_a_connection_that_waits_for_its_handshake_keeps_what_comes(connection: Any, clock: Clock) -> None:
    connection.pause_reading(ReadPause.HANDSHAKE)
    connection.dataReceived(MESSAGE)
    connection.accept(b"")
    clock.advance(0)
    assert (connection.received, state(connection)) == ([b"text"], "producing")


def test_a_pause_in_the_middle_of_a_burst_holds_the_rest_back(connection: Any, clock: Clock) -> None:
    connection.accept(b"")
    connection.onMessage = lambda payload, is_binary: connection.pause_reading(ReadPause.JOIN)
    connection.dataReceived(MESSAGE * 3)
    del connection.onMessage
    clock.advance(1)
    assert connection.received == []
    connection.resume_reading(ReadPause.JOIN)
    clock.advance(0)
    assert connection.received == [b"text"] * 2


@pytest.mark.parametrize("waiting", [0, 1, 20])
def test_a_transport_may_deliver_at_once_what_it_held_back(connection: Any, clock: Clock, waiting: int) -> None:
    connection.accept(b"")
    connection.pause_reading(ReadPause.JOIN)
    connection.dataReceived(MESSAGE * waiting)
    resume = connection.transport.resumeProducing

    def deliver() -> None:
        resume()
        # The rest looks like a whole message.
        connection.dataReceived(b"\x81\x86")

    connection.transport.resumeProducing = deliver
    connection.resume_reading(ReadPause.JOIN)
    clock.advance(0)
    connection.dataReceived(b"\x81\x84\0\0" + bytes(map(xor, b"abcdef", b"\x81\x84\0\0\x81\x84")))
    assert connection.received == [b"text"] * waiting + [b"abcdef"]


def test_a_closing_connection_reads_so_that_it_notices_the_other_end(connection: Any) -> None:
    connection.accept(b"")
    connection.pause_reading(ReadPause.JOIN)
    connection.transport.loseWriteConnection = lambda: None
    connection.close(1000, "done")
    connection.pause_reading(ReadPause.JOIN)
    assert state(connection) == "producing"
