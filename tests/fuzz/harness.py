"""A server that lives as long as the process, a observer in it, and one stranger after another who says anything.

Leaner than the world of ``tests.integration``, for thousands of strangers in a second. Time stands still, ids repeat
and a transport takes everything at once, so that two strangers who say the same are answered the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IPushProducer, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from signaling import SignalingFactory
from signaling.server.protocol import SignalingProtocol
from signaling.timing.timeouts import Timeouts
from tests.fuzz import model

TOPIC = "room"
OBSERVER_ID, STRANGER_ID = f"{1:026}", f"{2:026}"
UPGRADE = (
    b"GET /ws/room HTTP/1.1\r\nHost: server\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

_ADDRESS = IPv4Address("TCP", "192.0.2.1", 40_000)
_DATE = re.compile(rb"\r\nDate: [^\r]*")
_JOINED = b'{"type":"peer-joined","peerId":"%b"}' % STRANGER_ID.encode()
_LEFT = b'{"type":"peer-left","peerId":"%b"}' % STRANGER_ID.encode()
_BETWEEN_PEERS = {
    '"peer-joined"': ({"type", "peerId"}, {"metadata"}),
    '"peer-left"': ({"type", "peerId"}, set()),
    **{f'"{kind}"': ({"type", "from"}, {"payload", "msgId"}) for kind in ("offer", "answer", "ice-candidate")},
}


class Find(AssertionError):
    """A property does not hold."""


def expect(holds: bool, what: str, seen: object = "") -> None:
    """Raise a find where a property does not hold."""
    if not holds:
        raise Find(f"{what}: {seen!r}" if seen else what)


@dataclass(frozen=True)
class Seen:
    """What a stranger and the observer could see of one connection.

    Args:
        answer: all bytes that the stranger got.
        ending: how the server ended the connection, empty where it did not.
        heard: all bytes that the observer got.
    """

    answer: bytes
    ending: str
    heard: bytes


@implementer(ITCPTransport, IPushProducer)
class Transport:
    """The server's end of a connection.

    Args:
        stalls: whether it pushes back after each write, until ``take``.
    """

    dataBuffer = b""
    offset = _tempDataLen = 0

    def __init__(self, stalls: bool = False) -> None:
        self.written = b""
        self.reading = True
        self.ending = ""
        self._stalls = stalls
        self._paused = False
        self._producer: Any = None

    @property
    def disconnecting(self) -> bool:
        """Whether nothing more is read: both halves are closed."""
        return self.ending in ("closed", "aborted")

    def take(self) -> bool:
        """Take what was pushed back; returns whether there was anything."""
        if not self._paused:
            return False
        self._paused = False
        self._producer.resumeProducing()
        return True

    def write(self, data: bytes) -> None:
        if self.ending or not data:
            return
        self.written += data
        if self._stalls and self._producer is not None and not self._paused:
            self._paused = True
            self._producer.pauseProducing()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        expect(self._producer is None, "a second producer")
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer, self._paused = None, False

    def loseConnection(self) -> None:
        self.ending = "closed"

    def loseWriteConnection(self) -> None:
        self.ending = self.ending or "half closed"

    def abortConnection(self) -> None:
        self.ending = "aborted"

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def stopProducing(self) -> None:
        self.loseConnection()

    def setTcpNoDelay(self, enabled: bool) -> None: ...

    def getTcpNoDelay(self) -> bool:
        return True

    def setTcpKeepAlive(self, enabled: bool) -> None: ...

    def getTcpKeepAlive(self) -> bool:
        return False

    def getPeer(self) -> IPv4Address:
        return _ADDRESS

    def getHost(self) -> IPv4Address:
        return _ADDRESS


class _Ids:
    """Gives the first peer the observer's id, and every later one the stranger's: there is one at a time."""

    def __init__(self) -> None:
        self._next = OBSERVER_ID

    def next(self) -> str:
        given, self._next = self._next, STRANGER_ID
        return given


class _LeftToAutobahn(SignalingProtocol):
    fast = False


class FuzzHarness:
    """One server with a observer who is in the topic ``room``.

    Args:
        fast: whether the server may take its fast path; otherwise Autobahn reads every frame.
        talks: whether the server logs all that it can, which takes half of its time.
    """

    def __init__(self, fast: bool = True, talks: bool = True) -> None:
        self._clock = Clock()
        # Every way in that an operator can open has something to read in a request.
        self._factory = SignalingFactory(
            allow_origins=["https://example.org", "https://*.example.com", "null"],
            trusted_proxies=["192.0.2.0/24"],
            reactor=self._clock,  # type: ignore[arg-type]
            log_level=LogLevel.debug if talks else LogLevel.warn,
        )
        if not fast:
            self._factory.protocol = _LeftToAutobahn
        self._factory.ids = _Ids()  # type: ignore[assignment]
        self._logged: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self._logged.append)
        # Autobahn pretty-prints its options for a debug log that nobody reads: half the time of a connection.
        self._plain = mock.patch("autobahn.websocket.protocol.pformat", str)
        self._plain.start()
        self._transport = Transport()
        self._witness = self._connected(self._transport)
        self._witness.dataReceived(UPGRADE)
        self._echo(b"first")

    def close(self) -> None:
        """Stop looking at the log."""
        globalLogPublisher.removeObserver(self._logged.append)
        self._plain.stop()

    def meet(self, pieces: Sequence[bytes], *, stalls: bool = False, careful: bool = True) -> Seen:
        """Let a stranger connect, say ``pieces``, and hang up; checks that nobody else is worse off for it.

        Args:
            stalls: whether the stranger takes answers only after each piece.
            careful: whether the observer relays afterwards, and each log event is formatted, as an observer would.
        """
        self._logged.clear()
        self._transport.written = b""
        transport = Transport(stalls)
        stranger = self._connected(transport)
        for piece in pieces:
            stranger.dataReceived(piece)
            self._settle(transport)
            if transport.disconnecting:
                break
        ending = transport.ending
        answer = transport.written
        stranger.connectionLost(connectionDone)
        self._settle(transport)
        expect(transport.written == answer, "written after the end", transport.written)
        heard = self._transport.written
        _check_heard(heard)
        self._check_rest()
        if careful:
            self._echo(b"again")
        self._check_log(formats=careful)
        return Seen(_DATE.sub(b"\r\nDate: then", answer), ending, heard)

    def _connected(self, transport: Transport) -> Any:
        protocol = self._factory.buildProtocol(_ADDRESS)
        protocol.makeConnection(transport)
        return protocol

    def _settle(self, transport: Transport) -> None:
        """Let everything happen that happens without time."""
        while True:
            self._clock.advance(0)
            if not transport.take():
                break
        expect(transport.reading or bool(transport.ending), "not read any more")

    def _echo(self, msg_id: bytes) -> None:
        """Let the observer send itself a message, and get it."""
        self._transport.written = b""
        text = b'{"type":"offer","to":"%b","msgId":"%b"}' % (OBSERVER_ID.encode(), msg_id)
        self._witness.dataReceived(masked(0x81, text))
        self._clock.advance(0)
        echo = b'{"type":"offer","from":"%b","msgId":"%b"}' % (OBSERVER_ID.encode(), msg_id)
        got = server_messages(self._transport.written.rpartition(b"\r\n\r\n")[2])
        expect(got[-1:] == [echo], "the observer cannot relay", got)

    def _check_rest(self) -> None:
        factory = self._factory
        expect(factory.connections == {self._witness}, "a connection is left")
        expect([topic.name for topic in factory.topics] == [TOPIC], "a topic is left")
        # Those of the shared deadlines stay, one for each kind, until they find nothing.
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


def masked(first: int, payload: bytes) -> bytes:
    """Frame what a client says, under a mask of zeros.

    Args:
        first: the frame's first byte.
    """
    size = len(payload)
    if size < 126:
        return bytes([first, 0x80 | size, 0, 0, 0, 0]) + payload
    if size < 65_536:
        return bytes([first, 0xFE]) + size.to_bytes(2, "big") + bytes(4) + payload
    return bytes([first, 0xFF]) + size.to_bytes(8, "big") + bytes(4) + payload


def server_frames(data: bytes) -> list[tuple[int, bytes]]:
    """Split what a server wrote into final, unmasked frames of the shortest form."""
    frames = []
    at = 0
    while at < len(data):
        size, head = data[at + 1], 2
        if size == 126:
            size, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
            expect(size > 125, "a length that is not the shortest")
        elif size == 127:
            size, head = int.from_bytes(data[at + 2 : at + 10], "big"), 10
            expect(size > 65_535, "a length that is not the shortest")
        frames.append((data[at], data[at + head : at + head + size]))
        at += head + size
    expect(at == len(data), "half a frame", data)
    return frames


def server_messages(data: bytes) -> list[bytes]:
    """Split what a server wrote into messages; there is nothing else."""
    frames = server_frames(data)
    expect(all(first == 0x81 for first, _ in frames), "not only text", data)
    return [payload for _, payload in frames]


def _check_heard(data: bytes) -> None:
    messages = server_messages(data)
    if messages not in ([], [_JOINED, _LEFT]):
        for message in messages:
            _check_between_peers(message)
        expect(messages[-1] == _LEFT, "a stranger who did not leave", data)


def _check_between_peers(message: bytes) -> None:
    members, _ = model.read_object(message.decode())
    kind = (members or {}).get("type", "")
    expect(kind in _BETWEEN_PEERS, "not for a peer", message)
    assert members is not None
    needed, optional = _BETWEEN_PEERS[kind]
    expect(needed <= members.keys() <= needed | optional, "keys", message)
    expect(members.get("from", members.get("peerId")) == f'"{STRANGER_ID}"', "not from the stranger", message)
