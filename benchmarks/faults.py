"""A cluster on the loopback, the faults that are tried on it, and what its nodes report meanwhile."""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from tests.harness.fault_proxy import fault_proxy
from tests.harness.redis import RedisServer
from tests.harness.server import HOST, Node
from tests.harness.wall_clock import WallClock

_READY_POLL_SECONDS = 0.2
# Less than the 3 s after which Redis counts as out of reach.
_LATE_SECONDS = 2.4
_HOUR = 3600.0
_SAMPLE = re.compile(rb"^signaling_(\w+?)(?:_total)?(?:{(.*)})? (\S+)$", re.MULTILINE)


class Cluster:
    """Redis and three nodes; the last one is the one that fails.

    Args:
        linked: the names of the nodes that reach Redis through a fault proxy.
        options: of all nodes.
    """

    def __init__(self, linked: str = "", options: Sequence[str] = ()) -> None:
        self._stack = ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "redis").mkdir()
        (folder / "clock").mkdir()
        self.redis = RedisServer(folder / "redis")
        self._stack.callback(self.redis.end)
        self.link = self._stack.enter_context(fault_proxy(self.redis.port))
        self.wall_clock = WallClock(folder / "clock")
        self.nodes: list[Node] = []
        for name in "abc":
            port = self.link.port if name in linked else self.redis.port
            clock = self.wall_clock.environment if name == "c" else None
            backplane = f"--backplane=redis://{HOST}:{port}"
            self.nodes.append(Node("--metrics", backplane, *options, name=name, env=clock))

    @property
    def victim(self) -> Node:
        """The node that fails."""
        return self.nodes[-1]

    async def start(self) -> None:
        """Start the nodes."""
        await asyncio.gather(*(asyncio.to_thread(node.start) for node in self.nodes))

    def end(self) -> None:
        """End everything."""
        for node in self.nodes:
            node.end()
        self._stack.close()


class Fault(NamedTuple):
    """Something that can happen to a cluster, and its end. Both functions may block.

    Args:
        what: for people.
        hits: ``node``, ``store``, ``link``, or ``""`` if nobody may notice.
        seconds: how long it may last, by default.
        linked: the names of the nodes that need a link to Redis.
    """

    what: str
    hits: str
    begin: Callable[[Cluster], object]
    heal: Callable[[Cluster], object]
    seconds: tuple[float, ...] = (5.0, 30.0)
    linked: str = ""


FAULTS: dict[str, Fault] = {
    "kill-node": Fault("a node is killed", "node", lambda c: c.victim.end(), lambda c: c.victim.start(), (5.0,)),
    "kill-redis": Fault(
        "Redis is killed, and restarts empty", "store", lambda c: c.redis.kill(), lambda c: c.redis.start()
    ),
    "pause-node": Fault(
        "a node is paused", "node", lambda c: c.victim.server.pause(), lambda c: c.victim.server.resume()
    ),
    "pause-redis": Fault("Redis is paused", "store", lambda c: c.redis.pause(), lambda c: c.redis.resume()),
    "cut-link": Fault(
        "the link of a node loses all bytes", "link", lambda c: c.link.swallow(), lambda c: c.link.heal(), linked="c"
    ),
    "freeze-link": Fault(
        "the link of a node delivers nothing until the end",
        "link",
        lambda c: c.link.freeze(new_connections=True),
        lambda c: c.link.heal(),
        linked="c",
    ),
    "lose-replies": Fault(
        "the link of a node loses the replies of Redis",
        "link",
        lambda c: c.link.swallow(replies_only=True),
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
    """What the nodes answer to ``/readyz``, all the time."""

    def __init__(self, nodes: list[Node]) -> None:
        self.answers: dict[str, list[tuple[float, int]]] = {node.name: [] for node in nodes}
        self.tasks = [asyncio.create_task(self._watch(node)) for node in nodes]

    async def _watch(self, node: Node) -> None:
        while True:
            self.answers[node.name].append((time.monotonic(), await _ready(node.port)))
            await asyncio.sleep(_READY_POLL_SECONDS)

    def first(self, name: str, status: int, since: float) -> float | None:
        """Return after how many seconds a node first had that status; None if it never did."""
        return next((at - since for at, answered in self.answers[name] if at >= since and answered == status), None)


async def _get(port: int, path: str) -> bytes:
    """Make a request; returns the whole response, or nothing if that takes a second."""
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
    """Ask a node whether it is ready; returns the status, or 0 if there is no answer."""
    words = (await _get(port, "/readyz")).split(maxsplit=2)
    return int(words[1]) if len(words) > 1 else 0


async def counters(nodes: list[Node]) -> Counter[str]:
    """Add up what all nodes have counted; over all labels but outcomes and codes."""
    total: Counter[str] = Counter()
    for node in nodes:
        for name, labels, value in _SAMPLE.findall(await _get(node.port, "/metrics")):
            kind = re.search(rb'(?:outcome|code)="(\w+)"', labels)
            total[name.decode() + (f" {kind[1].decode()}" if kind else "")] += int(float(value))
    return total
