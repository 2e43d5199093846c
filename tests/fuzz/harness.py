"""A server that lives as long as the process, an observer in its topic, and one client after another with any input.

Leaner than the harness of ``tests.integration``, for thousands of clients in a second. Time stands still and ids
repeat, so that two clients with the same input get the same answer.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher

from signaling import SignalingFactory
from signaling.server.protocol import SignalingProtocol
from signaling.timing.timeouts import Timeouts
from tests.fuzz import model
from tests.harness.frames import masked, server_frames
from tests.harness.memory_transport import MemoryTransport

TOPIC = "room"
OBSERVER_ID, CLIENT_ID = f"{1:026}", f"{2:026}"
UPGRADE = (
    b"GET /ws/room HTTP/1.1\r\nHost: server\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

_DATE = re.compile(rb"\r\nDate: [^\r]*")
_JOINED = b'{"type":"peer-joined","peerId":"%b"}' % CLIENT_ID.encode()
_LEFT = b'{"type":"peer-left","peerId":"%b"}' % CLIENT_ID.encode()
_BETWEEN_PEERS = {
    '"peer-joined"': ({"type", "peerId"}, {"metadata"}),
    '"peer-left"': ({"type", "peerId"}, set()),
    **{f'"{kind}"': ({"type", "from"}, {"payload", "msgId"}) for kind in ("offer", "answer", "ice-candidate")},
}


class Finding(AssertionError):
    """A property does not hold."""


def expect(holds: bool, what: str, seen: object = "") -> None:
    """Raise a finding if a property does not hold."""
    if not holds:
        raise Finding(f"{what}: {seen!r}" if seen else what)


@dataclass(frozen=True)
class Seen:
    """What the client and the observer could see of one connection.

    Args:
        answer: all bytes that the client received.
        ending: how the server ended the connection, empty if it did not.
        observed: all bytes that the observer received.
    """

    answer: bytes
    ending: str
    observed: bytes


class FuzzTransport(MemoryTransport):
    """A transport whose client takes each write at once, or stalls until ``take``.

    Args:
        stalls: whether it stalls after each write.
    """

    def __init__(self, stalls: bool = False) -> None:
        super().__init__()
        self.taking = not stalls
        self.bufferSize = 0 if stalls else sys.maxsize

    @property
    def ending(self) -> str:
        """How the server ended the connection; empty if it did not."""
        if self.aborted or self.disconnecting:
            return "aborted" if self.aborted else "closed"
        return "half closed" if self.write_ended else ""

    def write(self, data: bytes) -> None:
        if not self.ending:
            super().write(data)
            if self.taking:
                self.dataBuffer = b""

    def forget(self) -> None:
        """Drop what was written so far."""
        self._log.clear()


class _Ids:
    """Gives the first peer the observer's id, and every later one the client's: there is one at a time."""

    def __init__(self) -> None:
        self._next = OBSERVER_ID

    def next(self) -> str:
        given, self._next = self._next, CLIENT_ID
        return given


class _LeftToAutobahn(SignalingProtocol):
    fast = False


class FuzzHarness:
    """One server with an observer in the topic ``room``.

    Args:
        fast: whether the server may take its fast path; otherwise Autobahn reads every frame.
        verbose: whether the server logs all that it can, which takes half of its time.
    """

    def __init__(self, fast: bool = True, verbose: bool = True) -> None:
        self._clock = Clock()
        # Every way in that an operator can open has something to read in a request.
        self._factory = SignalingFactory(
            allow_origins=["https://example.org", "https://*.example.com", "null"],
            trusted_proxies=["192.0.2.0/24"],
            reactor=self._clock,  # type: ignore[arg-type]
            log_level=LogLevel.debug if verbose else LogLevel.warn,
        )
        if not fast:
            self._factory.protocol = _LeftToAutobahn
        self._factory.ids = _Ids()  # type: ignore[assignment]
        self._logged: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self._logged.append)
        # Autobahn pretty-prints its options for a debug log that nobody reads: half the time of a connection.
        self._plain = mock.patch("autobahn.websocket.protocol.pformat", str)
        self._plain.start()
        self._transport = FuzzTransport()
        self._observer = self._connected(self._transport)
        self._observer.dataReceived(UPGRADE)
        self._echo(b"first")

    def close(self) -> None:
        """Stop watching the log."""
        globalLogPublisher.removeObserver(self._logged.append)
        self._plain.stop()

    def exchange(self, pieces: Sequence[bytes], *, stalls: bool = False, careful: bool = True) -> Seen:
        """Let a client connect, send ``pieces`` and hang up; check that nobody else is worse off for it.

        Args:
            stalls: whether the client takes answers only after each piece.
            careful: whether the observer relays afterwards, and each log event is formatted, as a log would.
        """
        self._logged.clear()
        self._transport.forget()
        transport = FuzzTransport(stalls)
        client = self._connected(transport)
        for piece in pieces:
            client.dataReceived(piece)
            self._run(transport)
            if transport.disconnecting or transport.aborted:
                break
        ending, answer = transport.ending, transport.written
        client.connectionLost(connectionDone)
        self._run(transport)
        expect(transport.written == answer, "written after the end", transport.written)
        observed = self._transport.written
        _check_observed(observed)
        self._check_nothing_left()
        if careful:
            self._echo(b"again")
        self._check_log(formats=careful)
        return Seen(_DATE.sub(b"\r\nDate: then", answer), ending, observed)

    def _connected(self, transport: FuzzTransport) -> Any:
        protocol = self._factory.buildProtocol(transport.getPeer())
        protocol.makeConnection(transport)
        return protocol

    def _run(self, transport: FuzzTransport) -> None:
        """Let everything happen that happens without time."""
        self._clock.advance(0)
        while transport.take():
            self._clock.advance(0)
        expect(transport.reading or bool(transport.ending), "not read any more")

    def _echo(self, msg_id: bytes) -> None:
        """Let the observer send itself a message, and get it."""
        self._transport.forget()
        text = b'{"type":"offer","to":"%b","msgId":"%b"}' % (OBSERVER_ID.encode(), msg_id)
        self._observer.dataReceived(masked(0x81, text))
        self._clock.advance(0)
        echo = b'{"type":"offer","from":"%b","msgId":"%b"}' % (OBSERVER_ID.encode(), msg_id)
        got = server_messages(self._transport.written.rpartition(b"\r\n\r\n")[2])
        expect(got[-1:] == [echo], "the observer cannot relay", got)

    def _check_nothing_left(self) -> None:
        factory = self._factory
        expect(factory.connections == {self._observer}, "a connection is left")
        expect([topic.name for topic in factory.topics] == [TOPIC], "a topic is left")
        # The timers of shared timeouts stay, one for each kind, until they find nothing.
        timers = [call for call in self._clock.getDelayedCalls() if not isinstance(_owner(call.func), Timeouts)]
        expect(not timers, "a timer is left", timers)

    def _check_log(self, formats: bool) -> None:
        for event in self._logged:
            expect("log_failure" not in event and event["log_level"] < LogLevel.error, "logged", event)
            if formats:
                text = formatEvent(event)
                expect(not text.lower().startswith("unable to format"), "not to be formatted", text)


def _owner(function: Any) -> Any:
    return getattr(function, "__self__", None)


def server_messages(data: bytes) -> list[bytes]:
    """Split what a server wrote into messages; there is nothing else."""
    frames = server_frames(data)
    expect(all(first == 0x81 for first, _ in frames), "not only text", data)
    return [payload for _, payload in frames]


def _check_observed(data: bytes) -> None:
    messages = server_messages(data)
    if messages not in ([], [_JOINED, _LEFT]):
        for message in messages:
            _check_between_peers(message)
        expect(messages[-1] == _LEFT, "a client that did not leave", data)


def _check_between_peers(message: bytes) -> None:
    members, _ = model.read_object(message.decode())
    kind = (members or {}).get("type", "")
    expect(kind in _BETWEEN_PEERS, "not for a peer", message)
    assert members is not None
    needed, optional = _BETWEEN_PEERS[kind]
    expect(needed <= members.keys() <= needed | optional, "keys", message)
    expect(members.get("from", members.get("peerId")) == f'"{CLIENT_ID}"', "not from the client", message)
