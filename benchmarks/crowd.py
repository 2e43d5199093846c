"""Peers in a process of their own, who join and say nothing, and count who they are told has left.

On its standard output the process tells when all are there, with their ids; and, for each line that it reads, what they
know now.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

from benchmarks.client import Client, Message


class Onlooker(Client):
    """A peer that counts with others.

    Args:
        told: how often each peer was told to have left, and when that was the last time, for all of them.
    """

    def __init__(self, told: Told) -> None:
        super().__init__()
        self._told = told
        self.others = 0

    def heard(self, message: Message) -> None:
        """Count."""
        if message.type == "peer-left":
            self.others -= 1
            self._told.left[message.peer_id] += 1
            self._told.latest = time.monotonic()
        elif message.type == "peer-joined":
            self.others += 1
        elif message.type == "peer-list":
            self.others = len(message.peers)


class Told:
    """What onlookers count together."""

    def __init__(self) -> None:
        self.left: Counter[str] = Counter()
        self.latest = 0.0


async def gather(port: int, topics: int, count: int, at_once: int) -> None:
    """Let so many peers join topics named ``crowd-0`` and so on in turn, and stay until standard input ends.

    Args:
        at_once: how many are on their way into their topics at the same time.
    """
    numbers = iter(range(count))
    peers: list[Onlooker] = []
    told = Told()

    async def join_some() -> None:
        for number in numbers:
            peers.append(await Onlooker.join(port, f"crowd-{number % topics}", told))

    async with asyncio.TaskGroup() as joining:
        for _ in range(at_once):
            joining.create_task(join_some())
    print(json.dumps({"ids": [peer.id for peer in peers]}), flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while await lines.readline():
        views = Counter(peer.others for peer in peers)
        print(json.dumps({"views": list(views.items()), "left": told.left, "latest": told.latest}), flush=True)


if __name__ == "__main__":
    asyncio.run(gather(*map(int, sys.argv[1:5])))
