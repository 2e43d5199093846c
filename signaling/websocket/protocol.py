"""A WebSocket server protocol on top of Autobahn's, for any application.

The handshake is our own (Autobahn's HTTP is neither bounded nor exact), and so are a bounded queue in front of the
transport, timeouts that share a timer, and a way to close that lets the other end read the reason.
"""

from __future__ import annotations

from binascii import b2a_base64
from contextlib import suppress
from dataclasses import replace
from hashlib import sha1
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from autobahn.twisted.websocket import WebSocketServerFactory
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from signaling.errors import CloseCode, LeaveReason, Refused
from signaling.limits import Limits
from signaling.timing.clock import Clock
from signaling.timing.fair_scheduler import FairScheduler
from signaling.timing.timeouts import Timeouts
from signaling.transport.adapter import adapt
from signaling.transport.poller import Poller, can_poll
from signaling.transport.private_api import with_initial_state
from signaling.transport.tcp_connection import TcpConnection, serve
from signaling.websocket.fast_path import FrameReader
from signaling.websocket.frames import CLOSE, PING, PONG, close_frame, frame, text_at, whole_goodbye
from signaling.websocket.handshake import check_upgrade
from signaling.websocket.outbound_queue import OutboundQueue
from signaling.websocket.read_pause import ReadPause
from signaling.websocket.request_head import Head, take_head

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

_END_OF_HEAD = b"\r\n\r\n"
_ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\n%b\r\n"
)
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_log = Logger()

_TURNS_PER_PASS = 4
_OPEN = FrameReader.STATE_OPEN

R = TypeVar("R")


