"""Which node has a peer: the replicas of all topics that have a peer of this node.

Events keep them up to date, and snapshots replace them if events may be missing. What this node says of its own peers
is right, and the store is made to agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice

from signaling.backplane.membership import Membership
from signaling.backplane.messages import EventKind, Member, TopicEvent
from signaling.backplane.pending_joins import PendingJoins
from signaling.backplane.store import Departure, Snapshot, Store
from signaling.backplane.topic_replica import Change, OwnPeers, TopicReplica, Update
from signaling.backplane.updates import PendingUpdates
from signaling.core.interfaces import Node, PresenceListener

# Topics that may be wrong are compared a few at a time, so that peers do not have to wait for all of them.
_MAX_SYNCS = 32
# In checks, which come once a second. Each topic is compared before what is stored of it expires.
_REFRESH_CHECKS = 600
_NODES_CHECKS = 5
# How long relays may be on their way to a node that their target has left for another, and calls to the store.
_MOVE_CHECKS = 30
# A store that lost its data lists no members until the nodes are back, one after the other. Those that are not by then
# count as dead.
_KEEP_UNLISTED_CHECKS = 10


class Replicas:
    """The replicas of this node.

    Args:
        store: knows the members of all nodes.
        membership: says whether the store serves this node.
        pending: the joins of this node.
        updates: the updates of this node's peers.
        on_moved: called with the topic, the id and the new node of a peer of this node that has moved.

    Attributes:
        observed: the observer's; None if there is none.
    """

    def __init__(
        self,
        store: Store,
        membership: Membership,
        pending: PendingJoins,
        updates: PendingUpdates,
        on_moved: Callable[[str, str, str], None],
    ) -> None:
        self._store = store
        self._membership = membership
        self._pending = pending
        self._updates = updates
        self._on_moved = on_moved
        self._node: Node
        self.observed: PresenceListener | None = None
        self._replicas: dict[str, TopicReplica] = {}
        # Topics that may be wrong here or in the store, in order.
        self._unverified: dict[str, None] = {}
        # Those for which the store had no reply: they wait for the next check, and not for whatever happens next.
        self._unanswered: dict[str, None] = {}
        self._syncs = 0
        self._refresh, self._node_search = _Rounds(_REFRESH_CHECKS), _Rounds(_NODES_CHECKS)
        self._keep_unlisted_checks = 0
        # For an observer: the sessions whose peers the store may have moved to this node, or still may, because a call
        # of a broken connection can be late; and for how many checks that is remembered.
        self._unanswered_moves: dict[tuple[str, str], tuple[bytes, int]] = {}
        # The peers that moved from this node to another, and for how many checks that is remembered.
        self._moved_away: dict[tuple[str, str], int] = {}
        # The metadata of peers of this node by their latest updates that the store sent, until they are compared.
        self._stored_updates: dict[tuple[str, str], bytes | None] = {}
        # Nodes with members: those found in this round of the search, and in the round before.
        self._nodes: set[str] = set()
        self._nodes_before: set[str] = set()

    def start(self, node: Node) -> None:
        """Report to ``node`` what happens."""
        self._node = node

    def replica(self, topic: str) -> TopicReplica:
        """Return the replica of a topic, a new one if there is none."""
        found = self._replicas.get(topic)
        if found is None:
            found = self._replicas[topic] = TopicReplica(OwnPeers(topic, self._node, self._pending, self._store))
        return found

    def find(self, topic: str) -> TopicReplica | None:
        """Return the replica of a topic; None if this node has no peer in it."""
        return self._replicas.get(topic)

    def remote_members(self, topic: str) -> Iterable[tuple[str, bytes | None]]:
        """List the members of other nodes that were announced here: ids and metadata."""
        replica = self._replicas.get(topic)
        return replica.announced() if replica is not None else ()

    def remote_member(self, topic: str, peer: str) -> Member | None:
        """Return a member of another node."""
        replica = self._replicas.get(topic)
        return replica.find(peer) if replica is not None else None

    def is_remote(self, topic: str, peer: str) -> bool:
        """Return whether another node has the peer, or it moved away lately and other nodes may not know yet."""
        return self.remote_member(topic, peer) is not None or (topic, peer) in self._moved_away

    @property
    def nodes(self) -> set[str]:
        """The other nodes that have members, as they were some seconds ago."""
        return self._nodes_before | self._nodes

    def peer_is_here(self, topic: str, peer: str) -> None:
        """Forget that another node had a peer, which has joined or resumed here."""
        replica = self.replica(topic)
        known = replica.find(peer)
        replica.remove(peer)
        self._moved_away.pop((topic, peer), None)
        metadata = self._node.metadata(topic, peer)
        if known is not None and metadata is not None and known.metadata != metadata:
            # Its former node could not tell the store.
            self._node.updated(topic, peer, metadata)

    def forget_if_empty(self, topic: str) -> None:
        """Forget a topic if this node has no peer in it, and none is about to join."""
        is_pending = self._pending.has_topic(topic)
        if topic in self._replicas and not is_pending and not any(True for _ in self._node.members(topic)):
            for deliver in self._replicas.pop(topic).take_parked(forced=True):
                # Nothing is delivered: the targets are gone, and the senders have to get their errors.
                deliver()

    # Events and snapshots

    def apply_event(self, event: TopicEvent) -> None:
        """Apply an event."""
        topic, peer = event.topic, event.peer
        if event.member is not None and event.member.node in self._store.former_nodes:
            event = event._replace(member=self._renamed(event.member))
            self.resync(topic)
        is_ours = event.member is not None and event.member.node == self._store.node
        join = self._pending.find(topic, peer)
        is_here = join is not None or self._node.has(topic, peer)
        if (is_ours or event.kind is EventKind.LEFT) and is_ours != is_here:
            # Only this node knows which peers are here: it was evicted, or an old call of its own came late.
            if join is not None:
                join.was_removed = True
            self.resync(topic)
        elif is_ours and event.member is not None and event.kind is EventKind.UPDATED:
            self._stored_updates[topic, peer] = event.member.metadata
        replica = self._replicas.get(topic)
        if replica is not None:
            self._act_on(topic, replica.apply_event(event))
            self.resync_if_needed(topic, replica)

    def apply_snapshot(self, topic: str, replica: TopicReplica, snapshot: Snapshot) -> None:
        """Apply a snapshot, unless it came too late for the replica."""
        if self._replicas.get(topic) is not replica:
            return
        members = {peer: self._renamed(member) for peer, member in snapshot.members.items()}
        if replica.was_recreated(snapshot.version):
            self.keep_unlisted()
        keep = self._keep_unlisted_checks > 0
        changes = replica.apply_snapshot(snapshot._replace(members=members), keep_unlisted=keep)
        self._act_on(topic, changes)

    def _renamed(self, member: Member) -> Member:
        """Return a member under this node's id if it has a former one: no other node has it."""
        return member._replace(node=self._store.node) if member.node in self._store.former_nodes else member

    def _act_on(self, topic: str, changes: list[Change | Update]) -> None:
        for change in changes:
            if isinstance(change, Update):
                self._node.updated(topic, *change)
                continue
            peer, moved_to = change
            if moved_to is None:
                self._node.left(topic, peer)
                self._moved_away.pop((topic, peer), None)
            else:
                self._move_away(topic, peer, moved_to)
        self.announce(topic)

    def _move_away(self, topic: str, peer: str, node: str) -> None:
        was_here, known = self._node.has(topic, peer), self._node.metadata(topic, peer)
        self._on_moved(topic, peer, node)
        self._moved_away[topic, peer] = _MOVE_CHECKS
        member = self.remote_member(topic, peer)
        if was_here and member is None:
            # Events behind the move say that it left, or that it is this node's: an earlier call of its own came late.
            self.resync(topic)
        if was_here and member is not None and member.metadata not in (None, known):
            # It has changed its metadata since it moved.
            self._node.updated(topic, peer, member.metadata)
        self.forget_if_empty(topic)

    def announce(self, topic: str) -> None:
        """Announce new members of other nodes to the peers here, in joining order, and deliver what waited for that.

        A peer of this node that may have joined before such a member comes first: its own peer-list ends with itself.
        """
        replica = self._replicas.get(topic)
        if replica is None:
            return
        first = self._pending.first(topic)

        def may_announce(peer: str) -> bool:
            # A member that resumes at this node by now would never be announced.
            return first is None or peer < first.id or self._pending.find(topic, peer) is not None

        for peer, metadata in replica.take_announceable(may_announce):
            self._node.joined(topic, peer, metadata)
        for deliver in replica.take_parked():
            deliver()

    # Topics that may be wrong

    def resync_if_needed(self, topic: str, replica: TopicReplica) -> None:
        """Compare a topic with the store if events are missing and no snapshot is on its way."""
        if replica.needs_snapshot and self._replicas.get(topic) is replica:
            self.resync(topic)

    def resync(self, topic: str) -> None:
        """Compare a topic with the store as soon as the store is there."""
        self._unverified[topic] = None
        self.sync_some()

    def resync_all(self) -> None:
        """Compare all topics: events may be missing."""
        for replica in self._replicas.values():
            replica.invalidate()
        # The reply to a join is a snapshot as well, but the store may lack other peers of this node.
        self._unverified |= dict.fromkeys(self._replicas)

    def resync_soon(self, topics: Iterable[str]) -> None:
        """Compare these topics at the next ``sync_some``, whether this node has peers in them or not."""
        self._unverified |= self._unanswered | dict.fromkeys(topics)
        self._unanswered = {}

    def keep_unlisted(self) -> None:
        """For some seconds, keep members that the store does not list: it has lost its data."""
        self._keep_unlisted_checks = _KEEP_UNLISTED_CHECKS

    def check(self) -> None:
        """Compare some of the topics; to be called once a second."""
        if self._keep_unlisted_checks and self._membership.is_registered:
            self._keep_unlisted_checks -= 1
            if not self._keep_unlisted_checks:
                for topic, replica in list(self._replicas.items()):
                    if replica.has_unlisted:
                        self._act_on(topic, replica.drop_unlisted())
        self.resync_soon(topic for topic in self._refresh.next_part(self._replicas) if topic in self._replicas)
        self._compare_updates()
        self._search_nodes()
        self._moved_away = {moved: checks - 1 for moved, checks in self._moved_away.items() if checks > 1}
        moves = self._unanswered_moves.items()
        self._unanswered_moves = {moved: (session, checks - 1) for moved, (session, checks) in moves if checks > 1}
        self.sync_some()

    def _compare_updates(self) -> None:
        """Find peers of this node whose metadata a late call changed in the store, from a connection that broke."""
        stored, self._stored_updates = self._stored_updates, {}
        for (topic, peer), metadata in stored.items():
            if peer in self._updates.peers(topic):
                self._stored_updates[topic, peer] = metadata
            elif self._node.has(topic, peer) and self._node.metadata(topic, peer) != metadata:
                self.resync(topic)

    def _search_nodes(self) -> None:
        """Collect the nodes of a part of the replicas: all of them at once would take too long."""
        if self._node_search.begins:
            self._nodes_before, self._nodes = self._nodes, set()
        for topic in self._node_search.next_part(self._replicas):
            if topic in self._replicas:
                self._nodes.update(self._replicas[topic].nodes())

    def sync_some(self) -> None:
        """Compare a few of the topics that may be wrong."""
        # Each once: an engine whose connection is just being lost calls back at once, with no reply.
        for topic in list(islice(self._unverified, max(0, _MAX_SYNCS - self._syncs))):
            if not self._membership.is_registered:
                break
            self._unverified.pop(topic, None)
            self._syncs += 1
            self.sync(topic, self._replicas.get(topic), partial(self._synced, topic))

    def _synced(self, topic: str, snapshot: Snapshot | None) -> None:
        self._syncs -= 1
        if snapshot is None:
            self._unanswered[topic] = None
        else:
            self.sync_some()

    def sync(self, topic: str, replica: TopicReplica | None, done: Callable[[Snapshot | None], None]) -> None:
        """State to the store which peers are here, and apply the snapshot that it replies with."""

        def replied(snapshot: Snapshot | None) -> None:
            if replica is not None:
                replica.snapshot_answered()
                if snapshot is not None:
                    self.apply_snapshot(topic, replica, snapshot)
            done(snapshot)
            if replica is not None and snapshot is not None:
                self.resync_if_needed(topic, replica)
            if self.observed is not None and snapshot is not None:
                self._report_removed(self.observed, topic, snapshot)

        if replica is not None:
            replica.snapshot_requested()
        undecided = self._updates.leave_out(topic)
        own = [
            # A store that lost its data must not list a peer here that may be another node's by now.
            (peer, b"?" if peer in undecided or self._node.is_handing_off(topic, peer) else b"+" + (metadata or b""))
            for peer, metadata in self._node.members(topic)
        ]
        self._store.sync(topic, own + self._pending.for_sync(topic), replied)

    def move_unanswered(self, topic: str, peer: str, session: bytes) -> None:
        """Report later what became of a peer that the store may have moved to this node, where it is not."""
        if self.observed is not None:
            self._unanswered_moves[topic, peer] = session, _MOVE_CHECKS
            self.resync(topic)

    def _report_removed(self, observed: PresenceListener, topic: str, snapshot: Snapshot) -> None:
        observed.synced(topic, snapshot.members)
        for peer in snapshot.removed:
            move = self._unanswered_moves.pop((topic, peer), None)
            if move is not None:
                observed.peer_lost_on_its_way(topic, peer, None, move[0])
        if snapshot.removed:
            self._report_end(topic, is_over=not snapshot.members)

    def leave(self, topic: str, peer: str) -> None:
        """Announce to the other nodes that a peer of this node left."""

        def left(departure: Departure | None) -> None:
            if departure is None:
                self._unverified[topic] = None
            self._report_leave(topic, peer, departure)
            self._report_end(topic, is_over=departure is Departure.CLOSED)

        is_connected = self._membership.is_connected
        if is_connected:
            self._store.leave(topic, peer, left)
        else:
            self._report_leave(topic, peer, None)
            self._report_end(topic, is_over=not self.has_members(topic))
        self.forget_if_empty(topic)
        if not is_connected and topic in self._replicas:
            self._unverified[topic] = None
        elif not is_connected:
            # The next registration lists the topics in which the store still has peers of this node. Nothing must be
            # kept of all the other topics that come and go meanwhile.
            self._unverified.pop(topic, None)
            self._unanswered.pop(topic, None)

    def has_members(self, topic: str) -> bool:
        """Return whether a topic has members, on this node or another, as far as this one knows."""
        replica = self._replicas.get(topic)
        return any(True for _ in self._node.members(topic)) or (replica is not None and any(replica.nodes()))

    def _report_leave(self, topic: str, peer: str, departure: Departure | None) -> None:
        if self.observed is not None:
            has_left = None if departure is None else departure is not Departure.ELSEWHERE
            self.observed.leave_decided(topic, peer, has_left)

    def _report_end(self, topic: str, *, is_over: bool) -> None:
        if self.observed is not None:
            end = self.observed.topic_closed if is_over else self.observed.forget_if_empty
            end(topic)


class _Rounds:
    """Visits all topics in rounds, a part of them at each check, whichever come and go meanwhile.

    Args:
        checks: in one round; each topic that exists when the round begins is visited in one of them.
    """

    def __init__(self, checks: int) -> None:
        self._checks = checks
        self._topics: list[str] = []
        self._at = 0

    @property
    def begins(self) -> bool:
        """Whether the next part is the first of a round."""
        return self._at == 0

    def next_part(self, topics: Iterable[str]) -> list[str]:
        """Return the topics of the next part; some may be gone since the round began."""
        if self.begins:
            self._topics = list(topics)
        part = self._topics[self._at :: self._checks]
        self._at = (self._at + 1) % self._checks
        return part
