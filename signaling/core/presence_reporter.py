"""Reports to an observer of the server, by presence events, which peers join and leave.

Events are reported in the order in which they happen, and numbered for each topic. Without an observer there is no
``PresenceReporter``, and nothing here is used.

In a cluster, each event is reported by the node that has the peer. If a node is lost, the node that evicts it reports
for each of its peers ``PeerJoined`` again, under the same id, and then ``PeerLeft``. A node to which a peer moves
reports ``PeerJoined`` again, too: it cannot know which events the other node has reported. So no node reports a
``PeerLeft`` without a ``PeerJoined``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from signaling.core.presence_events import (
    PeerJoined,
    PeerLeft,
    PeerUpdated,
    PresenceEvent,
    TopicClosed,
    TopicOpened,
)
from signaling.errors import LeaveReason

# Nothing comes of a leave if the store has forgotten the topic when it can be asked again.
_MAX_UNANSWERED_TOPICS = 10_000


class PresenceObserver(Protocol):
    """What a reporter calls: ``IPresenceObserver`` without its end."""

    def topic_opened(self, event: TopicOpened) -> object:
        """A topic was opened."""

    def peer_joined(self, event: PeerJoined) -> object:
        """A peer joined."""

    def peer_updated(self, event: PeerUpdated) -> object:
        """A peer has replaced its metadata."""

    def peer_left(self, event: PeerLeft) -> object:
        """A peer left."""

    def topic_closed(self, event: TopicClosed) -> object:
        """A topic was closed."""


class PresentPeer(Protocol):
    """What a reporter needs to know of a peer."""

    @property
    def id(self) -> str:
        """Unique in the cluster."""

    @property
    def metadata(self) -> bytes | None:
        """The JSON text of an object, or None."""


class Origin(NamedTuple):
    """What the node to which a peer moves has to know for the peer's ``PeerLeft``.

    Args:
        node: the node under whose id it was reported that the peer joined.
        seconds: since it joined.
    """

    node: str
    seconds: float
    subject: str | None


class _RemovedPeer(NamedTuple):
    id: str
    metadata: bytes | None


class _Record(NamedTuple):
    node: str | None
    joined_at: float
    subject: str | None


class _UndecidedLeave(NamedTuple):
    peer: _RemovedPeer
    record: _Record
    reason: LeaveReason
    duration: float
    is_announced: bool = True
    """Whether this server has reported that the peer joined."""


@dataclass(slots=True)
class _ReportedTopic:
    number: int = 0
    peers: dict[str, _Record] = field(default_factory=dict)


class PresenceReporter:
    """Reports to an observer what happens to the peers of one server.

    Args:
        observer: called at once; what it raises goes to ``failed``.
        node: returns the id of this node; None without a cluster, where this reporter alone decides when a topic is
            opened and closed.
        members: returns the peers of this node in a topic.
        read_origin: returns what another node's session says of its peer; None if that node reported nothing.
        seconds: a monotonic clock.
        wall_clock: seconds since 1970.
        failed: called with what the observer raises.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what it reports to, and what it reads
        self,
        observer: PresenceObserver,
        node: Callable[[], str | None],
        members: Callable[[str], Iterable[PresentPeer]],
        read_origin: Callable[[bytes], Origin | None],
        seconds: Callable[[], float],
        wall_clock: Callable[[], float],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._observer = observer
        self._node = node
        self._members = members
        self._read_origin = read_origin
        self._seconds = seconds
        self._wall_clock = wall_clock
        self._failed = failed
        # The topics in which this server has peers that were reported.
        self._topics: dict[str, _ReportedTopic] = {}
        # The peers that left, or are at another node: the store was asked, or could not be asked.
        self._undecided: dict[tuple[str, str], _UndecidedLeave] = {}
        self._unanswered: dict[str, dict[str, _UndecidedLeave]] = {}

    # Called by the core

    def joined(self, topic: str, peer: PresentPeer, subject: str | None, *, opens: bool) -> None:
        """Report that a peer joined.

        Args:
            opens: whether the topic is a new one, unless it is known here already.
        """
        if opens and topic not in self._topics:
            self.topic_opened(topic)
        record = _Record(self._node(), self._seconds(), subject)
        self._report_joined(topic, peer, record)

    def updated(self, topic: str, peer: PresentPeer) -> None:
        """Report that a peer has replaced its metadata."""
        reported = self._topics.get(topic)
        record = reported.peers.get(peer.id) if reported is not None else None
        if record is not None:
            event = PeerUpdated(
                id=_random_event_id("updated"),
                joined=_peer_event_id(peer.id, record.node, "joined"),
                peer=peer.id,
                metadata_text=peer.metadata,
                subject=record.subject,
                **self._common(topic),
            )
            self._report(self._observer.peer_updated, event)

    def left(self, topic: str, peer: PresentPeer, reason: LeaveReason, *, may_be_elsewhere: bool) -> None:
        """Report that a peer left.

        Args:
            may_be_elsewhere: whether another node may have it: then the store decides, sooner or later.
        """
        reported = self._topics.get(topic)
        record = reported.peers.pop(peer.id, None) if reported is not None else None
        if reported is None or record is None:
            return
        duration = self._seconds() - record.joined_at
        if may_be_elsewhere and record.node is not None:
            gone = _RemovedPeer(peer.id, peer.metadata)
            self._undecided[topic, peer.id] = _UndecidedLeave(gone, record, reason, duration)
            return
        self._report_left(topic, peer, record, reason, duration)
        if record.node is None and not reported.peers:
            self.topic_closed(topic)

    def origin(self, topic: str, peer: str) -> Origin | None:
        """Return what another node has to know of a peer that moves there."""
        reported = self._topics.get(topic)
        record = reported.peers.get(peer) if reported is not None else None
        if record is None or record.node is None:
            return None
        return Origin(record.node, self._seconds() - record.joined_at, record.subject)

    def moved_here(self, topic: str, peer: PresentPeer, origin: Origin | None) -> None:
        """Take over a peer of another node, and report that it joined, under the same id as that node.

        Args:
            origin: None if that node has no observer, and so reported nothing.
        """
        own = _Record(self._node(), self._seconds(), None)
        self._report_joined(topic, peer, own if origin is None else self._record_of(origin))

    def _record_of(self, origin: Origin) -> _Record:
        return _Record(origin.node, self._seconds() - origin.seconds, origin.subject)

    def moved_away(self, topic: str, peer: str) -> None:
        """Leave a peer to another node."""
        reported = self._topics.get(topic)
        if reported is not None:
            reported.peers.pop(peer, None)
            self.forget_if_empty(topic)

    # Called by the backplane

    def leave_decided(self, topic: str, peer: str, has_left: bool | None) -> None:
        """Report that a peer left, if it waited for this; None if the store did not answer: then ``synced`` decides."""
        leave = self._undecided.pop((topic, peer), None)
        if leave is not None and has_left:
            self._report_decided(topic, leave)
        elif leave is not None and has_left is None:
            self._unanswered.setdefault(topic, {})[peer] = leave
            if len(self._unanswered) > _MAX_UNANSWERED_TOPICS:
                del self._unanswered[next(iter(self._unanswered))]

    @property
    def undecided_topics(self) -> Collection[str]:
        """The topics that peers left without an answer of the store."""
        return self._unanswered.keys()

    def synced(self, topic: str, members: Collection[str]) -> None:
        """Decide about the peers of a topic that wait: those that are still members are at other nodes."""
        for peer, leave in self._unanswered.pop(topic, {}).items():
            if peer not in members:
                self._report_decided(topic, leave)
                self.forget_if_empty(topic)

    def topic_opened(self, topic: str) -> None:
        """Report that a topic was opened."""
        self._report(self._observer.topic_opened, TopicOpened(id=_random_event_id("opened"), **self._common(topic)))

    def topic_closed(self, topic: str) -> None:
        """Report that a topic was closed."""
        self._report(self._observer.topic_closed, TopicClosed(id=_random_event_id("closed"), **self._common(topic)))
        self.forget_if_empty(topic)

    def forget_if_empty(self, topic: str) -> None:
        """Forget a topic in which no peers of this server are."""
        reported = self._topics.get(topic)
        if reported is not None and not reported.peers:
            del self._topics[topic]

    def peer_of_lost_node(self, topic: str, peer: str, metadata: bytes | None, node: str) -> None:
        """Report that a peer of a node that was evicted joined, under the same id as that node, and left."""
        lost, record = _RemovedPeer(peer, metadata), _Record(node, self._seconds(), None)
        self._report_lost(topic, lost, record, LeaveReason.NODE_LOST, None)

    def peer_lost_on_its_way(
        self, topic: str, peer: str, metadata: bytes | None, session: bytes, *, may_be_elsewhere: bool = False
    ) -> None:
        """Report the same of a peer that another node handed off, and which could not go on here.

        Args:
            may_be_elsewhere: as for ``left``: a third node may have taken the peer since.
        """
        origin = self._read_origin(session)
        if origin is None:
            return
        lost, record = _RemovedPeer(peer, metadata), self._record_of(origin)
        leave = _UndecidedLeave(lost, record, LeaveReason.RESUME_TIMEOUT, origin.seconds, is_announced=False)
        if may_be_elsewhere:
            self._undecided[topic, peer] = leave
        else:
            self._report_decided(topic, leave)

    def _report_decided(self, topic: str, leave: _UndecidedLeave) -> None:
        report = self._report_left if leave.is_announced else self._report_lost
        report(topic, leave.peer, leave.record, leave.reason, leave.duration)

    def _report_lost(
        self, topic: str, lost: _RemovedPeer, record: _Record, reason: LeaveReason, duration: float | None
    ) -> None:
        self._report_joined(topic, lost, record)
        del self._reported(topic).peers[lost.id]
        self._report_left(topic, lost, record, reason, duration)

    def renamed(self) -> None:
        """Report again that the peers of this node joined: the other nodes had evicted it."""
        for topic, reported in list(self._topics.items()):
            for peer in self._members(topic):
                record = reported.peers.get(peer.id)
                if record is not None:
                    self._report_joined(topic, peer, record._replace(node=self._node()))

    # The observer

    def _reported(self, topic: str) -> _ReportedTopic:
        reported = self._topics.get(topic)
        if reported is None:
            reported = self._topics[topic] = _ReportedTopic()
        return reported

    def _common(self, topic: str) -> dict[str, Any]:
        reported = self._reported(topic)
        reported.number += 1
        return {"topic": topic, "number": reported.number, "time": self._wall_clock(), "node": self._node()}

    def _report_joined(self, topic: str, peer: PresentPeer, record: _Record) -> None:
        self._reported(topic).peers[peer.id] = record
        event = PeerJoined(
            id=_peer_event_id(peer.id, record.node, "joined"),
            peer=peer.id,
            metadata_text=peer.metadata,
            subject=record.subject,
            **self._common(topic),
        )
        self._report(self._observer.peer_joined, event)

    def _report_left(
        self, topic: str, peer: PresentPeer, record: _Record, reason: LeaveReason, duration: float | None
    ) -> None:
        event = PeerLeft(
            id=_peer_event_id(peer.id, record.node, "left"),
            joined=_peer_event_id(peer.id, record.node, "joined"),
            peer=peer.id,
            metadata_text=peer.metadata,
            subject=record.subject,
            reason=reason,
            duration=duration,
            **self._common(topic),
        )
        self._report(self._observer.peer_left, event)

    def _report(self, method: Callable[[Any], object], event: PresenceEvent) -> None:
        try:
            method(event)
        except Exception as error:
            self._failed(error)


def _peer_event_id(peer: str, node: str | None, what: str) -> str:
    return f"{peer}.{what}" if node is None else f"{peer}.{node}.{what}"


def _random_event_id(what: str) -> str:
    return f"{secrets.token_hex(12)}.{what}"
