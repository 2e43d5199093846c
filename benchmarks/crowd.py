"""Peers in a process of their own, who join and say nothing; on its standard output it tells when all are there."""

from __future__ import annotations

import asyncio
import json
import sys

from benchmarks.client import Client

_AT_ONCE = 50


async def gather(port: int, topics: int, count: int) -> None:
    """Let so many peers join topics named ``crowd-0`` and so on in turn, and stay until standard input ends."""
    numbers = iter(range(count))
    peers: list[Client] = []

    async def join_some() -> None:
        for number in numbers:
            peers.append(await Client.join(port, f"crowd-{number % topics}"))

    async with asyncio.TaskGroup() as joining:
        for _ in range(_AT_ONCE):
            joining.create_task(join_some())
    print(json.dumps({"peers": len(peers)}), flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    await lines.read()


if __name__ == "__main__":
    asyncio.run(gather(*map(int, sys.argv[1:4])))
