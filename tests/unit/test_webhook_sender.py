"""Requests to a receiver that may be hostile, byte by byte; with a fake clock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from signaling.webhooks.interfaces import Answer
from signaling.webhooks.sender import ANSWER_SECONDS, MAX_ANSWER_BYTES, HttpSender
from signaling.webhooks.target import parse_webhook_url

MUCH = 50 * MAX_ANSWER_BYTES


class Wire(StringTransport):
    """One connection to the receiver."""

    def __init__(self, protocol: Any) -> None:
        super().__init__()
        self.protocol = protocol
        self.ended = False

    def abortConnection(self) -> None:
        self._end(ConnectionAborted())

    def loseConnection(self) -> None:
        self._end(ConnectionDone())

    def _end(self, reason: Exception) -> None:
        if not self.ended:
            self.ended = True
            self.protocol.connectionLost(Failure(reason))

    def receive(self, data: bytes) -> int:
        """Have data come, in segments, until the connection ends; returns how many bytes were taken."""
        for at in range(0, len(data), 8192):
            if self.ended:
                return at
            self.protocol.dataReceived(data[at : at + 8192])
        return len(data)


@implementer(IStreamClientEndpoint)
class Endpoint:
    """Connects in memory."""

    def __init__(self) -> None:
        self.wires: list[Wire] = []

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        protocol = protocolFactory.buildProtocol(None)
        self.wires.append(Wire(protocol))
        protocol.makeConnection(self.wires[-1])
        return succeed(protocol)


class Sending:
    """A sender, and one request."""

    def __init__(self, url: str = "http://ada:secret@example.com/hook?x=1") -> None:
        self.clock = Clock()
        self.endpoint = Endpoint()
        self.sender = HttpSender(self.clock, parse_webhook_url(url), self.endpoint)
        self.outcomes: list[Any] = []
        self.request = self.send()

    def send(self) -> Deferred[Answer]:
        request = self.sender.send({b"webhook-id": b"msg_1"}, b'{"events":[]}')
        request.addBoth(self.outcomes.append)
        return request

    @property
    def wire(self) -> Wire:
        return self.endpoint.wires[-1]


@pytest.fixture
def sending() -> Iterator[Sending]:
    sending = Sending()
    yield sending
    sending.sender.close()
    if not sending.outcomes:
        sending.request.cancel()
    assert not sending.clock.getDelayedCalls()


def test_the_request(sending: Sending) -> None:
    head, _, body = sending.wire.value().partition(b"\r\n\r\n")
    first, *headers = head.split(b"\r\n")
    assert first == b"POST /hook?x=1 HTTP/1.1"
    assert {b"Host: example.com", b"Content-Type: application/json", b"Webhook-Id: msg_1"} <= set(headers)
    assert b"Authorization: Basic YWRhOnNlY3JldA==" in headers
    assert b"Content-Length: 13" in headers
    assert body == b'{"events":[]}'


def test_a_connection_is_kept(sending: Sending) -> None:
    sending.wire.receive(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert sending.outcomes == [Answer(204)]
    sending.send()
    assert len(sending.endpoint.wires) == 1
    sending.wire.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert sending.outcomes == [Answer(204), Answer(200)]


def test_many_answers_on_one_connection_are_not_too_long(sending: Sending) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 30000\r\n\r\n" + bytes(30_000)
    sending.wire.receive(answer)
    for _ in range(9):
        sending.send()
        sending.wire.receive(answer)
    assert sending.outcomes == [Answer(200)] * 10
    assert len(sending.endpoint.wires) == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7), ("99999999", 300), ("999999999999999", 300), ("-5", 0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0), ("", 0)],
)
def test_retry_after_is_bounded(sending: Sending, text: str, seconds: float) -> None:
    sending.wire.receive(f"HTTP/1.1 503 No\r\nRetry-After: {text}\r\nContent-Length: 0\r\n\r\n".encode())
    assert sending.outcomes == [Answer(503, seconds)]


def test_a_redirect_is_not_followed(sending: Sending) -> None:
    sending.wire.receive(b"HTTP/1.1 307 Away\r\nLocation: http://example.com/hook\r\nContent-Length: 0\r\n\r\n")
    assert sending.outcomes == [Answer(307)]
    assert len(sending.endpoint.wires) == 1
    assert sending.wire.value().count(b"POST") == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n" + b"X-Header: value\r\n" * (MUCH // 17),
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * MUCH,
        b"HTTP/1.1 100 Continue\r\n\r\n" * (MUCH // 25),
        b"\x00" * MUCH,
        b"HTTP/1.1 200 OK\r\n" + b" folded\r\n" * (MUCH // 9),
    ],
    ids=["headers", "one header", "continues", "no HTTP", "folded"],
)
def test_a_head_that_does_not_end_is_no_answer(sending: Sending, answer: bytes) -> None:
    assert sending.wire.receive(answer) <= MAX_ANSWER_BYTES + 8192
    assert sending.wire.ended
    assert isinstance(sending.outcomes[0], Failure)


@pytest.mark.parametrize(
    "head", [b"", b"Content-Length: 99999999999\r\n", b"Transfer-Encoding: chunked\r\n"], ids=["", "length", "chunked"]
)
def test_a_body_that_does_not_end_does_not_change_the_status(sending: Sending, head: bytes) -> None:
    chunk = b"1000\r\n" + bytes(0x1000) + b"\r\n" if b"chunked" in head else bytes(0x1000)
    taken = sending.wire.receive(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + chunk * (MUCH // 0x1000))
    assert taken <= MAX_ANSWER_BYTES + 8192
    assert sending.wire.ended
    assert sending.outcomes == [Answer(200)]


def test_a_head_that_comes_slowly_is_no_answer(sending: Sending) -> None:
    for _ in range(int(ANSWER_SECONDS) + 1):
        if not sending.wire.ended:
            sending.wire.receive(b"H")
        sending.clock.advance(1)
    assert sending.wire.ended
    assert isinstance(sending.outcomes[0], Failure)


def test_a_body_that_comes_slowly_does_not_change_the_status(sending: Sending) -> None:
    sending.wire.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(int(ANSWER_SECONDS) + 1):
        if not sending.wire.ended:
            sending.wire.receive(b"x")
        sending.clock.advance(1)
    assert sending.wire.ended
    assert sending.outcomes == [Answer(200)]


def test_a_request_that_is_cancelled_ends_its_connection(sending: Sending) -> None:
    sending.request.cancel()
    assert sending.wire.ended
