"""The factory of a signaling server: it holds the topic map and everything that its connections share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from constantly import NamedConstant
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.logger import LogLevel
from zope.interface import implementer

from signaling.admission import file_limits
from signaling.admission.client_address import Client, TrustedProxies
from signaling.admission.connection_limits import ConnectionLimits
from signaling.admission.origins import Origins
from signaling.auth.cred import Access
from signaling.backplane.standalone import StandaloneBackplane
from signaling.core.announcer import Announcer
from signaling.core.counters import Counters
from signaling.core.ice import IceServers
from signaling.core.interfaces import Backplane, JoinTicket
from signaling.core.join_request import JoinRequest
from signaling.core.joining import JoiningConnection
from signaling.core.local_peers import LocalPeers
from signaling.core.peer import Peer, PeerServices
from signaling.core.peer_ids import PeerIds
from signaling.core.session import PeerSession
from signaling.core.session_registry import SessionRegistry
from signaling.core.topics import TopicMap
from signaling.errors import LeaveReason, Refused
from signaling.limits import Limits
from signaling.log.events import Events, PacedLog
from signaling.server.address_text import address_text
from signaling.server.connection_gate import ConnectionGate
from signaling.server.shutdown import Shutdown
from signaling.timing.timeouts import Timeouts
from signaling.timing.wall_clock_timers import ClockSteps, WallClockTimers
from signaling.web.credentials import subprotocol
from signaling.web.join_parsing import check_join
from signaling.web.resources import site_root
from signaling.web.site import SignalingSite
from signaling.web.static_files import pages
from signaling.websocket.handshake import check_upgrade
from signaling.websocket.protocol import WebSocketConnectionFactory
from signaling.websocket.request_head import HeaderValues

if TYPE_CHECKING:
    from twisted.cred.portal import Portal
    from twisted.internet.interfaces import IReactorTime

from signaling.server.protocol import SignalingProtocol


@implementer(IProtocolNegotiationFactory)
class SignalingFactory(WebSocketConnectionFactory):
    """A signaling server, ready to listen: ``endpoint.listen(SignalingFactory())`` is all of it.

    Two factories in one process never meet: topics, counters, bounds and log level are the factory's own.

    Args:
        limits: the bounds; None means the defaults.
        allow_origins: the pages that may connect, as for ``Origins``; none means any.
        trusted_proxies: whose ``X-Forwarded-For`` counts, as for ``TrustedProxies``.
        ice_servers: what peers are told of STUN and TURN servers; None means nothing.
        serve_client: whether ``/signaling.js`` is served, the client for browsers.
        demo: whether ``/`` is, a page that shows it.
        portal: who may do what (docs/access.md); None means that everybody may do everything.
        backplane: shares the topics with other servers (docs/cluster.md); None means that there are none. It starts
            with the first port, or the first ``SignalingResource``, and stops at the end of a drain.
        wall_clock: tells when tokens and TURN credentials expire, in seconds since 1970.
        reactor: tells the time; None means the global reactor.
        log_level: events below it are not logged.

    Attributes:
        topics: who is there, by topic.
        announcer: tells them of each other.
        counters: what happened so far.
        shutdown: the end of the server; ``shutdown.drain()`` is what an application calls.
        crowd_size: from how many peers in a topic on joins take turns.
        connection_limits: how many connections may join.
        gate: the connections that have not joined.
        events: the log.
        paced_log: spreads a burst of its lines over time.
        sessions: finds sessions to resume, and closes those that are not resumed.

    Raises:
        ValueError: where an origin or a proxy is none.
    """

    protocol = SignalingProtocol
    crowd_size = 32

    def __init__(  # noqa: PLR0913 - each is one thing that an operator may want
        self,
        limits: Limits | None = None,
        *,
        allow_origins: Iterable[str] = (),
        trusted_proxies: Iterable[str] = (),
        ice_servers: IceServers | None = None,
        serve_client: bool = False,
        demo: bool = False,
        portal: Portal | None = None,
        backplane: Backplane | None = None,
        wall_clock: Callable[[], float] = time.time,
        reactor: IReactorTime | None = None,
        log_level: NamedConstant = LogLevel.info,
    ) -> None:
        reactor = reactor or _global_reactor()
        super().__init__(limits or Limits(), reactor)
        self.topics: TopicMap[Peer] = TopicMap(self.limits.max_peers_per_topic, self.limits.max_peer_list_bytes)
        self.counters = Counters()
        self.announcer = Announcer(reactor, self.counters.count_dropped_events)
        self.backplane: Backplane = backplane or StandaloneBackplane()
        self.origins = Origins(allow_origins)
        self.connection_limits = ConnectionLimits(self.limits, file_limits.file_limit(reactor), reactor.seconds)
        self.sessions = SessionRegistry(self.limits, reactor, self.topics, self._session_closed, wall_clock)
        self._peer_services = PeerServices(
            self.topics, self.announcer, self.backplane, self.counters, self.limits, self.sessions
        )
        self.local = LocalPeers(self._peer_services, self._session_moved)
        self.ice_servers = ice_servers or IceServers()
        self.renewals: Timeouts[SignalingProtocol] = Timeouts(
            reactor, self.ice_servers.renewal_seconds, SignalingProtocol.renewIceServers
        )
        self.clock_steps = ClockSteps(reactor, wall_clock, self.renewals.expire_all)
        self.expiries: WallClockTimers[SignalingProtocol] = WallClockTimers(
            reactor, wall_clock, SignalingProtocol.expire
        )
        self._proxies = TrustedProxies(trusted_proxies)
        self.gate: ConnectionGate[SignalingProtocol] = ConnectionGate(
            self.connections,
            self.handshake_timeouts,
            self.connection_limits,
            self.limits.max_connections_per_address,
            self._proxies,
            self.counters,
        )
        self.ids = PeerIds()
        self.site = SignalingSite(
            site_root(self, pages(client=serve_client, demo=demo)), self.limits, self.origins, reactor
        )
        self.events = Events(log_level, reactor.seconds)
        self.paced_log = PacedLog(reactor)
        self.access = Access(portal, self.events.log) if portal is not None else None
        self.shutdown = Shutdown(self, reactor, self.limits)
        self._backplane_start: Any = None

    @property
    def relays_queued(self) -> int:
        """How many accepted relays wait for their target's transport now; counted anew at each look."""
        return sum(connection.waiting for connection in self.connections) + self.sessions.relays_queued

    @property
    def relays_written(self) -> int:
        """How many relays were written to their target's transport here so far."""
        counters = self.counters
        taken = counters.total_relays_accepted - counters.relays_delivered_remotely + counters.relays_received
        return taken - counters.relays_undelivered - self.relays_queued

    def acceptableProtocols(self) -> list[bytes]:
        """Offer HTTP/1.1 over TLS; Twisted would refuse every client that names protocols, as all browsers do."""
        return [b"http/1.1"]

    def check(self, segment: bytes, query: bytes, values: HeaderValues) -> tuple[JoinRequest, bytes]:
        """Check all of a request that can be checked without asking anybody.

        Args:
            segment: the topic, still percent-encoded.
            query: what follows the question mark, still encoded.
            values: the request's headers.

        Returns:
            What is asked for, and the checked ``Sec-WebSocket-Key``.

        Raises:
            Refused: for the first reason of 400, 426, 403 and 421.
        """
        join, key = check_join(segment, query, self.limits), check_upgrade(values)
        if self.access is not None:
            join = replace(join, credential=self.access.presented(values, query))
        self.origins.check(values(b"origin"))
        if not self.owns(join.topic):
            raise Refused(421, "this topic lives in another process: open a new connection, with a plain request")
        return replace(join, subprotocol=subprotocol(values)), key

    def owns(self, topic: str) -> bool:
        """Tell whether a topic is this server's; where several processes share them, only one of them may have it."""
        return True

    def new_peer(self, request: JoinRequest, connection: JoiningConnection, ticket: JoinTicket) -> Peer:
        """Make a peer that is in no topic yet, by the ticket's id if it has one."""
        peer_id = ticket.id or self.ids.next()
        peer: Peer
        if self.limits.resume_window_seconds:
            peer = PeerSession(peer_id, request, self._peer_services)
        else:
            peer = Peer(peer_id, request.metadata, self._peer_services)
        peer.attach(connection)
        # Not the time in its id: the wall clock may be set, and a node whose clock is behind makes later ids.
        peer.joined_at = self.reactor.seconds()
        return peer

    def _session_closed(self, peer: Peer, reason: str) -> None:
        self.counters.leaves[LeaveReason.SHUTDOWN if self.draining else LeaveReason.RESUME_TIMEOUT] += 1
        if peer.topic is not None:
            self.events.left(peer.id, peer.topic.name, reason, peer.joined_at)

    def _session_moved(self, peer: Peer) -> None:
        if peer.topic is not None:
            self.events.handed_off(peer.id, peer.topic.name)

    def cancel_idle_timers(self) -> None:
        """Leave no timer behind when the last connection is gone, and go on with a drain."""
        super().cancel_idle_timers()
        self.renewals.cancel_if_idle()
        self.clock_steps.stop()
        self.expiries.cancel_if_idle()
        self.sessions.cancel_idle_timers()
        self.shutdown.connection_lost()

    def client(self, address: Any, values: HeaderValues) -> Client:
        """Tell where a request comes from.

        Args:
            address: of the connection's other end, an ``IAddress`` provider.
            values: the request's headers.
        """
        host = getattr(address, "host", None)
        return self._proxies.client(host, address_text(address), values(b"x-forwarded-for"))

    def connection_made(self, connection: SignalingProtocol) -> None:
        """Take a new connection; if there are too many that have not joined, evict the oldest."""
        self.gate.open(connection, connection.address_of_connection)

    def handshakeRefused(self, address: Any, refused: Refused) -> None:
        """Say in the log who was refused, and why."""
        self.counters.requests_refused[refused.status] += 1
        self.events.refused(address_text(address), refused.status, refused.reason)

    @property
    def draining(self) -> bool:
        """Whether nobody joins any more, because the server drains or has stopped."""
        return self.shutdown.draining

    @property
    def unready_reasons(self) -> dict[str, list[str]]:
        """Why a balancer should send newcomers elsewhere, by what is checked."""
        stopping = ["the server is stopping"] if self.shutdown.unready else []
        return {"drain": stopping, "backplane": self.backplane.unready_reasons}

    # The backplane and the end

    def startFactory(self) -> None:
        """Start the backplane; Twisted calls this when the first port begins to listen."""
        self.shutdown.restart()
        if self._backplane_start is None:
            # Not at once: twistd listens before it sheds its privileges.
            self._backplane_start = self.reactor.callLater(0, self.backplane.start, self.local)

    def drain_started(self) -> Iterable[Callable[[], object]]:
        """Log the drain; detached peers are left to remove."""
        peers = sum(map(len, self.topics))
        if peers:
            self.events.stopping(peers)
        return [partial(self.sessions.close_detached, session) for session in self.sessions.detached]

    def last_connection_lost(self) -> Deferred[None]:
        """Stop the backplane; fires when the other nodes know, or after some seconds without the store."""
        self.sessions.cancel_idle_timers()
        self.paced_log.flush()
        start, self._backplane_start = self._backplane_start, None
        if start is not None and start.active():
            start.cancel()
        stopped: Deferred[None] = Deferred()
        self.backplane.stop(lambda: stopped.callback(None))
        return stopped

    def abort_rest(self) -> None:
        """No-op: a server has nothing but connections that could be aborted."""


def _global_reactor() -> Any:
    # Importing it installs it, which is the application's to decide.
    from twisted.internet import reactor  # noqa: PLC0415

    return reactor
