"""The Twisted client with a clock that is told, against a server that is played by hand."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure

from signaling.client import Backoff, Error, NotUpdated, PeerJoined, PeerUpdated, Refused, Welcome
from signaling.client.credential import TOKEN_SECONDS
from signaling.client.metadata import UPDATE_SECONDS
from signaling.client.session import MAX_FRAGMENTS
from signaling.client.twisted import MAX_UNFINISHED, SignalingClient
from tests.harness.frames import TEXT
from tests.harness.memory_transport import MemoryTransport

URL = "ws://example.com/ws/room"
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
EMPTY = {"type": "peer-list", "peers": []}


def frame(first: int, payload: bytes) -> bytes:
    """Write a server's frame."""
    size = len(payload)
    return bytes([first, size]) + payload if size < 126 else bytes([first, 126]) + size.to_bytes(2, "big") + payload


def frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Split what a client wrote into opcodes and payloads."""
    while data:
        size, head = data[1] & 0x7F, 2
        if size == 126:
            size, head = int.from_bytes(data[2:4], "big"), 4
        mask, masked = data[head : head + 4], data[head + 4 : head + 4 + size]
        yield data[0] & 0xF, bytes(byte ^ mask[index % 4] for index, byte in enumerate(masked))
        data = data[head + 4 + size :]


class Connection:
    """The server's end of one connection."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self.bytes_taken = 0
        self._transport = MemoryTransport()
        self._transport.protocol = protocol
        protocol.makeConnection(self._transport)
        self.request, _, _ = self._transport.take().partition(b"\r\n\r\n")

    @property
    def token(self) -> str | None:
        found = re.search(rb"\r\nAuthorization: Bearer (.*)", self.request)
        return found[1].decode().strip() if found else None

    @property
    def target(self) -> str:
        return self.request.split()[1].decode()

    def welcome(self, **more: Any) -> None:
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", self.request)
        assert key is not None
        accept = base64.b64encode(hashlib.sha1(key[1] + GUID).digest())
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self._protocol.dataReceived(head + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        self.send(type="welcome", selfId="b", **more)
        self.send(**EMPTY)

    def send(self, **message: Any) -> None:
        self._protocol.dataReceived(frame(0x81, json.dumps(message).encode()))

    def received(self) -> list[dict[str, Any]]:
        """Return the messages that the client sent since the last call."""
        return [json.loads(payload) for opcode, payload in frames(self._transport.take()) if opcode == TEXT]

    def write(self, data: bytes) -> None:
        self.bytes_taken += len(data)
        self._protocol.dataReceived(data)

    @property
    def aborted(self) -> bool:
        return self._transport.aborted

    def refuse(self, status: int, reason: str = "no") -> None:
        self._protocol.dataReceived(b"HTTP/1.1 %d No\r\n\r\n%s" % (status, reason.encode()))
        self.end()

    def close(self, code: int, reason: str = "") -> None:
        self._protocol.dataReceived(frame(0x88, code.to_bytes(2, "big") + reason.encode()))
        self.end()

    def end(self) -> None:
        clean = self._transport.disconnecting
        self._protocol.connectionLost(Failure(ConnectionDone() if clean else ConnectionLost()))


class Server:
    """An endpoint that leads to connections that the test plays."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []

    def connect(self, factory: Any) -> Deferred[Any]:
        protocol = factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 80))
        self.connections.append(Connection(protocol))
        return succeed(protocol)


class Program:
    """A client, its clock, its server, and all that it reports."""

    def __init__(self, token: Any, on_message: Callable[[Any], object] | None = None, **options: Any) -> None:
        self.clock = Clock()
        self.server = Server()
        self.messages: list[Any] = []
        self.failures: list[Exception] = []
        self.client = SignalingClient(
            URL,
            on_message or self.messages.append,
            token=token,
            endpoint=self.server,
            clock=self.clock,
            backoff=Backoff(1.0, 30.0, clock=self.clock.seconds, chance=lambda: 0.0),
            **options,
        )
        self.client.on_failure = self.failures.append

    def start(self) -> None:
        self.client.startService()

    @property
    def requests(self) -> int:
        return len(self.server.connections)

    @property
    def latest(self) -> Connection:
        return self.server.connections[-1]

    def tokens(self) -> list[str | None]:
        return [connection.token for connection in self.server.connections]


class Issuer:
    """A token function: it answers as it is told, or else with token after token."""

    def __init__(self, *answers: Callable[[], Any]) -> None:
        self.calls = 0
        self._answers = list(answers)

    def __call__(self) -> Any:
        self.calls += 1
        return self._answers.pop(0)() if self._answers else f"secret-{self.calls}"


@pytest.fixture
def log() -> Iterator[list[str]]:
    """All events of Twisted's log while a test runs."""
    texts: list[str] = []

    def observe(event: LogEvent) -> None:
        texts.append(formatEvent(event) + str(event.get("log_failure", "")))

    globalLogPublisher.addObserver(observe)
    yield texts
    globalLogPublisher.removeObserver(observe)
    assert not [text for text in texts if "secret" in text]


def test_every_attempt_presents_another_token_of_the_function(log: list[str]) -> None:
    program = Program(Issuer())
    program.start()
    program.latest.end()
    program.clock.advance(1)
    program.latest.welcome()
    program.latest.end()
    program.clock.advance(2)
    assert program.tokens() == ["secret-1", "secret-2", "secret-3"]


def test_a_text_is_presented_again_and_again() -> None:
    program = Program("one")
    program.start()
    program.latest.end()
    program.clock.advance(1)
    assert program.tokens() == ["one", "one"]


async def later() -> str:
    return "awaited"


@pytest.mark.parametrize("answer", [lambda: "awaited", later, lambda: succeed("awaited")])
def test_a_function_returns_text_or_an_awaitable_or_a_deferred(answer: Callable[[], Any]) -> None:
    program = Program(answer)
    program.start()
    assert program.tokens() == ["awaited"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_asked_anew_once_and_at_once(status: int, log: list[str]) -> None:
    program = Program(Issuer())
    program.start()
    program.latest.refuse(status)
    program.clock.advance(0)
    assert program.tokens() == ["secret-1", "secret-2"]
    program.latest.refuse(401, "still wrong")
    program.clock.advance(3_600)
    assert program.requests == 2
    [failure] = program.failures
    assert isinstance(failure, Refused)
    assert (failure.status, failure.reason) == (401, "still wrong")


def test_a_refused_text_is_the_end() -> None:
    program = Program("one")
    program.start()
    program.latest.refuse(401)
    program.clock.advance(3_600)
    assert program.requests == len(program.failures) == 1


def test_a_text_that_has_expired_is_the_end() -> None:
    program = Program("one")
    program.start()
    program.latest.welcome(expiresIn=5)
    program.latest.close(4401, "the token has expired")
    program.clock.advance(3_600)
    assert program.requests == 1
    assert str(program.failures[0]) == "close code 4401: the token has expired"


UPDATES = {"features": ["metadata-updates"]}


def test_an_update_fires_when_the_server_has_told_everybody() -> None:
    program = Program(None, metadata={"name": "Ada"})
    program.start()
    program.latest.welcome(**UPDATES)
    updated = program.client.update_metadata({"name": "Grace"})
    assert program.latest.received() == [{"type": "metadata", "metadata": {"name": "Grace"}, "msgId": "metadata 1"}]
    assert not updated.called
    program.latest.send(type="peer-updated", peerId="b", metadata={"name": "Grace"})
    assert (updated.result, program.client.metadata) == (None, {"name": "Grace"})
    assert program.messages[-1] == PeerUpdated("b", {"name": "Grace"})


def failure_of(update: Deferred[None]) -> str:
    """Return the code with which an update has failed."""
    codes: list[str] = []
    update.addErrback(lambda failure: codes.append(failure.value.code) if failure.check(NotUpdated) else failure)
    [code] = codes
    return code


def test_an_update_that_the_server_does_not_answer_ends_and_the_next_one_is_sent() -> None:
    program = Program(None)
    program.start()
    program.latest.welcome(**UPDATES)
    first = program.client.update_metadata({"number": 1})
    program.clock.advance(UPDATE_SECONDS - 1)
    second = program.client.update_metadata({"number": 2})
    assert len(program.latest.received()) == 1
    program.clock.advance(1)
    assert failure_of(first) == "unconfirmed"
    assert [message["metadata"] for message in program.latest.received()] == [{"number": 2}]
    program.latest.send(type="error", code="rate_limited", message="no", msgId="metadata 2")
    assert failure_of(second) == "rate_limited"
    assert not [call for call in program.clock.getDelayedCalls() if call.func is second.cancel]


def test_updates_of_a_client_without_a_connection_or_feature_fail_at_once() -> None:
    program = Program(None)
    assert failure_of(program.client.update_metadata({"name": "Ada"})) == "unconfirmed"
    program.start()
    assert program.latest.target == "/ws/room?metadata=%7B%22name%22%3A%22Ada%22%7D"
    program.latest.welcome()
    assert program.client.features == frozenset()
    assert failure_of(program.client.update_metadata({"name": "Grace"})) == "unsupported"
    program.client.stopService()
    assert failure_of(program.client.update_metadata({"name": "Grace"})) == "dropped"


def test_metadata_that_a_url_cannot_have_is_given_up_and_the_client_joins() -> None:
    program = Program(None, metadata={"name": "Ada"})
    assert failure_of(program.client.update_metadata({"name": "too long"})) == "unconfirmed"
    program.start()
    program.latest.refuse(400, "metadata: at most 4 bytes")
    program.clock.advance(0)
    assert program.latest.target == "/ws/room?metadata=%7B%22name%22%3A%22Ada%22%7D"
    assert program.messages == [Error("invalid_metadata", "metadata: at most 4 bytes")]
    assert program.failures == []


@pytest.mark.parametrize("code", [4403, 4404])
@pytest.mark.parametrize("token", ["a", Issuer()])
def test_a_peer_that_an_operator_removed_stays_away(code: int, token: Any) -> None:
    program = Program(token)
    program.start()
    program.latest.welcome(resume={"token": "r", "window": 30})
    program.latest.close(code, "Enough")
    program.clock.pump([60.0] * 10)
    assert program.requests == 1
    assert [str(failure) for failure in program.failures] == [f"close code {code}: Enough"]


def test_after_4401_a_function_is_asked_and_the_session_is_resumed_at_once(log: list[str]) -> None:
    program = Program(Issuer())
    program.start()
    program.latest.welcome(resume={"token": "r", "window": 20})
    program.latest.close(4401)
    program.clock.advance(0)
    assert program.latest.target == "/ws/room?resume=r&seen=2"
    assert program.latest.token == "secret-2"
    program.latest.refuse(401)
    program.clock.advance(3_600)
    assert program.requests == 2
    assert isinstance(program.failures[0], Refused)


def test_a_server_that_ends_every_connection_by_4401_is_asked_more_and_more_seldom() -> None:
    program = Program(Issuer())
    program.start()
    answered = 0
    for _ in range(3_600):
        program.clock.advance(1)
        if program.requests > answered:
            answered = program.requests
            program.latest.welcome()
            program.latest.close(4401)
    # In an hour: every 30 s, and a few at the beginning.
    assert 110 < program.requests < 140


def failing() -> str:
    raise LookupError("the secret cannot be had")


def failing_later() -> Deferred[str]:
    deferred: Deferred[str] = Deferred()
    deferred.errback(Failure(LookupError("the secret cannot be had")))
    return deferred


async def obstinate() -> str:
    while True:
        try:
            await Deferred()
        except Exception:
            # It does not end when it is cancelled.
            continue


FAULTS = {
    "raises": (failing, "the token function raised LookupError (test_twisted_client.py, line "),
    "fails later": (failing_later, "the token function raised LookupError"),
    "hangs": (Deferred, "the token function has not answered within 15 s"),
    "ignores its cancellation": (obstinate, "the token function has not answered within 15 s"),
    "returns nothing": (lambda: None, "the token function returned NoneType, not a token"),
    "returns what is no token": (lambda: "a\r\nsecret: b", "characters that no token has"),
}


@pytest.mark.parametrize(("fault", "reported"), FAULTS.values(), ids=FAULTS)
def test_a_function_that_fails_is_reported_and_asked_again(
    fault: Callable[[], Any], reported: str, log: list[str]
) -> None:
    issuer = Issuer(fault, fault)
    program = Program(issuer)
    program.start()
    program.clock.advance(TOKEN_SECONDS)
    assert program.requests == 0
    program.clock.advance(1)
    program.clock.advance(TOKEN_SECONDS)
    program.clock.advance(2)
    assert program.tokens() == ["secret-3"]
    assert len([text for text in log if reported in text and "connecting again in" in text]) == 2
    assert program.failures == []


@pytest.mark.parametrize(("fault", "reported"), FAULTS.values(), ids=FAULTS)
def test_a_renewal_that_fails_is_reported_and_repeated(fault: Callable[[], Any], reported: str, log: list[str]) -> None:
    program = Program(Issuer(lambda: "secret-1", fault))
    program.start()
    program.latest.welcome(expiresIn=400)
    program.clock.advance(320)
    program.clock.advance(TOKEN_SECONDS)
    assert program.latest.received() == []
    assert len([text for text in log if reported in text and "asking again in" in text]) == 1
    program.clock.advance(20)
    [sent] = program.latest.received()
    assert (sent["type"], sent["token"]) == ("token", "secret-3")
    assert program.requests == 1


def test_a_token_is_renewed_again_and_again(log: list[str]) -> None:
    issuer = Issuer()
    program = Program(issuer)
    program.start()
    program.latest.welcome(expiresIn=10)
    for number in range(2, 12):
        program.clock.advance(7.9)
        assert program.latest.received() == []
        program.clock.advance(0.2)
        [sent] = program.latest.received()
        assert sent["token"] == f"secret-{number}"
        program.latest.send(type="token", expiresIn=10, msgId=sent["msgId"])
    assert program.requests == 1
    assert [type(message) for message in program.messages[:1]] == [Welcome]
    assert len(program.messages) == 2


def test_a_refused_renewal_is_repeated_while_there_is_time(log: list[str]) -> None:
    issuer = Issuer()
    program = Program(issuer)
    program.start()
    program.latest.welcome(expiresIn=10)
    for _ in range(1_000):
        program.clock.advance(0.01)
        for sent in program.latest.received():
            program.latest.send(type="error", code="invalid_token", message="another owner", msgId=sent["msgId"])
    assert issuer.calls == 3
    assert [text for text in log if "another owner; the connection ends with it" in text]
    assert len(program.messages) == 2


@pytest.mark.parametrize("seconds", [0, -1, 1e-9, 1])
def test_whatever_a_server_says_a_function_is_asked_at_most_once_a_second(seconds: float) -> None:
    issuer = Issuer()
    program = Program(issuer)
    program.start()
    program.latest.welcome(expiresIn=seconds)
    for _ in range(100):
        program.clock.advance(0.1)
        for sent in program.latest.received():
            for _ in range(20):
                program.latest.send(type="token", expiresIn=seconds, msgId=sent["msgId"])
        program.latest.send(type="token", expiresIn=seconds)
    assert 9 <= issuer.calls <= 11


def test_an_answer_that_comes_after_the_connection_is_not_used() -> None:
    answer: Deferred[str] = Deferred()
    program = Program(Issuer(lambda: "first", lambda: answer))
    program.start()
    program.latest.welcome(expiresIn=10)
    program.clock.advance(8)
    program.latest.end()
    program.clock.advance(1)
    program.latest.welcome(expiresIn=10)
    if not answer.called:
        answer.callback("late")
    assert program.latest.received() == []
    assert program.tokens() == ["first", "secret-3"]


@pytest.mark.parametrize("seconds", [0, 5, 8])
def test_stopping_the_service_stops_all_timers(seconds: float) -> None:
    program = Program(Issuer(lambda: "first", Deferred))
    program.start()
    program.latest.welcome(expiresIn=10)
    program.clock.advance(seconds)
    stopped = program.client.stopService()
    program.latest.close(1000)
    assert stopped is not None
    assert stopped.called
    assert [call for call in program.clock.getDelayedCalls() if call.getTime() > program.clock.seconds() + 1] == []


def test_stopping_the_service_cancels_a_question() -> None:
    answer: Deferred[str] = Deferred()
    program = Program(lambda: answer)
    program.start()
    assert program.client.stopService() is None
    assert answer.called
    assert program.requests == 0
    assert program.clock.getDelayedCalls() == []


def joined(on_message: Callable[[Any], object]) -> Program:
    """Let a program with a listener join."""
    program = Program(None, on_message=on_message)
    program.start()
    program.latest.welcome()
    return program


def test_a_coroutine_function_is_called_with_each_message() -> None:
    go_on: Deferred[None] = Deferred()
    events: list[str] = []

    async def note(message: object) -> None:
        events.append(f"{type(message).__name__} begins")
        await go_on
        events.append(f"{type(message).__name__} ends")

    joined(note)
    assert events == ["Welcome begins", "PeerList begins"]
    go_on.callback(None)
    assert events[2:] == ["Welcome ends", "PeerList ends"]


def test_a_coroutine_function_that_fails_is_logged_without_the_message(log: list[str]) -> None:
    async def fail(message: object) -> None:
        raise RuntimeError("oops")

    program = joined(fail)
    program.latest.send(type="offer", payload="secret", **{"from": "a"})
    assert [text.partition("\n")[0] for text in log if "oops" in text][-1].startswith("on_message failed on Offer")


def test_a_coroutine_function_is_called_once_the_server_refuses_for_good() -> None:
    failures: list[object] = []

    async def note(failure: object) -> None:
        failures.append(failure)

    program = Program("one")
    program.client.on_failure = note
    program.start()
    program.latest.refuse(401)
    assert [type(failure) for failure in failures] == [Refused]


def test_stopping_the_service_cancels_calls_that_have_not_ended(log: list[str]) -> None:
    waiting: Deferred[None] = Deferred()

    async def wait(message: object) -> None:
        await waiting

    program = joined(wait)
    program.client.stopService()
    assert waiting.called
    assert not [text for text in log if "failed" in text]


def test_a_call_may_stop_the_service(log: list[str]) -> None:
    async def stop(message: object) -> None:
        program.client.stopService()

    program = Program(None, on_message=stop)
    program.start()
    program.latest.welcome()
    program.latest.close(1000)
    program.clock.advance(3_600)
    assert program.requests == 1
    assert not [text for text in log if "failed" in text]


def test_calls_that_have_not_ended_have_a_bound(log: list[str]) -> None:
    calls = 0

    async def wait(message: object) -> None:
        nonlocal calls
        calls += 1
        await Deferred()

    program = joined(wait)
    for _ in range(2 * MAX_UNFINISHED):
        program.latest.send(type="offer", **{"from": "a"})
    assert calls == MAX_UNFINISHED
    assert len([text for text in log if "messages are left out" in text]) == 1


# Servers that are strangers


def test_an_endless_head_ends_the_connection() -> None:
    program = Program(None)
    program.start()
    for _ in range(1_000):
        if not program.latest.aborted:
            program.latest.write(b"X: " + b"x" * 1_000 + b"\r\n")
    assert program.latest.aborted
    assert program.latest.bytes_taken < 100_000
    program.latest.end()
    program.clock.advance(1)
    assert program.requests == 2


def test_a_head_of_some_length_is_read(log: list[str]) -> None:
    program = Program(None)
    program.start()
    program.latest.write(b"HTTP/1.1 404 No\r\n" + (b"X: " + b"x" * 1_000 + b"\r\n") * 15 + b"\r\nnot here")
    program.latest.end()
    assert str(program.failures[0]) == "HTTP 404: not here"


def test_a_message_of_endless_fragments_ends_the_connection() -> None:
    program = Program(None)
    program.start()
    program.latest.welcome()
    program.latest.write(frame(TEXT, b""))
    for _ in range(200):
        if not program.latest.aborted:
            program.latest.write(frame(0, b"") * 100)
    assert program.latest.aborted
    assert 2 * MAX_FRAGMENTS <= program.latest.bytes_taken < 3 * MAX_FRAGMENTS


def test_a_message_of_many_fragments_is_read() -> None:
    program = Program(None)
    program.start()
    program.latest.welcome()
    text = json.dumps({"type": "peer-joined", "peerId": "a"}).encode()
    program.latest.write(frame(TEXT, b"") + b"".join(frame(0, bytes([byte])) for byte in text) + frame(0x80, b""))
    assert program.messages[-1] == PeerJoined("a")
