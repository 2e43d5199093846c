"""What servers are measured at. Each scenario is one short burst, and returns its figures by name."""

from __future__ import annotations

import gc
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, Protocol

from benchmarks.compare.dialects import Dialect, Joining, Member
from benchmarks.compare.generator import Expected, Link, LoadGenerator, Matches, Task, WrongAnswerError
from benchmarks.compare.meter import Meter
from benchmarks.compare.payloads import CANDIDATES_PER_SDP, Messages, candidate, candidates, descriptions, mix, sdp
from benchmarks.report import latency

Figures = dict[str, float]

_LAST_SECONDS = 20.0
_STEADY_RATE = 2_000
_WARM_UP = 40

_serial = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much of everything.

    Args:
        pairs: of peers that relay to each other.
        messages: relays of one burst.
        calls: of one burst.
        connects: of one burst.
        concurrent: calls, or connections, that are under way at once.
        room: peers of the topic that fills.
        idle: connections that do nothing.
        crowd: connections that do nothing while others relay.
        crowd_seconds: for which those others relay.
        exchanges: of a peer for another one.
        full: topics in which peers are exchanged.
        members: of each of these topics.
        rate: relays a second in the open loop.
        seconds: for which the open loop runs.
    """

    pairs: int = 50
    messages: int = 6_000
    calls: int = 200
    connects: int = 500
    concurrent: int = 10
    room: int = 500
    idle: int = 5_000
    crowd: int = 15_000
    crowd_seconds: float = 5.0
    exchanges: int = 200
    full: int = 10
    members: int = 50
    rate: int = 5_000
    seconds: float = 1.0

    def times(self, factor: int) -> Scale:
        """Return as many times as much to do at once, in as much time."""
        names = ("pairs", "messages", "calls", "connects", "concurrent", "exchanges", "full", "rate")
        return replace(self, **{name: factor * getattr(self, name) for name in names})


QUICK = Scale(
    pairs=10,
    messages=400,
    calls=10,
    connects=40,
    room=20,
    idle=100,
    crowd=100,
    crowd_seconds=0.3,
    exchanges=10,
    full=2,
    members=5,
    rate=500,
    seconds=0.3,
)


@dataclass
class Stage:
    """One server that is ready for a burst.

    Args:
        meter: None if its process is not known; then there are no figures about it.
        store: of what its nodes share; None if they share nothing.
    """

    dialect: Dialect
    generator: LoadGenerator
    meter: Meter | None
    scale: Scale
    store: Meter | None = None
    figures: Figures = field(default_factory=dict)

    def join(self, topic: str) -> Joining:
        """Connect and join."""
        return self.dialect.join(self.generator.connect(), topic, f"peer{next(_serial)}")

    def members(self, topic: str, count: int) -> list[Member]:
        """Let ``count`` peers join one after the other."""
        members: list[Member] = []

        def enter() -> Task:
            for _ in range(count):
                member = yield from self.join(topic)
                yield from _all_receive(members, self.dialect.joined(member.id))
                members.append(member)

        self.generator.run([enter()])
        return members

    @contextmanager
    def measured(self, operations: int) -> Iterator[None]:
        """Measure what happens inside, for each of so many operations."""
        self.wait_until_idle()
        gc.collect()
        gc.disable()
        cpu, starved = self._used()
        store = self.store.cpu_seconds() if self.store else 0.0
        start = time.perf_counter()
        try:
            yield
        finally:
            gc.enable()
        elapsed = time.perf_counter() - start
        self.figures["per_second"] = operations / elapsed
        self.wait_until_idle()
        if self.meter:
            cpu_after, starved_after = self._used()
            self.figures["cpu_us"] = 1e6 * (cpu_after - cpu) / operations
            self.figures["starved"] = (starved_after - starved) / elapsed
        if self.store:
            self.figures["store_us"] = 1e6 * (self.store.cpu_seconds() - store) / operations

    def _used(self) -> tuple[float, float]:
        return (self.meter.cpu_seconds(), self.meter.starved_seconds()) if self.meter else (0.0, 0.0)

    def wait_until_idle(self) -> None:
        """Wait until the server has nothing to do."""
        if self.meter:
            self.meter.wait_until_idle()

    def tell_latency(self, seconds: list[float]) -> None:
        """Add latencies to the figures."""
        summary = latency(1000 * value for value in seconds)
        self.figures.update(p50_ms=summary.p50, p99_ms=summary.p99, p999_ms=summary.p999, max_ms=summary.max)


def _all_receive(members: Iterable[Member], matches: Matches | None) -> Task:
    """Wait until each of them received the same; None if a server sends no such thing."""
    if matches is None:
        return
    expected = Expected(matches)
    for member in members:
        yield from member.link.expect(expected)


class Saying(NamedTuple):
    """One message from one peer to another: the frame that is sent, and what is expected."""

    frame: bytes
    expected: Expected


def say(dialect: Dialect, sender: Member, target: Member, kind: str, payload: bytes) -> Saying:
    """Build one message."""
    judge = dialect.relayed(sender, target, kind, payload)
    return Saying(dialect.relay(sender, target, kind, payload), Expected(judge))


class Lane:
    """One direction of a pair, and what is said there over and over."""

    __slots__ = ("sayings", "send", "target")

    def __init__(self, dialect: Dialect, sender: Member, target: Member, messages: Messages) -> None:
        self.send = sender.link.send
        self.target = target.link
        self.sayings = [say(dialect, sender, target, kind, payload) for kind, payload in messages]

    def pump(self, count: int, depth: int, latencies: list[float]) -> Task:
        """Say ``count`` messages with ``depth`` of them on their way, and time each."""
        send, target, clock = self.send, self.target, time.perf_counter
        sent_at: deque[float] = deque()
        ahead = itertools.islice(itertools.cycle(self.sayings), count)

        def advance(saying: Saying) -> None:
            sent_at.append(clock())
            send(saying.frame)

        for saying in itertools.islice(ahead, depth):
            advance(saying)
        for _, expected in itertools.islice(itertools.cycle(self.sayings), count):
            while not target.takes(expected):
                yield target
            latencies.append(clock() - sent_at.popleft())
            if (following := next(ahead, None)) is not None:
                advance(following)


def _lanes(stage: Stage, messages: Callable[[int], Messages] = mix) -> list[Lane]:
    """Let pairs join, each in a topic of its own."""
    lanes = []
    for number in range(stage.scale.pairs):
        one, other = stage.members(f"pair{number}", 2)
        lanes += [
            Lane(stage.dialect, one, other, messages(2 * number)),
            Lane(stage.dialect, other, one, messages(2 * number + 1)),
        ]
    return lanes


def _relay(stage: Stage, depth: int = 1, messages: Callable[[int], Messages] = mix) -> None:
    lanes = _lanes(stage, messages)
    each = max(1, stage.scale.messages // len(lanes))
    latencies: list[float] = []
    with stage.measured(each * len(lanes)):
        stage.generator.run([lane.pump(each, depth, latencies) for lane in lanes])
    stage.tell_latency(latencies)


def relay(stage: Stage) -> None:
    """Pairs relay to each other, one message on its way in each direction."""
    _relay(stage)


def relay_small(stage: Stage) -> None:
    """The same with candidates alone."""
    _relay(stage, messages=candidates)


def relay_large(stage: Stage) -> None:
    """The same with session descriptions alone."""
    _relay(stage, messages=descriptions)


def burst(stage: Stage) -> None:
    """Pairs relay to each other, four messages on their way in each direction."""
    _relay(stage, 4)


def _concurrently(stage: Stage, count: int, work: Callable[[int], Task]) -> None:
    """Do something ``count`` times, several at once."""
    numbers = iter(range(count))

    def worker() -> Task:
        for number in numbers:
            yield from work(number)

    stage.generator.run([worker() for _ in range(stage.scale.concurrent)])


_CALL = [
    ("offer", sdp("offer", 0)),
    ("answer", sdp("answer", 1)),
    *(("ice-candidate", candidate(number)) for number in range(2 * CANDIDATES_PER_SDP)),
]


def _call(stage: Stage, number: int) -> Task:
    dialect = stage.dialect
    caller = yield from stage.join(f"call{number}")
    callee = yield from stage.join(f"call{number}")
    if joined := dialect.joined(callee.id):
        yield from caller.link.expect(Expected(joined))
    sender, target = caller, callee
    for kind, payload in _CALL:
        saying = say(dialect, sender, target, kind, payload)
        sender.link.send(saying.frame)
        yield from target.link.expect(saying.expected)
        sender, target = target, sender
    yield from caller.link.close()
    if left := dialect.left(caller.id):
        yield from callee.link.expect(Expected(left))
    yield from callee.link.close()


def call(stage: Stage) -> None:
    """Two peers connect, exchange an offer, an answer and 20 candidates, and leave."""
    with stage.measured(stage.scale.calls):
        _concurrently(stage, stage.scale.calls, partial(_call, stage))


def _visit(stage: Stage, number: int) -> Task:
    member = yield from stage.join(f"visit{number}")
    yield from member.link.close()


def connect(stage: Stage) -> None:
    """A peer connects, is welcomed, and closes."""
    with stage.measured(stage.scale.connects):
        _concurrently(stage, stage.scale.connects, partial(_visit, stage))


def room(stage: Stage) -> None:
    """One topic fills, and every peer is informed of each later one."""
    size = stage.scale.room
    with stage.measured(size * (size - 1) // 2):
        stage.members("room", size)


def idle(stage: Stage) -> None:
    """Pairs join and do nothing."""
    if stage.meter is None:
        raise WrongAnswerError("idle measures a process: say which by --pid")
    # What a server loads or builds with its first connections is no part of the others.
    _concurrently(stage, 2 * stage.scale.concurrent, partial(_visit, stage))
    stage.wait_until_idle()
    before = stage.meter.resident_bytes()
    stored = stage.store.resident_bytes() if stage.store else 0

    def stay(number: int) -> Task:
        yield from stage.join(f"idle{number // 2}")

    _concurrently(stage, stage.scale.idle, stay)
    stage.wait_until_idle()
    stage.figures["bytes"] = (stage.meter.resident_bytes() - before) / stage.scale.idle
    if stage.store:
        stage.figures["store_bytes"] = (stage.store.resident_bytes() - stored) / stage.scale.idle


def churn(stage: Stage) -> None:
    """In full topics a peer leaves and another joins, one after the other; all others are informed of both."""
    scale, dialect = stage.scale, stage.dialect
    each = max(1, scale.exchanges // scale.full)

    def exchange(topic: str, members: deque[Member]) -> Task:
        for _ in range(each):
            leaver = members.popleft()
            yield from leaver.link.close()
            yield from _all_receive(members, dialect.left(leaver.id))
            member = yield from stage.join(topic)
            yield from _all_receive(members, dialect.joined(member.id))
            members.append(member)

    topics = [f"churn{number}" for number in range(scale.full)]
    tasks = [exchange(topic, deque(stage.members(topic, scale.members))) for topic in topics]
    with stage.measured(each * scale.full):
        stage.generator.run(tasks)


class OpenLoop:
    """Messages that leave when they are due, whatever became of those before.

    Each is timed from when it was due, so a server that stalls is charged for all that should have been sent meanwhile.
    """

    def __init__(self, lanes: list[Lane], rate: int, seconds: float) -> None:
        self._count = int(rate * seconds)
        self._rate = rate
        self._queues: dict[Link, deque[tuple[float, Expected]]] = {lane.target: deque() for lane in lanes}
        rounds = zip(*(itertools.cycle(itertools.product([lane], lane.sayings)) for lane in lanes), strict=True)
        self._schedule = itertools.chain.from_iterable(rounds)
        self.latencies: list[float] = []
        self.late: list[float] = []

    def run(self, generator: LoadGenerator) -> None:
        """Send and receive all; this spins, because a sleep would be longer than what is measured."""
        start, clock, sent = time.perf_counter(), time.perf_counter, 0
        while len(self.latencies) < self._count:
            now = clock()
            while sent < self._count and (due := start + sent / self._rate) <= now:
                self._send(due, clock())
                sent += 1
            self._receive(generator, clock)
            if now - start > _LAST_SECONDS + self._count / self._rate:
                raise WrongAnswerError(f"{sent - len(self.latencies)} messages did not come")

    def _send(self, due: float, now: float) -> None:
        lane, (frame, expected) = next(self._schedule)
        self._queues[lane.target].append((due, expected))
        self.late.append(now - due)
        lane.send(frame)

    def _receive(self, generator: LoadGenerator, clock: Callable[[], float]) -> None:
        readable = generator.poll()
        now = clock()
        for link in readable:
            if link.task is not None:
                generator.start(link.task)
                continue
            queue = self._queues[link]
            while queue and link.takes(queue[0][1]):
                self.latencies.append(now - queue.popleft()[0])


def _open_loop(stage: Stage, lanes: list[Lane], rate: int, seconds: float) -> None:
    loop = OpenLoop(lanes, rate, seconds)
    with stage.measured(int(rate * seconds)):
        loop.run(stage.generator)
    stage.tell_latency(loop.latencies)
    late = latency(1000 * late for late in loop.late)
    stage.figures.update(late_p99_ms=late.p99, late_p999_ms=late.p999)


def open_loop(stage: Stage) -> None:
    """Pairs relay at a fixed rate, and each message is timed."""
    _open_loop(stage, _lanes(stage), stage.scale.rate, stage.scale.seconds)


def steady(stage: Stage) -> None:
    """The same at a rate at which a server has time to handle each message by itself, which costs it most."""
    _open_loop(stage, _lanes(stage), min(_STEADY_RATE, stage.scale.rate), stage.scale.seconds)


def crowd(stage: Stage) -> None:
    """The same for longer, while a crowd of other pairs does nothing."""

    def stay(number: int) -> Task:
        first = yield from stage.join(f"crowd{number}")
        second = yield from stage.join(f"crowd{number}")
        yield from _all_receive([first], stage.dialect.joined(second.id))
        for member in (first, second):
            stage.generator.start(member.link.stay())

    _concurrently(stage, stage.scale.crowd // 2, stay)
    lanes = _lanes(stage)
    # What a server loads or compiles with its first relays is no part of it.
    stage.generator.run([lane.pump(_WARM_UP, 1, []) for lane in lanes])
    _open_loop(stage, lanes, min(_STEADY_RATE, stage.scale.rate), stage.scale.crowd_seconds)


class MeasuredServer(Protocol):
    """A server that a scenario may suit."""

    @property
    def dialect(self) -> Dialect:
        """How it is spoken to."""

    @property
    def is_ours(self) -> bool:
        """Whether it is our server, in whatever way it is run."""

    @property
    def processes(self) -> int:
        """How many processes share the work."""

    @property
    def nodes(self) -> int:
        """How many servers serve together."""


@dataclass(frozen=True)
class Scenario:
    """One thing to measure.

    Args:
        fresh: whether it wants a server that did nothing before.
        announced: whether it is about what the others of a topic receive about a new peer.
        departures: whether it is about what they receive about a peer that left.
        own: whether it compares ways to run our server.
        single: whether it is about one process that serves alone.
    """

    run: Callable[[Stage], None]
    fresh: bool = False
    announced: bool = False
    departures: bool = False
    own: bool = False
    single: bool = False

    def suits(self, server: MeasuredServer) -> bool:
        """Return whether there is such a thing with a server."""
        dialect = server.dialect
        return (
            (not self.announced or dialect.joined("") is not None)
            and (not self.departures or dialect.left("") is not None)
            and (server.is_ours or not self.own)
            and (server.processes == server.nodes == 1 or not self.single)
        )


SCENARIOS = {
    "relay": Scenario(relay),
    "relay-small": Scenario(relay_small),
    "relay-large": Scenario(relay_large),
    "burst": Scenario(burst),
    "call": Scenario(call),
    "connect": Scenario(connect),
    "room": Scenario(room, announced=True),
    "churn": Scenario(churn, announced=True, departures=True),
    "idle": Scenario(idle, fresh=True),
    "latency": Scenario(open_loop),
    "crowd": Scenario(crowd, fresh=True, single=True),
    "steady": Scenario(steady, own=True),
}
