"""Compare a server's ``/metrics`` with what a load counted itself: ``python -m benchmarks.observe``.

Calls, lost connections and refused requests come and go for a while. At the end every counter has to be what the load
counted. What was scraped meanwhile becomes a plot of what the dashboard shows.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.client import Client, Message, NotJoinedError, text_frame
from benchmarks.compare.payloads import candidate, sdp
from benchmarks.report import drawing
from tests.harness.server import HOST, Samples, Server, start

_SCRAPE_SECONDS = 0.5
_CANDIDATES = 10
_CPU = "process_cpu_seconds_total"
_START_SECONDS = 20.0


@contextmanager
def metered(workers: int) -> Iterator[tuple[Server, Callable[[], Samples]]]:
    """Run a server with metrics on an endpoint of their own; gives a function that scrapes them as well.

    Args:
        workers: how many processes share the topics.
    """
    endpoint = f"tcp:0:interface={HOST}"
    options = ["--listen", endpoint, "--metrics-listen", endpoint, "--ping-interval=2", f"--workers={workers}"]
    server = start(options)
    try:
        server.port = int(server.next_line(r"listening on \S+:(\d+)")[1])
        metrics_port = int(server.next_line(r"listening on \S+:(\d+)")[1])
        for worker in range(workers if workers > 1 else 0):
            server.wait_for(f"worker {worker} is ready, as process")
        yield server, lambda: server.scrape(metrics_port)
        server.stop()
    finally:
        server.end()


class Caller(Client):
    """A client that counts what it receives."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def received(self, message: Message) -> None:
        """Count it."""
        if message.type in ("offer", "answer", "ice-candidate"):
            self._counts["received"] += 1
        elif message.type == "error":
            self._counts[message.code] += 1


def _is_last_candidate() -> Callable[[Message], bool]:
    left = _CANDIDATES

    def is_last(message: Message) -> bool:
        nonlocal left
        left -= message.type == "ice-candidate"
        return left == 0

    return is_last


class Load:
    """Work for a server, counted."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._random = random.Random(seed)
        self._number = 0
        self.counts: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        """Keep it busy, more and more and then less."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        running: set[asyncio.Task[None]] = set()
        while (left := until - loop.time()) > 0:
            share = 1 - abs(2 * left / seconds - 1)
            act = self._random.choices((self._call, self._break_off, self._refused), (8, 1, 1))[0]
            task = asyncio.create_task(act())
            running.add(task)
            task.add_done_callback(running.discard)
            await asyncio.sleep(0.2 / (1 + 20 * share))  # The rate is the load.
        await asyncio.gather(*running)

    async def _pair(self) -> tuple[Caller, Caller]:
        self._number += 1
        topic = f"call-{self._number}"
        first = await Caller.join(self._port, topic, self.counts)
        second = await Caller.join(self._port, topic, self.counts)
        self.counts["joined"] += 2
        return first, second

    def _send(self, sender: Caller, target: str, kind: str, payload: bytes) -> None:
        self.counts[f"sent {kind}"] += 1
        sender.send(text_frame(b'{"type":"%b","to":"%b","payload":%b}' % (kind.encode(), target.encode(), payload)))

    async def _exchange(self, first: Caller, second: Caller) -> None:
        for sender, target, kind in ((first, second, "offer"), (second, first, "answer")):
            # All of them: what is on its way when a connection is reset may never be read.
            received = target.next_message(_is_last_candidate())
            self._send(sender, target.id, kind, sdp(kind, 1))
            for number in range(_CANDIDATES):
                self._send(sender, target.id, "ice-candidate", candidate(number))
            await received

    async def _call(self) -> None:
        first, second = await self._pair()
        await self._exchange(first, second)
        await asyncio.sleep(self._random.uniform(1, 5))  # A call lasts.
        fence = first.next_message(lambda message: message.type == "error")
        self._send(first, "nobody", "offer", b"0")
        await fence
        await first.close()
        await second.close()
        self.counts["closed"] += 2

    async def _break_off(self) -> None:
        first, second = await self._pair()
        await self._exchange(first, second)
        first.reset()
        second.reset()
        self.counts["lost"] += 2

    async def _refused(self) -> None:
        with suppress(NotJoinedError):
            await Caller.join(self._port, "a/b", self.counts)
        self.counts["404"] += 1


