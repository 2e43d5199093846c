"""Who is where: the views of all topics that have a peer of this node.

Events keep them up, and snapshots where they are in doubt. What this node says of its own peers is right, and the store
is made to agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

from signaling.backplane.messages import Event, Kind, Other, member, version
from signaling.backplane.store import Store
from signaling.backplane.topic_replica import Change, TopicReplica
from signaling.core.interfaces import Node

# Topics that may be wrong are compared a few at a time: others go on meanwhile.
_SYNCS_AT_ONCE = 32
# What is in the store expires where nobody sees to it, and what is wrong there is put right in time.
_REFRESH_LOOKS = 600
_MEET_LOOKS = 5
# How long relays may be on their way to a node that their target has left for another.
_GONE_ON_LOOKS = 30
# A store that lost its data knows nobody until the nodes are back, one after the other. Those that are not by then
# count as dead.
_KEEP_LOOKS = 10


class Entrants:
    """The peers of this node that are on their way into their topics: what the store may have of them."""

    def __init__(self) -> None:
        self.by_topic: dict[str, dict[str, Any]] = {}

    def find(self, topic: str, peer: str) -> Any:
        """Return the entrant with that id, or None."""
        return self.by_topic.get(topic, {}).get(peer)

    def first(self, topic: str) -> Any:
        """Return the new peer that is first in joining order, or None; those that come back joined long ago."""
        # In the order of their ids: each new id is greater than all before.
        entrants = self.by_topic.get(topic, {}).values()
        return next((entrant for entrant in entrants if not entrant.returns), None)

    def stored(self, topic: str) -> list[tuple[str, bytes]]:
        """Say what ``sync`` has to be told of them."""
        entrants = self.by_topic.get(topic, {}).values()
        surely = [(each.id, b"+" + (each.metadata or b"")) for each in entrants if each.stored]
        return surely + [(each.id, b"?") for each in entrants if each.asked and not each.stored]


class Presence:
    """Keeps the views.

    Args:
        store: knows who is where.
        entrants: of this node.
        on_moved: is called with the topic, the id and the new node of a peer of this node that another one has now.
    """

    def __init__(self, store: Store, entrants: Entrants, on_moved: Callable[[str, str, str], None]) -> None:
        self._store = store
        self._entrants = entrants
        self._on_moved = on_moved
        self._node: Node
        self._views: dict[str, TopicReplica] = {}
        # Topics that may be wrong here or in the store, in order.
        self._doubted: dict[str, None] = {}
        # Of those, what the store did not answer; they wait for the next look, and not for whatever happens next.
        self._unanswered: dict[str, None] = {}
        self._syncing = 0
        self._refreshing, self._meeting = _Rounds(_REFRESH_LOOKS), _Rounds(_MEET_LOOKS)
        self._keeping = 0
        # Who left this node for another, and how many looks that is remembered for.
        self._gone_on: dict[tuple[str, str], int] = {}
        self._met: set[str] = set()
        self._met_before: set[str] = set()

    def start(self, node: Node) -> None:
        """Tell ``node`` of what happens."""
        self._node = node

    def view(self, topic: str) -> TopicReplica:
        """Return the view of a topic, and make it where there is none."""
        return self._views.setdefault(topic, TopicReplica())

    def find(self, topic: str) -> TopicReplica | None:
        """Return the view of a topic; None where nobody is here."""
        return self._views.get(topic)

    def other(self, topic: str, peer: str) -> Other | None:
        """Return a member of another node."""
        view = self._views.get(topic)
        return view.others.get(peer) if view is not None else None

    def is_elsewhere(self, topic: str, peer: str) -> bool:
        """Tell whether a peer is at another node, or went on there a while ago, when others were not told yet."""
        return self.other(topic, peer) is not None or (topic, peer) in self._gone_on

    @property
    def nodes(self) -> set[str]:
        """The other nodes that have peers, as some seconds ago was known here."""
        return self._met_before | self._met

    def forget_empty(self, topic: str) -> None:
        """Forget a topic where nobody is here, or about to be."""
        expected = topic in self._entrants.by_topic
        if topic in self._views and not expected and not any(True for _ in self._node.members(topic)):
            view = self._views.pop(topic)
            for hand_over in view.parked:
                # To nobody: their targets are gone, and who sent them has to hear of it.
                hand_over()

    def arrived(self, topic: str, peer: str) -> None:
        """Notice that a peer is here; where it came back from another node, it is not elsewhere any more."""
        self.view(topic).others.pop(peer, None)
        self._gone_on.pop((topic, peer), None)

    # Events and snapshots

    def take_event(self, event: Event) -> None:
        """Take what happened."""
        own = _Own(self._node, event.topic, self._entrants)
        if event.other is not None and event.other.node in self._store.formers:
            event = event._replace(other=self._named(event.other))
            self.resync(event.topic)
        here = event.other is not None and event.other.node == self._store.node
        entrant = self._entrants.find(event.topic, event.peer)
        known = entrant is not None or self._node.has(event.topic, event.peer)
        if (here or event.kind is Kind.LEFT) and here != known:
            # Only this node says who is here: the others took it for dead, or an old call of its own came late.
            if entrant is not None:
                entrant.taken_out = True
            self.resync(event.topic)
        view = self._views.get(event.topic)
        if view is None:
            return
        self._changed(event.topic, view, view.take_event(event, self._store.node, own))
        self.check(event.topic, view)

    def take_snapshot(self, topic: str, view: TopicReplica, reply: list[Any] | None) -> None:
        """Take a script's reply that lists the members; nothing where it came too late for the view."""
        if self._views.get(topic) is not view or reply is None:
            return
        _, gen, seq, stored = reply
        latest = version(gen.decode(), seq)
        members = {
            peer.decode(): self._named(member(value)) for peer, value in zip(stored[::2], stored[1::2], strict=True)
        }
        own = _Own(self._node, topic, self._entrants)
        if view.began_anew(latest):
            self.keep_for_now()
        keep = self._keeping > 0
        changes = view.take_snapshot(latest, members, self._store.node, own, keep=keep)
        self._changed(topic, view, changes)

    def _named(self, other: Other) -> Other:
        """Take what is a former id's of this node for this node's: it is nobody else's, and nobody moved there."""
        return other._replace(node=self._store.node) if other.node in self._store.formers else other

    def _changed(self, topic: str, view: TopicReplica, changes: list[Change]) -> None:
        for change in changes:
            if change.kind is Kind.JOINED:
                view.unannounced.add(change.peer)
            elif change.kind is Kind.LEFT:
                if change.peer in view.unannounced:
                    view.unannounced.remove(change.peer)
                else:
                    self._node.left(topic, change.peer)
                self._gone_on.pop((topic, change.peer), None)
            else:
                self._on_moved(topic, change.peer, change.node)
                self._gone_on[topic, change.peer] = _GONE_ON_LOOKS
                self.forget_empty(topic)
        self.announce(topic)
        for hand_over in view.take_parked():
            hand_over()

    def announce(self, topic: str) -> None:
        """Tell those who are here of newcomers elsewhere, in joining order.

        A peer of this node that may have joined before a newcomer comes first: its own list ends with itself.
        """
        view = self._views.get(topic)
        if view is None or not view.unannounced:
            return
        first = self._entrants.first(topic)
        # Those of them that are this node's by now joined here.
        view.unannounced &= view.others.keys()
        for peer in sorted(view.unannounced):
            # One that comes back to this node by now would never be told of.
            if first is None or peer < first.id or self._entrants.find(topic, peer) is not None:
                view.unannounced.remove(peer)
                self._node.joined(topic, peer, view.others[peer].metadata)
        for hand_over in view.take_parked():
            hand_over()

    # Doubt

    def check(self, topic: str, view: TopicReplica) -> None:
        """Ask for a snapshot where one is needed and none is on its way."""
        if not view.current and not view.calls and self._views.get(topic) is view:
            self.resync(topic)

    def resync(self, topic: str) -> None:
        """Compare with the store as soon as it is there."""
        self._doubted[topic] = None
        self.sync_some()

    def doubt_all(self) -> None:
        """Believe nothing of what is known: events may be missing."""
        for view in self._views.values():
            view.resync()
        # The reply to a join is a snapshot as well, but the store may miss others of this node's peers.
        self._doubted |= dict.fromkeys(self._views)

    def keep_for_now(self) -> None:
        """Let nobody leave only because the store does not list them."""
        self._keeping = _KEEP_LOOKS

    def _give_up_kept(self) -> None:
        for topic, view in list(self._views.items()):
            if view.kept:
                self._changed(topic, view, view.give_up_kept())

    def doubt_some(self, topics: Iterable[str]) -> None:
        """Compare these soon, whether anybody is here or not."""
        self._doubted |= self._unanswered | dict.fromkeys(topics)
        self._unanswered = {}

    def look(self) -> None:
        """See to some of the topics; to be called once a second."""
        if self._keeping and self._store.good:
            self._keeping -= 1
            if not self._keeping:
                self._give_up_kept()
        self.doubt_some(topic for topic in self._refreshing.look(self._views) if topic in self._views)
        self._meet()
        self._gone_on = {gone: looks - 1 for gone, looks in self._gone_on.items() if looks > 1}
        self.sync_some()

    def _meet(self) -> None:
        """See which nodes there are in some of the views; to look at all of them at once would hold everybody up."""
        if self._meeting.begins:
            self._met_before, self._met = self._met, set()
        views = [self._views[topic] for topic in self._meeting.look(self._views) if topic in self._views]
        self._met |= {other.node for view in views for other in view.others.values()}

    def sync_some(self) -> None:
        """Compare a few topics that are in doubt."""
        # Each once: an engine whose connection is just being lost answers at once that it has no reply.
        for topic in list(islice(self._doubted, max(0, _SYNCS_AT_ONCE - self._syncing))):
            if not self._store.good:
                break
            self._doubted.pop(topic, None)
            self._syncing += 1
            self.sync(topic, self._views.get(topic), partial(self._synced, topic))

    def _synced(self, topic: str, reply: list[Any] | None) -> None:
        self._syncing -= 1
        if reply is None:
            self._unanswered[topic] = None
        else:
            self.sync_some()

    def sync(self, topic: str, view: TopicReplica | None, done: Callable[[list[Any] | None], None]) -> None:
        """Tell the store who is here, and learn who else is in the topic."""
        if view is not None:
            view.calls += 1

        def replied(reply: list[Any] | None) -> None:
            if view is not None:
                view.calls -= 1
                self.take_snapshot(topic, view, reply)
            done(reply)
            if view is not None and reply is not None:
                self.check(topic, view)

        here = [
            # A store that lost its data must not hear of a peer where it is no longer.
            (peer, b"?" if self._node.is_handing_off(topic, peer) else b"+" + (metadata or b""))
            for peer, metadata in self._node.members(topic)
        ]
        self._store.sync(topic, here + self._entrants.stored(topic), replied)

    def leave(self, topic: str, peer: str) -> None:
        """Tell the others that a peer of this node left."""

        def left(reply: list[Any] | None) -> None:
            if reply is None:
                self._doubted[topic] = None

        told = self._store.leave(topic, peer, left)
        self.forget_empty(topic)
        if not told and topic in self._views:
            self._doubted[topic] = None
        elif not told:
            # The next registration names the topics in which the store still has peers of this node; of all others that
            # come and go meanwhile nothing must be kept.
            self._doubted.pop(topic, None)
            self._unanswered.pop(topic, None)


