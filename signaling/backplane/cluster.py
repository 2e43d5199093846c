"""One node of a cluster: its peers and those of other nodes share topics, over any engine (docs/cluster-design.md).

This module puts the parts together and passes on what happens: `Membership` reports the state of the cluster, and the
channel brings events and messages. What concerns peers of this node alone happens at once, and involves none of this.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from signaling.backplane.interfaces import ClusterLog, Engine
from signaling.backplane.joins import Joins
from signaling.backplane.membership import Membership
from signaling.backplane.messages import (
    NODE_CHARACTERS,
    EventKind,
    HeartbeatEcho,
    NodeAnswer,
    NodeQuery,
    OutcomeQuery,
    Outcomes,
    RelayBatch,
    SessionReply,
    SessionRequest,
    TopicEvent,
    decode,
)
from signaling.backplane.node_queries import NodeQueries
from signaling.backplane.pending_joins import PendingJoin, PendingJoins
from signaling.backplane.relays import RemoteRelays
from signaling.backplane.replicas import Replicas
from signaling.backplane.session_handoffs import SessionHandoffs
from signaling.backplane.store import Keys, RemovedMember, Store
from signaling.backplane.updates import PendingUpdates, Updates
from signaling.core.interfaces import Answers, Forwarding, JoinTicket, Node, PresenceListener, ResumeProof
from signaling.core.peer_ids import PeerIds
from signaling.core.topics import MaxPeers
from signaling.limits import Limits
from signaling.timing.clock import Clock

_CHECK_SECONDS = 1.0
_STOP_SECONDS = 2.0
_ID_CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Cluster:
    """A ``Backplane`` over an engine.

    Args:
        engine: shared by all nodes.
        clock: for timers.
        limits: of a topic, over all nodes.
        prefix: of all names in the store; clusters with different ones are separate.
        ids: makes the ids of this node's peers.
        log: where an operator sees what happens to the node; None logs nothing.
        wall_clock: seconds since 1970.
        choose: makes this node's own ids; a seeded one for tests.
    """

    def __init__(  # noqa: PLR0913 - what a node runs on, and what tests replace
        self,
        engine: Engine,
        clock: Clock,
        limits: Limits,
        *,
        prefix: str = "signaling:",
        ids: PeerIds | None = None,
        log: ClusterLog | None = None,
        wall_clock: Callable[[], float] = time.time,
        choose: random.Random | None = None,
    ) -> None:
        self._clock = clock
        self._choose = choose or random.SystemRandom()
        self._ids = ids or PeerIds()
        self._store = store = Store(engine, Keys(prefix), limits, self._new_id())
        self._membership = membership = Membership(store, clock, self._new_id, self, log, wall_clock)
        pending, updates = PendingJoins(), PendingUpdates()
        self._replicas = replicas = Replicas(store, membership, pending, updates, self._peer_moved)
        self._updates = Updates(store, membership, replicas, updates)
        self._relays = RemoteRelays(self._new_id, clock, store, membership, replicas, pending)
        self._handoffs = SessionHandoffs(self._new_id, store, self._relays, updates)
        self._joins = Joins(store, membership, replicas, self._handoffs, pending, clock, self._ids)
        self._queries = NodeQueries(store, membership, clock)
        self._observed: PresenceListener | None = None
        self._timer: Any = None

        self._receivers: dict[type, Callable[[Any], None]] = {
            HeartbeatEcho: membership.echoed,
            TopicEvent: self._apply_event,
            RelayBatch: self._relays.receive,
            Outcomes: self._relays.apply_outcomes,
            OutcomeQuery: self._relays.answer,
            SessionRequest: self._handoffs.answer,
            SessionReply: self._joins.take_session,
            NodeQuery: self._queries.answer,
            NodeAnswer: self._queries.receive,
        }

    def _new_id(self) -> str:
        return "".join(self._choose.choices(_ID_CHARACTERS, k=NODE_CHARACTERS))

    @property
    def node(self) -> str:
        """The id of this node, as the other nodes know it."""
        return self._store.node

    @property
    def unready_reasons(self) -> list[str]:
        """Why a load balancer should send new clients elsewhere."""
        # If this process stands still, its lease ends before it notices that the store does not serve it any more.
        is_served = self._membership.is_registered and self._membership.has_lease
        return [] if is_served else ["the backplane is out of reach"]

    @property
    def forwarding(self) -> int:
        """How many relays to other nodes have no outcome yet."""
        return self._relays.forwarding

    def report_presence(self, listener: PresenceListener) -> None:
        """Report to ``listener`` what only the store knows."""
        self._observed = self._replicas.observed = self._joins.observed = listener
        self._store.lists_evicted = True

    def start(self, node: Node) -> None:
        """Connect."""
        for part in (self._replicas, self._joins, self._relays, self._handoffs, self._queries):
            part.start(node)
        self._membership.start()
        self._check()

    def _check(self) -> None:
        self._timer = self._clock.callLater(_CHECK_SECONDS, self._check)
        self._membership.check()
        self._relays.check()
        self._joins.forget_requests()
        self._handoffs.forget_offers()
        self._replicas.check()

    def stop(self, done: Callable[[], None]) -> None:
        """Report what is left to report, deregister, and disconnect."""
        if self._timer is None:
            done()
            return
        self._timer.cancel()
        self._timer = None
        self._joins.stop()
        self._queries.stop()
        self._relays.report_all()

        def disconnect() -> None:
            # What came meanwhile has an outcome too.
            self._relays.report_all()
            self._membership.stop()
            done()

        timeout = self._clock.callLater(_STOP_SECONDS, disconnect)

        def deregistered(_: bool | None) -> None:
            if timeout.active():
                timeout.cancel()
                disconnect()

        self._store.deregister(deregistered)

    # Called by the server

    def request_join(
        self,
        topic: str,
        metadata: bytes | None,
        max_peers: MaxPeers,
        on_ticket: Callable[[JoinTicket], None],
        proof: ResumeProof | None = None,
    ) -> None:
        """Announce a peer that is about to join."""
        self._joins.request_join(PendingJoin(topic, self._ids.next(), metadata, max_peers, on_ticket, proof))

    def finish_join(self, topic: str, peer: str, *, joined: bool) -> None:
        """End a join: its peer is in the topic now, or will never be."""
        self._joins.finish_join(topic, peer, joined=joined)

    def update(self, topic: str, peer: str, metadata: bytes, on_decided: Callable[[str | None], None]) -> None:
        """Ask the store whether a peer of this node may have other metadata."""
        self._updates.update(topic, peer, metadata, on_decided)

    def leave(self, topic: str, peer: str) -> None:
        """Announce to the other nodes that a peer of this node left."""
        self._replicas.leave(topic, peer)

    def resync(self, topic: str) -> None:
        """Compare a topic with the store."""
        self._replicas.resync(topic)

    def remote_members(self, topic: str) -> Iterable[tuple[str, bytes | None]]:
        """List the members of other nodes that were announced here: ids and metadata."""
        return self._replicas.remote_members(topic)

    def forward(self, topic: str, to: str, sender: str, frame: bytes, forwarding: Forwarding) -> bool | None:
        """Send a relay to a peer of another node."""
        return self._relays.forward(topic, to, sender, frame, forwarding)

    def for_resuming(self, topic: str, peer: str | None, then: Callable[[str], None]) -> bool:
        """Call ``then`` with each peer whose session is on its way to this node, once it has resumed here."""
        return self._joins.for_resuming(topic, peer, then)

    def ask_nodes(self, query: bytes, on_answers: Callable[[Answers], None]) -> None:
        """Ask all nodes."""
        self._queries.ask(query, on_answers)

    # Called by the membership

    def registered(self, topics: Iterable[str]) -> None:
        """Go on, or begin: the store serves this node."""
        # A node that was evicted meanwhile has no peers in the store that would name its topics.
        undecided = self._observed.undecided_topics if self._observed is not None else ()
        self._replicas.resync_soon([*topics, *undecided])
        self._joins.ask_again()
        self._relays.resume()
        self._replicas.sync_some()

    def lost(self) -> None:
        """Go on without the store."""
        self._relays.drop_unpublished()
        self._joins.decide_all()
        self._updates.decide_all()

    def events_missed(self) -> None:
        """Compare all topics with the store."""
        self._replicas.resync_all()

    def store_lost_data(self) -> None:
        """Compare all topics with the store, and wait for other nodes to put their peers back."""
        self._replicas.resync_all()
        self._replicas.keep_unlisted()

    def renamed(self) -> None:
        """Go on under another id."""
        self._relays.forget_incoming()
        if self._observed is not None:
            self._observed.renamed()

    def node_evicted(self, node: str, removed: Sequence[RemovedMember]) -> None:
        """Drop the relays to a node that is dead, and report its peers."""
        self._relays.drop_sent_to(node)
        if self._observed is None:
            return
        for topic, peer, metadata, was_last in removed:
            self._observed.peer_of_lost_node(topic, peer, metadata, node)
            end = self._observed.topic_closed if was_last else self._observed.forget_if_empty
            end(topic)

    @property
    def expected_nodes(self) -> Iterable[str]:
        """The nodes that have peers, or owe an outcome."""
        return self._replicas.nodes | self._relays.nodes

    def received(self, data: bytes) -> None:
        """Pass on what came on this node's channel."""
        try:
            message = decode(data)
        except ValueError:
            # Another version of this server sent it, or another program.
            return
        self._receivers[type(message)](message)

    def _apply_event(self, event: TopicEvent) -> None:
        self._membership.count_event()
        self._replicas.apply_event(event)
        if event.kind is EventKind.MOVED:
            # What is sent to the peer's new node must not overtake what waits for its old one.
            self._relays.publish_all()

    def _peer_moved(self, topic: str, peer: str, node: str) -> None:
        self._handoffs.peer_moved(topic, peer, node)
