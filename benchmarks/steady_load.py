"""Steady calls between the peers of several nodes: who relays to whom, who knows of whom, and how long it takes."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from benchmarks.client import End, LoggedClient, Message, NotJoinedError
from benchmarks.processes import wait_until
from tests.harness.delivery_log import DeliveryLog, Relay
from tests.harness.server import Node

OBSERVED = "observed-by-"
"""The topics in which two peers of one node relay to each other, and stay there."""

_PAYLOAD = b'"candidate:842163049 1 udp 1677729535 203.0.113.9 46154 typ srflx raddr 10.0.0.7 rport 46154 generation 0"'
_JOIN_SECONDS = 10.0
_BACKOFF_SECONDS = 0.25
_VISIT_SECONDS = 2.0
_QUIET_SECONDS = 5.0
_CHECK_SECONDS = 0.05
# For so long after the end of a connection its node may still write to it.
_NOTICE_SECONDS = 0.5
# What an event may take between two healthy nodes, also while others join and leave.
_FRESH_SECONDS = 1.0
_LOST = (NotJoinedError, ConnectionError, TimeoutError)


class Left(NamedTuple):
    """A ``peer-left`` that was received."""

    at: float
    viewer: str
    peer: str


class Joined(NamedTuple):
    """How long a join took."""

    at: float
    node: str
    seconds: float


class LoadRecord:
    """What all peers of one load share.

    Attributes:
        log: of all relays.
        peers: all that ever were, by id.
        present: the peers that are joined now, by topic; the truth that views are compared with.
        left: every ``peer-left`` that was received.
        joins: every join.
        moves: how often a peer resumed at another node.
        late_seconds: by how much a relay left after its time: the load's own delay.
        failing: the name of the node that fails, or is about to.
        disagreed_at: the last moment at which views that should agree did not.
    """

    def __init__(self) -> None:
        self.log = DeliveryLog(notice_seconds=_NOTICE_SECONDS)
        self.peers: dict[str, LoadPeer] = {}
        self.present: dict[str, dict[str, LoadPeer]] = defaultdict(dict)
        self.left: list[Left] = []
        self.joins: list[Joined] = []
        self.late_seconds = 0.0
        self.sending = True
        self.moves = 0
        self.failing = ""
        self.disagreed_at = 0.0
        self._disagreeing: dict[tuple[str, str], float] = {}

    def crosses(self, relay: Relay) -> bool:
        """Return whether a relay went from one node to another."""
        return self.peers[relay.sender].node != self.peers[relay.target].node

    def compare_views(self) -> int:
        """Compare all views with the truth; returns how many entries have been wrong for too long."""
        now, wrong = time.monotonic(), {}
        for present in self.present.values():
            for viewer in present.values():
                for peer in (viewer.view | {viewer.id}) ^ present.keys():
                    wrong[viewer.id, peer] = self._disagreeing.get((viewer.id, peer), now)
        self._disagreeing = wrong
        stale = sum(now - since > _FRESH_SECONDS for since in wrong.values())
        if stale:
            self.disagreed_at = now
        return stale

    def disagreements(self) -> list[str]:
        """Say which views are wrong."""
        return [f"{viewer} at {self.peers[viewer].node} and {peer}" for viewer, peer in self._disagreeing]

    async def watch(self) -> None:
        """Compare again and again."""
        while True:
            self.compare_views()
            await asyncio.sleep(_CHECK_SECONDS)


class LoadPeer(LoggedClient):
    """A peer that relays, and knows who else is in its topic.

    Attributes:
        view: the others, as it was informed of them.
        ended_at: when its connection ended, or it began to leave; None while it is there.
    """

    def __init__(self, record: LoadRecord, topic: str, node: str, created: list[LoadPeer]) -> None:
        super().__init__(record.log)
        self.record = record
        self.topic = topic
        self.node = node
        self.view: set[str] = set()
        self.ended_at: float | None = None
        self._next = 0
        created.append(self)

    def relay_to(self, peer: str) -> None:
        """Send one relay, unless the target has not read its own welcome yet."""
        if peer in self.record.peers:
            self.relay("ice-candidate", peer, _PAYLOAD)

    async def send_steadily(self, rate: float) -> None:
        """Send so many relays a second to the others in turn, whatever becomes of those before."""
        due = time.monotonic() + random.uniform(0, 1 / rate)
        while self.ended_at is None:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.record.late_seconds = max(self.record.late_seconds, time.monotonic() - due)
            due = max(due + 1 / rate, time.monotonic() - 1)
            if self.record.sending and self.ended_at is None and self.view:
                others = sorted(self.view)
                self._next += 1
                self.relay_to(others[self._next % len(others)])

    async def leave(self, *, reset: bool = False) -> None:
        """Wait for the ends of what it has sent, and close; or reset the connection at once."""
        if not reset:
            with suppress(TimeoutError):
                await self.all_ended(_QUIET_SECONDS)
        self._gone()
        if reset:
            self.reset()
        else:
            await self.close()

    def _gone(self) -> None:
        self.ended_at = self.ended_at or time.monotonic()
        self.log.leaves(self.id)
        self.record.present[self.topic].pop(self.id, None)

    def received(self, message: Message) -> None:
        """Keep the view."""
        super().received(message)
        if message.type == "peer-joined":
            if message.peer_id in self.view:
                self.log.breach("peer-joined twice", f"{self.id} of {message.peer_id}")
            self.view.add(message.peer_id)
        elif message.type == "peer-left":
            if message.peer_id not in self.view:
                self.log.breach("peer-left twice", f"{self.id} of {message.peer_id}")
            self.view.discard(message.peer_id)
            self.record.left.append(Left(time.monotonic(), self.id, message.peer_id))
        elif message.type == "welcome":
            self.record.peers[self.id] = self
        elif message.type == "peer-list":
            self.view = {entry.id for entry in message.peers}
            self.record.present[self.topic][self.id] = self

    def connection_ended(self, end: End) -> None:
        """Enter the end of the connection."""
        super().connection_ended(end)
        self._gone()


class ResumingPeer(LoadPeer):
    """A peer that resumes its session at other nodes, which have to run with ``--resume-window``."""

    def __init__(self, record: LoadRecord, topic: str, node: str, created: list[LoadPeer]) -> None:
        super().__init__(record, topic, node, created)
        self.moving = False
        self._may_write = True
        self._token = ""
        self._seen = 0

    async def move(self, node: Node) -> None:
        """End the connection without a close frame, and resume at another node."""
        self.moving = True
        try:
            # All that was sent is read to its end on both sides, as with a phone that changes its network.
            self.half_close()
            self._may_write = False
            await self.ended
            self._may_write = True
            self.node = node.name
            before = self.id
            await self.rejoin(node.port, f"{self.topic}?resume={self._token}&seen={self._seen}")
        except _LOST as error:
            self.log.breach("did not resume", f"{self.id}: {error}")
            self.moving = False
            self._gone()
            return
        self.moving = False
        self.record.moves += 1
        if self.id != before:
            self.log.breach("lost its session", before)

    def send(self, data: bytes) -> None:
        """Send frames, unless this half of the connection has ended: a ping may still arrive on the other."""
        if self._may_write:
            super().send(data)

    def relay_to(self, peer: str) -> None:
        """Send one relay, unless there is no connection now."""
        if not self.moving:
            super().relay_to(peer)

    def received(self, message: Message) -> None:
        """Keep what resumes the session, and count what came so far."""
        if message.resume is not None:
            self._token = message.resume.token
            if not message.resumed:
                self._seen = 0
        self._seen += 1
        super().received(message)

    def connection_ended(self, end: End) -> None:
        """Enter the end of the connection, unless another one follows."""
        if not self.moving:
            super().connection_ended(end)


async def join(record: LoadRecord, topic: str, node: Node, kind: type[LoadPeer] = LoadPeer) -> LoadPeer:
    """Let a peer join a topic at a node.

    Raises:
        NotJoinedError: if the node refuses it, or ends the connection.
        TimeoutError: if it does not answer; the connection is reset.
    """
    created: list[LoadPeer] = []
    began = time.monotonic()
    try:
        async with asyncio.timeout(_JOIN_SECONDS):
            peer = await kind.join(node.port, topic, record, topic, node.name, created)
    except TimeoutError:
        for unjoined in created:
            unjoined.reset()
        raise
    record.joins.append(Joined(began, node.name, time.monotonic() - began))
    return peer


class SteadyLoad:
    """Peers that stay, reconnect if their connection is lost, and relay; and visitors.

    Args:
        nodes: that it is spread over.
        kind: of the peers that stay.

    Attributes:
        failures: of the load itself, and how often.
    """

    def __init__(self, record: LoadRecord, nodes: Sequence[Node], kind: type[LoadPeer] = LoadPeer) -> None:
        self.record = record
        self._kind = kind
        self._nodes = nodes
        self._tasks: set[asyncio.Task[None]] = set()
        self._staying: list[LoadPeer | None] = []
        self._random = random.Random(1)
        self.failures: Counter[str] = Counter()

    def stay(self, topic: str, first: int, count: int, rate: float, step: int = 1) -> None:
        """Let peers stay in a topic.

        Args:
            first: the number of the first one's node.
            count: how many peers.
            rate: relays of each a second.
            step: from the number of one peer's node to the next one's.
        """
        for n in range(count):
            self._staying.append(None)
            self._run(self._stay(len(self._staying) - 1, topic, first + n * step, rate))

    def visit(self, topics: Sequence[str], rate: float) -> None:
        """Let so many visitors a second join, and leave after a while."""
        self._run(self._visit(topics, rate))

    async def move_steadily(self, rate: float) -> None:
        """Let so many peers a second resume at other nodes, until cancelled."""
        while True:
            await asyncio.sleep(self._random.expovariate(rate))
            peer = self._random.choice(self._staying)
            # The observers of a node stay there.
            if isinstance(peer, ResumingPeer) and not peer.moving and not peer.topic.startswith(OBSERVED):
                self._run(peer.move(self._random.choice([node for node in self._nodes if node.name != peer.node])))

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.failures[repr(task.exception())] += 1

    def _node(self, number: int) -> Node:
        """Return that node, or the next one that is up."""
        order = [self._nodes[(number + n) % len(self._nodes)] for n in range(len(self._nodes))]
        return next(node for node in order if node.up)

    async def _stay(self, place: int, topic: str, number: int, rate: float) -> None:
        while True:
            with suppress(*_LOST):
                peer = self._staying[place] = await join(self.record, topic, self._node(number), self._kind)
                await peer.send_steadily(rate)
            self._staying[place] = None
            await asyncio.sleep(self._random.uniform(0.5, 1) * _BACKOFF_SECONDS)

    async def _visit(self, topics: Sequence[str], rate: float) -> None:
        while True:
            await asyncio.sleep(self._random.expovariate(rate))
            if self.record.sending:
                self._run(self._visit_once(self._random.choice(topics), self._random.randrange(len(self._nodes))))

    async def _visit_once(self, topic: str, number: int) -> None:
        with suppress(*_LOST):
            peer = await join(self.record, topic, self._node(number))
            sending = asyncio.create_task(peer.send_steadily(2.0))
            await asyncio.sleep(_VISIT_SECONDS)
            sending.cancel()
            # A paused node notices no reset, and may write to a connection that was reset long ago; a node that keeps
            # sessions waits for the peer to resume.
            may_reset = peer.node != self.record.failing and self._kind is LoadPeer
            await peer.leave(reset=may_reset and self._random.random() < 0.2)

    async def all_joined(self) -> None:
        """Wait until every peer that stays is there."""
        await wait_until(lambda: all(self._staying), float("inf"))

    async def finish(self, seconds: float) -> None:
        """Send nothing more, and wait for the ends of what was sent, for at most so many seconds."""
        self.record.sending = False
        await wait_until(lambda: not self.record.log.open(), seconds)

    async def end(self) -> None:
        """End all connections."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for peer in tuple(self.record.peers.values()):
            if not peer.ended.done():
                peer.reset()
