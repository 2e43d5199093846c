"""Steady calls between the peers of several nodes: who relays to whom, who knows of whom, and how long it takes."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from benchmarks.books import Books
from benchmarks.client import Client, End, Message, NotJoinedError, text_frame
from benchmarks.nodes import Node

_PAYLOAD = b"candidate:842163049 1 udp 1677729535 203.0.113.9 46154 typ srflx raddr 10.0.0.7 rport 46154 generation 0"
_JOIN_SECONDS = 10.0
_BACKOFF_SECONDS = 0.25
_VISIT_SECONDS = 2.0
_QUIET_SECONDS = 5.0
_LOOK_SECONDS = 0.05
# What an event may take between two nodes that are well; also when others join and leave meanwhile.
_FRESH_SECONDS = 1.0
_LOST = (NotJoinedError, ConnectionError, TimeoutError)


class Left(NamedTuple):
    """A peer that was told to have left."""

    at: float
    viewer: str
    peer: str


class Joining(NamedTuple):
    """How long it took to join, where that was possible at all."""

    at: float
    node: str
    seconds: float


class World:
    """What all peers of one load share.

    Attributes:
        books: of all relays.
        members: all peers that ever were, by id.
        present: the peers that are connected and joined, by topic; the truth that views are compared with.
        left: every ``peer-left`` that was heard.
        joining: every join.
        moves: how often a peer went on at another node.
        late_seconds: by how much a relay left after its time: the load's own delay.
        suffering: the name of the node that fails, or is about to.
    """

    def __init__(self) -> None:
        self.books = Books()
        self.members: dict[str, Member] = {}
        self.present: dict[str, dict[str, Member]] = defaultdict(dict)
        self.left: list[Left] = []
        self.joining: list[Joining] = []
        self.late_seconds = 0.0
        self.talking = True
        self.moves = 0
        self.suffering = ""
        self._disagreeing: dict[tuple[str, str], float] = {}
        # The last moment at which views that should agree did not.
        self.disagreed_at = 0.0

    def look(self) -> int:
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
        return [f"{viewer} at {self.members[viewer].node} and {peer}" for viewer, peer in self._disagreeing]

    async def watch(self) -> None:
        """Look again and again."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK_SECONDS)


class Member(Client):
    """A peer that keeps books, and knows who else is in its topic.

    Attributes:
        view: the others, as it was told of them.
    """

    def __init__(self, world: World, topic: str, node: str, born: list[Member]) -> None:
        super().__init__()
        self.world = world
        self.topic = topic
        self.node = node
        self.view: set[str] = set()
        self.ended_at: float | None = None
        self.read_all = False
        self._next = 0
        self._first = len(world.books.relays)
        born.append(self)

    def talk_to(self, peer: str) -> None:
        """Send one relay."""
        target = self.world.members.get(peer)
        if target is None:
            # Its own welcome is not read yet.
            return
        number = self.world.books.enter(self, target)
        text = b'{"type":"ice-candidate","to":"%b","payload":"%b","msgId":"%d"}'
        self.send(text_frame(text % (peer.encode(), _PAYLOAD, number)))

    def talk_to_next(self) -> None:
        """Send one relay to each of the others in turn."""
        if self.view:
            others = sorted(self.view)
            self._next += 1
            self.talk_to(others[self._next % len(others)])

    async def talk(self, rate: float) -> None:
        """Send so many relays a second, whatever becomes of those before."""
        due = time.monotonic() + random.uniform(0, 1 / rate)
        while self.ended_at is None:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.world.late_seconds = max(self.world.late_seconds, time.monotonic() - due)
            due = max(due + 1 / rate, time.monotonic() - 1)
            if self.world.talking and self.ended_at is None:
                self.talk_to_next()

    async def leave(self, *, rudely: bool = False) -> None:
        """Wait for the end of what was sent, and leave; or reset the connection at once."""
        if not rudely:
            with suppress(TimeoutError):
                async with asyncio.timeout(_QUIET_SECONDS):
                    while any(relay.sender is self for relay in self.world.books.open(self._first)):
                        await asyncio.sleep(_LOOK_SECONDS)
        self._gone()
        if rudely:
            self.reset()
        else:
            await self.close()

    def _gone(self) -> None:
        self.ended_at = self.ended_at or time.monotonic()
        self.world.present[self.topic].pop(self.id, None)

    def heard(self, message: Message) -> None:
        """Keep the view and the books."""
        if message.sender:
            self.world.books.arrived(message.msg_id, self)
        elif message.type == "error":
            self.world.books.answered(message.msg_id, self, message.code)
        elif message.type == "peer-joined":
            if message.peer_id in self.view:
                self.world.books.breach("told twice of a newcomer", f"{self.id} of {message.peer_id}")
            self.view.add(message.peer_id)
        elif message.type == "peer-left":
            if message.peer_id not in self.view:
                self.world.books.breach("told twice of one that left", f"{self.id} of {message.peer_id}")
            self.view.discard(message.peer_id)
            self.world.left.append(Left(time.monotonic(), self.id, message.peer_id))
        elif message.type == "welcome":
            self.world.members[self.id] = self
        elif message.type == "peer-list":
            self.view = {entry.id for entry in message.peers}
            self.world.present[self.topic][self.id] = self

    def over(self, end: End) -> None:
        """Notice the end of the connection."""
        self.read_all = end.complete
        self._gone()


