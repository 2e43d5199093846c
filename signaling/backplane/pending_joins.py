"""The peers of this node that are about to join: what the store may have of them, and what waits for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

from signaling.backplane.relay_link import RemoteSender
from signaling.core.interfaces import Forwarding, JoinTicket, Receipt, ResumeProof
from signaling.core.topics import MaxPeers
from signaling.errors import ErrorCode


class Stored(Enum):
    """Whether the store has a peer."""

    NO = "no"
    UNKNOWN = "unknown"
    """It was asked to; there is no reply yet, or never will be."""
    YES = "yes"


@dataclass(eq=False)
class ReceivedSession:
    """An ``IncomingSession`` of another node.

    Args:
        text: of the session.
        waiting: the numbers of the relays to its peer that have no outcome yet.
        origin: the series of those numbers.
        node: that offers the session.
        report: to be called with each of ``waiting`` and its outcome.

    Attributes:
        followed: the relays of the peer that have no outcome yet, by number.
    """

    text: bytes
    waiting: list[int]
    origin: str
    node: str
    report: Callable[[int, ErrorCode | None], None]
    followed: dict[int, Forwarding] = field(default_factory=dict, init=False)

    def receipt(self, number: int) -> Receipt:
        """Return the receipt of a relay to the peer."""
        return RemoteSender(partial(self.report, number)), None

    def follow(self, number: int, forwarding: Forwarding) -> None:
        """Report to ``forwarding`` the outcome of a relay of the peer."""
        self.followed[number] = forwarding


@dataclass(eq=False, slots=True)
class PendingJoin:
    """A peer between the request to join and ``Backplane.finish_join``.

    Args:
        id: another one later if the store takes no peer with the first.
        max_peers: how many peers the topic may have.
        on_ticket: called once, when it is this peer's turn; None afterwards.
        proof: of being a peer that another node may have.

    Attributes:
        stored: whether the store has it under this id.
        was_removed: whether it was removed from the store again: it has to be put back.
        waiting_relays: what to call for each relay that came for it; its peer-list comes first.
        session: that another node handed off; None before the store has moved the peer.
        ticket: how it joins; None until that is decided.
        on_resumed: is called with its id when it has resumed here; None if nobody waits for that.
    """

    topic: str
    id: str
    metadata: bytes | None
    max_peers: MaxPeers
    on_ticket: Callable[[JoinTicket], None] | None
    proof: ResumeProof | None
    stored: Stored = Stored.NO
    was_removed: bool = False
    waiting_relays: list[Callable[[], None]] = field(default_factory=list)
    session: ReceivedSession | None = None
    ticket: JoinTicket | None = None
    on_resumed: Callable[[str], None] | None = None

    @property
    def resumes(self) -> bool:
        """Whether it joins as the peer that another node has, or had a moment ago."""
        return self.proof is not None and self.id == self.proof.peer

    @property
    def is_decided(self) -> bool:
        """Whether it is decided how it joins."""
        return self.ticket is not None

    def hand_out_ticket(self) -> None:
        """Call ``on_ticket``, once."""
        on_ticket, self.on_ticket = self.on_ticket, None
        if on_ticket is not None and self.ticket is not None:
            on_ticket(self.ticket)


class PendingJoins:
    """The pending joins of all topics."""

    def __init__(self) -> None:
        self._by_topic: dict[str, dict[str, PendingJoin]] = {}

    def __iter__(self) -> Iterator[PendingJoin]:
        return iter([join for joins in self._by_topic.values() for join in joins.values()])

    def add(self, join: PendingJoin) -> None:
        """Add a join."""
        self._by_topic.setdefault(join.topic, {})[join.id] = join

    def rename(self, join: PendingJoin, peer: str) -> None:
        """Give a join another id, which the store does not have."""
        joins = self._by_topic[join.topic]
        del joins[join.id]
        join.id, join.stored = peer, Stored.NO
        joins[peer] = join

    def remove(self, topic: str, peer: str) -> PendingJoin:
        """Remove a join, and return it."""
        joins = self._by_topic[topic]
        join = joins.pop(peer)
        if not joins:
            del self._by_topic[topic]
        return join

    def has_topic(self, topic: str) -> bool:
        """Return whether any peer is about to join the topic."""
        return topic in self._by_topic

    def find(self, topic: str, peer: str) -> PendingJoin | None:
        """Return the join with that id, or None."""
        return self._by_topic.get(topic, {}).get(peer)

    def resuming(self, topic: str, peer: str | None) -> list[PendingJoin]:
        """Return the joins that may resume a session of another node: any in the topic, or only that of one peer."""
        joins = self._by_topic.get(topic, {}).values()
        return [join for join in joins if join.proof is not None and peer in (None, join.proof.peer)]

    def first(self, topic: str) -> PendingJoin | None:
        """Return the new peer that is first in joining order, or None; peers that resume joined long ago."""
        # In the order of their ids: each new id is greater than all before.
        return next((join for join in self._by_topic.get(topic, {}).values() if not join.resumes), None)

    def for_sync(self, topic: str) -> list[tuple[str, bytes]]:
        """Return what ``Store.sync`` has to state of the topic's joins."""
        joins = self._by_topic.get(topic, {}).values()
        surely = [(join.id, b"+" + (join.metadata or b"")) for join in joins if join.stored is Stored.YES]
        return surely + [(join.id, b"?") for join in joins if join.stored is Stored.UNKNOWN]
