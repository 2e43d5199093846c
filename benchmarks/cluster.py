"""A cluster on the loopback, what may befall it, and what its nodes say of themselves meanwhile."""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.client import HOST
from benchmarks.nodes import Link, Node, Store
from tests.harness.wall_clock import WallClock

_READY_LOOK_SECONDS = 0.2
# Less than the 3 s after which a silent store counts as away.
_LATE_SECONDS = 2.4
_HOUR = 3600.0
_SAMPLE = re.compile(rb"^signaling_(\w+?)(?:_total)?(?:{(.*)})? (\S+)$", re.MULTILINE)


class Cluster:
    """A store and three nodes; the last one is the one that suffers.

    Args:
        linked: the names of the nodes that reach the store over a link.
        options: of all nodes.
    """

    def __init__(self, linked: str = "", options: Sequence[str] = ()) -> None:
        self.store = Store()
        self.link = Link(self.store.port)
        self.nodes: list[Node] = []
        self._linked = linked
        self._options = options
        self._folder = tempfile.TemporaryDirectory()
        # The victim's.
        self.wall_clock = WallClock(Path(self._folder.name))

    @property
    def victim(self) -> Node:
        """The node that suffers."""
        return self.nodes[-1]

    async def start(self) -> None:
        """Start everything."""
        await self.store.start()
        await self.link.open()
        for name in "abc":
            port = self.link.port if name in self._linked else self.store.port
            options = ["--metrics", f"--backplane=redis://{HOST}:{port}", *self._options]
            self.nodes.append(Node(name, options, self.wall_clock.environment if name == "c" else None))
        await asyncio.gather(*(node.start() for node in self.nodes))

    async def kill_node(self) -> None:
        """Kill the victim; its load goes elsewhere."""
        await self.victim.kill()

    async def restart_node(self) -> None:
        """Start the victim again."""
        await self.victim.start()

    async def end(self) -> None:
        """End what runs, whatever it does."""
        await self.link.close()
        for node in self.nodes:
            await node.kill()
        await self.store.kill()
        self._folder.cleanup()


Doing = Callable[[Cluster], Awaitable[None] | None]


class Fault(NamedTuple):
    """Something that can befall a cluster, and its end.

    Args:
        what: for people.
        hits: ``node``, ``store``, ``link``, or ``""`` where nobody may notice.
        seconds: how long it may last, by default.
        linked: the names of the nodes that need a link to the store.
    """

    what: str
    hits: str
    begin: Doing
    heal: Doing
    seconds: tuple[float, ...] = (5.0, 30.0)
    linked: str = ""


FAULTS: dict[str, Fault] = {
    "kill-node": Fault("a node is killed", "node", Cluster.kill_node, Cluster.restart_node, (5.0,)),
    "kill-redis": Fault(
        "Redis is killed, and comes back empty", "store", lambda c: c.store.kill(), lambda c: c.store.start()
    ),
    "pause-node": Fault(
        "a node stands still", "node", lambda c: c.victim.program.pause(), lambda c: c.victim.program.resume()
    ),
    "pause-redis": Fault(
        "Redis stands still", "store", lambda c: c.store.program.pause(), lambda c: c.store.program.resume()
    ),
    "cut-link": Fault(
        "the link of a node swallows all", "link", lambda c: c.link.swallow(), lambda c: c.link.heal(), linked="c"
    ),
    "hold-link": Fault(
        "the link of a node holds all", "link", lambda c: c.link.hold(), lambda c: c.link.heal(), linked="c"
    ),
    "deafen-link": Fault(
        "the link of a node loses what the store says",
        "link",
        lambda c: c.link.deafen(),
        lambda c: c.link.heal(),
        linked="c",
    ),
    "delay-redis": Fault(
        f"Redis answers {_LATE_SECONDS:g} s late",
        "",
        lambda c: c.link.delay(_LATE_SECONDS),
        lambda c: c.link.heal(),
        (15.0,),
        linked="abc",
    ),
    "set-clock-back": Fault(
        "the wall clock of a node is set back by an hour, and forward again",
        "",
        lambda c: c.wall_clock.step(-_HOUR),
        lambda c: c.wall_clock.step(_HOUR),
        (15.0,),
    ),
    "set-clock-forward": Fault(
        "the wall clock of a node is set forward by an hour, and back again",
        "",
        lambda c: c.wall_clock.step(_HOUR),
        lambda c: c.wall_clock.step(-_HOUR),
        (15.0,),
    ),
}


class Readiness:
    """What the nodes say on ``/readyz``, all the time."""

    def __init__(self, nodes: list[Node]) -> None:
        self.heard: dict[str, list[tuple[float, int]]] = {node.name: [] for node in nodes}
        self.tasks = [asyncio.create_task(self._watch(node)) for node in nodes]

    async def _watch(self, node: Node) -> None:
        while True:
            self.heard[node.name].append((time.monotonic(), await _ready(node.port)))
            await asyncio.sleep(_READY_LOOK_SECONDS)

    def first(self, name: str, status: int, since: float) -> float | None:
        """Return after how many seconds a node first said so; None where it never did."""
        return next((at - since for at, said in self.heard[name] if at >= since and said == status), None)


async def _get(port: int, path: str) -> bytes:
    """Ask a node over HTTP; returns all that it says, and nothing where that takes a second."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
                return await reader.read()
            finally:
                writer.transport.abort()
    return b""


async def _ready(port: int) -> int:
    """Ask a node whether it is ready; returns the status, and 0 where there is no answer."""
    words = (await _get(port, "/readyz")).split(maxsplit=2)
    return int(words[1]) if len(words) > 1 else 0


async def counters(nodes: list[Node]) -> Counter[str]:
    """Add up what all nodes have counted; labels with other values are added up too, but for outcomes and codes."""
    total: Counter[str] = Counter()
    for node in nodes:
        for name, labels, value in _SAMPLE.findall(await _get(node.port, "/metrics")):
            kind = re.search(rb'(?:outcome|code)="(\w+)"', labels)
            total[name.decode() + (f" {kind[1].decode()}" if kind else "")] += int(float(value))
    return total
