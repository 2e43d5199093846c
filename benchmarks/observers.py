"""Peers in a process of their own that join topics, send nothing, and report which peers they are informed have left.

Its first line of output has their ids. For each line that it reads, it answers with what they know now.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from typing import Any

from benchmarks.client import Client, Message
from benchmarks.processes import serve_requests


class Departures:
    """What observers were informed of together.

    Attributes:
        left: how often each peer was announced to have left.
        latest: when the latest of them was.
    """

    def __init__(self) -> None:
        self.left: Counter[str] = Counter()
        self.latest = 0.0


class Observer(Client):
    """A peer that counts the others of its topic."""

    def __init__(self, departures: Departures) -> None:
        super().__init__()
        self._departures = departures
        self.others = 0

    def received(self, message: Message) -> None:
        """Count."""
        if message.type == "peer-left":
            self.others -= 1
            self._departures.left[message.peer_id] += 1
            self._departures.latest = time.monotonic()
        elif message.type == "peer-joined":
            self.others += 1
        elif message.type == "peer-list":
            self.others = len(message.peers)


async def observe(port: int, topics: int, count: int, at_once: int) -> None:
    """Join topics named ``observed-0`` and so on in turn, and stay until standard input ends.

    Args:
        at_once: how many join at the same time.
    """
    numbers = iter(range(count))
    peers: list[Observer] = []
    departures = Departures()

    async def join_some() -> None:
        for number in numbers:
            peers.append(await Observer.join(port, f"observed-{number % topics}", departures))

    async with asyncio.TaskGroup() as joining:
        for _ in range(at_once):
            joining.create_task(join_some())

    def answer(_: str) -> dict[str, Any]:
        views = Counter(peer.others for peer in peers)
        return {"views": list(views.items()), "left": departures.left, "latest": departures.latest}

    await serve_requests(answer, {"ids": [peer.id for peer in peers]})


if __name__ == "__main__":
    asyncio.run(observe(*map(int, sys.argv[1:5])))
