"""Sessions that one node hands off to another, and the relays that are open meanwhile.

The store decides who has a peer: before its script ``move`` has run it is the old node, afterwards the new one, whether
that one can go on with the session or not. Then the new node owes the old one the outcome of each relay that waits for
the peer, and the old node owes the new one the outcome of each relay that the peer had sent. Both are numbered under
one origin, and are told, asked about and given up like any other relay between two nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from signaling.backplane.messages import Claim, Session
from signaling.backplane.relay_link import RemoteSender
from signaling.backplane.relays import Relaying
from signaling.backplane.store import Store
from signaling.core.interfaces import Forwarding, Node, OutgoingSession, Receipt, ResumeProof
from signaling.errors import ErrorCode


class _Offer(NamedTuple):
    """A session as it was written down for other nodes."""

    origin: str
    session: OutgoingSession


class ReceivedSession:
    """An ``IncomingSession`` of another node.

    Args:
        text: of the session.
        waiting: the numbers of the relays to its peer that have no outcome yet.
        origin: under which outcomes are told.
        node: that offers the session.
        settle: takes the outcomes of ``waiting``.
    """

    def __init__(
        self,
        text: bytes,
        waiting: list[int],
        origin: str,
        node: str,
        settle: Callable[[int, ErrorCode | None], None],
    ) -> None:
        self.text = text
        self.waiting = waiting
        self.origin = origin
        self.node = node
        self.settle = settle
        self.followed: dict[int, Forwarding] = {}

    def receipt(self, number: int) -> Receipt:
        """Return the receipt of a relay to the peer."""
        return RemoteSender(partial(self.settle, number)), None

    def follow(self, number: int, forwarding: Forwarding) -> None:
        """Report to ``forwarding`` the outcome of a relay of the peer."""
        self.followed[number] = forwarding


class HandOffs:
    """Hands sessions off to other nodes, and takes theirs.

    Args:
        new_origin: makes up under which numbers outcomes are told.
        store: reaches the other nodes.
        relaying: tells them outcomes, and hears theirs.
    """

    def __init__(self, new_origin: Callable[[], str], store: Store, relaying: Relaying) -> None:
        self._new_origin = new_origin
        self._store = store
        self._relaying = relaying
        self._node: Node
        # By topic and peer, and then by the node that asked.
        self._offers: dict[tuple[str, str], dict[str, _Offer]] = {}

    def start(self, node: Node) -> None:
        """Hand off the sessions of ``node``."""
        self._node = node

    # To another node

    def answer(self, claim: Claim) -> None:
        """Answer a node that wants to have a peer of this one."""
        session = self._node.prepare_handoff(claim.topic, ResumeProof(claim.peer, claim.proof))
        if session is None:
            self._store.tell(claim.reply_to, Session(claim.number, None))
            return
        offers = self._offers.setdefault((claim.topic, claim.peer), {})
        offer = next((offer for offer in offers.values() if offer.session is session), None)
        if offer is None:
            offer = _Offer(self._new_origin(), session)
            session.report = self._relaying.owe(offer.origin, claim.reply_to, session.open)
        offers[claim.reply_to] = offer
        # What the peer sends at its new node must not overtake what it sent here.
        self._relaying.publish_all()
        self._store.tell(claim.reply_to, Session(claim.number, session.text, offer.origin, list(session.waiting)))

    def moved(self, topic: str, peer: str, node: str) -> None:
        """Leave a peer of this node to another one, which the store says has it."""
        offer = self._offers.pop((topic, peer), {}).get(node)
        unwritten = self._node.moved(topic, peer, offer.session.waiting if offer is not None else ())
        if offer is not None:
            self._relaying.expect(offer.origin, node, unwritten)

    def forget_offers(self) -> None:
        """Forget what was offered of peers that are here no more."""
        self._offers = {key: offers for key, offers in self._offers.items() if self._node.has(*key)}

    # From another node

    def receive(self, answer: Session, node: str) -> ReceivedSession | None:
        """Take the answer to a claim; None where the other node keeps the peer."""
        if answer.session is None:
            return None
        settle = self._relaying.owe(answer.origin, node, answer.waiting)
        return ReceivedSession(answer.session, answer.waiting, answer.origin, node, settle)

    def take(self, session: ReceivedSession) -> None:
        """Go on with a session: its peer is here."""
        self._relaying.expect(session.origin, session.node, session.followed)

    def refuse(self, session: ReceivedSession) -> None:
        """Drop all that waits for a peer that the store says is this node's, and that cannot be here."""
        for number in session.waiting:
            session.settle(number, ErrorCode.DROPPED)

    def forget(self, session: ReceivedSession) -> None:
        """Forget a session that stays where it is, or goes to a third node."""
        self._relaying.disown(session.origin)