class WebSocketConnection(FrameReader, Generic[R]):
    """One connection: its handshake, its frames, its queue, its end.

    An application overrides ``requestReceived`` to check the request, and ``onOpen``, ``onMessage``, ``onClose`` as
    with Autobahn; it sends with ``offer`` and ``answer``. ``R`` is the type of the receipts that ``offer`` takes.

    Attributes:
        end_reason: why the connection ended, for a log.
        ending: the same, for a counter.
        close_frame_seen: whether either end sent a close frame.
        subprotocol: the one that the handshake answers; empty for none.
    """

    factory: WebSocketConnectionFactory
    end_reason = "the connection was lost"
    ending = LeaveReason.CONNECTION_LOST
    close_frame_seen = False
    subprotocol = b""
    _pongs_due = 0
    # Of the transport, when the write timeout was set.
    _progress = 0
    _key = b""
    _queue: OutboundQueue[R] | None
    _held: list[bytes] | None = None

    def __init__(self) -> None:
        if not self.fast:
            super().__init__()
        # What each message asks for: an attribute of the class would take Python several times as long.
        self._reads_directly = False
        self._queue = None

    def makeConnection(self, transport: Any) -> None:
        """Start on a transport, whatever kind it is of."""
        if not isinstance(transport, TcpConnection):
            _set_no_delay(transport)
            transport = adapt(transport, self, self.factory.poller)
        super().makeConnection(transport)

    def connectionMade(self) -> None:
        """Start the handshake timeout."""
        if not self.fast:
            super().connectionMade()
        self.factory.connection_made(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Clean up, and call ``onUndelivered`` and ``onClose``."""
        self._end(self.STATE_CLOSED)
        factory = self.factory
        factory.close_timeouts.clear(self)
        factory.connections.discard(self)
        self._abandon_queue()
        # Else they would hold each other, until a garbage collector looks for such pairs.
        self.transport.protocol = None
        self.onClose(self.wasClean, self.remoteCloseCode, self.remoteCloseReason)
        if not factory.connections:
            factory.cancel_idle_timers()

    # The handshake

    def dataReceived(self, data: bytes) -> None:
        """Handle bytes of the other end; those that come after our close frame are dropped."""
        if self._reads_directly:
            text = text_at(data, 0, self.maxMessagePayloadSize)
            if text is None:
                code = whole_goodbye(data)
                if code is not None:
                    self._answer_goodbye(code)
                    return
            elif text[1] == len(data):
                self.onMessage(text[0], False)
                return
        if self.state == _OPEN:
            self.data = self.data + data if self.data else data
            # TLS delivers what it has decrypted already.
            if not self._read_pauses:
                self.consumeData()
        elif self.state == self.STATE_CONNECTING:
            self.request_data_received(data)

    def request_data_received(self, data: bytes) -> None:
        """Collect the request, until it is complete."""
        if self._read_pauses:
            self.data += data
            return
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
            self.factory.handshake_timeouts.set(self)

    def requestReceived(self, head: Head) -> None:
        """Accept or refuse a request, whose head is complete; this class accepts every upgrade.

        Args:
            head: of the request; bytes that came behind it are in ``self.data``.
        """
        try:
            if not head.may_upgrade:
                raise Refused(400, "a WebSocket connection is opened by GET over HTTP/1.1")
            self.accept(head.key or check_upgrade(head.values))
        except Refused as refused:
            self.refuse(refused)

    def accept(self, key: bytes) -> None:
        """Answer the handshake and open the connection.

        Args:
            key: the checked ``Sec-WebSocket-Key``.
        """
        factory = self.factory
        factory.handshake_timeouts.clear(self)
        # Before it is the producer: if bytes wait, it is paused at once, and has to get its write timeout.
        self.state = _OPEN
        self.transport.registerProducer(self, True)
        factory.ping_timers.set(self)
        chosen = b"Sec-WebSocket-Protocol: %b\r\n" % self.subprotocol if self.subprotocol else b""
        # What onOpen sends is written with it, in one piece.
        holds = factory.hold_writes()
        self._hold(_ACCEPTED % (b2a_base64(sha1(key + _GUID).digest(), newline=False), chosen))
        try:
            self.onOpen()
        finally:
            if holds:
                factory.flush_writes()
        if self._read_pauses:
            self.resume_reading(ReadPause.HANDSHAKE)
        elif self.data:
            self.consumeData()
        elif self.state == _OPEN:
            self.read_directly()

    def accept_in_turn(self, key: bytes) -> None:
        """Call ``accept`` when it is this connection's turn, for an application whose ``onOpen`` takes long.

        Args:
            key: the checked ``Sec-WebSocket-Key``.
        """
        self._key = key
        self.pause_reading(ReadPause.HANDSHAKE)
        self.factory.scheduler.add(self)

    def take_turn(self) -> None:
        """Called by the scheduler when it is this connection's turn."""
        try:
            self.on_turn()
        except Exception:
            # A transport does the same with what its protocol raises.
            _log.failure("an error in the turn of a connection")
            self.abort("an error in its turn")

    def on_turn(self) -> None:
        """Continue what waited for this turn."""
        if self.state == self.STATE_CONNECTING:
            self.accept(self._key)
        else:
            self.take_read_turn()

    def refuse(self, refused: Refused) -> None:
        """Answer the request with an HTTP error and end the connection; no-op if it was answered already."""
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
        self.half_close()

    def handshake_timed_out(self) -> None:
        """End a connection whose request did not arrive in time."""
        self.end_reason = f"no complete request within {self.factory.limits.handshake_timeout_seconds:g} s"
        self._full_close()

    # Pings and pongs

    def onPing(self, payload: bytes) -> None:
        """Answer a ping behind what is queued; Autobahn would write past the queue."""
        self.onOverhead()
        self.answer(frame(PONG, payload))

    def onPong(self, payload: bytes) -> None:
        """Clear the pong timeout; any pong does."""
        if self._pongs_due:
            self._pongs_due -= 1
        else:
            self.onOverhead()
        due = self.factory.pong_timeouts.clear(self)
        if due is not None:
            factory = self.factory
            self.onRoundTrip(factory.reactor.seconds() - due + factory.limits.ping_timeout_seconds)

    def ping(self) -> None:
        """Send a ping, unless frames wait for the transport, and set the timers of the next ping and of the pong."""
        self.factory.ping_timers.set(self)
        if self._queue is None:
            self.sendPing(self.ping_payload())
            self.factory.pong_timeouts.set_once(self)

    def sendPing(self, mark: bytes) -> None:
        """Send a ping, whose pong does not count as overhead.

        Args:
            mark: its payload, which the pong returns.
        """
        self._pongs_due += 1
        self.answer(frame(PING, mark))

    def ping_payload(self) -> bytes:
        """Return the payload of the next ping, which its pong returns; for an application to override."""
        return b""

    def pong_timed_out(self) -> None:
        """Abort the connection, because its pong did not arrive in time, unless it was not read meanwhile."""
        if self._read_pauses > ReadPause.TURN:
            self.factory.pong_timeouts.set(self)
            return
        self.ending = LeaveReason.PING_TIMEOUT
        self.abort(f"no pong within {self.factory.limits.ping_timeout_seconds:g} s")

    # Writing

    def offer(self, frame: bytes, receipt: R | None = None) -> bool:
        """Write or queue ``frame``; returns False if the queue is full or the connection is not open."""
        if self._queue is None or self.state != _OPEN:
            return self.offer_at_once(frame)
        taken = self._queue.offer(frame, receipt)
        if not taken:
            self.onQueueFull(len(self._queue))
        return taken

    def offer_at_once(self, frames: bytes) -> bool:
        """Write several frames in one piece; returns False if they have to wait or the connection is not open."""
        if self.state != _OPEN or self._queue is not None:
            return False
        if self.factory.holding is None:
            self.transport.write(frames)
        else:
            self._hold(frames)
        return True

    def answer(self, frame: bytes) -> None:
        """Write or queue ``frame``, however full the queue is; no-op if the connection is not open."""
        if self._queue is None or self.state != _OPEN:
            self.offer_at_once(frame)
            return
        self._queue.answer(frame)
        if self._queue.overfull:
            self.pause_reading(ReadPause.QUEUE_FULL)

    def _hold(self, frame: bytes) -> None:
        if self._held is None:
            self._held = [frame]
            self.factory.held_back(self)
        else:
            self._held.append(frame)

    def flush(self) -> None:
        """Write the frames that were held back, in one piece."""
        frames, self._held = self._held, None
        if frames:
            self.transport.write(b"".join(frames))

    def bytes_wait(self) -> None:
        """Called by the transport when bytes wait and none did before: start the write timeout."""
        if self.state == self.STATE_OPEN:
            self._progress = self.transport.progress
            self.factory.write_timeouts.set(self)

    @property
    def blocked(self) -> bool:
        """Whether frames have to wait for the transport."""
        return self._queue is not None and self._queue.blocked

    @property
    def waiting(self) -> int:
        """How many frames with a receipt wait for the transport."""
        return self._queue.receipts if self._queue is not None else 0

    def pauseProducing(self) -> None:
        """Called by the transport when it is not writable: queue frames from now on."""
        if self._queue is None:
            limits = self.factory.limits
            self._queue = OutboundQueue(
                self.transport.write, self.onWritten, limits.high_water_messages, limits.high_water_bytes
            )
        self._queue.block()
        self.bytes_wait()
        # A ping may be stuck behind what waits: until the transport is writable again, only the write timeout counts.
        self.factory.pong_timeouts.clear(self)

    def resumeProducing(self) -> None:
        """Called by the transport when it is writable again: write what is queued."""
        self.factory.write_timeouts.clear(self)
        if self._queue is not None:
            self._queue.unblock()
            if not self._queue.blocked:
                self._queue = None
        if self._read_pauses and not (self._queue is not None and self._queue.overfull):
            self.resume_reading(ReadPause.QUEUE_FULL)

    def stopProducing(self) -> None:
        """Called by the transport when it is lost; ``connectionLost`` follows."""

    def write_timed_out(self) -> None:
        """Abort the connection if nothing at all was sent during the write timeout."""
        # A transport that is not writable holds something, even if nothing says how much.
        if not self.transport.pending_bytes and not self.blocked:
            return
        if self.transport.progress > self._progress:
            self.bytes_wait()
        else:
            self.ending = LeaveReason.WRITE_TIMEOUT
            self.abort(f"it read nothing for {self.factory.limits.write_timeout_seconds:g} s")

    # The end

    def close(self, code: int, reason: str) -> None:
        """Send a close frame and end the connection.

        The other end can read the reason even in the middle of sending: we half-close, and drop what we read until it
        closes its half or the close timeout is over. A full close with unread bytes would reset the connection, and the
        close frame could be lost.

        Args:
            code: RFC 6455, section 7.4.
            reason: for a person; cut to what a control frame holds.
        """
        if self.state != self.STATE_OPEN:
            return
        self.flush()
        self.transport.write(close_frame(code, reason))
        self.close_frame_seen = True
        self.ending = LeaveReason.CLOSED_BY_SERVER
        self.end_reason = f"closed with {code}: {reason}"
        self.half_close()

    def abort(self, reason: str) -> None:
        """Abort the connection, without a close frame; ``reason`` is for the log."""
        self.end_reason = f"aborted: {reason}"
        self._end(self.STATE_CLOSING)
        self._abandon_queue()
        self.transport.abortConnection()

    def close_for_shutdown(self, code: int = CloseCode.GOING_AWAY) -> None:
        """End the connection because the server shuts down."""
        if self.state == self.STATE_OPEN:
            self.close(code, "the server is stopping")
            self.ending = LeaveReason.SHUTDOWN
        elif self.state == self.STATE_CONNECTING:
            self._full_close()

    def close_timed_out(self) -> None:
        """Abort a connection that did not close in time."""
        self.transport.abortConnection()

    def onQueueFull(self, depth: int) -> None:
        """Called when the queue refused a frame; for an application to override.

        Args:
            depth: how many frames wait.
        """

    def onRoundTrip(self, seconds: float) -> None:
        """Called with the time from a ping to its pong; for an application to override."""

    def onWritten(self, receipt: R) -> None:
        """Called when a frame that was queued is written; for an application to override."""

    def onUndelivered(self, receipts: list[R]) -> None:
        """Called with what was queued and will never be written, oldest first; for an application to override."""

    def half_close(self) -> None:
        """Half-close: the other end can read all that was written, and has the close timeout to close its half."""
        self._start_closing()
        # TLS cannot half-close; its own closing alert waits for the other end's.
        if ISSLTransport.providedBy(self.transport):
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()

    def _full_close(self) -> None:
        self._start_closing()
        self.transport.loseConnection()

    def _start_closing(self) -> None:
        self._end(self.STATE_CLOSING)
        self.factory.close_timeouts.set(self)
        # A transport with a producer never closes; one that is not read never notices that the other end did.
        self.transport.unregisterProducer()
        self.read_until_closed()
        self._abandon_queue()

    def take_undelivered(self) -> list[R]:
        """Empty the queue; returns the receipts of what will not be written, oldest first."""
        queue, self._queue = self._queue, None
        return queue.abandon() if queue is not None else []

    def _abandon_queue(self) -> None:
        if self._queue is not None:
            receipts = self.take_undelivered()
            if receipts:
                self.onUndelivered(receipts)

    def _end(self, state: int) -> None:
        """Change to a state in which nothing is handled any more, and stop what was to come."""
        before, self.state = self.state, state
        self._reads_directly = False
        factory = self.factory
        if before == _OPEN:
            factory.ping_timers.clear(self)
            factory.pong_timeouts.clear(self)
            factory.write_timeouts.clear(self)
        else:
            factory.handshake_timeouts.clear(self)
        if before != _OPEN or self._read_pauses:
            factory.scheduler.remove(self)

    def _answer_goodbye(self, code: int) -> None:
        self.wasClean = True
        self.remoteCloseCode = code
        self.sendCloseFrame(code, isReply=True)
        self.dropConnection()

    # What Autobahn calls after a close frame of the other end

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        """Answer the close frame of the other end, behind what was written before."""
        self.flush()
        self.transport.write(frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + (reasonUtf8 or b"")))
        self._end(self.STATE_CLOSING)
        self.close_frame_seen = True

    def dropConnection(self, abort: bool = False) -> None:
        """End the connection after the close frame of the other end was answered."""
        self.ending = LeaveReason.CLOSED
        self.end_reason = f"closed by the peer with {self.remoteCloseCode or 'no code'}"
        transport = self.transport
        if isinstance(transport, TcpConnection) and not transport.pending_bytes and self._queue is None:
            # All is written, so there is nothing to wait for; others write later, and TLS waits for an alert.
            transport.loseConnection()
        else:
            self._full_close()


