"""A node: all of it is the server's own code, except its connections to clients and to the store."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from signaling.admission.client_address import Client as Address
from signaling.admission.connection_limits import ConnectionLimits, ConnectionSlot
from signaling.backplane.cluster import Cluster
from signaling.backplane.store import RemovedMember
from signaling.core import messages
from signaling.core.administration import Administration
from signaling.core.announcer import Announcer
from signaling.core.blocks import Blocks
from signaling.core.counters import Counters
from signaling.core.grants import Grant
from signaling.core.interfaces import JoinTicket, OutgoingSession, ResumeProof
from signaling.core.join_request import JoinRequest
from signaling.core.joining import TRANSITIONS, JoinAttempt, JoinState
from signaling.core.local_peers import LocalPeers
from signaling.core.peer import Peer, PeerServices
from signaling.core.peer_ids import PeerIds
from signaling.core.server_messages import Feature
from signaling.core.session import PeerSession
from signaling.core.session_registry import SessionRegistry
from signaling.core.topics import MaxPeers, TopicMap
from signaling.errors import Rejected
from signaling.limits import Limits
from signaling.timing.fair_scheduler import FairScheduler
from tests.simulator.connections import SimulatedConnection
from tests.simulator.engine import SimulatedEngine, StoreServer
from tests.simulator.network import Process

if TYPE_CHECKING:
    from tests.simulator.clients import Sent
    from tests.simulator.scenario import Scenario
    from tests.simulator.updates import SentUpdate

PREFIX = "s:"
JOINS_PER_PASS = 4
LARGEST_HIGH_WATER = 16
LONGEST_ENTRY = 200


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

    def advance_past(self, peer_id: str) -> None:
        ms = int(peer_id[:10]) + 1
        if ms > self._ms:
            self._ms, self._rest = ms, self._random.randrange(10**15)


class SlowClock:
    """The clock of a process whose passes of the reactor take time."""

    def __init__(self, process: Process, seconds: float) -> None:
        self._process = process
        self._seconds = seconds

    def seconds(self) -> float:
        return self._process.seconds()

    def callLater(self, delay: float, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._process.callLater(delay + self._seconds, function, *arguments)


class CountedLimits(ConnectionLimits):
    """Connection limits that keep a count of their own.

    Attributes:
        held: how many slots there are, by network.
        networks: of all slots there ever were.
    """

    def __init__(self, limits: Limits, seconds: Callable[[], float]) -> None:
        super().__init__(limits, 10_000, seconds)
        self.held: Counter[str | None] = Counter()
        self.networks: dict[ConnectionSlot, str | None] = {}
        self._latest: str | None = None

    def admit(self, client: Address) -> ConnectionSlot:
        slot = super().admit(client)
        self.networks[slot] = self._latest
        return slot

    def add(self, network: str | None) -> None:
        super().add(network)
        self.held[network] += 1
        self._latest = network

    def remove(self, network: str | None) -> None:
        super().remove(network)
        self.held[network] -= 1


class SimulatedCluster(Cluster):
    """The backplane of a node, which checks how tickets are finished.

    Attributes:
        owner: the node.
        tickets_due: how many tickets were asked for and are not given yet.
        unfinished: tickets that were given and are not finished, by topic and id.
    """

    owner: SimulatedNode
    tickets_due = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.unfinished: dict[tuple[str, str | None], JoinTicket] = {}

    def request_join(
        self,
        topic: str,
        metadata: bytes | None,
        max_peers: MaxPeers,
        on_ticket: Callable[[JoinTicket], None],
        proof: ResumeProof | None = None,
    ) -> None:
        def arrived(ticket: JoinTicket) -> None:
            self.tickets_due -= 1
            self.unfinished[topic, ticket.id] = ticket
            on_ticket(ticket)

        self.tickets_due += 1
        super().request_join(topic, metadata, max_peers, arrived, proof)

    def finish_join(self, topic: str, peer: str, *, joined: bool) -> None:
        self.owner.check_ticket(self.unfinished.pop((topic, peer), None), topic, peer, joined)
        super().finish_join(topic, peer, joined=joined)

    def node_evicted(self, node: str, removed: Sequence[RemovedMember]) -> None:
        self.owner.scenario.presence.learned(removed)
        super().node_evicted(node, removed)


class ObservedPeers(LocalPeers):
    """The peers of a node, which notice that another node asks for one of them."""

    def __init__(self, node: SimulatedNode) -> None:
        super().__init__(node.peer_services, self._peer_moved, node.administration.answer)
        self._node = node

    def prepare_handoff(self, topic: str, proof: ResumeProof) -> OutgoingSession | None:
        if self.has(topic, proof.peer):
            # If this node ends before it knows whether the other node has taken the peer, relays may have two outcomes.
            self._node.scenario.left_behind(proof.peer, self._node.backplane.node)
        return super().prepare_handoff(topic, proof)

    def _peer_moved(self, peer: Peer) -> None:
        if not peer.resumable:
            self._node.violation(f"{peer.id} moved, and cannot resume")


class SimulatedNode:
    """One process of the cluster, from its start to its end: to a ``JoinAttempt``, its ``JoinServices``.

    Attributes:
        connections: that have not ended.
        attempts: to join that are not settled, and those that were settled since the last check.
        turns: of connections whose topic is large.
        draining: whether the node refuses joins.
    """

    def __init__(
        self, scenario: Scenario, name: str, store: StoreServer, latency: Callable[[], float], skew_ms: int
    ) -> None:
        self.scenario = scenario
        self.limits = scenario.updates.limit(scenario.joins.limit(scenario.make_limits()))
        self.crowd_size = scenario.joins.crowd_size
        self.process = Process(scenario.timeline, name)
        self.engine = SimulatedEngine(self.process, store, latency)
        self.counters = Counters()
        self.topics: TopicMap[Peer] = TopicMap(self.limits.max_peers_per_topic, self.limits.max_peer_list_bytes)
        random = Random(scenario.random.random())
        # Announcements go out at once, or in turns, or mixed.
        at_once = random.choice((0, 4, 256))
        self.announcer = Announcer(self.process, self.counters.count_dropped_events, offers_at_once=at_once)
        ids = SimulatedIds(lambda: 1_000_000 + int(scenario.now * 1000) + skew_ms, random)
        self.backplane = SimulatedCluster(self.engine, self.process, self.limits, prefix=PREFIX, ids=ids, choose=random)
        self.backplane.owner = self
        self.connection_limits = CountedLimits(self.limits, self.process.seconds)
        self.sessions = SessionRegistry(self.limits, self.process, self.topics, lambda peer, text, reason: None)
        self.presence = scenario.presence.reporter(self)
        self.peer_services = PeerServices(
            self.topics,
            self.announcer,
            self.backplane,
            self.counters,
            self.limits,
            self.sessions,
            features=[Feature.METADATA_UPDATES] if scenario.updates.active else [],
            presence=self.presence,
        )
        self.turns: FairScheduler[SimulatedConnection] = FairScheduler(
            SlowClock(self.process, scenario.joins.turn_seconds),
            JOINS_PER_PASS,
            lambda connection: connection.accept(b""),
        )
        self.connections: dict[SimulatedConnection, None] = {}
        self.attempts: list[JoinAttempt] = []
        self.blocks = Blocks(self.process.seconds)
        self.records_addresses = False
        self.crashed_at: float | None = None
        self.draining = False
        self.administration = Administration(self.peer_services, self.blocks, self.process)
        self._peers = ObservedPeers(self)
        self.backplane.start(self._peers)

    @property
    def name(self) -> str:
        return self.process.name

    @property
    def serves(self) -> bool:
        return self.process.alive and not self.draining

    # What a JoinAttempt asks for

    @property
    def events(self) -> SimulatedNode:
        return self

    @property
    def ice_servers(self) -> SimulatedNode:
        return self

    def text(self, peer_id: str) -> bytes | None:
        """Return ICE servers that name the time, for clients that resume."""
        return json.dumps(self.scenario.now).encode() if self.limits.resume_window_seconds else None

    def expires_in(self, grant: Grant | None) -> int | None:
        return None

    def new_peer(self, request: JoinRequest, connection: SimulatedConnection, ticket: JoinTicket) -> Peer:
        assert ticket.id is not None
        peer: Peer
        if self.limits.resume_window_seconds:
            peer = PeerSession(ticket.id, request, self.peer_services)
        else:
            peer = Peer(ticket.id, request.metadata, self.peer_services)
        peer.attach(connection)
        return peer

    def joined(self, peer: str, topic: str, address: str | None, subject: str | None) -> None:
        self.scenario.trace(self.name, peer, "joined", topic)

    def resumed(self, peer: str, topic: str, address: str | None, subject: str | None) -> None:
        self.scenario.trace(self.name, peer, "resumed in", topic)

    def rejected(self, topic: str, address: str | None, reason: str, subject: str | None) -> None:
        self.scenario.trace(self.name, topic, "was full:", reason)

    def detached(self, peer: str, topic: str, reason: str, subject: str | None) -> None:
        self.scenario.trace(self.name, peer, "was resumed and detached at once in", topic)

    # What clients do; a process that is paused takes it later

    def connect(self, connection: SimulatedConnection, request: JoinRequest) -> None:
        self.connections[connection] = None
        self.process.take(connection.source, self._log_in, (connection, request))

    def _log_in(self, requested: tuple[SimulatedConnection, JoinRequest]) -> None:
        connection, request = requested
        if connection.ended:
            return
        joins = self.scenario.joins
        seconds = joins.login_seconds()
        end = connection.refuse if joins.login_is_refused() else connection.start_joining
        outcome: Any = "its login was refused" if end == connection.refuse else request
        request.grant = joins.grant()
        if seconds is None or self.draining:
            end(outcome)
        else:
            connection.hold()
            connection.later(seconds, end, outcome)

    def lose(self, connection: SimulatedConnection) -> None:
        """Notice that a connection was lost."""
        self.process.take(connection.source, SimulatedConnection.finish, connection)

    def expire(self, connection: SimulatedConnection) -> None:
        self.process.take(connection.source, SimulatedConnection.expire, connection)

    def say_goodbye(self, connection: SimulatedConnection) -> None:
        self.process.take(connection.source, SimulatedConnection.say_goodbye, connection)

    def relay(self, sent: Sent) -> None:
        connection = sent.sender.connection
        assert connection is not None
        self.process.take(sent.sender, connection.receive, sent)

    def update(self, sent: SentUpdate) -> None:
        self.process.take(sent.sender, sent.connection.receive, sent)

    def update_from(self, peer: Peer, sent: SentUpdate) -> None:
        outcome = peer.receive(sent.text)
        if not isinstance(outcome, messages.MetadataUpdate | Rejected):
            self.violation(f"an update was taken for {outcome}")

    def relay_from(self, peer: Peer, sent: Sent) -> None:
        sent.nodes.add(self.backplane.node)
        # A client that sends before its welcome does not know who it will be.
        sent.sender_id = peer.id
        message = {"type": "offer", "to": sent.target_id, "payload": sent.number, "msgId": str(sent.number)}
        outcome = peer.receive(json.dumps(message).encode())
        self.scenario.relayed(self, sent, outcome)

    def stall(self, connection: SimulatedConnection) -> None:
        self.process.take(connection.client, lambda _: connection.block(), None)

    def unstall(self, connection: SimulatedConnection) -> None:
        self.process.take(connection.client, lambda _: connection.unblock() if not connection.ended else None, None)

    def renew(self, connection: SimulatedConnection) -> None:
        self.process.take(connection.source, self._renew, connection)

    def _renew(self, connection: SimulatedConnection) -> None:
        ice_servers = self.text("")
        if connection.peer is not None and ice_servers is not None:
            connection.peer.send_once(messages.ice_servers(ice_servers))

    # What has to be true

    def violation(self, what: str) -> None:
        self.scenario.violation(f"{self.name}: {what}")

    def check_ticket(self, ticket: JoinTicket | None, topic: str, peer: str, joined: bool) -> None:
        """Check that a ticket is finished once, and with the truth."""
        is_here = self._peers.has(topic, peer)
        if ticket is None:
            self.violation(f"the ticket of {peer} in {topic} is finished twice")
        elif joined != is_here and not (is_here and ticket.session is not None):
            self.violation(f"the ticket of {peer} in {topic} says that it joined: {joined}, which is not true")
        elif ticket.session is not None and not (is_here or self.draining):
            # The replay buffers of other nodes may hold more than this one's.
            found = self.topics.find(topic)
            # A list may be too long, because nodes without the store do not know each other's.
            has_room = found is None or (
                len(found) < self.limits.max_peers_per_topic
                and found.listed_bytes + LONGEST_ENTRY <= self.limits.max_peer_list_bytes
            )
            if has_room and self.limits.high_water_messages == LARGEST_HIGH_WATER:
                self.violation(f"the session of {peer} in {topic}, which another node handed off, is lost")

    def check_slots(self) -> None:
        """Check that each connection, each join and each detached session has one connection slot."""
        settled = [attempt for attempt in self.attempts if not TRANSITIONS[attempt.state]]
        self.scenario.counts.update(f"joins {attempt.state.value}" for attempt in settled)
        self.attempts = [attempt for attempt in self.attempts if TRANSITIONS[attempt.state]]
        if any(attempt.state is JoinState.AWAITING_TURN for attempt in self.attempts):
            # It may have the slot of a session, which has none meanwhile.
            return
        slots = [connection.slot for connection in self.connections if connection.slot is not None]
        of_connections = Counter(self.connection_limits.networks[slot] for slot in slots)
        held = self.connection_limits.held
        expected = len(slots) + len(self.attempts) + len(self.sessions.detached)
        without_slot = [connection for connection in self.connections if connection.peer and not connection.slot]
        if held.total() != expected or without_slot or not of_connections <= held:
            self.violation(f"{dict(held)} slots, not {expected}; {len(without_slot)} peers have none")

    def check_joins(self) -> None:
        """Check that no join is unsettled."""
        self.check_slots()
        if self.attempts:
            self.violation(f"joins are {[attempt.state.value for attempt in self.attempts]}")
        due, unfinished = self.backplane.tickets_due, list(self.backplane.unfinished)
        if due or unfinished:
            self.violation(f"{due} tickets are not given, {unfinished} not finished")

    # What happens to it

    def crash(self, noticed: bool) -> None:
        """End at once.

        Args:
            noticed: whether the store sees the end of the connections, as it does when the machine goes on.
        """
        self._ended()
        to_store = self.engine.connection
        if to_store is not None:
            if not noticed:
                to_store.swallow(to_store.links)
            to_store.waiting.clear()
            to_store.close()
        connections, self.connections = list(self.connections), {}
        for connection in connections:
            connection.node_crashed()

    def stop(self) -> None:
        """Stop as a service does: its peers leave first."""
        self.process.take(self, self._drain, None)

    def _drain(self, _: None) -> None:
        if self.draining:
            return
        self.draining = True
        seconds = self.scenario.joins.drain_seconds()
        if seconds:
            self.process.callLater(seconds, self._close_all)
        else:
            self._close_all()

    def _close_all(self) -> None:
        self.scenario.ended[self.backplane.node] = self.scenario.now
        for connection in tuple(self.connections):
            connection.say_goodbye()
        for session in tuple(self.sessions.detached):
            self.sessions.close_detached(session)
        self.sessions.cancel_idle_timers()
        self.backplane.stop(self._stopped)

    def _stopped(self) -> None:
        self.check_joins()
        if self.process.timers:
            left = [call.function.__qualname__ for call in self.process.calls]
            self.violation(f"timers are left of a node that stopped: {left}")
        if self.process.alive:
            self._ended()

    def _ended(self) -> None:
        self.crashed_at = self.scenario.now
        self.scenario.ended.setdefault(self.backplane.node, self.scenario.now)
        self.process.end()
