"""What the core asks of connections and of the backplane, and what the backplane asks of this node."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from signaling.core.topics import MaxPeers
from signaling.errors import ErrorCode, LeaveReason


class RelaySender(Protocol):
    """The sender of relays that have to wait. ``msg_id`` is the JSON text of the relay's ``msgId``, or None.

    After ``relay_queued`` exactly one of the other methods is called, once.
    """

    def relay_queued(self, msg_id: bytes | None) -> None:
        """A relay was accepted, and waits for its target's connection."""

    def relay_written(self, msg_id: bytes | None) -> None:
        """A relay that had to wait was written to its target's connection."""

    def relay_failed(self, msg_id: bytes | None, code: ErrorCode) -> None:
        """A relay that had to wait was not written, and never will be."""


# A plain tuple: one is made for each relay.
Receipt = tuple[RelaySender, bytes | None]
"""A delivery receipt: the sender of a relay that may have to wait, and the JSON text of its ``msgId``, or None."""


class Outbound(Protocol):
    """Where a peer's frames go: a bounded queue in front of its connection.

    No method closes or calls back, except ``remove_peer``.
    """

    @property
    def blocked(self) -> bool:
        """Whether offered frames have to wait."""

    def offer(self, frame: bytes, receipt: Receipt | None = None) -> bool:
        """Take ``frame``, or return False if the queue is full or the connection is closing."""

    def offer_at_once(self, frames: bytes) -> bool:
        """Take several frames in one piece, or return False if they have to wait or the connection is closing."""

    def answer(self, frame: bytes) -> None:
        """Take ``frame``, however full the queue is."""

    def remove_peer(self, code: int, reason: str, ending: LeaveReason) -> None:
        """Send a close frame and end the connection; its peer leaves at once, and cannot resume.

        Args:
            ending: why, for the log and the counters.
        """

    def check_update(self) -> None:
        """Count an update of the peer's metadata.

        Raises:
            Rejected: ``forbidden`` or ``rate_limited``, without a ``msgId``.
        """


# The backplane: how the nodes of a cluster share topics


@dataclass(eq=False, slots=True)
class OutgoingSession:
    """A session that this node offers to another one.

    Args:
        text: for the other node's ``IncomingSession``.
        waiting: the numbers of the relays to the peer that are not written yet.
        open: the numbers of the relays of the peer that have no outcome yet.

    Attributes:
        report: is called with each of ``open`` and its outcome, None for delivered.
    """

    text: bytes
    waiting: Collection[int]
    open: Collection[int]
    report: Callable[[int, ErrorCode | None], None] = lambda number, code: None


class IncomingSession(Protocol):
    """A session that another node hands off to this one."""

    @property
    def text(self) -> bytes:
        """The ``OutgoingSession.text`` of the other node."""

    def receipt(self, number: int) -> Receipt:
        """Return the receipt of a relay to the peer; ``number`` is one of ``OutgoingSession.waiting``."""

    def follow(self, number: int, forwarding: Forwarding) -> None:
        """Report the outcome of a relay of the peer; ``number`` is one of ``OutgoingSession.open``."""


@dataclass(frozen=True, slots=True)
class JoinTicket:
    """The backplane's answer to ``request_join``.

    Args:
        id: the peer's id, which the other nodes know; None if there are no other nodes, and any new id will do.
        full: why the topic is full, for a person; None if it is not.
        session: the session with that id, which another node handed off; None for a new peer.
        opens: whether the topic has no peer before, as far as this node knows; the backplane reports it otherwise.
    """

    id: str | None = None
    full: str | None = None
    session: IncomingSession | None = None
    opens: bool = False


@dataclass(frozen=True, slots=True)
class ResumeProof:
    """A client's proof that it may resume a session which another node may have.

    Args:
        peer: the id of the session's peer.
        text: only the session's node reads it.
    """

    peer: str
    text: bytes


class Answers(NamedTuple):
    """What the nodes answered to a query of the admin API; none of them if too many other queries wait.

    Args:
        answers: by the name of the node; a single server has the name ``""``.
        missing: the names of the nodes that did not answer in time, and may have done what they were asked to.
    """

    answers: Mapping[str, bytes]
    missing: Sequence[str] = ()


class Forwarding(Protocol):
    """Receives the outcome of a relay to a peer of another node. Exactly one method is called, once."""

    def delivered(self) -> None:
        """The relay was written to its target's connection."""

    def failed(self, code: ErrorCode) -> None:
        """The relay was not written, and never will be: ``dropped`` or ``target_not_found``."""


class Node(Protocol):
    """The peers of one node, as its backplane sees them."""

    def joined(self, topic: str, peer: str, metadata: bytes | None) -> None:
        """Announce to the topic's peers here that a peer of another node joined."""

    def left(self, topic: str, peer: str) -> None:
        """Announce to the topic's peers here that a peer of another node left."""

    def updated(self, topic: str, peer: str, metadata: bytes) -> None:
        """Announce to the topic's peers here that a peer has other metadata; it is, or was, another node's."""

    def prepare_handoff(self, topic: str, proof: ResumeProof) -> OutgoingSession | None:
        """Offer the session of a peer to another node; meanwhile the peer accepts no frames.

        Returns:
            The session, the same object until the peer accepts frames again; None if the peer is not here, or the
            proof is not valid.
        """

    def moved(self, topic: str, peer: str, taken: Collection[int]) -> Mapping[int, Forwarding]:
        """Remove a peer that resumed at another node, without announcing that it left.

        Args:
            taken: the relays to the peer that the other node has, by their numbers in ``OutgoingSession.waiting``.

        Returns:
            Those of ``taken`` that are not written yet; the other node reports their outcome. All other relays that
            wait for the peer are dropped.
        """

    def members(self, topic: str) -> Iterable[tuple[str, bytes | None]]:
        """List the ids and metadata of the topic's peers here."""

    def has(self, topic: str, peer: str) -> bool:
        """Return whether the peer is here."""

    def metadata(self, topic: str, peer: str) -> bytes | None:
        """Return the metadata of a peer; None if it has none, or is not here."""

    def is_handing_off(self, topic: str, peer: str) -> bool:
        """Return whether the peer is here and another node may have taken its session."""

    def deliver(self, topic: str, to: str, frame: bytes, receipt: Receipt) -> bool | None:
        """Deliver a relay to a peer that is here.

        Returns:
            True if it was written; None if it waits, and the receipt reports its outcome.

        Raises:
            Rejected: ``target_not_found`` or ``dropped``.
        """

    def answer(self, query: bytes, on_answer: Callable[[bytes], None]) -> None:
        """Carry out a query of the admin API on the peers that are here.

        Args:
            query: perhaps of another version of this server, or of another program.
            on_answer: called once: before this method returns, or in a later pass of the reactor.
        """


