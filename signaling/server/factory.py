"""The factory of a signaling server: it holds the topic map and everything that its connections share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from constantly import NamedConstant
from twisted.internet.defer import Deferred, execute
from twisted.logger import LogLevel

from signaling.admission.client_address import Client, ProxyHeader
from signaling.admission.logged_addresses import AddressDetail
from signaling.auth.cred import Logout, granted
from signaling.backplane.standalone import StandaloneBackplane
from signaling.core.admin_queries import (
    CloseTopic,
    Merged,
    NoticeSent,
    PeersRemoved,
    Query,
    RemovePeer,
    SendNotice,
    check_block,
    check_notice,
    check_reason,
)
from signaling.core.administration import Administration
from signaling.core.announcer import Announcer
from signaling.core.blocks import Blocks
from signaling.core.grants import Grant
from signaling.core.ice import IceServers
from signaling.core.interfaces import Backplane, JoinTicket
from signaling.core.join_request import JoinRequest
from signaling.core.joining import JoiningConnection, check_admission
from signaling.core.local_peers import LocalPeers
from signaling.core.peer import Peer, PeerServices
from signaling.core.peer_ids import PeerIds
from signaling.core.server_messages import Feature
from signaling.core.session import PeerSession
from signaling.core.session_registry import SessionRegistry
from signaling.core.topic_rules import TopicRules
from signaling.core.topics import TopicMap
from signaling.errors import LeaveReason
from signaling.limits import Limits
from signaling.log.paced_log import PacedLog
from signaling.server.asking import Asker, NodesAsker, carry_out
from signaling.server.http import HttpFactory
from signaling.server.ice_renewal import IceRenewal
from signaling.server.observing import Observation
from signaling.server.token_timers import TokenTimers

if TYPE_CHECKING:
    from twisted.cred.portal import Portal
    from twisted.internet.interfaces import IReactorTime

    from signaling.ice_source.source import IceSource
    from signaling.server.observer import IPresenceObserver

from signaling.server.protocol import SignalingProtocol


class SignalingFactory(HttpFactory):
    """A signaling server, ready to listen: ``endpoint.listen(SignalingFactory())`` is all of it.

    Two factories in one process never meet: topics, counters, bounds and log level are the factory's own.

    Args:
        limits: the bounds; None means the defaults.
        allow_origins: the pages that may connect, as for ``Origins``; none means any.
        trusted_proxies: who may name another client, as for ``TrustedProxies``.
        proxy_header: in which header, ``X-Forwarded-For`` or ``Forwarded`` (RFC 7239).
        path_prefix: the path below which everything is, on ports of this server's own; empty for none.
        ice_servers: the STUN and TURN servers that peers are sent; None means none.
        ice_source: a provider of further ones. It is asked when the backplane starts, and no more after a drain.
        serve_client: whether the client for browsers is served: ``/signaling.js`` and ``/sealing.js``.
        demo: whether ``/`` serves the demo.
        portal: checks tokens (docs/access-python.md); None means that everybody may join.
        topic_rules: bounds of topics by their names, in place of those in ``limits``; None means none.
        metadata_updates: whether peers may replace their metadata (docs/protocol-features.md, "Metadata").
        backplane: shares the topics with other servers (docs/cluster.md); None means that there are none. It starts
            with the first port, or the first ``SignalingResource``, and stops at the end of a drain.
        notices: whether clients are told that notices may come, and the address of each peer is recorded for the admin
            API.
        observer: is called when peers join and leave (docs/embedding.md); None for none.
        wall_clock: returns the seconds since 1970, for tokens and TURN credentials.
        reactor: runs the timers; None means the global reactor.
        log_level: events below it are not logged.
        log_addresses: how much of the addresses of clients is logged: ``off``, ``network`` (an IPv4 /24, an IPv6 /48)
            or ``full``.

    Attributes:
        topics: the peers in each topic.
        counters: what happened so far.
        shutdown: the end of the server; ``shutdown.drain()`` is what an application calls.

    Raises:
        ValueError: if an origin, a proxy, its header, the path prefix or ``log_addresses`` is malformed.
    """

    # Further attributes, for the server's own modules:
    #   announcer: announces to peers which others joined and left.
    #   crowd_size: from how many peers in a topic on joins take turns.
    #   connection_limits: how many connections may join.
    #   gate: the connections that have not joined.
    #   events: the log.
    #   paced_log: spreads a burst of its lines over time.
    #   judges_messages: whether each message counts against a rate, is logged, or may be a new token.
    #   sessions: finds sessions to resume, and closes those that are not resumed.
    #   blocks: which owners of tokens are kept out of topics.
    #   records_addresses: whether the details of a peer have its address, for the admin API.
    #   administration: carries out the queries of an operator on the peers of this process.
    #   asker: passes such queries to all nodes.
    #   ice_renewal: has peers sent new ICE servers in time.
    #   token_timers: of the tokens that connections joined with.
    #   observer: is called when peers join and leave; None for none.
    #   presence: reports to it; None without an observer.
    protocol = SignalingProtocol
    crowd_size = 32

    def __init__(  # noqa: PLR0913 - each is one thing that an operator may want
        self,
        limits: Limits | None = None,
        *,
        allow_origins: Iterable[str] = (),
        trusted_proxies: Iterable[str] = (),
        proxy_header: str = ProxyHeader.X_FORWARDED_FOR,
        path_prefix: str = "",
        ice_servers: IceServers | None = None,
        ice_source: IceSource | None = None,
        serve_client: bool = False,
        demo: bool = False,
        portal: Portal | None = None,
        topic_rules: TopicRules | None = None,
        metadata_updates: bool = False,
        backplane: Backplane | None = None,
        notices: bool = False,
        observer: IPresenceObserver | None = None,
        wall_clock: Callable[[], float] = time.time,
        reactor: IReactorTime | None = None,
        log_level: NamedConstant = LogLevel.info,
        log_addresses: str = AddressDetail.FULL,
    ) -> None:
        super().__init__(
            limits,
            allow_origins=allow_origins,
            trusted_proxies=trusted_proxies,
            proxy_header=proxy_header,
            path_prefix=path_prefix,
            serve_client=serve_client,
            demo=demo,
            portal=portal,
            reactor=reactor,
            log_level=log_level,
            log_addresses=log_addresses,
        )
        clock = self.reactor
        # The topics, and what reports their peers.
        self.topics: TopicMap[Peer] = TopicMap(
            self.limits.max_peers_per_topic, self.limits.max_peer_list_bytes, topic_rules
        )
        self.backplane: Backplane = backplane or StandaloneBackplane()
        self.sessions = SessionRegistry(self.limits, clock, self.topics, self._session_closed)
        self.announcer = Announcer(clock, self.counters.count_dropped_events)
        self.observer, self._observation = observer, None
        if observer is not None:
            events = self.events
            self._observation = Observation(observer, self.topics, self.backplane, clock, wall_clock, events)
        self.presence = self._observation.reporter if self._observation is not None else None
        # The peers, and what an operator does with them.
        self._peer_services = PeerServices(
            self.topics,
            self.announcer,
            self.backplane,
            self.counters,
            self.limits,
            self.sessions,
            presence=self.presence,
            features=self._features(metadata_updates=metadata_updates, notices=notices),
        )
        self.ids = PeerIds()
        self.records_addresses = notices
        self.blocks = Blocks(clock.seconds)
        self.administration = Administration(self._peer_services, self.blocks, clock, self.logged_addresses)
        self.asker: Asker = NodesAsker(self.backplane)
        # What expires.
        self.ice_servers = ice_servers or IceServers()
        self.ice_source = ice_source
        connections = cast("Collection[SignalingProtocol]", self.connections)
        self.ice_renewal = IceRenewal(self.ice_servers, connections, clock, wall_clock)
        self.token_timers = TokenTimers(clock, wall_clock, self.limits.handshake_timeout_seconds)
        # What the backplane asks of this node.
        self.local = LocalPeers(self._peer_services, self._session_moved, self.administration.answer)
        # An application's tests would find the timer of a start in the reactor.
        self.has_services = backplane is not None or ice_source is not None
        if backplane is None:
            # It has nothing to connect to, and can be asked at once.
            self.backplane.start(self.local)
        # The log.
        self.paced_log = PacedLog(clock)
        self.judges_messages = self._judges_messages()

    def _features(self, *, metadata_updates: bool, notices: bool) -> list[Feature]:
        features = {
            Feature.METADATA_UPDATES: metadata_updates,
            Feature.NOTICES: notices,
            Feature.RESUME: self.limits.resume_window_seconds > 0,
            Feature.TOKEN: self.access is not None,
        }
        return sorted(name for name, is_on in features.items() if is_on)

    def _judges_messages(self) -> bool:
        return bool(self.limits.max_messages_per_second) or self.events.debug or self.access is not None

    def change(
        self, *, ice_servers: IceServers | None = None, topic_rules: TopicRules | None = None, **more: Any
    ) -> None:
        """Change how the server runs from now on. No connection is closed, and what is None stays as it is.

        Args:
            ice_servers: all peers are sent them, besides those of a provider.
            topic_rules: for joins from now on.
            more: ``limits``, ``allow_origins``, ``trusted_proxies``, ``portal`` and ``log_level``, as for the
                constructor. ``resume_window_seconds`` cannot change, and a portal only replaces another one.

        Raises:
            ValueError: an argument is wrong; then nothing was changed.
        """
        super().change(**more)
        judges_messages = self._judges_messages()
        if judges_messages != self.judges_messages:
            self.judges_messages = judges_messages
            for connection in self.connections:
                connection.judges_changed()
        if ice_servers is not None:
            self.ice_renewal.replace_servers(ice_servers)
        if topic_rules is not None:
            self.topics.rules = topic_rules

    def change_limits(self, limits: Limits) -> None:
        """Let other limits hold from now on."""
        before = replace(self.limits)
        super().change_limits(limits)
        if _rates(limits) != _rates(before):
            for connection in self.connections:
                connection.rates_changed()
        self.topics.max_members = limits.max_peers_per_topic
        self.token_timers.checks.change(limits.handshake_timeout_seconds)

    @property
    def relays_queued(self) -> int:
        """How many accepted relays wait for their target's transport now; each access counts them."""
        return sum(connection.waiting for connection in self.connections) + self.sessions.relays_queued

    @property
    def relays_written(self) -> int:
        """How many relays were written to their target's transport here so far."""
        counters = self.counters
        taken = counters.total_relays_accepted - counters.relays_delivered_remotely + counters.relays_received
        return taken - counters.relays_undelivered - self.relays_queued

    def expires_in(self, grant: Grant | None) -> int | None:
        """Return the whole seconds until a grant expires; None if it never does, or if there is none."""
        return self.token_timers.expires_in(grant)

    def would_join(self, request: JoinRequest, client: Client) -> Deferred[None]:
        """Check whether a client could join, without a connection slot for it.

        Args:
            request: checked, with its credential.
            client: where it comes from.

        Returns:
            Fires if the client could join; fails with ``Refused``. To cancel it ends the login.
        """
        if self.access is None:
            return execute(check_admission, request, client, self)
        check = self.access.login(request.credential).addCallback(self._would_be_admitted, request, client)
        # What addTimeout does by default raises the failure again, which then is part of a cycle, with the credential.
        check.addTimeout(self.limits.handshake_timeout_seconds, self.reactor, lambda outcome, _: outcome)
        return check

    def _would_be_admitted(self, login: tuple[Any, Grant, Logout], request: JoinRequest, client: Client) -> None:
        _, grant, logout = login
        logout()
        check_admission(granted(request, grant), client, self)

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

    # What an operator or an application does, on all nodes (docs/embedding.md)

    def kick(self, topic: str, peer: str, reason: str = "", *, block_seconds: float = 0.0) -> Deferred[int]:
        """Remove a peer from its topic: close code 4403, and its client stays away.

        Args:
            topic: the topic's name.
            peer: the peer's id.
            reason: for the client; at most 123 bytes in UTF-8.
            block_seconds: how long to keep the owner of the peer's token out of the topic, with all of its peers.

        Returns:
            Fires with how many peers were removed, which is 0 if no node has this one.

        Raises:
            ValueError: the reason is too long, ``block_seconds`` is out of its range, or peers have no owners: that
                needs a portal.
        """
        check_reason(reason)
        check_block(block_seconds)
        if block_seconds and self.access is None:
            raise ValueError("block_seconds: without a portal, a peer has no owner to block")
        return self._carry_out(RemovePeer(topic, peer, reason, block_seconds)).addCallback(_peers_removed)

    def close_topic(self, topic: str, reason: str = "") -> Deferred[int]:
        """Remove all peers of a topic: close code 4404. Clients do not come back by themselves; others may join.

        Args:
            topic: the topic's name.
            reason: for the clients; at most 123 bytes in UTF-8.

        Returns:
            Fires with how many peers were removed.

        Raises:
            ValueError: the reason is too long.
        """
        check_reason(reason)
        return self._carry_out(CloseTopic(topic, reason)).addCallback(_peers_removed)

    def notify(self, topic: str, data: Any, to: str | None = None) -> Deferred[int]:
        """Send a ``notice`` to the peers of a topic.

        Args:
            topic: the topic's name.
            data: anything that ``json.dumps`` takes.
            to: the id of the only peer that gets it; None means all.

        Returns:
            Fires with how many peers it was written to or queued for.

        Raises:
            ValueError: the data is no JSON, or too long.
            TypeError: the same, from ``json.dumps``.
        """
        text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        check_notice(text, self.limits.max_message_bytes)
        return self._carry_out(SendNotice(topic, to, text)).addCallback(_received)

    def _carry_out(self, query: Query) -> Deferred[Any]:
        return carry_out(self.asker, query)

    def _session_closed(self, peer: Peer, text: str, reason: LeaveReason) -> None:
        self.counters.leaves[reason] += 1
        if peer.topic is not None and self.events.info:
            # Behind the line of its detaching, which may be in the queue.
            line = partial(self.events.left, peer.id, peer.topic.name, text, peer.joined_at, peer.subject)
            self.paced_log.write(line)

    def _session_moved(self, peer: Peer) -> None:
        if peer.topic is not None and self.events.info:
            self.paced_log.write(partial(self.events.handed_off, peer.id, peer.topic.name, peer.subject))

    def cancel_idle_timers(self) -> None:
        """Leave no timer behind when the last connection is gone, and go on with a drain."""
        self.ice_renewal.stop()
        self.token_timers.cancel_if_idle()
        self.sessions.cancel_idle_timers()
        super().cancel_idle_timers()

    @property
    def draining(self) -> bool:
        """Whether nobody joins any more, because the server drains or has stopped."""
        return self.shutdown.draining

    @property
    def unready_reasons(self) -> dict[str, list[str]]:
        """Why a balancer should send new clients elsewhere, by what is checked."""
        return {**super().unready_reasons, "backplane": self.backplane.unready_reasons}

    def start_services(self) -> None:
        """Ask for ICE servers, and start the backplane."""
        if self.ice_source is not None:
            self.ice_source.start(self.ice_servers, self.events)
        self.backplane.start(self.local)

    def stop_services(self) -> Deferred[None]:
        """Stop the services; fires when the other nodes know, or after some seconds without the store."""
        if self.ice_source is not None:
            self.ice_source.stop()
        stopped: Deferred[None] = Deferred()
        self.backplane.stop(lambda: stopped.callback(None))
        return stopped

    def drain_started(self) -> Iterable[Callable[[], object]]:
        """Log the drain; detached peers are left to remove."""
        peers = sum(map(len, self.topics))
        if peers:
            self.events.stopping(peers)
        return [partial(self.sessions.close_detached, session) for session in self.sessions.detached]

    def last_connection_lost(self) -> Deferred[None]:
        """Stop the backplane, and wait for the observer."""
        self.sessions.cancel_idle_timers()
        self.paced_log.flush()
        stopped, observation = super().last_connection_lost(), self._observation
        return stopped.addCallback(self._stop_observation, observation) if observation is not None else stopped

    def _stop_observation(self, _: None, observation: Observation) -> Deferred[None]:
        stopped = observation.stop()
        if self.shutdown.is_aborted:
            observation.abort()
        return stopped

    def abort_rest(self) -> None:
        """Wait no longer for the observer."""
        if self._observation is not None:
            self._observation.abort()


def _rates(limits: Limits) -> tuple[float, ...]:
    """Return the limits that the token buckets of a connection have."""
    updates = limits.metadata_updates_per_second, limits.metadata_update_burst
    return limits.max_messages_per_second, limits.message_burst, *updates


def _peers_removed(merged: Merged) -> int:
    return merged.answer.peers if isinstance(merged.answer, PeersRemoved) else 0


def _received(merged: Merged) -> int:
    return merged.answer.received if isinstance(merged.answer, NoticeSent) else 0
