"""What the observers of all nodes are told, compared with what is true.

No node may tell ``PeerLeft`` if it has not told the ``PeerJoined`` of it before: what others told may be in queues that
are lost. Nothing may be told twice, but ``PeerJoined`` by each node to which a peer moves; in the end, those who joined
and did not leave are the peers that are there. A receiver knows events by their ids, so one that is told again changes
nothing.
These are excused, and counted by kind (``PresenceCheck.excuses``):

- told again: the node that told it first was evicted, and the node that evicted it could not know what it had told, or
  which node had told that the peer joined; or a peer moved to another node, and its old one did not know.
- no join again: a node was evicted and does not know it, because the store lost its data after that; or the store
  moved a peer to a node that was too late for it, and its old node had kept it.
- no leave: the store removed the peers of an evicted node, and its reply to the node that evicted it was lost; or the
  store had lost its data, or had never known the peer, when the peer's node died; or a node ended while the
  peer moved, or before a call that it had sent was carried out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from signaling.backplane.store import RemovedMember
from signaling.core.handoff_texts import session_origin
from signaling.core.presence_events import PeerJoined, PeerLeft, PresenceEvent
from signaling.core.presence_reporter import PresenceReporter
from signaling.errors import LeaveReason

if TYPE_CHECKING:
    from tests.simulator.nodes import SimulatedNode
    from tests.simulator.scenario import Scenario


class NodeObserver:
    """The observer of one node."""

    def __init__(self, check: PresenceCheck, node: SimulatedNode) -> None:
        self._check = check
        self._node = node
        self._joined: set[str] = set()

    def topic_opened(self, event: PresenceEvent) -> None:
        """Ignore it: the clients check updates, and only the store knows whether a topic is new."""

    peer_updated = topic_closed = topic_opened

    def peer_joined(self, event: PeerJoined) -> None:
        self._joined.add(event.id)
        self._check.joined(event, self._node)

    def peer_left(self, event: PeerLeft) -> None:
        self._check.left(event, self._node, has_told=event.joined in self._joined)


class PresenceCheck:
    """Checks each event that any observer is told."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._joined: set[str] = set()
        self._left: set[str] = set()
        self._timed_out: set[str] = set()
        # The peers that are there, as far as was told, and the ids of their latest events.
        self._present: dict[str, str] = {}
        # The peers that the store ever had; those of evicted nodes that it removed, and of which a node learned that.
        self._stored: set[str] = set()
        # The nodes to which the store has moved peers.
        self._moved_to: dict[str, str] = {}
        # The nodes that said to the store that peers are not there.
        self._unlisted: dict[str, str] = {}
        self._removed: set[str] = set()
        self._learned: set[str] = set()
        self._excuses: dict[str, str] = {}
        # Of each node before it was evicted, if it was.
        self._first_ids: dict[str, str] = {}

    def reporter(self, node: SimulatedNode) -> PresenceReporter:
        """Make what reports to this check."""
        scenario, topics = self._scenario, node.topics
        reporter = PresenceReporter(
            NodeObserver(self, node),
            lambda: node.backplane.node,
            lambda topic: topics.find(topic) or (),
            session_origin,
            node.process.seconds,
            lambda: scenario.now,
            _fail,
        )
        self._first_ids[node.name] = node.backplane.node
        node.backplane.report_presence(reporter)
        return reporter

    # What happens

    def ran(self, script: str, arguments: Sequence[bytes], reply: list[Any]) -> None:
        """Notice what the store does."""
        if script == "join" and reply[0] == b"joined":
            self._stored.add(arguments[4].decode())
        elif script == "move" and reply[0] == b"moved":
            self._moved_to[arguments[5].decode()] = arguments[3].decode()
        elif script == "sync" and reply[0] == b"synced":
            self._stored.update(peer.decode() for peer in reply[3][::2])
            self._unlisted.update((peer.decode(), arguments[3].decode()) for peer in reply[4])
        elif script == "evict" and reply[0] == b"evicted":
            self._removed.update(peer.decode() for peer in reply[2][1::4])

    def learned(self, removed: Iterable[RemovedMember]) -> None:
        """Notice that a node knows whom the store removed."""
        self._learned.update(member.peer for member in removed)

    def joined(self, event: PeerJoined, node: SimulatedNode) -> None:
        self._scenario.trace(node.name, "tells that", event.peer, "joined", event.id)
        self._scenario.counts["told joined"] += 1
        before = self._present.get(event.peer)
        if event.id in self._joined:
            self._again(event)
        elif before is not None and not self._was_evicted(before):
            self._joined_twice(event, before, node)
        if event.id not in self._joined:
            self._present[event.peer] = event.id
        self._joined.add(event.id)

    def _joined_twice(self, event: PeerJoined, before: str, node: SimulatedNode) -> None:
        if self._was_evicted(event.id) or event.node != self._first_ids[node.name]:
            self._excuses[event.id] = "told again by another id: it had moved to a node that was evicted"
        else:
            self._scenario.violation(f"{event.node} tells {event.id}, after {before}")

    def left(self, event: PeerLeft, node: SimulatedNode, *, has_told: bool) -> None:
        self._scenario.trace(node.name, "tells that", event.peer, "left", event.id)
        self._scenario.counts["told left"] += 1
        if not has_told:
            self._scenario.violation(f"{node.name} tells {event.id}, and did not tell {event.joined}")
        if event.id in self._left:
            self._again(event)
        self._left.add(event.id)
        if event.reason is LeaveReason.RESUME_TIMEOUT:
            self._timed_out.add(event.peer)
        if self._present.get(event.peer) == event.joined:
            del self._present[event.peer]

    def _again(self, event: PresenceEvent) -> None:
        if isinstance(event, PeerJoined) and event.node == self._moved_to.get(event.peer):
            self._scenario.counts["told joined again"] += 1
        elif self._was_evicted(event.id):
            self._excuses[event.id] = "told again: its node was evicted"
        elif isinstance(event, PeerLeft) and event.peer in self._scenario.left_nodes:
            self._excuses[event.id] = "told again: it had moved, and its old node did not know"
        else:
            self._scenario.violation(f"{event.node} tells {event.id} again")

    def _was_evicted(self, event_id: str) -> bool:
        return event_id.split(".")[1] in self._scenario.evicted

    # What is true in the end

    def check(self) -> None:
        """Compare what was told with the peers that are there."""
        there = {peer.id for node in self._scenario.serving() for topic in node.topics for peer in topic}
        for peer in sorted(there - self._present.keys()):
            if peer in self._learned and self._scenario.lost_data_at:
                self._excuses[peer] = "no join again: the store forgot that its node was evicted"
            elif peer in self._timed_out and peer in self._scenario.left_nodes:
                self._excuses[peer] = "no join again: its new node was too late, and its old node kept it"
            else:
                self._scenario.violation(f"nobody was told that {peer} joined")
        for peer in sorted(self._present.keys() - there):
            excuse = self._no_leave(peer)
            if excuse is None:
                self._scenario.violation(f"nobody was told that {peer} left")
            else:
                self._excuses[peer] = f"no leave: {excuse}"

    @property
    def excuses(self) -> Counter[str]:
        """How many events are excused, by kind."""
        return Counter(self._excuses.values())

    def _no_leave(self, peer: str) -> str | None:
        ended = self._scenario.ended
        reasons = {
            "the store's reply to its eviction was lost": peer in self._removed - self._learned,
            "the store had lost its data": bool(self._scenario.lost_data_at),
            "its new node ended before it learned that it had moved": self._moved_to.get(peer) in ended,
            "its node ended while another one asked for it": not ended.keys().isdisjoint(
                self._scenario.left_nodes.get(peer, ())
            ),
            "a late call of its node, which had ended, removed it": self._unlisted.get(peer) in ended,
            "the store did not know it when its node died": peer not in self._stored,
        }
        return next((reason for reason, is_so in reasons.items() if is_so), None)


def _fail(error: BaseException) -> None:
    raise error
