"""A lean WebSocket server protocol on top of Autobahn's, for any application.

Autobahn parses the frames. The rest is ours, because this server faces the public: the handshake (Autobahn's own HTTP
is neither bounded nor exact), one bounded queue in front of the transport, deadlines that share a timer, and closings
that let the other end read why. All that depends on the insides of Autobahn stands here.
"""

from __future__ import annotations

from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from signaling.clock import Clock
from signaling.deadlines import Deadlines
from signaling.errors import Refused
from signaling.frames import PING, PONG, close_frame, frame
from signaling.limits import Limits
from signaling.outbound import OutboundQueue
from signaling.turns import Turns
from signaling.upgrade import check_upgrade, parse_head

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

GOING_AWAY = 1001
_PROTOCOL_ERROR = 1002
_INVALID_PAYLOAD = 1007
_END_OF_HEAD = b"\r\n\r\n"

# Autobahn takes two steps for a frame, its head and its payload. A turn of 16 frames takes some 0.3 ms.
_STEPS_PER_TURN = 32
_TURNS_PER_PASS = 4

R = TypeVar("R")


class LeanWebSocketProtocol(WebSocketServerProtocol, Generic[R]):
    """One connection: its handshake, its frames, its queue, its end.

    An application overrides ``requestReceived`` to look at the request, and ``onOpen``, ``onMessage``, ``onClose`` as
    with Autobahn; it sends with ``offer`` and ``answer``. ``R`` is the receipt that ``offer`` takes.
    """

    factory: LeanWebSocketFactory
    data: bytes
    message_data: bytearray | None

    def connectionMade(self) -> None:
        """Start the deadline of the handshake."""
        super().connectionMade()
        self.end_reason = "the connection was lost"
        self._reading_stopped = False
        self._pending_bytes = 0
        limits = self.factory.limits
        self._outbound: OutboundQueue[R] = OutboundQueue(
            self.transport.write, limits.high_water_messages, limits.high_water_bytes
        )
        _set_no_delay(self.transport)
        self.factory.connections.add(self)
        self.factory.handshakes.set(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget the connection, after ``onClose`` and ``onUndelivered`` were told."""
        self._forget_deadlines()
        self.factory.closings.clear(self)
        self.factory.connections.discard(self)
        self._abandon_queue()
        self._connectionLost(reason)
        self.factory.connection_gone()

    # The handshake

    def dataReceived(self, data: bytes) -> None:
        """Take bytes off the wire. What comes after our close frame is not looked at."""
        if self.state == self.STATE_OPEN:
            self.data += data
            # TLS delivers what it has decrypted already.
            if not self._reading_stopped:
                self.consumeData()
        elif self.state == self.STATE_CONNECTING:
            self._collect_request(data)

    def _collect_request(self, data: bytes) -> None:
        if not self.data:
            self.factory.handshakes.set(self)
        self.data += data
        end = self.data.find(_END_OF_HEAD)
        longest = self.factory.limits.max_header_bytes
        if end > longest or (end < 0 and len(self.data) > longest + len(_END_OF_HEAD)):
            self.refuse(Refused(431, f"the request line and the headers: at most {longest} bytes"))
        elif end >= 0:
            request, self.data = self.data[: end + len(_END_OF_HEAD)], self.data[end + len(_END_OF_HEAD) :]
            self.requestReceived(request)

    def requestReceived(self, request: bytes) -> None:
        """Decide on a complete request head; this class accepts every upgrade.

        Args:
            request: with its empty line. What came after it is in ``self.data``.
        """
        parsed = parse_head(request[: -len(_END_OF_HEAD)])
        try:
            if parsed is None:
                raise Refused(400, "the request is not one that opens a WebSocket connection")
            self.accept(check_upgrade(parsed[1]))
        except Refused as refused:
            self.refuse(refused)

    def accept(self, key: bytes) -> None:
        """Answer the handshake and open the connection.

        Args:
            key: the checked ``Sec-WebSocket-Key``.
        """
        self.factory.handshakes.clear(self)
        self.transport.registerProducer(self, True)
        self._wskey = key.decode()
        self.websocket_version = 13
        self.websocket_protocols: list[str] = []
        self.websocket_extensions: list[str] = []
        self.factory.pings.set(self)
        self.succeedHandshake(None)

    def refuse(self, refused: Refused) -> None:
        """Answer the request with an HTTP error and end the connection; nothing where that was done already."""
        if self.state != self.STATE_CONNECTING:
            return
        status = HTTPStatus(refused.status)
        body = f"{refused.reason}\n".encode()
        headers = {
            b"Content-Type": b"text/plain; charset=utf-8",
            b"Content-Length": b"%d" % len(body),
            b"Connection": b"close",
            **refused.headers,
        }
        lines = [b"HTTP/1.1 %d %b" % (status, status.phrase.encode())]
        lines += [b"%b: %b" % header for header in headers.items()]
        self.transport.write(b"\r\n".join(lines) + _END_OF_HEAD + body)
        self.end_reason = refused.reason
        self._half_close()

    def handshakeLate(self) -> None:
        """End a connection whose request did not come in time."""
        self.end_reason = f"no complete request within {self.factory.limits.handshake_timeout_seconds:g} s"
        self._full_close()

    # Reading

    def consumeData(self) -> None:
        """Process what was read, for one turn, as long as there is room for its answers."""
        for _ in range(_STEPS_PER_TURN):
            if self.state != self.STATE_OPEN or self._outbound.overfull:
                break
            if not self.processData():
                return self._resume_reading()
        if self.state != self.STATE_OPEN:
            self.data = b""
            return None
        self._stop_reading()
        if not self._outbound.overfull:
            self.factory.turns.add(self)
        return None

    def _stop_reading(self) -> None:
        if not self._reading_stopped:
            self._reading_stopped = True
            self.transport.pauseProducing()

    def _resume_reading(self) -> None:
        if self._reading_stopped:
            self._reading_stopped = False
            self.transport.resumeProducing()

    def onMessageBegin(self, isBinary: bool) -> None:
        """Start a message; Autobahn would keep its pieces apart, at fifty bytes for each."""
        self.message_is_binary = isBinary
        self.message_data = bytearray()
        self.message_data_total_length = 0

    def onMessageFrameData(self, payload: bytes) -> None:
        """Keep what a frame brought."""
        if self.message_data is not None and not self.failedByMe:
            self.message_data += payload

    def onMessageFrameEnd(self) -> None:
        """Need nothing: the frame's data is in the message."""

    def onMessageEnd(self) -> None:
        """Hand a whole message over, without the event that Autobahn fires besides."""
        message, self.message_data = self.message_data, None
        if message is not None and not self.failedByMe:
            self.onMessage(bytes(message), self.message_is_binary)

    def onPing(self, payload: bytes) -> None:
        """Answer a ping in its turn; Autobahn would write past the queue."""
        self.answer(frame(PONG, payload))

    def onPong(self, payload: bytes) -> None:
        """Take any pong as a sign of life."""
        self.factory.pongs.clear(self)

    # Writing

    def offer(self, frame: bytes, receipt: R | None = None) -> bool:
        """Write or queue ``frame``; False where the queue is full or the connection is not open."""
        return self.state == self.STATE_OPEN and self._outbound.offer(frame, receipt)

    def answer(self, frame: bytes) -> None:
        """Write or queue ``frame``, however full the queue is; nothing where the connection is not open."""
        if self.state == self.STATE_OPEN:
            self._outbound.answer(frame)

    @property
    def waiting(self) -> int:
        """How many offers with a receipt wait for the transport."""
        return self._outbound.receipts

    def pauseProducing(self) -> None:
        """Hear from the transport that it takes nothing for the moment."""
        self._outbound.block()
        self._pending_bytes = _pending_bytes(self.transport)
        self.factory.stalls.set(self)
        # The ping may be stuck behind what waits: until the transport takes data again, only the write timeout counts.
        self.factory.pongs.clear(self)

    def resumeProducing(self) -> None:
        """Hear from the transport that it takes data again."""
        self.factory.stalls.clear(self)
        self._outbound.unblock()
        if self._reading_stopped and not self._outbound.overfull:
            self.consumeData()

    def stopProducing(self) -> None:
        """Hear from the transport that it is gone; ``connectionLost`` follows."""

    def stalled(self) -> None:
        """Cut the connection off, if its transport took nothing at all for the whole write timeout."""
        pending = _pending_bytes(self.transport)
        if pending < self._pending_bytes:
            self._pending_bytes = pending
            self.factory.stalls.set(self)
        else:
            self.cut(f"it took nothing for {self.factory.limits.write_timeout_seconds:g} s")

    def ping(self) -> None:
        """Ask for a sign of life, and for the next time to ask."""
        self.factory.pings.set(self)
        if not self._outbound.blocked:
            self._outbound.answer(frame(PING, b""))
            self.factory.pongs.set_once(self)

    def pongLate(self) -> None:
        """Cut the connection off, because it gave no sign of life."""
        self.cut(f"no pong within {self.factory.limits.ping_timeout_seconds:g} s")

    # The end

    def close(self, code: int, reason: str) -> None:
        """Send a close frame and end the connection.

        The other end can read why, also where it is in the middle of sending: we close our half, and read on without
        looking until it closes its own or the close timeout is over. A full close with unread bytes would reset the
        connection and could take the close frame with it.

        Args:
            code: RFC 6455, section 7.4.
            reason: for a person; cut to what a control frame holds.
        """
        if self.state != self.STATE_OPEN:
            return
        self.transport.write(close_frame(code, reason))
        self.end_reason = f"closed with {code}: {reason}"
        self._half_close()

    def cut(self, reason: str) -> None:
        """End the connection at once, without a word to an end that does not listen."""
        self.end_reason = f"cut off: {reason}"
        self.state = self.STATE_CLOSING
        self._forget_deadlines()
        self._abandon_queue()
        self.transport.abortConnection()

    def goAway(self) -> None:
        """End the connection because the server stops."""
        if self.state == self.STATE_OPEN:
            self.close(GOING_AWAY, "the server is stopping")
        elif self.state == self.STATE_CONNECTING:
            self._full_close()

    def closeLate(self) -> None:
        """Abort a connection that did not end in time."""
        self.transport.abortConnection()

    def onUndelivered(self, receipts: list[R]) -> None:
        """Hear of what was queued and will not be written, oldest first; for an application to override."""

    def _half_close(self) -> None:
        self._start_closing()
        # TLS has no half of a connection to close; its own closing alert waits for the other end's.
        if ISSLTransport.providedBy(self.transport):
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()

    def _full_close(self) -> None:
        self._start_closing()
        self.transport.loseConnection()

    def _start_closing(self) -> None:
        self.state = self.STATE_CLOSING
        self.data = b""
        self._forget_deadlines()
        self.factory.closings.set(self)
        # A transport with a producer never closes; one that is not read never notices that the other end did.
        self.transport.unregisterProducer()
        self._resume_reading()
        self._abandon_queue()

    def _abandon_queue(self) -> None:
        receipts = self._outbound.abandon()
        if receipts:
            self.onUndelivered(receipts)

    def _forget_deadlines(self) -> None:
        factory = self.factory
        for deadlines in (factory.handshakes, factory.pings, factory.pongs, factory.stalls):
            deadlines.clear(self)
        factory.turns.remove(self)

    # Autobahn's own ways to an end, led to ours

    def dropConnection(self, abort: bool = False) -> None:
        """End the connection after the other end's close frame was answered."""
        self.end_reason = f"closed by the peer with {self.remoteCloseCode or 'no code'}"
        self._full_close()

    def _fail_connection(self, code: int = GOING_AWAY, reason: str = "") -> None:
        self.failedByMe = True
        self.close(code, reason)

    def _protocol_violation(self, reason: str) -> bool:
        self._fail_connection(_PROTOCOL_ERROR, reason)
        return True

    def _invalid_payload(self, reason: str) -> bool:
        self._fail_connection(_INVALID_PAYLOAD, reason)
        return True


class LeanWebSocketFactory(WebSocketServerFactory):
    """What the connections of one server share: their bounds and their deadlines.

    Args:
        limits: the bounds.
        reactor: tells the time.
    """

    protocol: Any = LeanWebSocketProtocol
    noisy = False

    def __init__(self, limits: Limits, reactor: IReactorTime) -> None:
        super().__init__(server="", reactor=reactor)
        self.setProtocolOptions(
            failByDrop=False,
            echoCloseCodeReason=True,
            maxFramePayloadSize=limits.max_message_bytes,
            maxMessagePayloadSize=limits.max_message_bytes,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
        )
        self.limits = limits
        self.connections: set[LeanWebSocketProtocol[Any]] = set()
        clock: Clock = reactor
        self.handshakes: Deadlines[Any] = Deadlines(
            clock, limits.handshake_timeout_seconds, lambda connection: connection.handshakeLate()
        )
        self.pings: Deadlines[Any] = Deadlines(
            clock, limits.ping_interval_seconds, lambda connection: connection.ping()
        )
        self.pongs: Deadlines[Any] = Deadlines(
            clock, limits.ping_timeout_seconds, lambda connection: connection.pongLate()
        )
        self.stalls: Deadlines[Any] = Deadlines(
            clock, limits.write_timeout_seconds, lambda connection: connection.stalled()
        )
        self.closings: Deadlines[Any] = Deadlines(
            clock, limits.close_timeout_seconds, lambda connection: connection.closeLate()
        )

        self.turns: Turns[Any] = Turns(clock, _TURNS_PER_PASS, lambda connection: connection.consumeData())

    def connection_gone(self) -> None:
        """Hear that a connection ended; for an application to override."""


def _set_no_delay(transport: Any) -> None:
    # A UNIX socket has no such option, and delays nothing.
    with suppress(AttributeError, OSError):
        transport.setTcpNoDelay(True)


def _pending_bytes(transport: Any) -> int:
    """Return what the transport holds in its own buffer, through the wrappers of TLS and the PROXY protocol.

    Twisted does not publish it. A transport that keeps it elsewhere seems never to progress: it has the write timeout
    for all that it holds.
    """
    while not hasattr(transport, "dataBuffer"):
        transport = getattr(transport, "transport", None)
        if transport is None:
            return 0
    return int(len(transport.dataBuffer) - transport.offset + transport._tempDataLen)
