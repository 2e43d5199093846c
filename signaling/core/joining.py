"""How a request becomes a peer of its topic: the states of a join, and the object that walks through them.

A ``JoinAttempt`` begins with a request that is checked and logged in, and ends joined, resumed, rejected or aborted. It
has no I/O: it asks its connection (``JoiningConnection``) and what the joins of a server share (``JoinServices``).
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Protocol

from signaling.admission.client_address import Client
from signaling.admission.connection_limits import ConnectionLimits, ConnectionSlot
from signaling.core.blocks import Blocks
from signaling.core.counters import Counters
from signaling.core.grants import Grant
from signaling.core.handoff_texts import resume_proof
from signaling.core.ice import IceServers
from signaling.core.interfaces import Backplane, IncomingSession, JoinTicket, ResumeProof
from signaling.core.join_request import JoinRequest
from signaling.core.peer import Peer, PeerDetails
from signaling.core.presence_reporter import PresenceReporter
from signaling.core.session import PeerSession, SessionConnection
from signaling.core.session_registry import SessionRegistry
from signaling.core.topics import MaxPeers, TopicMap
from signaling.errors import CloseCode, ErrorCode, Refused, Rejected


class JoinState(StrEnum):
    """Where a join stands."""

    REQUESTED = "requested"  # nothing is held yet
    ANNOUNCING = "announcing"  # the backplane was asked for a ticket; the handshake is not answered
    AWAITING_TURN = "awaiting turn"  # the topic is large: joins take turns
    OPEN = "open"  # the handshake is answered, and the client is about to join or to resume
    REANNOUNCING = "reannouncing"  # the session to resume is gone: a new peer needs a ticket
    JOINED = "joined"  # as a new peer
    RESUMED = "resumed"  # as the peer of a session of this node, or of one that another node handed off
    REJECTED = "rejected"  # the server stops or is full, the client's address has enough, or the topic is full
    ABORTED = "aborted"  # the connection was lost before


TRANSITIONS: dict[JoinState, frozenset[JoinState]] = {
    JoinState.REQUESTED: frozenset({JoinState.ANNOUNCING, JoinState.AWAITING_TURN, JoinState.OPEN, JoinState.REJECTED}),
    JoinState.ANNOUNCING: frozenset({JoinState.AWAITING_TURN, JoinState.OPEN, JoinState.ABORTED}),
    JoinState.AWAITING_TURN: frozenset({JoinState.OPEN, JoinState.ABORTED}),
    # Aborted only by an error: a connection has no other end while it opens.
    JoinState.OPEN: frozenset(
        {JoinState.JOINED, JoinState.RESUMED, JoinState.REJECTED, JoinState.REANNOUNCING, JoinState.ABORTED}
    ),
    JoinState.REANNOUNCING: frozenset({JoinState.JOINED, JoinState.REJECTED, JoinState.ABORTED}),
    JoinState.JOINED: frozenset(),
    JoinState.RESUMED: frozenset(),
    JoinState.REJECTED: frozenset(),
    JoinState.ABORTED: frozenset(),
}


class JoinAttempt:
    """One join, from its request until it is settled.

    Args:
        request: checked; if the server checks tokens, with its grant.
        key: for ``JoiningConnection.accept``.
        client: where the request comes from.

    Attributes:
        state: changes as ``TRANSITIONS`` allow.
    """

    __slots__ = (
        "_client",
        "_connection",
        "_donor",
        "_key",
        "_max_peers",
        "_services",
        "_slot",
        "_ticket",
        "request",
        "state",
    )

    def __init__(
        self, request: JoinRequest, key: bytes, client: Client, connection: JoiningConnection, services: JoinServices
    ) -> None:
        self.state = JoinState.REQUESTED
        self.request = request
        self._key = key
        self._client = client
        self._connection = connection
        self._services = services
        self._ticket: JoinTicket | None = None
        self._max_peers: MaxPeers | None = None
        self._slot: ConnectionSlot | None = None
        # The session that gave its slot to this connection, and is given it back if the connection is lost.
        self._donor: PeerSession | None = None

    def start(self) -> None:
        """Take a connection slot; then open the connection, or ask the backplane for a ticket first.

        Raises:
            Refused: 503 if the server stops or is full, 429 if the client's address has enough connections.
        """
        request, services = self.request, self._services
        session = services.sessions.find(request)
        try:
            if services.draining:
                raise _stopping()
            _check_block(request, services)
            if session is not None:
                self._slot = session.transfer_slot(self._client)
            if self._slot is not None:
                self._donor = session
            else:
                self._slot = services.connection_limits.admit(self._client)
        except Refused:
            self._change_to(JoinState.REJECTED)
            raise
        if session is not None:
            self._open()
            return
        self._change_to(JoinState.ANNOUNCING)
        self._request_ticket(resume_proof(request))
        if self.state is JoinState.ANNOUNCING:
            self._connection.hold()

    def _request_ticket(self, proof: ResumeProof | None = None) -> None:
        request, services = self.request, self._services
        by_token = request.grant.max_peers if request.grant is not None else None
        bound = self._max_peers = services.topics.max_peers(request.topic, by_token)
        services.backplane.request_join(request.topic, request.metadata, bound, self.ticket_arrived, proof)

    def ticket_arrived(self, ticket: JoinTicket) -> None:
        """Go on with the backplane's ticket, which has to be finished whatever became of the connection."""
        self._ticket = ticket
        if self._connection.ended:
            self._abort()
        elif self.state is JoinState.ANNOUNCING:
            self._open()
        elif not self._reject_if_blocked():
            self._join(ticket)

    def _open(self) -> None:
        # A join takes about 5 us for each peer in the topic, and peers often come in crowds.
        if self._services.topics.size(self.request.topic) < self._services.crowd_size:
            self._connection.accept(self._key)
        else:
            self._change_to(JoinState.AWAITING_TURN)
            self._connection.accept_in_turn(self._key)

    def opened(self) -> None:
        """Resume the session that the client asks for; otherwise join as a new peer, once there is a ticket for one."""
        self._change_to(JoinState.OPEN)
        # The slot is the connection's from now on, and no session's any more.
        self._donor = None
        if self._reject_if_blocked():
            return
        request, services = self.request, self._services
        session = services.sessions.find(request)
        if session is not None and self._resume(session):
            self._finish_ticket(joined=False)
            return
        ticket = self._ticket
        if ticket is not None and ticket.session is not None:
            restored = self._restore(ticket, ticket.session)
            if restored is not None and self._resume(restored):
                self._finish_ticket(joined=True)
                return
            self._finish_ticket(joined=False)
        elif ticket is not None:
            self._join(ticket)
            return
        self._change_to(JoinState.REANNOUNCING)
        self._request_ticket()
        if self.state is JoinState.REANNOUNCING:
            self._connection.hold()

    def connection_lost(self) -> None:
        """Give up. If a ticket is still to come, that ends the attempt: a session may come with it."""
        if self.state in (JoinState.AWAITING_TURN, JoinState.OPEN):
            self._abort()

    def _reject_if_blocked(self) -> bool:
        """End the connection of a client that was blocked after ``start``; returns whether it was."""
        request, services, connection = self.request, self._services, self._connection
        # Without a token there is no owner to block.
        seconds = services.blocks.seconds_left(request.topic, request.grant) if request.grant is not None else 0.0
        if not seconds:
            return False
        connection.slot, self._slot = self._slot, None
        self._change_to(JoinState.REJECTED)
        self._finish_ticket(joined=False)
        connection.close(CloseCode.PEER_REMOVED, _blocked(seconds))
        services.events.rejected(request.topic, self._client.text, _blocked(seconds), request.subject)
        return True

    def _join(self, ticket: JoinTicket) -> None:
        """Join as a new peer; if the topic is full, the client gets the error, and the connection ends."""
        request, services, connection = self.request, self._services, self._connection
        connection.slot, self._slot = self._slot, None
        peer = services.new_peer(request, connection, ticket)
        try:
            if ticket.full is not None:
                raise Rejected(ErrorCode.TOPIC_FULL, ticket.full)
            ice_servers, expires_in = services.ice_servers.text(peer.id), services.expires_in(request.grant)
            peer.join(request.topic, ice_servers, expires_in, self._max_peers)
        except Rejected as rejected:
            self._change_to(JoinState.REJECTED)
            self._finish_ticket(joined=False)
            peer.reject(rejected)
            connection.close(CloseCode.TRY_AGAIN_LATER, rejected.text)
            services.events.rejected(request.topic, self._client.text, rejected.text, request.subject)
            return
        self._change_to(JoinState.JOINED)
        connection.attach(peer)
        self._record_details(peer)
        services.counters.joins += 1
        services.events.joined(peer.id, request.topic, self._client.text, request.subject)
        if services.presence is not None:
            services.presence.joined(request.topic, peer, request.subject, opens=ticket.opens)
        self._finish_ticket(joined=True)

    def _resume(self, session: PeerSession) -> bool:
        """Resume a session of this node on this connection; False if that closed it: the client has to join anew."""
        request, services, connection = self.request, self._services, self._connection
        ice_servers, expires_in = services.ice_servers.text(session.id), services.expires_in(request.grant)
        if request.claim is None or not session.resume(connection, request.claim, ice_servers, expires_in):
            return False
        connection.slot, self._slot = self._slot, None
        self._change_to(JoinState.RESUMED)
        connection.attach(session)
        self._record_details(session)
        services.counters.resumes += 1
        services.events.resumed(session.id, request.topic, self._client.text, request.subject)
        return True

    def _restore(self, ticket: JoinTicket, handed_off: IncomingSession) -> PeerSession | None:
        """Take over a session that another node handed off; None if it is unreadable here, or the topic is full."""
        claim = self.request.claim
        if claim is None:
            return None
        peer = self._services.new_peer(self.request, self._connection, ticket)
        return peer.restore(handed_off, self.request.topic, claim)

    def _abort(self) -> None:
        """Give back what is held. A session that another node handed off stays here, detached, with the slot."""
        services, slot, ticket, donor = self._services, self._slot, self._ticket, self._donor
        self._slot = session = None
        if ticket is not None and ticket.session is not None and not services.draining:
            session = self._restore(ticket, ticket.session)
        if session is not None:
            session.detach(slot)
            self._record_details(session)
            reason, request = self._connection.end_reason, self.request
            services.events.detached(session.id, request.topic, reason, request.subject)
        elif slot is not None and donor is not None:
            donor.return_slot(slot)
        elif slot is not None:
            slot.release()
        self._change_to(JoinState.ABORTED)
        self._finish_ticket(joined=session is not None)

    def _finish_ticket(self, *, joined: bool) -> None:
        ticket, self._ticket = self._ticket, None
        if ticket is not None and ticket.id is not None:
            self._services.backplane.finish_join(self.request.topic, ticket.id, joined=joined)

    def _record_details(self, peer: Peer) -> None:
        grant = self.request.grant
        subject, issuer = (grant.subject, grant.issuer) if grant is not None else (None, None)
        address = self._client.text if self._services.records_addresses else None
        # An idle peer has to be light, and most need none.
        peer.details = PeerDetails(address, subject, issuer) if (address, subject) != (None, None) else None

    def _change_to(self, state: JoinState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a join that is {self.state.value} cannot become {state.value}")
        self.state = state


def check_admission(request: JoinRequest, client: Client, services: JoinServices) -> None:
    """Check whether ``JoinAttempt.start`` would succeed.

    Raises:
        Refused: as that would.
    """
    if services.draining:
        raise _stopping()
    _check_block(request, services)
    session = services.sessions.find(request)
    if session is None or not session.check_transfer(client):
        services.connection_limits.check(client)


def _check_block(request: JoinRequest, services: JoinServices) -> None:
    seconds = services.blocks.seconds_left(request.topic, request.grant) if request.grant is not None else 0.0
    if seconds:
        raise Refused(403, _blocked(seconds))


def _blocked(seconds: float) -> str:
    return f"the owner of this token may not join this topic for {math.ceil(seconds)} s more"


def _stopping() -> Refused:
    return Refused(503, "the server is stopping", {b"Retry-After": b"1"})


class JoiningConnection(SessionConnection, Protocol):
    """A connection whose client joins."""

    @property
    def ended(self) -> bool:
        """Whether it closes or is lost."""

    @property
    def end_reason(self) -> str:
        """Why, for a log."""

    def accept(self, key: bytes) -> None:
        """Answer the handshake, and call ``JoinAttempt.opened`` at once."""

    def accept_in_turn(self, key: bytes) -> None:
        """Accept when it is this connection's turn, unless it ends before."""

    def hold(self) -> None:
        """Read nothing more until ``accept`` or ``attach``."""

    def attach(self, peer: Peer) -> None:
        """Have a peer, and forget the attempt; read what came before the peer's welcome in a turn of its own."""

    def close(self, code: int, reason: str) -> None:
        """Send a close frame and end."""


class JoinEvents(Protocol):
    """A log of joins; the subject is that of a client's token, or None."""

    def joined(self, peer: str, topic: str, address: str | None, subject: str | None) -> None:
        """A peer joined."""

    def resumed(self, peer: str, topic: str, address: str | None, subject: str | None) -> None:
        """A peer resumed on another connection."""

    def rejected(self, topic: str, address: str | None, reason: str, subject: str | None) -> None:
        """A topic was full, or the client was blocked."""

    def detached(self, peer: str, topic: str, reason: str, subject: str | None) -> None:
        """A peer has no connection, and may resume."""


class JoinServices(Protocol):
    """What the joins of one server share.

    Attributes:
        crowd_size: from how many peers in a topic on joins take turns.
        blocks: which owners of tokens are kept out of topics.
        records_addresses: whether a peer's details have its address.
        presence: reports to an observer which peers join; None if there is none.
    """

    crowd_size: int
    blocks: Blocks
    records_addresses: bool
    presence: PresenceReporter | None
    topics: TopicMap[Peer]
    sessions: SessionRegistry
    connection_limits: ConnectionLimits
    backplane: Backplane
    ice_servers: IceServers
    counters: Counters

    @property
    def events(self) -> JoinEvents:
        """Where joins are logged."""

    @property
    def draining(self) -> bool:
        """Whether the server stops, and nobody joins any more."""

    def expires_in(self, grant: Grant | None) -> int | None:
        """Return the whole seconds until a grant expires; None if it never does, or if there is none."""

    def new_peer(self, request: JoinRequest, connection: JoiningConnection, ticket: JoinTicket) -> Peer:
        """Make a peer that is in no topic yet, by the ticket's id if it has one."""
