"""How a peer joins a topic: the store is asked first; without a reply it joins with the peers of this node alone.

The steps of a join; an arrow shows what a step leads to:

request_join
    The store is known to be unreachable -> decide, without it. The client has a proof of being a peer that another node
    may have -> resume. Else -> add. After 2 s without a decision -> decide.
resume
    Find the peer's node, after comparing the topic with the store if need be, and ask it for the session. It agrees ->
    move. It refuses, or no other node has the peer -> add, as a new peer.
move
    The store moves the peer to this node -> decide, with the session. It does not -> add, as a new peer.
add
    The store adds the peer -> decide. The id is too small -> add, with a greater one. The topic is full, or there is no
    reply -> decide.
decide
    The peer gets its ticket: at once if it resumes, else in joining order, each after the join before it is finished.
finish_join
    The relays that wait for the peer are delivered. A peer that did not join leaves the store.

A step whose reply comes too late, because something else was decided meanwhile, is undone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from signaling.backplane.membership import Membership
from signaling.backplane.messages import SessionReply, SessionRequest
from signaling.backplane.pending_joins import PendingJoin, PendingJoins, ReceivedSession, Stored
from signaling.backplane.replicas import Replicas
from signaling.backplane.session_handoffs import SessionHandoffs
from signaling.backplane.store import Gone, IdTooSmall, Snapshot, Store, TopicFull
from signaling.core.interfaces import JoinTicket, Node, PresenceListener, ResumeProof
from signaling.core.peer_ids import PeerIds
from signaling.core.topics import LIST_FULL
from signaling.timing.clock import Clock
from signaling.timing.timeouts import Timeouts

_JOIN_SECONDS = 2.0


class _Request(NamedTuple):
    """A request for a session that has no reply yet."""

    join: PendingJoin
    node: str


class Joins:
    """Announces peers of this node to the others, and decides how they join.

    Args:
        store: asked for each join.
        membership: says whether the store serves this node.
        replicas: of the topics.
        handoffs: for sessions of other nodes.
        pending: where the joins are until they are finished.
        clock: for timeouts.
        ids: makes the ids of this node's peers.

    Attributes:
        observed: the observer's; None if there is none.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what a join depends on
        self,
        store: Store,
        membership: Membership,
        replicas: Replicas,
        handoffs: SessionHandoffs,
        pending: PendingJoins,
        clock: Clock,
        ids: PeerIds,
    ) -> None:
        self._store = store
        self._membership = membership
        self._replicas = replicas
        self._handoffs = handoffs
        self._pending = pending
        self._ids = ids
        self._node: Node
        self.observed: PresenceListener | None = None
        self._timeouts: Timeouts[PendingJoin] = Timeouts(clock, _JOIN_SECONDS, self._decide)
        self._last_request = 0
        self._requests: dict[int, _Request] = {}
        # The topics whose tickets are being handed out, further up on the stack.
        self._handing_out: set[str] = set()

    def start(self, node: Node) -> None:
        """Announce the peers of ``node``."""
        self._node = node

    def stop(self) -> None:
        """Decide all joins, and leave no timer behind."""
        self.decide_all()
        self._timeouts.cancel_if_idle()

    def request_join(self, join: PendingJoin) -> None:
        """Begin a join."""
        self._pending.add(join)
        self._replicas.replica(join.topic)
        if self._membership.is_outage:
            self._decide(join)
            return
        self._timeouts.set(join)
        if self._membership.is_registered:
            self._ask(join)

    def ask_again(self) -> None:
        """Ask for the joins that wait, now that the store serves this node."""
        for join in self._pending:
            if not join.is_decided and join.stored is Stored.NO:
                self._ask(join)

    def decide_all(self) -> None:
        """Decide all joins without the store: there will be no reply."""
        for join in self._pending:
            self._decide(join)

    def _ask(self, join: PendingJoin) -> None:
        if join.proof is not None:
            self._resume(join, join.proof)
        else:
            self._add(join)

    def _resume(self, join: PendingJoin, proof: ResumeProof) -> None:
        """Find the node that has the peer, and ask it for the session."""
        replica = self._replicas.replica(join.topic)

        def request(_: Snapshot | None = None) -> None:
            member = replica.find(proof.peer)
            if join.is_decided:
                return
            if member is None or member.node == self._store.node:
                self._add(join)
                return
            number = self._last_request = self._last_request + 1
            self._requests[number] = _Request(join, member.node)
            message = SessionRequest(self._store.node, number, join.topic, proof.peer, proof.text)

            def sent(listeners: int | None) -> None:
                if listeners == 0:
                    # That node is dead and will not reply; many peers come from it at once.
                    self.take_session(SessionReply(number, None))

            self._store.send(member.node, message, sent)

        if replica.is_current:
            request()
        else:
            self._replicas.sync(join.topic, replica, request)

    def take_session(self, reply: SessionReply) -> None:
        """Go on with the reply to a ``SessionRequest``."""
        request = self._requests.pop(reply.number, None)
        if request is None or request.join.is_decided:
            return
        join, proof = request.join, request.join.proof
        if join.stored is not Stored.NO or proof is None:
            return
        # If a token is used twice at once, there is one peer, and the later connection takes it over.
        is_here = self._pending.find(join.topic, proof.peer) or self._node.has(join.topic, proof.peer)
        session = self._handoffs.receive(reply, request.node) if not is_here else None
        if session is not None:
            self._move(join, session, proof.peer)
        else:
            self._add(join)

    def forget_requests(self) -> None:
        """Forget the requests for sessions that are not needed any more."""
        self._requests = {number: each for number, each in self._requests.items() if not each.join.is_decided}

    def _move(self, join: PendingJoin, session: ReceivedSession, peer: str) -> None:
        """Have the store move the peer to this node."""
        replica = self._replicas.replica(join.topic)

        def moved(reply: Snapshot | Gone | None) -> None:
            replica.snapshot_answered()
            snapshot = reply if isinstance(reply, Snapshot) else None
            if reply is None:
                self._replicas.move_unanswered(join.topic, peer, session.text)
            if snapshot is not None and not join.is_decided and self._membership.has_lease:
                join.stored, join.session = Stored.YES, session
                # Not what the client asks for: a peer that resumes keeps its metadata.
                join.metadata = snapshot.members[peer].metadata if peer in snapshot.members else None
                self._replicas.apply_snapshot(join.topic, replica, snapshot)
                self._decide(join)
            else:
                if snapshot is not None:
                    # It joined as a new peer meanwhile, or is gone; or the senders of its relays may have got
                    # their errors, because this node was evicted.
                    self._handoffs.refuse(session)
                    self._report_lost(join.topic, peer, snapshot.members[peer].metadata, session)
                    self._replicas.leave(join.topic, peer)
                else:
                    # A third node was faster, or there was no reply.
                    self._handoffs.forget(session)
                if not join.is_decided:
                    self._rename(join, self._ids.next())
                    self._timeouts.set(join)
                    self._add(join)
            self._replicas.resync_if_needed(join.topic, replica)

        # Only the store knows which node has the peer, so there is no timeout: if there is no reply at all,
        # ``decide_all`` ends this, and the reply comes before those to the next heartbeats.
        self._timeouts.clear(join)
        replica.snapshot_requested()
        self._rename(join, peer)
        join.stored = Stored.UNKNOWN
        self._store.move(join.topic, peer, session.node, moved)

    def _report_lost(self, topic: str, peer: str, metadata: bytes | None, session: ReceivedSession) -> None:
        if self.observed is not None:
            # Before the late reply of the store came, a third node may have taken the peer.
            self.observed.peer_lost_on_its_way(topic, peer, metadata, session.text, may_be_elsewhere=True)

    def _add(self, join: PendingJoin) -> None:
        """Have the store add the peer, with a greater id if it must be."""
        peer, replica = join.id, self._replicas.replica(join.topic)

        def replied(reply: Snapshot | IdTooSmall | TopicFull | None) -> None:
            replica.snapshot_answered()
            if self.observed is not None and isinstance(reply, Snapshot) and len(reply.members) == 1:
                self.observed.topic_opened(join.topic)
            if peer != join.id:
                # It has another id by now.
                if reply is None or isinstance(reply, Snapshot):
                    self._replicas.leave(join.topic, peer)
            elif reply is None:
                self._decide(join)
            elif isinstance(reply, Snapshot):
                join.stored = Stored.YES
                self._replicas.apply_snapshot(join.topic, replica, reply)
                self._decide(join)
            elif join.is_decided:
                # It joined without waiting for this, or is gone.
                self._replicas.resync(join.topic)
            elif isinstance(reply, TopicFull):
                self._decide(join, full=reply)
            else:
                self._add_with_greater_id(join, reply.greatest)
            self._replicas.resync_if_needed(join.topic, replica)

        join.stored = Stored.UNKNOWN
        replica.snapshot_requested()
        self._store.join(join.topic, peer, join.metadata, join.max_peers.number, replied)

    def _add_with_greater_id(self, join: PendingJoin, greatest: str) -> None:
        try:
            self._ids.advance_past(greatest)
        except ValueError:
            # Some other program wrote that id.
            self._decide(join)
            return
        self._rename(join, self._ids.next())
        if self._membership.is_registered:
            self._add(join)

    def _rename(self, join: PendingJoin, peer: str) -> None:
        self._pending.rename(join, peer)
        self._hand_out_tickets(join.topic)

    def _decide(self, join: PendingJoin, full: TopicFull | None = None) -> None:
        if join.is_decided:
            return
        self._timeouts.clear(join)
        if join.resumes and join.stored is not Stored.YES:
            # Nobody knows whether this node has that peer now; it surely has a new one.
            self._rename(join, self._ids.next())
        reasons = {
            TopicFull.BYTES: LIST_FULL,
            TopicFull.PEERS: join.max_peers.reached,
        }
        is_known = join.stored is Stored.YES or self.observed is None
        opens = not (is_known or self._replicas.has_members(join.topic))
        join.ticket = JoinTicket(join.id, reasons[full] if full else None, join.session, opens)
        if join.resumes:
            join.hand_out_ticket()
        else:
            self._hand_out_tickets(join.topic)

    def _hand_out_tickets(self, topic: str) -> None:
        """Hand out tickets in joining order, each after the join before it is finished; announce members of others."""
        self._replicas.announce(topic)
        if topic in self._handing_out:
            return
        self._handing_out.add(topic)
        try:
            while (
                (first := self._pending.first(topic)) is not None and first.is_decided and first.on_ticket is not None
            ):
                first.hand_out_ticket()
        finally:
            self._handing_out.remove(topic)

    def finish_join(self, topic: str, peer: str, *, joined: bool) -> None:
        """End a join: its peer is in the topic now, or will never be."""
        join = self._pending.remove(topic, peer)
        if joined:
            self._replicas.peer_is_here(topic, peer)
        if join.session is not None:
            end = self._handoffs.accept if joined else self._handoffs.refuse
            end(join.session)
            if not joined:
                self._report_lost(topic, peer, join.metadata, join.session)
        for deliver in join.waiting_relays:
            deliver()
        if joined and (
            join.was_removed or join.stored is not Stored.YES or self._node.metadata(topic, peer) != join.metadata
        ):
            self._replicas.resync(topic)
        elif not joined and join.stored is not Stored.NO:
            self._replicas.leave(topic, peer)
        self._hand_out_tickets(topic)
        self._replicas.forget_if_empty(topic)
        if joined and join.resumes and join.on_resumed is not None:
            join.on_resumed(peer)

    def for_resuming(self, topic: str, peer: str | None, then: Callable[[str], None]) -> bool:
        """Call ``then`` with each peer that resumes here; as ``Backplane.for_resuming``."""
        joins = self._pending.resuming(topic, peer)
        for join in joins:
            join.on_resumed = then
        return any(join.resumes for join in joins)
