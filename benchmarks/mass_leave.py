"""Peers of one topic that are lost at once, and a pair in another: ``python -m benchmarks.mass_leave``.

The process that holds all of them is killed, as a proxy or a network fails. The pair's relays are timed meanwhile, and
the passes of the reactor, those in CPU: on a machine that others use, time on the clock says less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time

from benchmarks.processes import Child, pin
from benchmarks.report import latency

_RELAYS_PER_SECOND = 500.0
_CALM_SECONDS = 1.0
# On their way into their topics at the same time.
_AT_ONCE = 50
_LAST_SECONDS = 120.0
# The pair's own connections.
_PAIR = 2


async def measure(options: argparse.Namespace) -> int:
    """Let the peers join, end them, and print how long the pair's relays took; returns the exit status."""
    limits = {"max_peers_per_topic": max(5000, options.peers)}
    server = await Child.start("benchmarks.server", json.dumps(limits))
    pin(server.pid, 0)
    children = [server]
    try:
        port = server.ready["port"]
        joining = time.monotonic()
        leaving = await Child.start("benchmarks.observers", *map(str, (port, options.topics, options.peers, _AT_ONCE)))
        children.append(leaving)
        print(f"{options.peers} peers in {options.topics} topic(s) joined in {time.monotonic() - joining:.1f} s")
        pair = await Child.start("benchmarks.latency", str(port), "elsewhere", str(_RELAYS_PER_SECOND))
        children.append(pair)
        await asyncio.sleep(_CALM_SECONDS)
        calm = await pair.ask("report")
        longest = [(await server.ask("status"))["longest_pass_seconds"]]
        leaving.kill()
        left = time.monotonic()
        async with asyncio.timeout(_LAST_SECONDS):
            while (status := await server.ask("status"))["connections"] > _PAIR:
                longest.append(status["longest_pass_seconds"])
                await asyncio.sleep(0.01)
        gone = time.monotonic() - left
        await asyncio.sleep(_CALM_SECONDS)
        during = await pair.ask("report")
        longest += [status["longest_pass_seconds"], (await server.ask("status"))["longest_pass_seconds"]]
        # What waits has an end before the pair goes.
        last = await pair.stop()
        await server.stop()
    finally:
        for child in children:
            child.kill()
    times = during["latencies_ms"] + last["latencies_ms"]
    print(f"longest pass of the reactor while they joined: {longest[0] * 1000:.0f} ms of CPU")
    print(f"longest pass of the reactor while they left: {max(longest[1:]) * 1000:.0f} ms of CPU")
    print(f"all were gone after {gone * 1000:.0f} ms")
    print(f"relays elsewhere before: {latency(calm['latencies_ms'])}, longest {max(calm['latencies_ms']):.1f} ms")
    print(f"relays elsewhere during: {latency(times)}, longest {max(times):.1f} ms")
    return 0 if max(times) <= options.most_ms else 1


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mass_leave", description=__doc__)
    parser.add_argument("--peers", type=int, default=800, help="that are lost at once (default: %(default)d)")
    parser.add_argument("--topics", type=int, default=1, help="in which they are (default: %(default)d)")
    parser.add_argument(
        "--most-ms",
        type=float,
        default=float("inf"),
        help="the longest that a relay elsewhere may take; the exit status is 1 beyond it (default: any)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(asyncio.run(measure(parse(sys.argv[1:]))))