def differences(counts: Counter[str], samples: Samples) -> list[str]:
    """Compare the load's own counts with the server's; returns a line for each that differs."""
    expected = {
        ("joins_total",): counts["joined"],
        ("leaves_total", "closed"): counts["closed"],
        ("leaves_total", "connection_lost"): counts["lost"],
        ("relays_total", "accepted", "offer"): counts["sent offer"] - counts["target_not_found"],
        ("relays_total", "accepted", "answer"): counts["sent answer"],
        ("relays_total", "accepted", "ice-candidate"): counts["sent ice-candidate"],
        ("relays_total", "target_not_found", "offer"): counts["target_not_found"],
        ("handshakes_total", "accepted"): counts["joined"],
        ("handshakes_total", "404"): counts["404"],
        ("peers",): 0,
        ("topics",): 0,
        ("relays_queued",): 0,
    }
    return [
        f"{' '.join(name)}: {samples.get(name, 0):g}, and {count} were counted"
        for name, count in expected.items()
        if samples.get(name, 0) != count
    ]


async def watch(
    port: int, scrape: Callable[[], Samples], seconds: float, seed: int
) -> tuple[Counter[str], list[tuple[float, Samples]]]:
    """Load a server and scrape it.

    Returns:
        What the load counted, and what was scraped with its second.
    """
    loop = asyncio.get_running_loop()
    load = Load(port, seed)
    busy = asyncio.create_task(load.run(seconds))
    start, scraped = loop.time(), []
    while not busy.done():
        scraped.append((loop.time() - start, await asyncio.to_thread(scrape)))
        await asyncio.wait([busy], timeout=_SCRAPE_SECONDS)
    await busy
    until = loop.time() + _START_SECONDS
    while True:
        last = await asyncio.to_thread(scrape)
        if not last["peers",] or loop.time() > until:
            return load.counts, [*scraped, (loop.time() - start, last)]
        await asyncio.sleep(0.1)


def plot(scraped: list[tuple[float, Samples]], path: Path) -> None:
    """Draw what the dashboard shows."""
    seconds = [second for second, _ in scraped]

    def values(*name: str) -> list[float]:
        return [samples.get(name, 0.0) for _, samples in scraped]

    def rate(*name: str) -> list[float]:
        return rate_of(values(*name))

    def cores() -> list[float]:
        # Of several processes each has its own.
        return rate_of([sum(value for name, value in samples.items() if name[0] == _CPU) for _, samples in scraped])

    def rate_of(counted: list[float]) -> list[float]:
        steps = zip(seconds, seconds[1:], counted, counted[1:], strict=False)
        return [0.0, *((b - a) / max(t - s, 1e-9) for s, t, a, b in steps)]

    panels: dict[str, list[tuple[str, list[float]]]] = defaultdict(list)
    panels["peers and topics"] = [(name, values(f"{name}")) for name in ("peers", "topics", "connections")]
    panels["relays by type, 1/s"] = [
        (kind, rate("relays_total", "accepted", kind)) for kind in ("offer", "answer", "ice-candidate")
    ]
    panels["joins, and leaves by reason, 1/s"] = [
        ("joins", rate("joins_total")),
        *((reason, rate("leaves_total", reason)) for reason in ("closed", "connection_lost")),
    ]
    panels["refused, 1/s"] = [
        ("404", rate("handshakes_total", "404")),
        ("target_not_found", rate("relays_total", "target_not_found", "offer")),
    ]
    panels["relayed, KB/s"] = [("bytes", [value / 1000 for value in rate("relayed_bytes_total")])]
    panels["CPU, cores"] = [("all processes", cores())]
    with drawing(path, 3, 2, 80, sharex=True, figsize=(11, 8)) as (_, axes):
        for axis, (title, lines) in zip(axes.flat, panels.items(), strict=True):
            for name, line in lines:
                axis.plot(seconds, line, label=name)
            axis.set_title(title, loc="left", fontsize=9)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
            axis.legend(loc="upper right", fontsize=7)
        for axis in axes[-1]:
            axis.set_xlabel("seconds")


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.observe", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of the load; default: %(default)s")
    parser.add_argument("--workers", type=int, default=1, help="that share the topics; default: %(default)s")
    parser.add_argument("--plot", default="", help="a PNG file; default: none")
    options = parser.parse_args()
    with metered(options.workers) as (server, scrape):
        counts, scraped = asyncio.run(watch(server.port, scrape, options.seconds, options.seed))
    print(f"counted by the load: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}")
    wrong = differences(counts, scraped[-1][1])
    for line in wrong:
        print(f"FAIL {line}")
    if options.plot:
        plot(scraped, Path(options.plot))
    if not wrong:
        print(f"ok   every counter agrees, after {len(scraped)} scrapes")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
