"""What one node knows of one topic: the members that other nodes have there.

The store numbers a topic's events. They are applied in their order; if one is missing, a snapshot replaces them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from signaling.backplane.messages import EventKind, Member, TopicEvent, Version
from signaling.backplane.pending_joins import PendingJoins
from signaling.backplane.store import Snapshot, Store
from signaling.core.interfaces import Node

_MAX_EARLY_EVENTS = 1000
_NO_VERSION: Version = (0, 0, 0)


class Change(NamedTuple):
    """A change that the node has to act on.

    Args:
        moved_to: the node to which a peer of this node has moved; None if a peer of another node left that had been
            announced here.
    """

    peer: str
    moved_to: str | None = None


class Update(NamedTuple):
    """A peer of another node that had been announced here has other metadata."""

    peer: str
    metadata: bytes


class OwnPeers:
    """The peers that this node has in a topic, or is about to have.

    One that resumes is not among them until it is here: the peers here know it already, and get ``peer-left`` if it
    never gets here.
    """

    __slots__ = ("_node", "_pending", "_store", "_topic")

    def __init__(self, topic: str, node: Node, pending: PendingJoins, store: Store) -> None:
        self._topic = topic
        self._node = node
        self._pending = pending
        self._store = store

    @property
    def node(self) -> str:
        """The id of this node."""
        return self._store.node

    def __contains__(self, peer: str) -> bool:
        join = self._pending.find(self._topic, peer)
        return (join is not None and not join.resumes) or self._node.has(self._topic, peer)

    def expects(self, peer: str) -> bool:
        """Return whether the peer resumes here, and is still on its way."""
        join = self._pending.find(self._topic, peer)
        return join is not None and join.resumes and not self._node.has(self._topic, peer)


@dataclass(eq=False, slots=True)
class TopicReplica:
    """The members that other nodes have in a topic, and those on their way from one of them to this node.

    Members that join are not announced at once: ``take_announceable`` returns them when it is their turn.

    Attributes:
        is_current: False if events may be missing: then a snapshot is needed.
    """

    _own: OwnPeers
    is_current: bool = False
    _members: dict[str, Member] = field(default_factory=dict)
    # Those of the members that were not announced here yet.
    _unannounced: set[str] = field(default_factory=set)
    # Those that a store which lost its data does not list (any more); their nodes may still have them.
    _unlisted: frozenset[str] = frozenset()
    _version: Version = _NO_VERSION
    # Events that cannot be applied before a snapshot.
    _early: list[TopicEvent] = field(default_factory=list)
    # How many calls whose reply is a snapshot have none yet.
    _requests: int = 0
    _parked: list[Callable[[], None]] = field(default_factory=list)

    # Members

    def find(self, peer: str) -> Member | None:
        """Return a member of another node, announced or not."""
        return self._members.get(peer)

    def announced(self) -> list[tuple[str, bytes | None]]:
        """List the members of other nodes that were announced here: ids and metadata."""
        return [(peer, each.metadata) for peer, each in self._members.items() if peer not in self._unannounced]

    def nodes(self) -> Iterable[str]:
        """List the nodes of the members, perhaps more than once."""
        return (member.node for member in self._members.values())

    def remove(self, peer: str) -> None:
        """Forget a member that is this node's from now on."""
        self._members.pop(peer, None)

    def take_announceable(self, may_announce: Callable[[str], bool]) -> list[tuple[str, bytes | None]]:
        """Return members to announce now, in joining order: ids and metadata."""
        if not self._unannounced:
            return []
        # Those that are this node's by now joined here.
        self._unannounced &= self._members.keys()
        ready = sorted(filter(may_announce, self._unannounced))
        self._unannounced.difference_update(ready)
        return [(peer, self._members[peer].metadata) for peer in ready]

    # Snapshots

    @property
    def needs_snapshot(self) -> bool:
        """Whether events may be missing and no snapshot was requested."""
        return not self.is_current and not self._requests

    def snapshot_requested(self) -> None:
        """Count a call whose reply is a snapshot."""
        self._requests += 1

    def snapshot_answered(self) -> None:
        """Count the reply to such a call, whatever it is."""
        self._requests -= 1

    def invalidate(self) -> None:
        """Require a snapshot: events may be missing, and even their numbers may have begun again."""
        self.is_current = False
        self._version = _NO_VERSION
        self._early = []

    def was_recreated(self, version: Version) -> bool:
        """Return whether the store made the topic again while it had peers here: then it has lost its data."""
        return self._version != _NO_VERSION and version[:2] > self._version[:2]

    # Relays that wait for a snapshot, or for their sender to be announced

    def must_park(self, sender: str) -> bool:
        """Return whether a relay has to wait: its sender was not announced to its target, or an earlier relay waits."""
        is_unknown = not self.is_current and (bool(self._parked) or sender not in self._members)
        return is_unknown or sender in self._unannounced

    def park(self, deliver: Callable[[], None]) -> None:
        """Keep a relay until ``take_parked``."""
        self._parked.append(deliver)

    def take_parked(self, *, forced: bool = False) -> list[Callable[[], None]]:
        """Return what was parked, once; nothing unless the replica is current, or ``forced``."""
        if not (self.is_current or forced):
            return []
        parked, self._parked = self._parked, []
        return parked

    # Events and snapshots

    def apply_event(self, event: TopicEvent) -> list[Change | Update]:
        """Apply the next event, or keep it until a snapshot if one before it is missing."""
        if event.version <= self._version:
            return []
        if not self.is_current or event.version != (*self._version[:2], self._version[2] + 1):
            self.is_current = False
            self._early = [*self._early[1 - _MAX_EARLY_EVENTS :], event]
            return []
        self._version = event.version
        peer, member = event.peer, event.member
        self._unlisted -= {peer}
        if member is None:
            return self._left([peer]) if self._members.pop(peer, None) is not None else []
        known = self._members.get(peer)
        if member.node == self._own.node and (peer in self._own or not (known or self._own.expects(peer))):
            self._members.pop(peer, None)
            return []
        self._members[peer] = member
        if peer in self._own:
            return [Change(peer, member.node)]
        if known is None:
            self._unannounced.add(peer)
        is_update = event.kind is EventKind.UPDATED or (known is not None and known.metadata != member.metadata)
        return self._updated(peer, member.metadata) if is_update else []

    def apply_snapshot(self, snapshot: Snapshot, *, keep_unlisted: bool = False) -> list[Change | Update]:
        """Replace the members, and then apply the events that came early.

        Args:
            keep_unlisted: whether members may exist that are not listed; they stay until ``drop_unlisted``.
        """
        version, listed = snapshot.version, snapshot.members
        changes: list[Change | Update] = []
        own, before = self._own, self._members
        if version >= self._version:
            members = {
                peer: member
                for peer, member in listed.items()
                if member.node != own.node or (peer not in own and (peer in before or own.expects(peer)))
            }
            kept = (peer for peer in before if keep_unlisted and peer not in listed and peer not in own)
            self._unlisted = frozenset(kept)
            members |= {peer: before[peer] for peer in self._unlisted}
            changes += self._left([peer for peer in before if peer not in members and peer not in own])
            changes += [Change(peer, members[peer].node) for peer in members if peer in own]
            for peer, member in members.items():
                known = before.get(peer)
                if known is not None and known.metadata != member.metadata and peer not in own:
                    changes += self._updated(peer, member.metadata)
            self._unannounced.update(peer for peer in members if peer not in before and peer not in own)
            self._members, self._version, self.is_current = members, version, True
        elif not self.is_current:
            # Events that came early are newer than this: another snapshot is needed.
            return []
        early, self._early = self._early, []
        for event in early:
            changes += self.apply_event(event)
        return changes

    @property
    def has_unlisted(self) -> bool:
        """Whether members are kept that the store does not list."""
        return bool(self._unlisted)

    def drop_unlisted(self) -> list[Change | Update]:
        """Remove the members that the store does not list: no node has said that they are there."""
        unlisted, self._unlisted = sorted(self._unlisted), frozenset()
        for peer in unlisted:
            del self._members[peer]
        return self._left(unlisted)

    def _updated(self, peer: str, metadata: bytes | None) -> list[Change | Update]:
        """Return the change for a member with other metadata; there is none for one that is not announced yet.

        No peer loses its metadata, except in a store that lost data; then its node puts it back.
        """
        return [Update(peer, metadata)] if metadata is not None and peer not in self._unannounced else []

    def _left(self, peers: Iterable[str]) -> list[Change | Update]:
        """Return the changes for members that are gone; there is none for one that was never announced."""
        changes: list[Change | Update] = []
        for peer in peers:
            if peer in self._unannounced:
                self._unannounced.remove(peer)
            else:
                changes.append(Change(peer))
        return changes
