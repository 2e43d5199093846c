"""A lean WebSocket server protocol on top of Autobahn's, for any application.

What nearly every frame is, a whole text message or a control frame, is read here on a fast path; the rest, and what
control frames mean, is left to Autobahn's state machine.
The handshake is ours (Autobahn's own HTTP is neither bounded nor exact), and so are the bounded queue in front of the
transport, deadlines that share a timer, and closings that let the other end read why.

If ``SIGNALING_FAST_PATH=off`` is set, or if the installed Autobahn is not as expected, all frames are left to it.
"""

from __future__ import annotations

import os
from base64 import b64encode
from contextlib import suppress
from hashlib import sha1
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from autobahn.twisted.websocket import WebSocketServerFactory
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from signaling.errors import LeaveReason, Refused
from signaling.limits import Limits
from signaling.timing.clock import Clock
from signaling.timing.fair_scheduler import FairScheduler
from signaling.timing.timeouts import Timeouts
from signaling.transport.private_api import FITS, AutobahnProtocol, DirectWrites, pending_bytes, with_initial_state
from signaling.websocket.frames import CLOSE, INCOMPLETE, PING, PONG, TEXT, Frame, close_frame, frame, masked_frame_at
from signaling.websocket.handshake import check_upgrade
from signaling.websocket.outbound_queue import OutboundQueue
from signaling.websocket.read_pause import ReadPause
from signaling.websocket.request_head import Head, take_head

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

GOING_AWAY = 1001
_END_OF_HEAD = b"\r\n\r\n"
_ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\n%b\r\n"
)
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_log = Logger()

_FRAMES_PER_TURN = 16
# Autobahn takes two steps for a frame, its head and its payload.
_STEPS_PER_TURN = 2 * _FRAMES_PER_TURN
_PIECE = 4_096
_TURNS_PER_PASS = 4

R = TypeVar("R")


