"""What one node knows of one topic: the members that other nodes have there.

The store numbers a topic's events. They count in their order; where one is missing, a snapshot takes the place of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from signaling.backplane.messages import Event, Kind, Other, Version

_MOST_EARLY = 1000


class Change(NamedTuple):
    """What a node's own peers have to hear, or, for a move of one of them, the node itself."""

    kind: Kind
    peer: str
    metadata: bytes | None = None
    node: str = ""
    """To which the peer moved."""


class Own(Protocol):
    """The peers that a node has in a topic."""

    def __contains__(self, peer: object) -> bool:
        """Tell whether the peer is here, or about to join."""

    def expects(self, peer: str) -> bool:
        """Tell whether the peer is on its way here from another node: those who are here know it, or have to."""


class TopicReplica:
    """A topic as one node sees it.

    Attributes:
        others: the members of other nodes, and those that are on their way from one to this node.
        unannounced: those of the others that nobody here was told of, for earlier ones are on their way into the topic.
        current: False where events may be missing: a snapshot is needed, and events wait for it.
        calls: how many replies with a snapshot are on their way.
        parked: what waits for the view to be current.
        kept: those of the others that a store which lost its data does not list (any more); their nodes may.
    """

    def __init__(self) -> None:
        self.others: dict[str, Other] = {}
        self.unannounced: set[str] = set()
        self.current = False
        self.calls = 0
        self.parked: list[Callable[[], None]] = []
        self.kept: set[str] = set()
        self._version: Version = (0, 0, 0)
        self._early: list[Event] = []

    def resync(self) -> None:
        """Notice that events may be missing, and that even their numbers may have begun anew."""
        self.current = False
        self._version = (0, 0, 0)
        self._early = []

    def began_anew(self, version: Version) -> bool:
        """Tell whether the topic was made again though somebody is here: then the store has lost its data."""
        return self._version != (0, 0, 0) and version[:2] > self._version[:2]

    def take_event(self, event: Event, node: str, own: Own) -> list[Change]:
        """Take the next event.

        Args:
            node: the id of the node whose view this is.
            own: the peers that this node has in the topic.
        """
        if event.version <= self._version:
            return []
        if self.current and event.version == (*self._version[:2], self._version[2] + 1):
            self._version = event.version
            return self._apply(event, node, own)
        self.current = False
        self._early = [*self._early[1 - _MOST_EARLY :], event]
        return []

    def take_snapshot(
        self, version: Version, members: Mapping[str, Other], node: str, own: Own, *, keep: bool = False
    ) -> list[Change]:
        """Take who is there, and then the events that came early; arguments as for ``take_event``.

        Args:
            keep: whether others may be there who are not listed; they stay.
        """
        changes: list[Change] = []
        if version >= self._version:
            others = {
                peer: other
                for peer, other in members.items()
                if other.node != node or (peer not in own and (peer in self.others or own.expects(peer)))
            }
            self.kept = {peer for peer in self.others if keep and peer not in members and peer not in own}
            others |= {peer: self.others[peer] for peer in self.kept}
            left = [Change(Kind.LEFT, peer) for peer in self.others if peer not in others and peer not in own]
            moved = [Change(Kind.MOVED, peer, node=others[peer].node) for peer in others if peer in own]
            joined = [
                Change(Kind.JOINED, peer, others[peer].metadata)
                for peer in sorted(others)
                if peer not in self.others and peer not in own
            ]
            changes = left + moved + joined
            self.others, self._version, self.current = others, version, True
        elif not self.current:
            # Events that came early are newer than this: another snapshot is needed.
            return []
        early, self._early = self._early, []
        for event in early:
            changes += self.take_event(event, node, own)
        return changes

    def give_up_kept(self) -> list[Change]:
        """Believe that those who were kept are gone: nobody said otherwise."""
        kept, self.kept = self.kept, set()
        for peer in kept:
            del self.others[peer]
        return [Change(Kind.LEFT, peer) for peer in sorted(kept)]

    def _apply(self, event: Event, node: str, own: Own) -> list[Change]:
        peer, other = event.peer, event.other
        self.kept.discard(peer)
        if other is None:
            return [Change(Kind.LEFT, peer)] if self.others.pop(peer, None) is not None else []
        known = peer in self.others
        if other.node == node and (peer in own or not (known or own.expects(peer))):
            self.others.pop(peer, None)
            return []
        self.others[peer] = other
        if peer in own:
            return [Change(Kind.MOVED, peer, node=other.node)]
        return [] if known else [Change(Kind.JOINED, peer, other.metadata)]

    def take_parked(self) -> list[Callable[[], None]]:
        """Return what waited, once, where the view is current."""
        if not self.current:
            return []
        parked, self.parked = self.parked, []
        return parked
