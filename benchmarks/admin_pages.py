"""Relays between three nodes while an operator lists 100,000 topics: ``python -m benchmarks.admin_pages``.

The topics have one peer each, which has no connection: a listing looks at their names and sizes only. Three pairs relay
from node to node at a fixed rate, first in peace and then while pages of 1,000 are asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.processes import Child
from benchmarks.report import latency
from tests.harness.redis import redis_running

_NODES = 3
_PAGE = 1000


def serve(url: str, socket: str, number: int, topics: int) -> None:
    """Run a node, until its standard input ends."""
    from twisted.internet import reactor as global_reactor  # noqa: PLC0415 - importing it installs it
    from twisted.internet.endpoints import TCP4ServerEndpoint, UNIXServerEndpoint  # noqa: PLC0415
    from twisted.internet.stdio import StandardIO  # noqa: PLC0415
    from twisted.protocols.basic import LineOnlyReceiver  # noqa: PLC0415

    from benchmarks.server import Passes, process_status  # noqa: PLC0415
    from signaling import SignalingFactory  # noqa: PLC0415
    from signaling.admin.site import AdminFactory  # noqa: PLC0415
    from signaling.app.garbage_collection import tune_garbage_collector  # noqa: PLC0415
    from signaling.backplane.engines import make_backplane  # noqa: PLC0415
    from signaling.limits import Limits  # noqa: PLC0415

    reactor: Any = global_reactor
    passes = reactor._poller = Passes(reactor._poller)
    limits = Limits()
    factory = SignalingFactory(limits, backplane=make_backplane(url, limits, reactor), notices=True)
    for topic in range(number, topics, _NODES):
        member: Any = SimpleNamespace(id=f"{topic}", listed_bytes=1)
        factory.topics.join(f"topic {topic:06}", member)

    class Requests(LineOnlyReceiver):
        delimiter = b"\n"

        def lineReceived(self, line: bytes) -> None:
            status = {"longest_pass_seconds": passes.take_longest(), **process_status()}
            self.sendLine(json.dumps(status).encode())

        def connectionLost(self, reason: Any = None) -> None:
            if reactor.running:
                reactor.stop()

    def listening(port: Any) -> None:
        UNIXServerEndpoint(reactor, socket).listen(AdminFactory(factory, factory.asker, None))
        factory.accept_on(port)
        print(json.dumps({"port": port.getHost().port}), flush=True)
        StandardIO(Requests())

    TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory).addCallback(listening)
    tune_garbage_collector()
    reactor.run()


async def fetch(socket: str, target: str) -> Any:
    """Make a request; returns its JSON."""
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    answer = json.loads(body)
    assert int(head.split(" ")[1]) == HTTPStatus.OK, answer
    assert "missing" not in answer, answer["missing"]
    return answer


async def walk(socket: str, topics: int, rate: float, seconds: float, milliseconds: list[float]) -> int:
    """List all topics again and again, ``rate`` pages a second if they come in time; returns how many pages came."""
    end, pages, after, found = time.monotonic() + seconds, 0, "", 0
    while time.monotonic() < end:
        due = time.monotonic() + 1 / rate
        began = time.monotonic()
        page = await fetch(socket, f"/v1/topics?limit={_PAGE}&prefix=topic&after={after.replace(' ', '+')}")
        milliseconds.append(1000 * (time.monotonic() - began))
        pages, found, after = pages + 1, found + len(page["topics"]), page.get("after", "")
        if not after:
            assert found == topics, found
            found = 0
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    return pages


async def measure(options: argparse.Namespace) -> int:
    """Run everything, and print what was measured; returns the exit status."""
    with redis_running() as redis, tempfile.TemporaryDirectory() as folder:
        sockets = [str(Path(folder) / f"{number}") for number in range(_NODES)]
        nodes: list[Child] = []
        pairs: list[Child] = []
        try:
            for number, socket in enumerate(sockets):
                arguments = "--serve", redis.url, socket, f"{number}", f"{options.topics}"
                nodes.append(await Child.start("benchmarks.admin_pages", *arguments))
            ports = [node.ready["port"] for node in nodes]
            for number, port in enumerate(ports):
                arguments = f"{port},{ports[number - 1]}", f"pair-{number}", f"{options.rate}"
                pairs.append(await Child.start("benchmarks.latency", *arguments))
            await report(pairs)
            for round_number in range(options.rounds):
                await asyncio.sleep(options.seconds)
                peace, passes_in_peace = await report(pairs), await passes(nodes)
                taken: list[float] = []
                pages = await walk(
                    sockets[round_number % _NODES], options.topics, options.pages, options.seconds, taken
                )
                listing, passes_listing = await report(pairs), await passes(nodes)
                print(f"relays in peace:       {latency(peace)}, longest pass {passes_in_peace:.1f} ms of CPU")
                print(f"relays during listing: {latency(listing)}, longest pass {passes_listing:.1f} ms of CPU")
                print(f"{pages / options.seconds:.0f} pages a second, each {latency(taken)}", flush=True)
        finally:
            for child in (*pairs, *nodes):
                child.kill()
    return 0


async def report(pairs: list[Child]) -> list[float]:
    """Return how long the relays took since the last time, in milliseconds."""
    return [each for pair in pairs for each in (await pair.ask("report"))["latencies_ms"]]


async def passes(nodes: list[Child]) -> float:
    """Return how long the longest pass of a node's reactor took since the last time, in milliseconds of CPU."""
    return 1000 * max([(await node.ask("status"))["longest_pass_seconds"] for node in nodes])


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.admin_pages", description=__doc__)
    parser.add_argument("--topics", type=int, default=100_000, help="on all nodes (default: %(default)d)")
    parser.add_argument("--rate", type=float, default=200.0, help="relays a second of each pair (default: %(default)g)")
    parser.add_argument("--pages", type=float, default=5.0, help="asked for a second (default: %(default)g)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=3, help="how often to measure (default: %(default)d)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        sys.exit(asyncio.run(measure(parse(sys.argv[1:]))))