class LeanWebSocketProtocol(AutobahnProtocol, DirectWrites, Generic[R]):
    """One connection: its handshake, its frames, its queue, its end.

    An application overrides ``requestReceived`` to look at the request, and ``onOpen``, ``onMessage``, ``onClose`` as
    with Autobahn; it sends with ``offer`` and ``answer``. ``R`` is the receipt that ``offer`` takes.

    Attributes:
        fast: whether the fast path is taken.
        end_reason: why the connection ended, for a log.
        ending: the same, for a counter.
        said_goodbye: whether either end sent a close frame.
        subprotocol: that the handshake answers; empty for none.
    """

    fast: ClassVar[bool] = FITS["frames"] and os.environ.get("SIGNALING_FAST_PATH", "on") != "off"
    factory: LeanWebSocketFactory
    end_reason = "the connection was lost"
    ending = LeaveReason.CONNECTION_LOST
    said_goodbye = False
    subprotocol = b""
    _read_pauses = 0
    _pongs_due = 0
    _buffered_bytes = 0
    _taken_bytes = 0
    _key = b""
    _queue: OutboundQueue[R] | None = None
    _corked: list[bytes] | None = None

    def __init__(self) -> None:
        if not self.fast:
            super().__init__()

    def connectionMade(self) -> None:
        """Start the deadline of the handshake."""
        if not self.fast:
            super().connectionMade()
        else:
            self.use_socket()
        _set_no_delay(self.transport)
        self.factory.connection_made(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget the connection, after ``onUndelivered`` and ``onClose`` were told."""
        self.state = self.STATE_CLOSED
        self._forget_deadlines()
        self.factory.closings.clear(self)
        self.factory.connections.discard(self)
        self._abandon_queue()
        self.forget_socket()
        self.onClose(self.wasClean, self.remoteCloseCode, self.remoteCloseReason)
        if not self.factory.connections:
            self.factory.rest()

    # The handshake

    def dataReceived(self, data: bytes) -> None:
        """Take bytes off the wire. What comes after our close frame is not looked at."""
        if self.state == self.STATE_OPEN:
            self.data = self.data + data if self.data else data
            # TLS delivers what it has decrypted already.
            if not self._read_pauses:
                self.consumeData()
        elif self.state == self.STATE_CONNECTING:
            if self._read_pauses:
                self.data += data
            else:
                self._collect_request(data)

    def _collect_request(self, data: bytes) -> None:
        searched, self.data = len(self.data), self.data + data
        try:
            taken = take_head(self.data, searched, self.factory.limits.max_header_bytes)
        except Refused as refused:
            self.refuse(refused)
            return
        if taken is not None:
            head, self.data = taken
            self.requestReceived(head)
        elif not searched:
            self.factory.handshakes.set(self)

    def requestReceived(self, head: Head) -> None:
        """Decide on a complete request head; this class accepts every upgrade.

        Args:
            head: what came after it is in ``self.data``.
        """
        try:
            if not head.may_upgrade:
                raise Refused(400, "a WebSocket connection is opened by GET over HTTP/1.1")
            self.accept(check_upgrade(head.values))
        except Refused as refused:
            self.refuse(refused)

    def accept(self, key: bytes) -> None:
        """Answer the handshake and open the connection.

        Args:
            key: the checked ``Sec-WebSocket-Key``.
        """
        self.factory.handshakes.clear(self)
        self.transport.registerProducer(self, True)
        self.factory.pings.set(self)
        self.state = self.STATE_OPEN
        self.factory.cork()
        try:
            chosen = b"Sec-WebSocket-Protocol: %b\r\n" % self.subprotocol if self.subprotocol else b""
            self._put(_ACCEPTED % (b64encode(sha1(key + _MAGIC).digest()), chosen))
            self.onOpen()
        finally:
            self.factory.uncork()
        if self._read_pauses:
            self.resume_reading(ReadPause.HANDSHAKE)
        elif self.data:
            self.consumeData()

    def acceptInTurn(self, key: bytes) -> None:
        """Answer the handshake when it is this connection's turn, for an application whose ``onOpen`` takes long.

        Args:
            key: the checked ``Sec-WebSocket-Key``.
        """
        self._key = key
        self.pause_reading(ReadPause.HANDSHAKE)
        self.factory.turns.add(self)

    def takeTurn(self) -> None:
        """Do what waited for this connection's turn."""
        try:
            self.goOn()
        except Exception:
            # A transport would do the same with what its protocol raises.
            _log.failure("an error in the turn of a connection")
            self.cut("an error in its turn")

    def goOn(self) -> None:
        """Go on with what waited."""
        if self.state == self.STATE_CONNECTING:
            self.accept(self._key)
        elif self._read_pauses == ReadPause.TURN:
            self.consumeData()
        else:
            self._read_pauses &= ~ReadPause.TURN

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
        self.endGently()

    def handshakeLate(self) -> None:
        """End a connection whose request did not come in time."""
        self.end_reason = f"no complete request within {self.factory.limits.handshake_timeout_seconds:g} s"
        self._full_close()

    # Reading

    def pause_reading(self, reason: ReadPause) -> None:
        """Stop reading until ``resume_reading`` was called for ``reason``, and for every other one.

        Nothing happens once the connection is closing: the other end's close would go unnoticed.
        """
        if self.state not in (self.STATE_CONNECTING, self.STATE_OPEN):
            return
        if not self._read_pauses:
            self.transport.pauseProducing()
        self._read_pauses |= reason

    def resume_reading(self, reason: ReadPause) -> None:
        """Remove a reason not to read; after the last one, handle what was read before, in turn, and read on."""
        if not self._read_pauses & reason:
            return
        self._read_pauses &= ~reason
        if self._read_pauses:
            return
        if self.data and self.state == self.STATE_OPEN:
            self._read_pauses = ReadPause.TURN
            self.factory.turns.add(self)
        else:
            self.transport.resumeProducing()

    def consumeData(self) -> None:
        """Process what was read, for one turn, or until there is a reason to pause."""
        more: bool | None = None
        if self.fast and self.current_frame is None and not self.inside_message:
            more = self._read_whole_frames()
        if more is None:
            more = self._read_frames()
        if self.state != self.STATE_OPEN:
            self.data = b""
        elif self._read_pauses > ReadPause.TURN:
            self._read_pauses &= ~ReadPause.TURN
        elif more:
            self.pause_reading(ReadPause.TURN)
            self.factory.turns.add(self)
        elif self._read_pauses:
            self._read_pauses = 0
            self.transport.resumeProducing()

    def _read_whole_frames(self) -> bool | None:
        """Handle the whole text messages and control frames in front of what was read.

        Returns:
            Whether there is more to do in another turn; None where Autobahn has to go on.
        """
        data = self.data
        found = masked_frame_at(data, 0, self.maxMessagePayloadSize)
        if found is None or found is INCOMPLETE:
            return None
        self.data = b""
        opcode, payload, end = found
        if end == len(data):
            self._take_frame(opcode, payload)
            return False
        self.factory.cork()
        try:
            return self._read_burst(data, found)
        finally:
            self.factory.uncork()

    def _read_burst(self, data: bytes, found: Frame) -> bool | None:
        upcoming: Frame | None = found
        for _ in range(_FRAMES_PER_TURN):
            if upcoming is None or upcoming is INCOMPLETE or self._read_pauses > ReadPause.TURN:
                break
            opcode, payload, end = upcoming
            self._take_frame(opcode, payload)
            if self.state != self.STATE_OPEN:
                return False
            upcoming = masked_frame_at(data, end, self.maxMessagePayloadSize)
        self.data = data[end:]
        if self.data and (upcoming is None or upcoming is INCOMPLETE):
            return None
        return bool(self.data)

    def _take_frame(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            self.onMessage(payload, False)
            return
        self.handle_control_frame(opcode, payload)

    def _read_frames(self) -> bool:
        """Let Autobahn handle what was read; returns whether there is more to do in another turn."""
        # Autobahn copies all that it has with each step.
        data, at = self.data, _PIECE
        self.data = data[:at]
        for _ in range(_STEPS_PER_TURN):
            if self.state != self.STATE_OPEN or self._read_pauses > ReadPause.TURN:
                break
            if not self.processData():
                if at >= len(data):
                    return False
                self.data += data[at : at + _PIECE]
                at += _PIECE
        self.data += data[at:]
        return True

    def onPing(self, payload: bytes) -> None:
        """Answer a ping in its turn; Autobahn would write past the queue."""
        self.onOverhead()
        self.answer(frame(PONG, payload))

    def onPong(self, payload: bytes) -> None:
        """Take any pong as a sign of life."""
        if self._pongs_due:
            self._pongs_due -= 1
        else:
            self.onOverhead()
        due = self.factory.pongs.clear(self)
        if due is not None:
            factory = self.factory
            self.onRoundTrip(factory.reactor.seconds() - due + factory.limits.ping_timeout_seconds)

    # Writing

    def offer(self, frame: bytes, receipt: R | None = None) -> bool:
        """Write or queue ``frame``; False where the queue is full or the connection is not open."""
        if self.state != self.STATE_OPEN:
            return False
        if self._queue is not None:
            taken = self._queue.offer(frame, receipt)
            if not taken:
                self.onQueueFull(len(self._queue))
            return taken
        self._put(frame)
        return True

    def answer(self, frame: bytes) -> None:
        """Write or queue ``frame``, however full the queue is; nothing where the connection is not open."""
        if self.state != self.STATE_OPEN:
            return
        if self._queue is not None:
            self._queue.answer(frame)
            if self._queue.overfull:
                self.pause_reading(ReadPause.QUEUE_FULL)
        else:
            self._put(frame)

    def _put(self, frame: bytes) -> None:
        corked = self.factory.corked
        if corked is None:
            self.write_now(frame)
        elif self._corked is None:
            self._corked = [frame]
            corked.append(self)
        else:
            self._corked.append(frame)

    def uncork(self) -> None:
        """Write in one piece what came out of one burst."""
        frames, self._corked = self._corked, None
        if frames:
            self.write_now(b"".join(frames))

    def write_to_transport(self, data: bytes) -> None:
        """Write to the transport, with a write timeout."""
        waited = self.pending_bytes
        self._buffered_bytes += len(data)
        super().write_to_transport(data)
        if not waited and self.state == self.STATE_OPEN:
            self._watch_progress()

    def _watch_progress(self) -> None:
        """Start the write timeout."""
        self._taken_bytes = self._buffered_bytes - self.pending_bytes
        self.factory.stalls.set(self)

    @property
    def pending_bytes(self) -> int:
        """What the transport holds and the other end has not taken."""
        return pending_bytes(self.transport)

    @property
    def blocked(self) -> bool:
        """Whether what is offered has to wait."""
        return self._queue is not None and self._queue.blocked

    @property
    def waiting(self) -> int:
        """How many offers with a receipt wait for the transport."""
        return self._queue.receipts if self._queue is not None else 0

    def pauseProducing(self) -> None:
        """Hear from the transport that it takes nothing for the moment."""
        if self._queue is None:
            limits = self.factory.limits
            self._queue = OutboundQueue(
                self.write_now, self.onWritten, limits.high_water_messages, limits.high_water_bytes
            )
        self._queue.block()
        self._watch_progress()
        # The ping may be stuck behind what waits: until the transport takes data again, only the write timeout counts.
        self.factory.pongs.clear(self)

    def resumeProducing(self) -> None:
        """Hear from the transport that it takes data again."""
        self.factory.stalls.clear(self)
        if self._queue is not None:
            self._queue.unblock()
            if not self._queue.blocked:
                self._queue = None
        if self._read_pauses and not (self._queue is not None and self._queue.overfull):
            self.resume_reading(ReadPause.QUEUE_FULL)

    def stopProducing(self) -> None:
        """Hear from the transport that it is gone; ``connectionLost`` follows."""

    def stalled(self) -> None:
        """Cut the connection off, if its transport took nothing at all for the whole write timeout."""
        pending = self.pending_bytes
        if not pending:
            return
        if self._buffered_bytes - pending > self._taken_bytes:
            self._watch_progress()
        else:
            self.ending = LeaveReason.WRITE_TIMEOUT
            self.cut(f"it took nothing for {self.factory.limits.write_timeout_seconds:g} s")

    def ping(self) -> None:
        """Ask for a sign of life, and for the next time to ask."""
        self.factory.pings.set(self)
        if self._queue is None:
            self.sendPing(self.pingMark())
            self.factory.pongs.set_once(self)

    def sendPing(self, mark: bytes) -> None:
        """Send a ping; its pong is no overhead.

        Args:
            mark: what the pong returns.
        """
        self._pongs_due += 1
        self.answer(frame(PING, mark))

    def pingMark(self) -> bytes:
        """Tell what a ping carries and its pong returns; for an application to override."""
        return b""

    def pongLate(self) -> None:
        """Cut the connection off, because it gave no sign of life."""
        self.ending = LeaveReason.PING_TIMEOUT
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
        self.uncork()
        self.write_now(close_frame(code, reason))
        self.said_goodbye = True
        self.ending = LeaveReason.CLOSED_BY_SERVER
        self.end_reason = f"closed with {code}: {reason}"
        self.endGently()

    def cut(self, reason: str) -> None:
        """End the connection at once, without a word to an end that does not listen."""
        self.end_reason = f"cut off: {reason}"
        self.state = self.STATE_CLOSING
        self._forget_deadlines()
        self._abandon_queue()
        self.transport.abortConnection()

    def goAway(self, code: int = GOING_AWAY) -> None:
        """End the connection because the server stops."""
        if self.state == self.STATE_OPEN:
            self.close(code, "the server is stopping")
            self.ending = LeaveReason.SHUTDOWN
        elif self.state == self.STATE_CONNECTING:
            self._full_close()

    def closeLate(self) -> None:
        """Abort a connection that did not end in time."""
        self.transport.abortConnection()

    def onQueueFull(self, depth: int) -> None:
        """Hear that the queue refused a frame; for an application to override.

        Args:
            depth: how many wait.
        """

    def onOverhead(self) -> None:
        """Hear of a frame besides whole messages and pongs that were asked for; for an application to override."""

    def onRoundTrip(self, seconds: float) -> None:
        """Hear how long a ping and its pong took; for an application to override."""

    def onWritten(self, receipt: R) -> None:
        """Hear that what had to wait was written; for an application to override."""

    def onUndelivered(self, receipts: list[R]) -> None:
        """Hear of what was queued and will not be written, oldest first; for an application to override."""

    def endGently(self) -> None:
        """End the connection so that the other end can read all that was written, within the close timeout."""
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
        if self._read_pauses:
            self._read_pauses = 0
            self.transport.resumeProducing()
        self._abandon_queue()

    def takeUndelivered(self) -> list[R]:
        """Empty the queue; returns the receipts of what will not be written, oldest first."""
        queue, self._queue = self._queue, None
        return queue.abandon() if queue is not None else []

    def _abandon_queue(self) -> None:
        receipts = self.takeUndelivered()
        if receipts:
            self.onUndelivered(receipts)

    def _forget_deadlines(self) -> None:
        factory = self.factory
        for deadlines in (factory.handshakes, factory.pings, factory.pongs, factory.stalls):
            deadlines.clear(self)
        factory.turns.remove(self)

    # Autobahn's own ways to an end, led to ours

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        """Answer the other end's close frame, behind what was written before."""
        self.uncork()
        self.write_now(frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + (reasonUtf8 or b"")))
        self.state = self.STATE_CLOSING
        self.said_goodbye = True

    def dropConnection(self, abort: bool = False) -> None:
        """End the connection after the other end's close frame was answered."""
        self.ending = LeaveReason.CLOSED
        self.end_reason = f"closed by the peer with {self.remoteCloseCode or 'no code'}"
        self._full_close()


class LeanWebSocketFactory(WebSocketServerFactory):
    """What the connections of one server share: their bounds and their deadlines.

    Args:
        limits: the bounds.
        reactor: tells the time.
    """

    protocol: Any = LeanWebSocketProtocol
    noisy = False
    corked: list[LeanWebSocketProtocol[Any]] | None = None
    _prepared_from: Any = None
    _prepared: Any = None

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
        self.handshakes: Timeouts[Any] = Timeouts(
            clock, limits.handshake_timeout_seconds, lambda connection: connection.handshakeLate()
        )
        self.pings: Timeouts[Any] = Timeouts(clock, limits.ping_interval_seconds, lambda connection: connection.ping())
        self.pongs: Timeouts[Any] = Timeouts(
            clock, limits.ping_timeout_seconds, lambda connection: connection.pongLate()
        )
        self.stalls: Timeouts[Any] = Timeouts(
            clock, limits.write_timeout_seconds, lambda connection: connection.stalled()
        )
        self.closings: Timeouts[Any] = Timeouts(
            clock, limits.close_timeout_seconds, lambda connection: connection.closeLate()
        )

        self.turns: FairScheduler[Any] = FairScheduler(clock, _TURNS_PER_PASS, lambda connection: connection.takeTurn())

    def buildProtocol(self, addr: Any) -> Any:
        """Make a connection of the class ``protocol``, with Autobahn's initial state in the class."""
        if self.protocol is not self._prepared_from:
            self._prepared_from = self.protocol
            self._prepared = with_initial_state(self.protocol, self) if self.protocol.fast else self.protocol
        connection = self._prepared()
        connection.factory = self
        return connection

    def connection_made(self, connection: Any) -> None:
        """Take a new connection, and start its handshake timeout."""
        self.connections.add(connection)
        self.handshakes.set(connection)

    def rest(self) -> None:
        """Leave no timer behind when the last connection is gone; an application's tests would find a dirty reactor."""
        for deadlines in (self.handshakes, self.pings, self.pongs, self.stalls, self.closings):
            deadlines.rest()

    def cork(self) -> None:
        """Hold back what is written until ``uncork``: a burst to one peer leaves in one piece."""
        self.corked = []

    def uncork(self) -> None:
        """Write what was held back."""
        held, self.corked = self.corked or [], None
        for connection in held:
            connection.uncork()


def _set_no_delay(transport: Any) -> None:
    # A UNIX socket has no such option, and delays nothing.
    with suppress(AttributeError, OSError):
        transport.setTcpNoDelay(True)
