"""A node: what is real is real, but for its connections to clients and to the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from random import Random
from typing import TYPE_CHECKING, Any

from signaling.backplane.cluster import Cluster
from signaling.core.announcer import Announcer
from signaling.core.counters import Counters
from signaling.core.interfaces import Forwarding, JoinTicket
from signaling.core.local_peers import LocalPeers
from signaling.core.peer import Peer, return_undelivered
from signaling.core.peer_ids import PeerIds
from signaling.core.topics import TopicMap
from signaling.errors import ErrorCode, Rejected
from signaling.limits import Limits
from tests.simulator.clients import Client, Sent
from tests.simulator.engine import SimulatedEngine, StoreServer
from tests.simulator.network import Process

if TYPE_CHECKING:
    from tests.simulator.story import Story

PREFIX = "s:"


class SimulatedIds(PeerIds):
    """Ids like ULIDs, by a clock that may be wrong, and the same in every run.

    Args:
        clock_ms: milliseconds.
        random: makes the rest.
    """

    def __init__(self, clock_ms: Callable[[], int], random: Random) -> None:
        super().__init__(clock_ms)
        self._clock = clock_ms
        self._random = random
        self._ms = self._rest = 0

    def next(self) -> str:
        ms = self._clock()
        if ms > self._ms:
            self._ms, self._rest = ms, self._random.randrange(10**15)
        else:
            self._rest += 1
        return f"{self._ms:010d}{self._rest:016d}"

    def follow(self, peer_id: str) -> None:
        ms = int(peer_id[:10]) + 1
        if ms > self._ms:
            self._ms, self._rest = ms, self._random.randrange(10**15)


class SimulatedNode:
    """One process of the cluster, from its start to its end.

    Attributes:
        clients: that have a connection to it, joined or not.
    """

    def __init__(self, story: Story, name: str, store: StoreServer, latency: Callable[[], float], skew_ms: int) -> None:
        self.story = story
        self.limits: Limits = story.make_limits()
        self.process = Process(story.timeline, name)
        self.engine = SimulatedEngine(self.process, store, latency)
        self.counters = Counters()
        self.topics: TopicMap[Peer] = TopicMap(self.limits.max_peers_per_topic, self.limits.max_peer_list_bytes)
        random = Random(story.random.random())
        # Events are announced at once, or take turns, or now this and now that.
        at_once = random.choice((0, 4, 256))
        self.announcer = Announcer(self.process, self.counters.count_dropped_events, offers_at_once=at_once)
        ids = SimulatedIds(lambda: 1_000_000 + int(story.now * 1000) + skew_ms, random)
        self.cluster = Cluster(self.engine, self.process, self.limits, prefix=PREFIX, ids=ids, choose=random)
        self.clients: dict[Client, None] = {}
        self.crashed_at: float | None = None
        self.stopping = False
        self.cluster.start(self._local_peers())

    @property
    def name(self) -> str:
        return self.process.name

    @property
    def serves(self) -> bool:
        return self.process.alive and not self.stopping

    def _local_peers(self) -> LocalPeers:
        return LocalPeers(self.topics, self.announcer, self.counters, lambda peer, text: None, self._moved)

    def _moved(self, peer: Peer, taken: Collection[int]) -> Mapping[int, Forwarding]:
        self.story.breach(f"{self.name}: {peer.id} moved, which nobody did")
        return {}

    # What clients do; what they send to a process that stands still waits

    def connect(self, client: Client) -> None:
        self.clients[client] = None
        self.process.take(client, self._connected, client)

    def _connected(self, client: Client) -> None:
        if self.stopping:
            client.gone = True
            self.clients.pop(client, None)
            return

        def entered(entrant: JoinTicket) -> None:
            self._entered(client, entrant)

        self.cluster.request_join(client.topic, client.metadata_text, entered)

    def _entered(self, client: Client, entrant: JoinTicket) -> None:
        joined = False
        assert entrant.id is not None
        if not client.gone and not self.stopping and entrant.full is None:
            peer = Peer(entrant.id, client.metadata_text, self.topics, self.announcer, self.cluster, self.counters)
            peer.attach(client.way)
            try:
                peer.join(client.topic)
                client.peer = peer
                joined = True
            except Rejected:
                pass
        if not joined:
            client.gone = True
            self.clients.pop(client, None)
        self.cluster.finish_join(client.topic, entrant.id, joined=joined)

    def disconnect(self, client: Client) -> None:
        self.process.take(client, self._disconnected, client)

    def _disconnected(self, client: Client) -> None:
        if client.gone:
            return
        client.gone = True
        self.clients.pop(client, None)
        peer, client.peer = client.peer, None
        if peer is not None:
            return_undelivered(client.way.abandon(), self.counters)
            peer.detach()
            peer.leave()

    def relay(self, sent: Sent) -> None:
        self.process.take(sent.sender, self._relay, sent)

    def _relay(self, sent: Sent) -> None:
        sender, target = sent.sender, sent.target
        if sender.gone or sender.peer is None:
            return
        message = {"type": "offer", "to": target.id, "payload": sent.number, "msgId": str(sent.number)}
        outcome = sender.peer.receive(json.dumps(message).encode())
        # A relay that is refused takes no room; events that happened before it do.
        room = len(target.way) < self.limits.high_water_messages
        if target.node is self and target.live and room and isinstance(outcome, Rejected):
            self.story.breach(f"{self.name}: relay {sent.number} to a peer of the same node: {outcome.code}")
        if target.node is self and not target.live and not self._refused(outcome):
            self.story.breach(f"{self.name}: relay {sent.number} was taken for a peer that is gone")

    @staticmethod
    def _refused(outcome: Any) -> bool:
        return isinstance(outcome, Rejected) and outcome.code is ErrorCode.TARGET_NOT_FOUND

    def stall(self, client: Client) -> None:
        self.process.take(client, lambda _: client.way.block(), None)

    def unstall(self, client: Client) -> None:
        self.process.take(client, lambda _: client.way.unblock(), None)

    # What happens to it

    def crash(self, noticed: bool) -> None:
        """End at once.

        Args:
            noticed: whether the store sees the end of the connections, as it does when the machine goes on.
        """
        self._ended()
        connection = self.engine.connection
        if connection is not None:
            if not noticed:
                connection.swallow(connection.links)
            connection.waiting.clear()
            connection.close()
        for client in self.clients:
            client.gone = True
            client.peer = None
        self.clients.clear()

    def stop(self) -> None:
        """Stop as a service does: its peers leave first."""
        self.process.take(self, self._stop, None)

    def _stop(self, _: None) -> None:
        if self.stopping:
            return
        self.stopping = True
        self.story.ended[self.cluster.node] = self.story.now
        for client in tuple(self.clients):
            self._disconnected(client)
        self.cluster.stop(self._stopped)

    def _stopped(self) -> None:
        if self.process.timers:
            left = [call.function.__qualname__ for call in self.process.calls]
            self.story.breach(f"{self.name}: timers are left of a node that stopped: {left}")
        if self.process.alive:
            self._ended()

    def _ended(self) -> None:
        self.crashed_at = self.story.now
        self.story.ended.setdefault(self.cluster.node, self.story.now)
        self.process.end()
