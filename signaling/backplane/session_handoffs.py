"""Sessions that one node hands off to another, and the relays that are open meanwhile.

The store decides which node has a peer: before its script ``move`` has run it is the old node, afterwards the new one,
whether the session can go on there or not. Then the new node owes the old one the outcome of each relay that waits for
the peer, and the old node owes the new one the outcome of each relay that the peer had sent. Both are numbered in one
series, and are reported, asked for and given up like any other relay between two nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from signaling.backplane.messages import SessionReply, SessionRequest
from signaling.backplane.pending_joins import ReceivedSession
from signaling.backplane.relays import RemoteRelays
from signaling.backplane.store import Store
from signaling.backplane.updates import PendingUpdates
from signaling.core.interfaces import Node, OutgoingSession, ResumeProof
from signaling.errors import ErrorCode


class _Offer(NamedTuple):
    """A session that was sent to other nodes, and the origin of its open relays."""

    origin: str
    session: OutgoingSession


class SessionHandoffs:
    """Hands sessions off to other nodes, and takes theirs.

    Args:
        new_origin: makes the name of a series of numbers.
        store: to send to other nodes.
        relays: reports outcomes to other nodes, and gets theirs.
        updates: that have to be decided before their peer is handed off.
    """

    def __init__(
        self, new_origin: Callable[[], str], store: Store, relays: RemoteRelays, updates: PendingUpdates
    ) -> None:
        self._new_origin = new_origin
        self._store = store
        self._relays = relays
        self._updates = updates
        self._node: Node
        # By topic and peer, and then by the node that asked.
        self._offers: dict[tuple[str, str], dict[str, _Offer]] = {}

    def start(self, node: Node) -> None:
        """Hand off the sessions of ``node``."""
        self._node = node

    # To another node

    def answer(self, request: SessionRequest) -> None:
        """Send a session to the node that asks for it, or refuse."""
        if self._updates.wait(request.topic, request.peer, partial(self.answer, request)):
            # The session has to contain the metadata in force, and its client the answers.
            return
        session = self._node.prepare_handoff(request.topic, ResumeProof(request.peer, request.proof))
        if session is None:
            self._store.send(request.reply_to, SessionReply(request.number, None))
            return
        offers = self._offers.setdefault((request.topic, request.peer), {})
        offer = next((offer for offer in offers.values() if offer.session is session), None)
        if offer is None:
            offer = _Offer(self._new_origin(), session)
            session.report = self._relays.adopt(offer.origin, request.reply_to, session.open)
        offers[request.reply_to] = offer
        # What the peer sends at its new node must not overtake what it sent here.
        self._relays.publish_all()
        reply = SessionReply(request.number, session.text, offer.origin, list(session.waiting))
        self._store.send(request.reply_to, reply)

    def peer_moved(self, topic: str, peer: str, node: str) -> None:
        """Give up a peer of this node: the store says that another one has it."""
        offers = self._offers.pop((topic, peer), {})
        if node not in offers:
            # Several moves were missed: the peer went first to a node that has its session, most likely the latest.
            node = next(reversed(offers), node)
        offer = offers.get(node)
        unwritten = self._node.moved(topic, peer, offer.session.waiting if offer is not None else ())
        if offer is not None:
            self._relays.await_outcomes(offer.origin, node, unwritten)

    def forget_offers(self) -> None:
        """Forget the offers of peers that are gone."""
        self._offers = {key: offers for key, offers in self._offers.items() if self._node.has(*key)}

    # From another node

    def receive(self, reply: SessionReply, node: str) -> ReceivedSession | None:
        """Return the session that another node offers; None if it keeps the peer."""
        if reply.session is None:
            return None
        report = self._relays.adopt(reply.origin, node, reply.waiting)
        return ReceivedSession(reply.session, reply.waiting, reply.origin, node, report)

    def accept(self, session: ReceivedSession) -> None:
        """Go on with a session whose peer is here."""
        self._relays.await_outcomes(session.origin, session.node, session.followed)

    def refuse(self, session: ReceivedSession) -> None:
        """Drop all that waits for a peer that the store says is here, but which cannot be."""
        for number in session.waiting:
            session.report(number, ErrorCode.DROPPED)

    def forget(self, session: ReceivedSession) -> None:
        """Forget a session that stays where it is, or goes to a third node."""
        self._relays.forget_adopted(session.origin)