class WebSocketConnectionFactory(WebSocketServerFactory):
    """What the connections of one server share: their limits, their timeouts and their scheduler.

    Args:
        limits: the limits of each connection.
        reactor: the clock of all timeouts.

    Attributes:
        limits: a copy, for all that the factory makes; ``change_limits`` changes it.
    """

    protocol: Any = WebSocketConnection
    noisy = False
    # The connections with frames that are held back; None if frames are written at once.
    holding: list[WebSocketConnection[Any]] | None = None
    _declared_class: Any = None
    _class: Any = None

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
        self.limits = replace(limits)
        self.poller = Poller(reactor) if can_poll(reactor) else None
        self.connections: set[WebSocketConnection[Any]] = set()
        clock: Clock = reactor
        self.handshake_timeouts: Timeouts[Any] = Timeouts(
            clock, limits.handshake_timeout_seconds, lambda connection: connection.handshake_timed_out()
        )
        self.ping_timers: Timeouts[Any] = Timeouts(
            clock, limits.ping_interval_seconds, lambda connection: connection.ping()
        )
        self.pong_timeouts: Timeouts[Any] = Timeouts(
            clock, limits.ping_timeout_seconds, lambda connection: connection.pong_timed_out()
        )
        self.write_timeouts: Timeouts[Any] = Timeouts(
            clock, limits.write_timeout_seconds, lambda connection: connection.write_timed_out()
        )
        self.close_timeouts: Timeouts[Any] = Timeouts(
            clock, limits.close_timeout_seconds, lambda connection: connection.close_timed_out()
        )
        self._all_timeouts = (
            self.handshake_timeouts,
            self.ping_timers,
            self.pong_timeouts,
            self.write_timeouts,
            self.close_timeouts,
        )
        self.scheduler: FairScheduler[Any] = FairScheduler(
            clock, _TURNS_PER_PASS, lambda connection: connection.take_turn()
        )

    def change_limits(self, limits: Limits) -> None:
        """Let other limits hold from now on. The bound on a message's size is that of new connections."""
        self.limits.update(limits)
        self.setProtocolOptions(
            maxFramePayloadSize=limits.max_message_bytes, maxMessagePayloadSize=limits.max_message_bytes
        )
        # The class of connections has the options in its initial state.
        self._declared_class = None
        self.handshake_timeouts.change(limits.handshake_timeout_seconds)
        self.ping_timers.change(limits.ping_interval_seconds)
        self.pong_timeouts.change(limits.ping_timeout_seconds)
        self.write_timeouts.change(limits.write_timeout_seconds)
        self.close_timeouts.change(limits.close_timeout_seconds)

    def buildProtocol(self, addr: Any) -> Any:
        """Return a connection of the class ``protocol``; if it is fast, of a subclass with the initial state."""
        if self.protocol is not self._declared_class:
            self._declared_class = self.protocol
            self._class = with_initial_state(self.protocol, self) if self.protocol.fast else self.protocol
        connection = self._class()
        connection.factory = self
        return connection

    def serve(self, descriptor: int, address: Any, data: bytes = b"") -> Any:
        """Serve a connection that a port of ours has accepted.

        Args:
            descriptor: non-blocking, with ``TCP_NODELAY``.
            address: of the other end, as ``socket.accept`` returns it.
            data: its first bytes, if they have been read.

        Returns:
            The connection's protocol.
        """
        assert self.poller is not None
        return serve(descriptor, address, self, self.poller, data)

    def connection_made(self, connection: Any) -> None:
        """Register a new connection, and start its handshake timeout."""
        self.connections.add(connection)
        self.handshake_timeouts.set(connection)

    def cancel_idle_timers(self) -> None:
        """Cancel the timers if nothing is pending; else an application's tests would find the reactor dirty."""
        for timeouts in self._all_timeouts:
            timeouts.cancel_if_idle()

    def hold_writes(self) -> bool:
        """Hold frames back until ``flush_writes``: what one burst sends to a connection is written in one piece.

        Returns:
            False if they are held back already, and will be flushed by whoever began: a join that is finished may let
            the next one begin.
        """
        if self.holding is not None:
            return False
        self.holding = []
        return True

    def held_back(self, connection: WebSocketConnection[Any]) -> None:
        """Flush ``connection``, which holds a frame back, with the others."""
        if self.holding is not None:
            self.holding.append(connection)

    def flush_writes(self) -> None:
        """Write all frames that were held back."""
        connections, self.holding = self.holding or [], None
        for connection in connections:
            connection.flush()


def _set_no_delay(transport: Any) -> None:
    # A UNIX socket has no such option, and delays nothing.
    with suppress(AttributeError, OSError):
        transport.setTcpNoDelay(True)