class _Rounds:
    """Goes through all topics again and again, through a part at each look, whichever come and go meanwhile.

    Args:
        looks: in one round; each topic that is there at its beginning has one of them.
    """

    def __init__(self, looks: int) -> None:
        self._looks = looks
        self._topics: list[str] = []
        self._at = 0

    @property
    def begins(self) -> bool:
        """Whether the next look is the first of a round."""
        return self._at == 0

    def look(self, topics: Iterable[str]) -> list[str]:
        """Return whose turn it is; some may have gone since the round began."""
        if self.begins:
            self._topics = list(topics)
        part = self._topics[self._at :: self._looks]
        self._at = (self._at + 1) % self._looks
        return part


class _Own:
    """The peers that this node has in a topic, or is about to have.

    One that comes back from another node is not among them before it is here: those who are here know it already, and
    hear that it left if it never gets here.
    """

    def __init__(self, node: Node, topic: str, entrants: Entrants) -> None:
        self._node = node
        self._topic = topic
        self._entrants = entrants

    def __contains__(self, peer: object) -> bool:
        name = str(peer)
        entrant = self._entrants.find(self._topic, name)
        return (entrant is not None and not entrant.returns) or self._node.has(self._topic, name)

    def expects(self, peer: str) -> bool:
        """Tell whether the peer is on its way here from another node."""
        entrant = self._entrants.find(self._topic, peer)
        return entrant is not None and entrant.returns and not self._node.has(self._topic, peer)