class Traveller(Member):
    """A member whose session goes on at other nodes; they have to run with ``--resume-window``."""

    def __init__(self, world: World, topic: str, node: str, born: list[Member]) -> None:
        super().__init__(world, topic, node, born)
        self.moving = False
        self._may_write = True
        self._token = ""
        self._seen = 0

    async def move(self, node: Node) -> None:
        """End the connection without a close frame, and go on at another node."""
        self.moving = True
        try:
            # What was sent is read to its end, and so is what the node wrote: as with a phone that changes its network.
            self.half_close()
            self._may_write = False
            await self.ended
            self._may_write = True
            self.node = node.name
            before = self.id
            await self.come_back(node.port, f"{self.topic}?resume={self._token}&seen={self._seen}")
        except _LOST as error:
            self.world.books.breach("did not come back", f"{self.id}: {error}")
            self.moving = False
            self._gone()
            return
        self.moving = False
        self.world.moves += 1
        if self.id != before:
            self.world.books.breach("lost its session", before)

    def send(self, data: bytes) -> None:
        """Send frames, unless this half of the connection has ended: a ping may still come on the other."""
        if self._may_write:
            super().send(data)

    def talk_to(self, peer: str) -> None:
        """Send one relay, unless there is no connection now."""
        if not self.moving:
            super().talk_to(peer)

    def heard(self, message: Message) -> None:
        """Keep in mind how to go on, and what came so far."""
        if message.resume is not None:
            self._token = message.resume.token
            if not message.resumed:
                self._seen = 0
        self._seen += 1
        super().heard(message)

    def over(self, end: End) -> None:
        """Notice the end of the connection, unless another one follows."""
        if not self.moving:
            super().over(end)


async def enter(world: World, topic: str, node: Node, kind: type[Member] = Member) -> Member:
    """Let a peer join a topic at a node.

    Raises:
        NotJoinedError: where the node refuses it, or ends the connection.
        TimeoutError: where it does not answer; the connection is reset.
    """
    born: list[Member] = []
    began = time.monotonic()
    try:
        async with asyncio.timeout(_JOIN_SECONDS):
            member = await kind.join(node.port, topic, world, topic, node.name, born)
    except TimeoutError:
        for unborn in born:
            unborn.reset()
        raise
    world.joining.append(Joining(began, node.name, time.monotonic() - began))
    return member


class Load:
    """Peers that stay, come back where their connection is lost, and relay; and visitors.

    Args:
        nodes: that it is spread over.
        kind: of the peers that stay.

    Attributes:
        failures: of the load itself, and how often.
    """

    def __init__(self, world: World, nodes: Sequence[Node], kind: type[Member] = Member) -> None:
        self.world = world
        self._kind = kind
        self._nodes = nodes
        self._tasks: set[asyncio.Task[None]] = set()
        self._seats: list[Member | None] = []
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
            self._seats.append(None)
            self._run(self._stay(len(self._seats) - 1, topic, first + n * step, rate))

    def visit(self, topics: Sequence[str], rate: float) -> None:
        """Let so many visitors a second come, and leave after a while."""
        self._run(self._visit(topics, rate))

    async def travel(self, rate: float) -> None:
        """Let so many peers a second go on at other nodes, until cancelled."""
        while True:
            await asyncio.sleep(self._random.expovariate(rate))
            member = self._random.choice(self._seats)
            # Those who watch one node stay there.
            if isinstance(member, Traveller) and not member.moving and not member.topic.startswith("witness-"):
                self._run(member.move(self._random.choice([node for node in self._nodes if node.name != member.node])))

    def _run(self, coroutine: Any) -> None:
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

    async def _stay(self, seat: int, topic: str, number: int, rate: float) -> None:
        while True:
            with suppress(*_LOST):
                member = self._seats[seat] = await enter(self.world, topic, self._node(number), self._kind)
                await member.talk(rate)
            self._seats[seat] = None
            await asyncio.sleep(self._random.uniform(0.5, 1) * _BACKOFF_SECONDS)

    async def _visit(self, topics: Sequence[str], rate: float) -> None:
        while True:
            await asyncio.sleep(self._random.expovariate(rate))
            if self.world.talking:
                self._run(self._call_in(self._random.choice(topics), self._random.randrange(len(self._nodes))))

    async def _call_in(self, topic: str, number: int) -> None:
        with suppress(*_LOST):
            member = await enter(self.world, topic, self._node(number))
            talking = asyncio.create_task(member.talk(2.0))
            await asyncio.sleep(_VISIT_SECONDS)
            talking.cancel()
            # A node that stands still notices no reset, and may write to a connection that was reset long ago; one that
            # keeps sessions waits for the peer to come back.
            may_be_rude = member.node != self.world.suffering and self._kind is Member
            await member.leave(rudely=may_be_rude and self._random.random() < 0.2)

    async def settled(self) -> None:
        """Wait until everybody who stays is there."""
        while not all(self._seats):
            await asyncio.sleep(_LOOK_SECONDS)

    async def rest(self, seconds: float) -> None:
        """Send nothing more, and wait for the ends of what was sent; no longer than so many seconds."""
        self.world.talking = False
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(self.world.books.open()):
                    await asyncio.sleep(_LOOK_SECONDS)

    async def end(self) -> None:
        """Let everybody go."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for member in tuple(self.world.members.values()):
            if not member.ended.done():
                member.reset()


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for something that nobody tells of; returns whether it came within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_LOOK_SECONDS)
    return True
