"""The peers of this server, as its backplane sees them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from signaling.core import messages
from signaling.core.announcer import Announcer
from signaling.core.counters import Counters
from signaling.core.interfaces import Forwarding, OutgoingSession, Receipt, ResumeProof
from signaling.core.peer import TEXTS, Peer
from signaling.core.topics import TopicMap
from signaling.errors import ErrorCode, Rejected
from signaling.websocket.frames import text_frame


class LocalPeers:
    """A ``Node`` of a cluster.

    Args:
        topics: where the peers are.
        announcer: tells them of peers of other nodes.
        counters: the server's.
        on_lend: gets a peer ready to go on at another node, as ``Node.prepare_handoff``.
        on_moved: hears of a peer that came back to another node, as ``Node.moved``.
    """

    def __init__(
        self,
        topics: TopicMap[Peer],
        announcer: Announcer,
        counters: Counters,
        on_lend: Callable[[Peer, bytes], OutgoingSession | None],
        on_moved: Callable[[Peer, Collection[int]], Mapping[int, Forwarding]],
    ) -> None:
        self._topics = topics
        self._announcer = announcer
        self._counters = counters
        self._on_lend = on_lend
        self._on_moved = on_moved

    def joined(self, topic: str, peer: str, metadata: bytes | None) -> None:
        """Tell those who are here."""
        self._tell(topic, messages.peer_joined(peer, metadata))

    def left(self, topic: str, peer: str) -> None:
        """Tell those who are here."""
        self._tell(topic, messages.peer_left(peer))

    def prepare_handoff(self, topic: str, proof: ResumeProof) -> OutgoingSession | None:
        """Get a peer ready to go on at another node."""
        found = self._find(topic, proof.peer)
        return self._on_lend(found, proof.text) if found is not None else None

    def moved(self, topic: str, peer: str, taken: Collection[int]) -> Mapping[int, Forwarding]:
        """Forget a peer without a word."""
        found = self._find(topic, peer)
        return self._on_moved(found, taken) if found is not None else {}

    def members(self, topic: str) -> Iterable[tuple[str, bytes | None]]:
        """List the peers that are here."""
        return ((peer.id, peer.metadata) for peer in self._topics.find(topic) or ())

    def has(self, topic: str, peer: str) -> bool:
        """Tell whether the peer is here."""
        return self._find(topic, peer) is not None

    def is_handing_off(self, topic: str, peer: str) -> bool:
        """Tell whether a peer that is here may be another node's by now."""
        found = self._find(topic, peer)
        return found is not None and found.lent

    def deliver(self, topic: str, to: str, frame: bytes, receipt: Receipt) -> bool | None:
        """Hand a relay to a peer that is here."""
        target = self._find(topic, to)
        if target is None:
            raise Rejected(ErrorCode.TARGET_NOT_FOUND, TEXTS[ErrorCode.TARGET_NOT_FOUND])
        target.catch_up()
        waits = target.blocked
        if not target.offer(frame, receipt):
            raise Rejected(ErrorCode.DROPPED, TEXTS[ErrorCode.DROPPED])
        self._counters.relays_received += 1
        return None if waits else True

    def _find(self, topic: str, peer: str) -> Peer | None:
        found = self._topics.find(topic)
        return found.get(peer) if found is not None else None

    def _tell(self, topic: str, event: bytes) -> None:
        found = self._topics.find(topic)
        if found is not None:
            self._announcer.announce(found, text_frame(event))
