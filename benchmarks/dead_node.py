"""A node of a cluster dies with hundreds of peers of one topic: ``python -m benchmarks.dead_node`` (docs/cluster.md).

The other nodes have as many peers in that topic, and all of those have to hear of each that left, and of nobody else.
Meanwhile peers join other topics, and have to get in as quickly as ever.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from typing import Any

from benchmarks.audience import digest
from benchmarks.client import HOST, Client
from benchmarks.nodes import Node, Store
from benchmarks.processes import Helper

_NODES = 3
_TOPIC = "crowd"
_JOIN_EVERY_SECONDS = 0.1
_LOOK_EVERY_SECONDS = 0.5


class Joins:
    """Peers that join topics of their own on the nodes that live, one after the other, and leave.

    Attributes:
        seconds: how long each took.
    """

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self.seconds: list[float] = []

    async def run(self) -> None:
        """Go on until cancelled."""
        number = 0
        while True:
            number += 1
            began = time.monotonic()
            client = await Client.join(self._ports[number % len(self._ports)], f"elsewhere-{number}")
            self.seconds.append(time.monotonic() - began)
            await client.close()
            await asyncio.sleep(_JOIN_EVERY_SECONDS)


async def _start(store: Store) -> list[Node]:
    # Pings would be the clients' work.
    options = ["--ping-interval=0", f"--backplane=redis://{HOST}:{store.port}"]
    nodes = [Node(f"node {number}", options) for number in range(_NODES)]
    await asyncio.gather(*(node.start() for node in nodes))
    return nodes


async def _look(audiences: list[Helper]) -> tuple[Counter[str], Counter[str]]:
    views, left = Counter[str](), Counter[str]()
    for answer in await asyncio.gather(*(audience.ask("look") for audience in audiences)):
        views.update(answer["views"])
        left.update(answer["left"])
    return views, left


async def _agree(audiences: list[Helper], ids: list[str], most_seconds: float) -> dict[str, Any]:
    """Wait until all believe the same, and it is true; returns what they believe, and after how many seconds."""
    began, truth = time.monotonic(), digest(ids)
    while True:
        views, left = await _look(audiences)
        seconds = time.monotonic() - began
        agreed = views == {truth: len(ids)}
        if agreed or seconds > most_seconds:
            return {"agreed": agreed, "seconds": seconds, "views": views, "left": left}
        await asyncio.sleep(_LOOK_EVERY_SECONDS)


async def measure(options: argparse.Namespace) -> int:
    """Fill the topic, kill a node, and print what the others heard; returns the exit status."""
    store, nodes, helpers = Store(), [], []
    await store.start()
    try:
        nodes = await _start(store)
        began = time.monotonic()
        for node in nodes:
            helpers.append(await Helper.start("benchmarks.audience", str(node.port), _TOPIC, str(options.peers)))
        print(f"{_NODES} nodes with {options.peers} peers each: joined in {time.monotonic() - began:.1f} s")
        everybody = [peer for helper in helpers for peer in helper.ready["peers"]]
        at_first = await _agree(helpers, everybody, options.most_seconds)
        print(f"all agree: {at_first['agreed']}, after {at_first['seconds']:.1f} s")
        *audiences, lost = helpers
        alive = [peer for helper in audiences for peer in helper.ready["peers"]]
        joins = Joins([node.port for node in nodes[:-1]])
        joining = asyncio.create_task(joins.run())
        await nodes[-1].kill()
        lost.kill()
        at_last = await _agree(audiences, alive, options.most_seconds)
        joining.cancel()
        unready_reasons = [line for node in nodes[:-1] for line in node.program.unready_reasons]
    finally:
        for helper in helpers:
            helper.kill()
        for node in nodes:
            await node.kill()
        await store.kill()
    untrue = at_last["left"].total() - sum(at_last["left"][peer] for peer in lost.ready["peers"])
    checks = {
        f"the others agree {at_last['seconds']:.1f} s after the end of the node, within {options.most_seconds:g} s": (
            at_last["agreed"] and at_last["seconds"] <= options.most_seconds
        ),
        f"{at_last['left'].total()} times peer-left, {untrue} of them untrue": untrue == 0,
        f"{len(joins.seconds)} joins elsewhere, the longest {max(joins.seconds) * 1000:.0f} ms,"
        f" at most {options.most_join_seconds:g} s": max(joins.seconds) <= options.most_join_seconds,
        f"unready_reasons in the nodes' logs: {unready_reasons}": not unready_reasons,
    }
    for text, held in checks.items():
        print(f"{'ok  ' if held else 'FAIL'} {text}")
    return 0 if all(checks.values()) else 1


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dead_node", description=__doc__)
    parser.add_argument("--peers", type=int, default=900, help="of each node (default: %(default)d)")
    parser.add_argument("--most-seconds", type=float, default=20.0, help="until all agree (default: %(default)g)")
    parser.add_argument("--most-join-seconds", type=float, default=0.5, help="of one join (default: %(default)g)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(asyncio.run(measure(parse(sys.argv[1:]))))
