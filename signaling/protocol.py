"""The signaling server: one protocol for each connection, and the factory that holds the topic map.

A connection speaks WebSocket first and web second: a well-formed upgrade of ``/ws/{topic}`` is answered here,
everything else is handed, with the bytes read so far, to a ``twisted.web`` site.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from constantly import NamedConstant
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.logger import FilteringLogObserver, Logger, LogLevel, LogLevelFilterPredicate, globalLogPublisher
from twisted.python.failure import Failure

from signaling.counters import Counters
from signaling.errors import ErrorCode, Refused, Rejected
from signaling.ids import PeerIds
from signaling.limits import Limits
from signaling.peer import Peer, return_undelivered
from signaling.ports import Receipt
from signaling.topics import TopicMap
from signaling.upgrade import Join, check_join, check_upgrade, parse_head
from signaling.web import BoundedChannel, SignalingSite
from signaling.websocket import LeanWebSocketFactory, LeanWebSocketProtocol

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

_PREFIX = b"/ws/"


class SignalingProtocol(LeanWebSocketProtocol[Receipt]):
    """One connection of a signaling server, and the peer attached to it once it is open."""

    factory: SignalingFactory
    _web: BoundedChannel | None = None
    _peer: Peer | None = None
    _join: Join | None = None

    # The way in

    def requestReceived(self, request: bytes) -> None:
        """Answer a well-formed upgrade of ``/ws/{topic}`` here, leave everything else to the site."""
        parsed = parse_head(request.removesuffix(b"\r\n\r\n"))
        if parsed is None:
            return self._leave_to_web(request)
        target, values = parsed
        path, _, query = target.partition(b"?")
        segment = path.removeprefix(_PREFIX)
        if segment == path or not segment or b"/" in segment:
            return self._leave_to_web(request)
        try:
            join, key = check_join(segment, query, self.factory.limits), check_upgrade(values)
        except Refused:
            # The site refuses it for the same reason, and knows how to say so over HTTP.
            return self._leave_to_web(request)
        self.join(join, key)
        return None

    def _leave_to_web(self, request: bytes) -> None:
        data, self.data = request + self.data, b""
        self.factory.handshakes.clear(self)
        self._web = self.factory.site.channel_for(self)
        self._web.makeConnection(self.transport)
        self._web.dataReceived(data)

    def leaveWeb(self) -> None:
        """Take the bytes that the site's channel took until now."""
        self._web = None

    def refuse(self, refused: Refused) -> None:
        """Answer the request with an HTTP error that a page of any origin can read, and end the connection."""
        refused.headers.setdefault(b"Access-Control-Allow-Origin", b"*")
        super().refuse(refused)
        self._log_refusal(f"{refused.status} {refused.reason}")

    def handshakeLate(self) -> None:
        """End a connection whose request did not come in time, and say so in the log."""
        super().handshakeLate()
        self._log_refusal(self.end_reason)

    def _log_refusal(self, reason: str) -> None:
        address = address_text(self.transport.getPeer())
        self.factory.log.info("refused a request from {address}: {reason}", address=address, reason=reason)

    def join(self, join: Join, key: bytes) -> None:
        """Accept the handshake and join the topic."""
        self._join = join
        self.accept(key)

    def dataReceived(self, data: bytes) -> None:
        """Take bytes off the wire, or pass them to the site's channel."""
        if self._web is not None:
            self._web.dataReceived(data)
        else:
            super().dataReceived(data)

    # The peer

    def onOpen(self) -> None:
        """Make a peer and let it join its topic."""
        join, self._join = self._join, None
        if join is None:
            raise RuntimeError("a connection opens by join()")
        factory = self.factory
        self._peer = Peer(factory.ids.next(), join.metadata, factory.topics, factory.counters)
        self._peer.attach(self)
        self._peer.join(join.topic)
        factory.log.info(
            "{peer} joined {topic!r} from {address}",
            peer=self._peer.id,
            topic=join.topic,
            address=address_text(self.transport.getPeer()),
        )

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Relay one message, or answer it."""
        if self._peer is None:
            return
        if isBinary:
            outcome: Any = Rejected(ErrorCode.INVALID_MESSAGE, "send text messages, not binary ones")
            self._peer.reject(outcome)
        else:
            outcome = self._peer.receive(payload)
        if self.factory.logs_debug:
            self._log_outcome(self._peer.id, outcome)

    def _log_outcome(self, peer_id: str, outcome: Any) -> None:
        log = self.factory.log
        if isinstance(outcome, Rejected):
            log.debug("{peer} was answered {code}: {text}", peer=peer_id, code=outcome.code, text=outcome.text)
        else:
            log.debug(
                "{peer} relayed {type} of {size} bytes to {to}",
                peer=peer_id,
                type=outcome.type,
                size=len(outcome.payload or b""),
                to=outcome.to,
            )

    def onUndelivered(self, receipts: list[Receipt]) -> None:
        """Tell the senders of what will not be written."""
        return_undelivered(receipts, self.factory.counters)

    # The way out

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Take the peer out of its topic."""
        web, self._web = self._web, None
        if web is not None:
            web.connectionLost(reason)
        super().connectionLost(reason)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """Take the peer out of its topic, and say why in the log."""
        peer, self._peer = self._peer, None
        if peer is None or peer.topic is None:
            return
        topic = peer.topic.name
        peer.detach()
        peer.leave()
        self.factory.log.info("{peer} left {topic!r}: {reason}", peer=peer.id, topic=topic, reason=self.end_reason)


