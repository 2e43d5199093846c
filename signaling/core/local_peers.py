"""The peers of this server, as its backplane sees them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from signaling.core import messages
from signaling.core.interfaces import Forwarding, OutgoingSession, Receipt, ResumeProof
from signaling.core.peer import RELAY_ERRORS, Peer, PeerServices
from signaling.errors import ErrorCode, Rejected
from signaling.websocket.frames import text_frame


class LocalPeers:
    """The ``Node`` of this server.

    Args:
        services: what the peers share.
        on_moved: is called with a peer that resumed at another node, before it is removed here.
        answer_query: ``Administration.answer``.
    """

    def __init__(
        self,
        services: PeerServices,
        on_moved: Callable[[Peer], None],
        answer_query: Callable[[bytes, Callable[[bytes], None]], None],
    ) -> None:
        self._services = services
        self._topics = services.topics
        self._on_moved = on_moved
        self.answer_query = answer_query

    def joined(self, topic: str, peer: str, metadata: bytes | None) -> None:
        """Announce to the topic's peers here that a peer of another node joined."""
        self._announce(topic, messages.peer_joined(peer, metadata))

    def updated(self, topic: str, peer: str, metadata: bytes) -> None:
        """Announce to the topic's peers here that a peer of another node has other metadata."""
        self._announce(topic, messages.peer_updated(peer, metadata), updated=peer)

    def left(self, topic: str, peer: str) -> None:
        """Announce to the topic's peers here that a peer of another node left."""
        self._announce(topic, messages.peer_left(peer))

    def prepare_handoff(self, topic: str, proof: ResumeProof) -> OutgoingSession | None:
        """Offer the session of a peer to another node."""
        found = self._find(topic, proof.peer)
        return found.prepare_handoff(proof.text) if found is not None else None

    def moved(self, topic: str, peer: str, taken: Collection[int]) -> Mapping[int, Forwarding]:
        """Remove a peer that resumed at another node."""
        found = self._find(topic, peer)
        if found is None:
            return {}
        self._on_moved(found)
        if self._services.presence is not None:
            self._services.presence.moved_away(topic, peer)
        return found.moved(taken)

    def members(self, topic: str) -> Iterable[tuple[str, bytes | None]]:
        """List the ids and metadata of the topic's peers here."""
        return ((peer.id, peer.metadata) for peer in self._topics.find(topic) or ())

    def has(self, topic: str, peer: str) -> bool:
        """Return whether the peer is here."""
        return self._find(topic, peer) is not None

    def metadata(self, topic: str, peer: str) -> bytes | None:
        """Return the metadata of a peer; None if it has none, or is not here."""
        found = self._find(topic, peer)
        return found.metadata if found is not None else None

    def is_handing_off(self, topic: str, peer: str) -> bool:
        """Return whether the peer is here and another node may have taken its session."""
        found = self._find(topic, peer)
        return found is not None and found.is_handing_off

    def deliver(self, topic: str, to: str, frame: bytes, receipt: Receipt) -> bool | None:
        """Deliver a relay to a peer that is here; as ``Node.deliver``."""
        target = self._find(topic, to)
        if target is None:
            raise Rejected(ErrorCode.TARGET_NOT_FOUND, RELAY_ERRORS[ErrorCode.TARGET_NOT_FOUND])
        target.catch_up()
        waits = target.blocked
        if not target.offer(frame, receipt):
            raise Rejected(ErrorCode.DROPPED, RELAY_ERRORS[ErrorCode.DROPPED])
        self._services.counters.relays_received += 1
        return None if waits else True

    def answer(self, query: bytes, on_answer: Callable[[bytes], None]) -> None:
        """Carry out a query of the admin API on the peers that are here."""
        self.answer_query(query, on_answer)

    def _find(self, topic: str, peer: str) -> Peer | None:
        found = self._topics.find(topic)
        return found.get(peer) if found is not None else None

    def _announce(self, topic: str, event: bytes, updated: str | None = None) -> None:
        found = self._topics.find(topic)
        if found is not None:
            self._services.announcer.announce(found, text_frame(event), updated=updated)
