"""What the domain asks of the world at its rim, and what a cluster asks of its engine and of its node."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from signaling.errors import ErrorCode


class Sender(Protocol):
    """The sender of relays that have to wait. ``msg_id`` is the JSON text of the relay's ``msgId``, or None.

    After ``waits`` exactly one of the other methods is called, once.
    """

    def waits(self, msg_id: bytes | None) -> None:
        """A relay was accepted, and waits for its target's connection."""

    def written(self, msg_id: bytes | None) -> None:
        """A relay that had to wait was written to its target's connection."""

    def failed(self, msg_id: bytes | None, code: ErrorCode) -> None:
        """A relay that had to wait was not written, and never will be."""


Receipt = tuple[Sender, bytes | None]
"""The sender of a relay that may have to wait, and the JSON text of the relay's ``msgId``, or None."""


class Outbound(Protocol):
    """The way to one peer: a bounded queue in front of its connection. Neither method closes or calls back."""

    @property
    def blocked(self) -> bool:
        """Whether what is offered has to wait."""

    def offer(self, frame: bytes, receipt: Receipt | None = None) -> bool:
        """Take ``frame``, or return False where its queue is full or it is closing."""

    def answer(self, frame: bytes) -> None:
        """Take ``frame``, however full the queue is."""


# The backplane: how the nodes of a cluster share topics


@dataclass(eq=False, slots=True)
class OutgoingSession:
    """A session that this node hands off to another one, if that one takes it.

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
    """A peer on its way into a topic.

    Args:
        id: under which the other nodes know it; None where there are none, and any new one will do.
        full: why the topic does not take it, for a person; None where it does.
        session: of the peer with that id, which another node gave up; None where it is a new one.
    """

    id: str | None = None
    full: str | None = None
    session: IncomingSession | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """What a client says that wants to be a peer again.

    Args:
        peer: the id.
        text: what that peer's node has to see; only the node reads it.
    """

    peer: str
    text: bytes


class Forwarding(Protocol):
    """A relay for a peer of another node, and whoever hears what became of it. Exactly one method is called, once."""

    def delivered(self) -> None:
        """It was written to its target's connection."""

    def failed(self, code: ErrorCode) -> None:
        """It was not, and never will be: ``dropped`` or ``target_not_found``."""


class Node(Protocol):
    """The peers of one node, as its backplane sees them."""

    def joined(self, topic: str, peer: str, metadata: bytes | None) -> None:
        """A peer of another node joined; tell those who are here."""

    def left(self, topic: str, peer: str) -> None:
        """A peer of another node left; tell those who are here."""

    def prepare_handoff(self, topic: str, proof: Proof) -> OutgoingSession | None:
        """Get a peer ready to go on at another node.

        Returns:
            Its session, the same one until the peer takes anything again; None where it is not here, or the proof is
            not good.
        """

    def moved(self, topic: str, peer: str, taken: Collection[int]) -> Mapping[int, Forwarding]:
        """A peer that was here came back to another node; forget it without a word.

        Args:
            taken: the relays to the peer that the other node has, by their numbers in ``OutgoingSession.waiting``.

        Returns:
            Those of ``taken`` that are not written yet; their outcome is up to the other node now. All other relays
            that wait for the peer are dropped.
        """

    def members(self, topic: str) -> Iterable[tuple[str, bytes | None]]:
        """List the peers that are here: ids and metadata."""

    def has(self, topic: str, peer: str) -> bool:
        """Tell whether the peer is here."""

    def is_handing_off(self, topic: str, peer: str) -> bool:
        """Tell whether a peer that is here may be another node's by now."""

    def deliver(self, topic: str, to: str, frame: bytes, receipt: Receipt) -> bool | None:
        """Hand a relay to a peer that is here.

        Returns:
            True where it was written, None where it waits and the receipt will tell.

        Raises:
            Rejected: ``target_not_found`` or ``dropped``.
        """


class Backplane(Protocol):
    """What the nodes of a cluster have in common: who is in a topic, and a way to those who are elsewhere.

    Peers of this node stay this node's business: it tells them of each other, and relays between them, at once.
    """

    @property
    def unready_reasons(self) -> list[str]:
        """Why a balancer should send newcomers elsewhere; empty where it should not."""

    @property
    def forwarding(self) -> int:
        """How many relays to other nodes have no outcome yet."""

    def start(self, node: Node) -> None:
        """Take up the connection to the other nodes."""

    def stop(self, done: Callable[[], None]) -> None:
        """Give it up, once what was told has gone out; the peers have left before."""

    def request_join(
        self, topic: str, metadata: bytes | None, entered: Callable[[JoinTicket], None], proof: Proof | None = None
    ) -> None:
        """Announce a peer that is about to join; ``entered`` is called, perhaps at once, and within some seconds.

        Args:
            proof: of being a peer that another node may have; None where the client does not say so.
        """

    def finish_join(self, topic: str, peer: str, *, joined: bool) -> None:
        """Hear that an entrant is in its topic now, or will never be."""

    def leave(self, topic: str, peer: str) -> None:
        """Tell the others that a peer of this node left."""

    def resync(self, topic: str) -> None:
        """Compare a topic with what the others know: they may have heard something else of a peer of this node."""

    def remote_members(self, topic: str) -> Iterable[tuple[str, bytes | None]]:
        """List the peers of other nodes in a topic: ids and metadata."""

    def forward(self, topic: str, to: str, sender: str, frame: bytes, forwarding: Forwarding) -> bool | None:
        """Send a relay to a peer of another node.

        Returns:
            True where ``forwarding`` will hear of its end; False where it has to be dropped, and None where no other
            node has that peer.
        """
