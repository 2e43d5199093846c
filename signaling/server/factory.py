"""The factory of a signaling server: it holds the topic map and everything that its connections share."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
from signaling.admission.connection_limits import ConnectionLimits, Unjoined
from signaling.admission.origins import Origins
from signaling.auth.cred import Access
from signaling.backplane.standalone import StandaloneBackplane
from signaling.core.announcer import Announcer
from signaling.core.counters import Counters
from signaling.core.ice import IceServers
from signaling.core.interfaces import Backplane, Forwarding, JoinTicket
from signaling.core.join_request import JoinRequest
from signaling.core.joining import JoiningConnection
from signaling.core.local_peers import LocalPeers
from signaling.core.peer import Peer
from signaling.core.peer_ids import PeerIds
from signaling.core.session import ResumablePeer, Sessions
from signaling.core.topics import TopicMap
from signaling.errors import LeaveReason, Refused
from signaling.limits import Limits
from signaling.log.events import Events, PacedLog
from signaling.server.address_text import address_text
from signaling.timing.fair_scheduler import FairScheduler
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

_SERVICE_RESTART = 1012
# Of a drain; each takes some 50 us.
_ENDINGS_PER_PASS = 64


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
        backplane: shares the topics with other servers (docs/cluster.md); None means that there are none.
        wall_clock: tells when tokens and TURN credentials expire, in seconds since 1970.
        reactor: tells the time; None means the global reactor.
        log_level: events below it are not logged.

    Attributes:
        topics: who is there, by topic.
        announcer: tells them of each other.
        counters: what happened so far.
        retiring: whether the server is about to stop.
        draining: whether nobody is let in any more.
        crowd_size: from how many peers in a topic on joins take turns.
        connection_limits: how many connections may join.
        newcomers: the connections of no peer.
        events: the log.
        paced_log: spreads a burst of its lines over time.
        sessions: who lost a connection and may come back.

    Raises:
        ValueError: where an origin or a proxy is none.
    """

    protocol = SignalingProtocol
    crowd_size = 32
    retiring = False
    draining = False
    _farewells: Sequence[Any] = ()

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
        self.sessions = Sessions(self.limits, reactor, self.topics, self._not_back, wall_clock)
        self.local = LocalPeers(self.topics, self.announcer, self.counters, self.sessions.prepare_handoff, self._moved)
        self.ice_servers = ice_servers or IceServers()
        self.renewals: Timeouts[SignalingProtocol] = Timeouts(
            reactor, self.ice_servers.renewal_seconds, SignalingProtocol.renewIceServers
        )
        self.clock_steps = ClockSteps(reactor, wall_clock, self.renewals.expire_all)
        self.expiries: WallClockTimers[SignalingProtocol] = WallClockTimers(
            reactor, wall_clock, SignalingProtocol.expire
        )
        self._proxies = TrustedProxies(trusted_proxies)
        self.unjoined: Unjoined[SignalingProtocol] = Unjoined(self.limits.max_connections_per_address)
        self.ids = PeerIds()
        self.site = SignalingSite(
            site_root(self, pages(client=serve_client, demo=demo)), self.limits, self.origins, reactor
        )
        self.events = Events(log_level, reactor.seconds)
        self.paced_log = PacedLog(reactor)
        self._endings: FairScheduler[Callable[[], None]] = FairScheduler(reactor, _ENDINGS_PER_PASS, lambda end: end())
        self.access = Access(portal, self.events.log) if portal is not None else None
        self._drains: list[Deferred[None]] = []

    @property
    def relays_queued(self) -> int:
        """How many accepted relays wait for their target's transport now; counted anew at each look."""
        return sum(connection.waiting for connection in self.connections) + self.sessions.waiting

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
            peer = resumable = ResumablePeer(
                peer_id, request, self.topics, self.announcer, self.backplane, self.counters, self.limits
            )
            resumable.go(connection)
        else:
            peer = Peer(peer_id, request.metadata, self.topics, self.announcer, self.backplane, self.counters)
            peer.attach(connection)
        # Not its id's time: the wall clock may be set, and a node that is behind takes later ids.
        peer.since = self.reactor.seconds()
        return peer

    def _not_back(self, peer: Peer, reason: str) -> None:
        self.counters.leaves[LeaveReason.SHUTDOWN if self.draining else LeaveReason.RESUME_TIMEOUT] += 1
        if peer.topic is not None:
            self.events.left(peer.id, peer.topic.name, reason, peer.since)

    def _moved(self, peer: Peer, taken: Collection[int]) -> Mapping[int, Forwarding]:
        if not isinstance(peer, ResumablePeer) or peer.topic is None:
            return {}
        self.events.handed_off(peer.id, peer.topic.name)
        return self.sessions.hand_over(peer, taken)

    def rest(self) -> None:
        """Leave no timer behind when nobody is there."""
        super().rest()
        self.renewals.rest()
        self.clock_steps.rest()
        self.expiries.rest()
        self.sessions.rest()

    def client(self, address: Any, values: HeaderValues) -> Client:
        """Tell where a request comes from.

        Args:
            address: of the connection's other end, an ``IAddress`` provider.
            values: the request's headers.
        """
        host = getattr(address, "host", None)
        return self._proxies.client(host, address_text(address), values(b"x-forwarded-for"))

    def make_room(self, newcomer: SignalingProtocol, address: Callable[[], str]) -> None:
        """Evict the oldest unjoined connection of the newcomer's address, or of all, if there are too many.

        Args:
            address: writes the newcomer's down.
        """
        evicted = self.unjoined.add(newcomer, lambda: self._proxies.network(address()))
        if evicted is not None:
            self._evict(evicted, "its address has newer connections of no peer, and as many as it may have")
        elif len(self.connections) > self.connection_limits.most + self.connection_limits.spare:
            self._evict(self.unjoined.oldest(), "the server is full, and this was its oldest connection of no peer")

    def _evict(self, connection: SignalingProtocol, reason: str) -> None:
        self.counters.connections_evicted += 1
        connection.cut(reason)

    def handshakeRefused(self, address: Any, refused: Refused) -> None:
        """Say in the log who was refused, and why."""
        self.counters.requests_refused[refused.status] += 1
        self.events.refused(address_text(address), refused.status, refused.reason)

    def retire(self) -> None:
        """Say on ``/readyz`` that the server is about to stop; newcomers are still let in."""
        self.retiring = True

    @property
    def unready_reasons(self) -> dict[str, list[str]]:
        """Why a balancer should send newcomers elsewhere, by what is checked."""
        stopping = ["the server is stopping"] if self.retiring or self.draining else []
        return {"drain": stopping, "backplane": self.backplane.unready_reasons}

    def drain(self) -> Deferred[None]:
        """Send every connection a close frame and wait until all are gone.

        It is 1001 at once, or 1012 at random moments within ``Limits.drain_spread_seconds``: who is closed comes back,
        and not all in one second. Listening has to be stopped before. What is not gone a shutdown timeout after the
        last close frame is aborted.

        Returns:
            Fires when no connection is left.
        """
        drained: Deferred[None] = Deferred()
        self._drains.append(drained)
        if not self.draining:
            self.draining = True
            self._say_farewell(self.limits.drain_spread_seconds)
        patience = self.limits.drain_spread_seconds + self.limits.shutdown_timeout_seconds
        timeout = self.reactor.callLater(patience, self.abort)
        drained.addBoth(lambda _: _cancel([timeout, *self._farewells]))
        self.connection_gone()
        return drained

    def _say_farewell(self, spread_seconds: float) -> None:
        connections = tuple(self.connections)
        if spread_seconds:
            self._farewells = [
                self.reactor.callLater(random.uniform(0, spread_seconds), connection.goAway, _SERVICE_RESTART)
                for connection in connections
            ]
        else:
            self._endings.extend(connection.goAway for connection in connections)
        self._endings.extend(partial(self.sessions.dismiss_away, peer) for peer in self.sessions.away)
        self._endings.begin()

    def connection_gone(self) -> None:
        """Notice the end of the last connection."""
        if self.draining and not self.connections:
            self._endings.finish()
            self.sessions.rest()
            self.paced_log.flush()
            drains, self._drains = self._drains, []
            for drained in drains:
                drained.callback(None)

    def abort(self) -> None:
        """End every connection at once, without a word."""
        for connection in tuple(self.connections):
            connection.closeLate()


def _global_reactor() -> Any:
    # Importing it installs it, which is the application's to decide.
    from twisted.internet import reactor  # noqa: PLC0415

    return reactor


def _cancel(calls: Iterable[Any]) -> None:
    for call in calls:
        if call.active():
            call.cancel()
