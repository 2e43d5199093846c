"""One scenario: its seed decides which clients join and relay and what fails; in the end, all invariants have to hold.

Each client checks every message that it receives. After the faults, and ``CALM_SECONDS`` later, all clients, the store
and the connection slots are compared with the truth. Every relay is written to its target at most once, in order, and
has one outcome: it is written, or its sender receives one error. No server can promise that in two cases; only these
are excused, and counted by kind (``Scenario.excuses``):

- The sender is gone, by itself or with its node, and receives no outcome.
- The relay was written *and* answered ``dropped``. The target's node crashed or was evicted after it wrote the relay
  and before the sender received the outcome; or the sender's node could not reach the store for so long that it gave
  up. The same holds for a relay that waited in a queue while the target's node was paused, was evicted, and wrote the
  relay afterwards; and for a node that does not learn of its eviction because the store lost its data after that.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from signaling.backplane.store import Keys
from signaling.core.messages import ClientMessage
from signaling.errors import ErrorCode, Rejected
from signaling.limits import Limits
from tests.simulator.clients import Client, Sent, payload
from tests.simulator.engine import StoreServer
from tests.simulator.join_conditions import JoinConditions
from tests.simulator.network import Timeline
from tests.simulator.nodes import PREFIX, SimulatedNode
from tests.simulator.presence import PresenceCheck
from tests.simulator.store import listed_bytes
from tests.simulator.updates import SentUpdate, UpdateConditions

CALM_SECONDS = 60.0
# Within this time a dead node is evicted, and its peers' leaving is announced.
EVICTION_SECONDS = 15.0
# After this time a sender's node gives up waiting for an outcome.
GIVE_UP_SECONDS = 30.0
# The least time between two losses of data.
DATA_SECONDS = 0.5
KEYS = Keys(PREFIX)


class InvariantViolation(Exception):
    """An invariant does not hold; the text says which ones."""


class Scenario:
    """The scenario of one seed.

    Args:
        seed: of the random generator.
        log: is called with each line of the trace; None traces nothing.
        with_join_conditions: False for joins that always succeed, and at once.

    Attributes:
        sent: all relays, by number.
        evicted: when each node's id was evicted.
        ended: when a node crashed or began to stop, by the id that it had then.
        counts: of what happened, to show that it was tested.
        excuses: how many relays have an outcome that is excused, by kind.
    """

    kind = ""

    def __init__(
        self, seed: int, log: Callable[[str], None] | None = None, *, with_join_conditions: bool = True
    ) -> None:
        self.timeline = Timeline(seed, log)
        self.joins = JoinConditions(f"{self.kind}{seed}", any_at_all=with_join_conditions)
        self.updates = UpdateConditions(f"{self.kind}{seed}")
        self.random = self.timeline.random
        self.trace = self.timeline.trace
        self.tracing = self.timeline.tracing
        self.sent: list[Sent] = []
        self.evicted: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self.excuses: Counter[str] = Counter()
        self.violations: list[str] = []
        # The nodes that a peer has left, or wanted to leave, for others.
        self.left_nodes: dict[str, set[str]] = {}
        self.early = 0
        self.clients: list[Client] = []
        self.by_id: dict[str, Client] = {}
        self.lost_data_at: list[float] = []
        self.cut_off: list[tuple[str, float, float]] = []
        self._names = self._updates = 0
        self.presence = PresenceCheck(self)
        self.store = StoreServer(self.timeline)
        self.store.on_run = self._ran
        random = self.random
        self.topics = [f"t{number}" for number in range(random.choice([1, 1, 2, 3]))]
        self._slow = random.choice([0.0, 0.02, 0.2])
        self._base = random.choice([0.0005, 0.003, 0.03])
        self.nodes: list[SimulatedNode] = [self._new_node() for _ in range(random.choice([2, 2, 3, 3, 4]))]
        faults = list(FAULTS)
        random.shuffle(faults)
        self._faults = faults[: random.choice([0, 1, 2, 3, len(faults)])]
        self._healing: list[Callable[[], None]] = []

    def make_limits(self) -> Limits:
        """Make the options of one node."""
        return Limits(high_water_messages=self.random.choice([4, 4, 1, 8]))

    @property
    def now(self) -> float:
        return self.timeline.now

    def latency(self) -> float:
        random = self.random
        if random.random() < self._slow:
            return random.uniform(0.05, 1.0)
        return random.expovariate(1 / self._base)

    def violation(self, what: str) -> None:
        self.trace("VIOLATION", what)
        self.violations.append(f"at {self.now:.4f}: {what}")

    def check(self) -> None:
        if self.violations:
            raise InvariantViolation("\n".join(self.violations))

    def run_for(self, seconds: float) -> None:
        self.timeline.run_until(self.now + seconds)
        for node in self.nodes:
            if node.process.alive:
                node.check_slots()
        self.check()

    # What the nodes and clients report

    def relay_in(self, frame: bytes) -> Sent:
        """Return the relay whose frame this is."""
        return self.sent[int(json.loads(payload(frame))["payload"])]

    def named(self, client: Client) -> None:
        if client.id in self.by_id:
            self.violation(f"two peers have the id {client.id}")
        self.by_id[client.id] = client
        self.counts["joined"] += 1

    def left_behind(self, peer: str, node: str) -> None:
        """Notice that another node asks for a peer."""
        self.left_nodes.setdefault(peer, set()).add(node)

    def relayed(self, node: SimulatedNode, sent: Sent, outcome: ClientMessage | Rejected) -> None:
        """Check a relay that the target's own node took or refused."""
        target = sent.target
        if target.node is not node or target.connection is None:
            return
        # A relay that is refused takes no room; events that happened before it do.
        room = len(target.connection) < node.limits.high_water_messages
        if target.live and room and isinstance(outcome, Rejected):
            self.violation(f"{node.name}: relay {sent.number} to a peer of the same node: {outcome.code}")
        refused = isinstance(outcome, Rejected) and outcome.code is ErrorCode.TARGET_NOT_FOUND
        if not target.live and not refused:
            self.violation(f"{node.name}: relay {sent.number} was taken for a peer that is gone")

    def _ran(self, script: str, arguments: Sequence[bytes], reply: list[Any]) -> None:
        self.presence.ran(script, arguments, reply)
        if script == "evict" and reply[0] == b"evicted":
            self.evicted.setdefault(arguments[2].decode(), self.now)
            self.counts["evicted"] += 1

    def peer_left(self, client: Client, peer: str) -> None:
        left = self.by_id.get(peer)
        if left is None or not left.live or left.id != peer:
            return
        # Its node was evicted, or the store lost its data.
        self.counts["left for a time"] += 1
        if not (self.lost_data_at or self.evicted or self.store.stale):
            self.violation(f"{client.name} is told that {left.name} left, which did not")

    def not_found(self, sent: Sent) -> None:
        target, sender = sent.target, sent.sender
        known = sender.known is not None and target.id in sender.known and not sender.missed_events
        if target.live and known and not (self.lost_data_at or self.evicted or self.store.stale):
            self.violation(f"relay {sent.number}: {target.name} is there, and was not found")

    # Actions

    def _new_node(self) -> SimulatedNode:
        self._names += 1
        skew = self.random.choice([0, 0, -1500, 700, 4000])
        node = SimulatedNode(self, f"node{self._names}", self.store, self.latency, skew)
        self.trace(node.name, "starts as", node.backplane.node)
        return node

    def serving(self) -> list[SimulatedNode]:
        return [node for node in self.nodes if node.serves]

    def live(self) -> list[Client]:
        return [client for client in self.clients if client.live]

    def join(self) -> None:
        nodes = self.serving()
        if not nodes or len(self.live()) > 12:
            return
        metadata = self.random.choice([None, {"name": "Ada"}, {"n": self.random.randint(0, 9)}])
        node, topic = self.random.choice(nodes), self.random.choice(self.topics)
        client = Client(node, f"c{len(self.clients)}", topic, metadata)
        self.trace(client.name, "connects to", client.node.name, client.topic)
        self.clients.append(client)
        client.connect()

    def leave(self) -> None:
        there = [client for client in self.clients if not client.gone]
        if there:
            client = self.random.choice(there)
            self.trace(client.name, "disconnects")
            client.node.lose(client.connection)

    def relay(self) -> None:
        live = self.live()
        if not live:
            return
        sender = self.random.choice(live)
        known = [client for client in self.clients if client.id and client.topic == sender.topic]
        if self.random.random() < 0.8:
            known = [client for client in known if client.live]
        target = self.random.choice(known)
        for _ in range(self.random.choice([1, 1, 1, 2, 7])):
            self.send(sender, target)

    def send(self, sender: Client, target: Client) -> Sent:
        sent = Sent(len(self.sent), sender, target, self.now)
        self.sent.append(sent)
        if self.tracing:
            self.trace(sender.name, "relays", sent.number, "to", target.name)
        sender.node.relay(sent)
        return sent

    def update(self, number: int) -> None:
        """Let a client replace its metadata so many times."""
        live = self.live()
        if live:
            self.send_updates(self.updates.random.choice(live), number)

    def send_updates(self, sender: Client, number: int) -> None:
        for _ in range(number):
            assert sender.connection is not None
            sent = SentUpdate(self._updates, sender, sender.connection, self.updates.metadata(self._updates))
            self._updates += 1
            self.counts["updates"] += 1
            self.trace(sender.name, "has other metadata:", sent.metadata)
            sender.own.sent(sent)
            sender.node.update(sent)

    def stall(self) -> None:
        live = self.live()
        if live:
            client = self.random.choice(live)
            self.trace(client.name, "stalls")
            assert client.connection is not None
            client.node.stall(client.connection)
            self._later(self.random.uniform(0.1, 12), lambda: self._unstall(client))

    def _unstall(self, client: Client) -> None:
        if client.connection is not None:
            client.node.unstall(client.connection)

    def _later(self, seconds: float, heal: Callable[[], None]) -> None:
        """End a fault after a time, or with the phase of faults."""
        self._healing.append(heal)

        def now() -> None:
            if heal in self._healing:
                self._healing.remove(heal)
                heal()

        self.timeline.after(seconds, now)

    # Faults

    def crash_node(self) -> None:
        nodes = self.serving()
        if nodes:
            node = self.random.choice(nodes)
            self._crash(node)
            if self.random.random() < 0.8:
                self._later(self.random.uniform(0.1, 20), lambda: self.nodes.append(self._new_node()))

    def _crash(self, node: SimulatedNode) -> None:
        self.trace(node.name, "crashes")
        node.crash(noticed=self.random.random() < 0.6)

    def stop_node(self) -> None:
        nodes = self.serving()
        if nodes:
            node = self.random.choice(nodes)
            self.trace(node.name, "stops")
            node.stop()
            self._later(self.random.uniform(0.1, 5), lambda: self.nodes.append(self._new_node()))

    def pause_node(self) -> None:
        nodes = [node for node in self.nodes if node.process.alive and not node.process.paused]
        if nodes:
            node = self.random.choice(nodes)
            seconds = self.random.choice([0.2, 2, 7, 9, 11, 15, 30]) * self.random.uniform(0.8, 1.2)
            self.trace(node.name, f"stands still for {seconds:.1f} s")
            node.process.pause()
            self._later(seconds, lambda: self._resume(node))

    def _resume(self, node: SimulatedNode) -> None:
        self.trace(node.name, "goes on")
        node.process.resume()

    def break_connection(self) -> None:
        connections = [node.engine.connection for node in self.nodes if node.process.alive and node.engine.connection]
        if connections:
            connection = self.random.choice(connections)
            self.trace("store", "a connection breaks")
            connection.server_ended()
            self.store.forget(connection)

    def swallow(self) -> None:
        nodes = [node for node in self.serving() if node.engine.connection]
        if nodes:
            node = self.random.choice(nodes)
            connection = node.engine.connection
            assert connection is not None
            partition = self.random.random() < 0.5
            seconds = self.random.choice([0.5, 4, 9, 12, 25]) * self.random.uniform(0.8, 1.2)
            which, links = connection.some_links()
            partition = partition and links is connection.links
            self.trace(node.name, f"loses {which} for {seconds:.1f} s{', on new connections too' * partition}")
            connection.swallow(links)
            node.engine.partitioned = partition
            self._later(seconds, lambda: self._unswallow(node, connection))

    def _unswallow(self, node: SimulatedNode, connection: Any) -> None:
        self.trace(node.name, "its connection takes everything")
        node.engine.partitioned = False
        connection.heal()
        if node.engine.connection is not None:
            node.engine.connection.heal()

    def delay_replies(self) -> None:
        """Have the store answer one node late; what others publish arrives as ever."""
        nodes = self.serving()
        if nodes:
            node = self.random.choice(nodes)
            delay = self.random.choice([0.3, 1, 2.5, 5]) * self.random.uniform(0.8, 1.2)
            self.trace(node.name, f"is answered {delay:.1f} s late")
            node.engine.reply_delay = delay
            self._later(self.random.uniform(1, 20), lambda: self._answer_in_time(node))

    def _answer_in_time(self, node: SimulatedNode) -> None:
        self.trace(node.name, "is answered in time")
        node.engine.reply_delay = 0.0

    def crash_store(self) -> None:
        if not self.store.alive:
            return
        kind = self.random.choice(["kept", "kept", "lost", "rolled back"] if self._may_lose_data() else ["kept"])
        saved = self.store.model.save()
        delay = self.random.uniform(0.01, 1.5) if kind == "rolled back" else 0.0

        def crash() -> None:
            if not self.store.alive:
                return
            seconds = self.random.choice([0.1, 1, 4, 12]) * self.random.uniform(0.8, 1.2)
            self.trace("store", f"crashes for {seconds:.1f} s; its data are", kind)
            if kind != "kept":
                self.lost_data_at.append(self.now)
            self.store.crash(None if kind == "lost" else saved)
            self._later(seconds, self._restart_store)

        self.timeline.after(delay, crash)

    def _restart_store(self) -> None:
        self.trace("store", "restarts")
        self.store.restart()

    def _may_lose_data(self) -> bool:
        return not self.lost_data_at or self.now - self.lost_data_at[-1] > DATA_SECONDS

    def flush_store(self) -> None:
        """Lose all data and no connection."""
        if self.store.alive and self._may_lose_data():
            self.trace("store", "loses its data")
            self.lost_data_at.append(self.now)
            self.store.model.load(None)

    def pause_store(self) -> None:
        if self.store.alive and not self.store.paused:
            seconds = self.random.choice([0.2, 2, 7, 12, 20]) * self.random.uniform(0.8, 1.2)
            self.trace("store", f"stands still for {seconds:.1f} s")
            self.store.pause()
            self._later(seconds, self._resume_store)

    def _resume_store(self) -> None:
        self.trace("store", "goes on")
        self.store.resume()

    # The phases

    def run(self) -> None:
        """Run it.

        Raises:
            InvariantViolation: if an invariant does not hold.
        """
        self.run_for(self.random.choice([0, 0.001, 0.5, 3]))
        for _ in range(self.random.choice([1, 1, 2])):
            self._storm()
            self._calm()
        self._mesh()
        if self.random.random() < 0.5:
            self._crash_in_calm()
        self._end()

    def _storm(self) -> None:
        random = self.random
        end = self.now + random.choice([3, 15, 40])
        pace = random.choice([0.02, 0.2, 1.0])
        fault_share = random.choice([0.02, 0.1, 0.3])
        actions = (
            [self.join] * 3 + [self.leave] * random.choice([1, 2]) + [self.relay] * random.choice([2, 8]) + [self.stall]
        )
        for _ in range(random.choice([0, 3, 8])):
            self.join()
        for _ in range(200):
            if self.now >= end:
                break
            self.run_for(0 if random.random() < 0.2 else random.expovariate(1 / pace))
            updates = self.updates.number()
            if updates:
                self.update(updates)
            if self._faults and random.random() < fault_share:
                fault = random.choice(self._faults)
                self.counts[fault] += 1
                getattr(self, fault)()
            else:
                random.choice(actions)()

    def _calm(self) -> None:
        self.trace("scenario", "all faults are over")
        while self._healing:
            self._healing.pop()()
        if not self.serving():
            self.nodes.append(self._new_node())
        self.joins.calm = True
        self.run_for(CALM_SECONDS * (2 if self.joins.active else 1))
        self.joins.calm = False
        self.trace("scenario", "all invariants have to hold")
        self._check_clients()
        self._check_metadata()
        self._check_relays()
        self.presence.check()
        self._check_store()
        for node in self.serving():
            node.check_joins()
            if node.backplane.forwarding:
                self.violation(f"{node.name}: {node.backplane.forwarding} relays have no outcome")
            if node.backplane.unready_reasons:
                self.violation(f"{node.name}: {node.backplane.unready_reasons}")
            self.counts["most timers"] = max(self.counts["most timers"], node.process.timers)
        self.check()

    def _expected(self, client: Client) -> dict[str, Any]:
        return {
            other.id: other.metadata for other in self.live() if other.topic == client.topic and other is not client
        }

    def _check_clients(self) -> None:
        for client in self.clients:
            if client.waits:
                self.violation(f"{client.name} waits for its welcome")
            elif client.live and not client.missed_events and client.known != self._expected(client):
                self.violation(f"{client.name} in {client.topic}: {self._difference(client)}")

    def _check_metadata(self) -> None:
        for client in self.live():
            fault = client.own.fault(client.metadata, client.connection)
            if fault is not None:
                self.violation(f"{client.name}: {fault}")

    def _name(self, peer: str) -> str:
        client = self.by_id.get(peer)
        return f"{client.name} ({peer})" if client is not None else peer

    def _difference(self, client: Client) -> str:
        known, expected = client.known or {}, self._expected(client)
        surplus = [self._name(peer) for peer in known if peer not in expected]
        missing = [self._name(peer) for peer in expected if peer not in known]
        wrong = [self._name(peer) for peer in expected if peer in known and known[peer] != expected[peer]]
        return f"knows {surplus}, who are not there; does not know {missing}; is wrong about {wrong}"

    def _check_relays(self) -> None:
        self.excuses.clear()
        for sent in self.sent:
            fault = self.verdict(sent)
            if fault is not None:
                self.violation(
                    f"relay {sent.number} of {sent.at:.4f}, {sent.sender.name} to {sent.target.name}: {fault}"
                )

    def verdict(self, sent: Sent) -> str | None:
        """Return what is wrong with the outcome of a relay, None if nothing is."""
        if sent.written and sent.errors:
            return self._excuse(sent)
        if sent.written or sent.errors:
            return None
        if sent.sender.live:
            return "no outcome"
        self.excuses["no outcome: its sender is gone"] += 1
        return None

    def _excuse(self, sent: Sent) -> str | None:  # noqa: PLR0911 - one for each excuse
        (written_at, node_id), (answered_at, code) = sent.written[0], sent.errors[0]
        if code != "dropped":
            return f"written, and answered {code}"
        died_at = self._died_at(sent.target.node, node_id)
        if sent.held_by:
            held_died_at = self._died_at(sent.target.node, sent.held_by)
            if held_died_at is not None and held_died_at < max(written_at, answered_at):
                self.excuses["both: had waited at a node that died"] += 1
                return None
        forgotten = died_at is not None and any(died_at <= at <= written_at for at in self.lost_data_at)
        if answered_at < written_at and forgotten:
            self.excuses["both: the store forgot that its target's node was evicted"] += 1
            return None
        if answered_at < written_at:
            return f"answered at {answered_at:.4f}, and written at {written_at:.4f}"
        if died_at is not None and died_at <= answered_at:
            self.excuses["both: its target's node died"] += 1
            return None
        if answered_at - sent.at >= GIVE_UP_SECONDS:
            self.excuses["both: its node gave up on the engine"] += 1
            return None
        return f"written at {written_at:.4f}, and answered at {answered_at:.4f}"

    def _died_at(self, node: SimulatedNode, node_id: str) -> float | None:
        times = [time for time in (node.crashed_at, self.evicted.get(node_id)) if time is not None]
        return min(times, default=None)

    def _check_store(self) -> None:
        dump = self.store.model.dump()
        live_nodes = {node.backplane.node for node in self.serving()}
        if set(dump.get(KEYS.nodes, ({}, 0))[0]) != {node.encode() for node in live_nodes}:
            self.violation(f"the store has the nodes {dump.get(KEYS.nodes)}, not {live_nodes}")
        unseen = set()
        for topic in self.topics:
            here = [client for client in self.live() if client.topic == topic]
            if here:
                self._check_topic(topic, here, dump)
            else:
                unseen.add(topic.encode())
        for key in dump:
            owner = key.removeprefix(KEYS.index(b"")).decode()
            if key.startswith(KEYS.index(b"")) and owner not in live_nodes and not dump[key][0] <= unseen:
                self.violation(f"the store lists topics of {owner}, which is dead: {dump[key]}")
        for topic in unseen:
            # Peers of dead nodes, which the store had forgotten when they could have been evicted: the next node that
            # serves the topic evicts them, and they expire.
            members = dump.get(KEYS.topic(topic)[0], ({}, 0))[0]
            self.counts["left in the store by dead nodes"] += len(members)
            if any(value[:16].decode() in live_nodes for value in members.values()):
                self.violation(f"the store has {members} in {topic!r}, which has no peers")

    def _check_topic(self, topic: str, here: list[Client], dump: dict[bytes, Any]) -> None:
        members_key, state_key = KEYS.topic(topic.encode())
        members = dump.get(members_key, ({}, 0))[0]
        expected = {
            client.id.encode(): client.node.backplane.node.encode() + (client.stored_metadata or b"") for client in here
        }
        if members != expected:
            self.violation(f"the store has {members} in {topic}, not {expected}")
        counted = Counter(b"@" + client.node.backplane.node.encode() for client in here)
        state = dump.get(state_key, ({}, 0))[0]
        stored = {field: int(count) for field, count in state.items() if field[:1] == b"@"}
        if stored != counted:
            self.violation(f"the store counts {stored} in {topic}, not {dict(counted)}")
        lengths = sum(listed_bytes(value) for value in expected.values())
        if int(state.get(b"bytes", 0)) != lengths:
            self.violation(f"the store counts {state.get(b'bytes')} bytes in {topic}, not {lengths}")

    def _mesh(self) -> None:
        """Check that after the faults every peer reaches every other one."""
        for sender in self.live():
            for target in self.live():
                if sender.topic == target.topic and not (sender.missed_events or target.missed_events):
                    self.send(sender, target)
        first = len(self.sent)
        for _ in range(3):
            self.run_for(1)
        for sent in self.sent[first:]:
            if not sent.written:
                self.violation(f"relay {sent.number} does not arrive though all is calm: {sent.errors}")
        self.check()

    def _crash_in_calm(self) -> None:
        """Crash a node after the faults, and check that it is evicted in time."""
        nodes = self.serving()
        if len(nodes) < 2:
            return
        self._crash(self.random.choice(nodes))
        self.run_for(EVICTION_SECONDS)
        self._check_clients()
        self.check()
        self.counts["crashes in calm"] += 1

    def _end(self) -> None:
        for node in self.serving():
            node.stop()
        self.run_for(30)
        for node in self.nodes:
            if node.process.alive:
                self.violation(f"{node.name} does not stop")
        self.presence.check()
        self.check()


FAULTS = (
    "crash_node",
    "stop_node",
    "pause_node",
    "break_connection",
    "swallow",
    "delay_replies",
    "crash_store",
    "flush_store",
    "pause_store",
)