class SignalingFactory(LeanWebSocketFactory):
    """A signaling server, ready to listen: ``endpoint.listen(SignalingFactory())`` is all of it.

    Two factories in one process never meet: topics, counters, bounds and log level are the factory's own.

    Args:
        limits: the bounds; None means the defaults.
        reactor: tells the time; None means the global reactor.
        log_level: events below it are not logged.

    Attributes:
        topics: who is there, by topic.
        counters: what happened so far.
    """

    protocol = SignalingProtocol

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        reactor: IReactorTime | None = None,
        log_level: NamedConstant = LogLevel.info,
    ) -> None:
        if reactor is None:
            # Importing the global reactor installs it, which is the application's to decide.
            from twisted.internet import reactor as global_reactor  # noqa: PLC0415

            reactor = global_reactor
        assert reactor is not None
        super().__init__(limits or Limits(), reactor)
        self.topics: TopicMap[Peer] = TopicMap()
        self.counters = Counters()
        self.ids = PeerIds()
        self.site = SignalingSite(self, reactor)
        self.log = _logger(log_level)
        self.logs_debug = log_level <= LogLevel.debug
        self._drained: Deferred[None] | None = None

    @property
    def relays_waiting(self) -> int:
        """How many accepted relays wait for their target's transport now; counted anew at each look."""
        return sum(connection.waiting for connection in self.connections)

    @property
    def relays_written(self) -> int:
        """How many relays were written to their target's transport so far."""
        counters = self.counters
        return counters.relays_accepted - counters.relays_undelivered - self.relays_waiting

    def handshakeRefused(self, address: Any, refused: Refused) -> None:
        """Say in the log who was refused, and why."""
        self.log.info(
            "refused a handshake from {address}: {status} {reason}",
            address=address_text(address),
            status=refused.status,
            reason=refused.reason,
        )

    def drain(self) -> Deferred[None]:
        """Send every connection a close frame 1001 and wait until all are gone.

        Listening has to be stopped before. What is not gone after the shutdown timeout is aborted.

        Returns:
            Fires when no connection is left.
        """
        drained = self._drained = Deferred()
        for connection in tuple(self.connections):
            connection.goAway()
        timeout = self.reactor.callLater(self.limits.shutdown_timeout_seconds, self.abort)
        drained.addBoth(lambda result: timeout.cancel() if timeout.active() else None)
        self.connection_gone()
        return drained

    def connection_gone(self) -> None:
        """Notice the end of the last connection."""
        if self._drained is not None and not self.connections:
            drained, self._drained = self._drained, None
            drained.callback(None)

    def abort(self) -> None:
        """End every connection at once, without a word."""
        for connection in tuple(self.connections):
            connection.closeLate()


def address_text(address: Any) -> str:
    """Write an address as an operator would; an IPv4 client of an IPv6 socket is an IPv4 client."""
    if isinstance(address, IPv4Address):
        return f"{address.host}:{address.port}"
    if isinstance(address, IPv6Address):
        mapped = address.host.removeprefix("::ffff:")
        return f"{mapped}:{address.port}" if "." in mapped else f"[{address.host}]:{address.port}"
    name = getattr(address, "name", None)
    return f"unix:{name.decode() if isinstance(name, bytes) else name}" if name else "a UNIX socket"


def _logger(level: NamedConstant) -> Logger:
    predicate = LogLevelFilterPredicate(defaultLogLevel=level)
    return Logger(namespace="signaling", observer=FilteringLogObserver(globalLogPublisher, [predicate]))