class PresenceListener(Protocol):
    """What only a backplane knows about presence, for the observer of this server (``core/presence_reporter.py``)."""

    def topic_opened(self, topic: str) -> None:
        """The store had no peer in the topic, and has one of this node."""

    def topic_closed(self, topic: str) -> None:
        """This node removed the last peer of the topic from the store."""

    def forget_if_empty(self, topic: str) -> None:
        """The topic has peers elsewhere, or that is not known; this node may have none left."""

    def leave_decided(self, topic: str, peer: str, has_left: bool | None) -> None:
        """A peer that ``Backplane.leave`` was called for has left, or is elsewhere; None if that is not known."""

    @property
    def undecided_topics(self) -> Collection[str]:
        """The topics that peers left without an answer of the store; ``synced`` decides about them."""

    def synced(self, topic: str, members: Collection[str]) -> None:
        """The store lists the members of a topic rightly again, as far as they are this node's."""

    def peer_of_lost_node(self, topic: str, peer: str, metadata: bytes | None, node: str) -> None:
        """This node removed a peer of a node that it evicted."""

    def peer_lost_on_its_way(
        self, topic: str, peer: str, metadata: bytes | None, session: bytes, *, may_be_elsewhere: bool = False
    ) -> None:
        """Another node handed off a peer, which cannot go on here.

        Args:
            session: the ``OutgoingSession.text`` of the other node.
            may_be_elsewhere: whether a third node may have the peer by now: then ``leave_decided`` says so.
        """

    def renamed(self) -> None:
        """The other nodes had evicted this one, and it has another id."""


class Backplane(Protocol):
    """What the nodes of a cluster share: the members of each topic, and relays between nodes.

    Peers of one node do not need it: their node announces them to each other and relays between them at once.
    """

    @property
    def unready_reasons(self) -> list[str]:
        """Why a load balancer should send new clients to another node; empty if it should not."""

    @property
    def node(self) -> str | None:
        """The id of this node, as the other nodes know it; None if there are none."""

    @property
    def forwarding(self) -> int:
        """How many relays to other nodes have no outcome yet."""

    def report_presence(self, listener: PresenceListener) -> None:
        """Report to ``listener`` from now on; called before ``start``."""

    def start(self, node: Node) -> None:
        """Connect to the other nodes."""

    def stop(self, done: Callable[[], None]) -> None:
        """Disconnect once everything was sent, then call ``done``; the node's peers have left before."""

    def request_join(
        self,
        topic: str,
        metadata: bytes | None,
        max_peers: MaxPeers,
        on_ticket: Callable[[JoinTicket], None],
        proof: ResumeProof | None = None,
    ) -> None:
        """Announce a peer that is about to join.

        Args:
            max_peers: how many peers the topic may have on all nodes; a peer that resumes is not counted again.
            on_ticket: called once: perhaps before this method returns, and within a few seconds.
            proof: that the client may resume a session which another node may have; None for a new peer.
        """

    def finish_join(self, topic: str, peer: str, *, joined: bool) -> None:
        """Report whether the peer of a ticket is in its topic now, or never will be."""

    def update(self, topic: str, peer: str, metadata: bytes, on_decided: Callable[[str | None], None]) -> None:
        """Ask whether a peer of this node may have other metadata, and announce it to the other nodes.

        Args:
            on_decided: called at most once: perhaps before this method returns, and within a few seconds, unless the
                peer is gone. None if the peer has the metadata from now on, otherwise why it has not, for a person.
        """

    def leave(self, topic: str, peer: str) -> None:
        """Report that a peer of this node left."""

    def resync(self, topic: str) -> None:
        """Compare a topic with what the other nodes know, after a hand-off that was cancelled."""

    def remote_members(self, topic: str) -> Iterable[tuple[str, bytes | None]]:
        """List the ids and metadata of the topic's peers on other nodes."""

    def forward(self, topic: str, to: str, sender: str, frame: bytes, forwarding: Forwarding) -> bool | None:
        """Send a relay to a peer of another node.

        Returns:
            True if it was sent, and ``forwarding`` receives its outcome; False if it has to be dropped; None if no
            other node has that peer.
        """

    def for_resuming(self, topic: str, peer: str | None, then: Callable[[str], None]) -> bool:
        """Call ``then`` with the id of each peer whose session may be on its way here, once it has resumed.

        Args:
            peer: only this one; None means any in the topic.

        Returns:
            Whether the session of one is on its way, so that the node that had it may have forgotten it.
        """

    def ask_nodes(self, query: bytes, on_answers: Callable[[Answers], None]) -> None:
        """Have all nodes carry out a query of the admin API, this one included.

        Args:
            on_answers: called once: perhaps before this method returns, and within 2 s.
        """
