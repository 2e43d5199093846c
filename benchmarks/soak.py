"""A server under churn, calls, stalls and garbage together: ``python -m benchmarks.soak`` (docs/soak.md)."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.processes import Child, judge, limit, pin
from benchmarks.report import Flatness, Progress, Sample, flatness, latency, plot
from benchmarks.scenarios import RATES, Run
from signaling import Limits
from tests.harness.delivery_log import DeliveryLog

_PROBES_PER_SECOND = 50.0
_WARM_UP_SECONDS = 60.0
_JUDGED_FROM_SECONDS = 60.0
_REST_SECONDS = 20.0
_LATENCY_SAMPLES = 10
_FEW = 5

_MOST_GENERATOR_CPU = 0.8
# A stalled reader costs most a few seconds after it started.
_DAMPING = 0.2


class Load:
    """Starts scenarios at fixed rates, whatever becomes of those before.

    Args:
        factor: how many times the rates of ``RATES``; may change.

    Attributes:
        started: how many scenarios, by name.
        failures: why scenarios failed.
    """

    def __init__(self, shared: Run, factor: float) -> None:
        self.factor = factor
        self.started: dict[str, int] = {}
        self.failures: list[str] = []
        self._shared = shared
        self._running: set[asyncio.Task[None]] = set()
        self._starting = [asyncio.create_task(self._start_all(*item)) for item in RATES.items()]

    async def _start_all(self, scenario: Callable[[Run], Awaitable[None]], rate: float) -> None:
        due = time.monotonic()
        while True:
            task = asyncio.create_task(self._run(scenario))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            due += self._shared.random.expovariate(rate * self.factor)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _run(self, scenario: Callable[[Run], Awaitable[None]]) -> None:
        name = scenario.__name__
        self.started[name] = self.started.get(name, 0) + 1
        try:
            await scenario(self._shared)
        except Exception as error:
            # Whatever it was, it is the run's failure, and the other scenarios go on.
            self.failures.append(f"{name}: {type(error).__name__}: {error}")

    async def finish(self) -> None:
        """Start nothing more, and wait for what runs."""
        for starting in self._starting:
            starting.cancel()
        while self._running:
            await asyncio.wait(tuple(self._running))


@dataclass
class Soak:
    """One run, and what it measured."""

    options: argparse.Namespace
    server: Child
    pair: Child
    load: Load
    log: DeliveryLog
    at_first: dict[str, Any]
    samples: list[Sample] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._before = self.at_first
        self._recent: deque[list[float]] = deque(maxlen=_LATENCY_SAMPLES)
        self._generator_seconds = time.process_time()
        self._began = self.at_first["time"]

    @property
    def seconds(self) -> float:
        """How long the load lasts."""
        return float(60 * self.options.minutes)

    @property
    def warm_up_seconds(self) -> float:
        """How long figures may still grow, and the load is adjusted."""
        return min(_WARM_UP_SECONDS, self.seconds / 3)

    async def run(self, progress: Progress) -> None:
        """Load the server for the whole time."""
        printed = 0.0
        while (second := time.monotonic() - self._began) < self.seconds:
            progress.at(second)
            await asyncio.sleep(min(1.0, self.seconds - second))
            sample = await self._sample()
            if second < self.warm_up_seconds and not self.options.load:
                self._adjust(sample)
            if sample.second - printed >= self.options.every:
                printed = sample.second
                progress.line(str(sample))

    async def _sample(self) -> Sample:
        status, report = await asyncio.gather(self.server.ask("status"), self.pair.ask("report"))
        before, self._before = self._before, status
        elapsed = status["time"] - before["time"]
        generator, self._generator_seconds = self._generator_seconds, time.process_time()
        self.latencies_ms += report["latencies_ms"]
        self._recent.append(report["latencies_ms"])
        refused = {code: (n - before["refused"].get(code, 0)) / elapsed for code, n in status["refused"].items()}
        sample = Sample(
            second=status["time"] - self._began,
            cpu=(status["cpu_seconds"] - before["cpu_seconds"]) / elapsed,
            starved=(status["starved_seconds"] - before["starved_seconds"]) / elapsed,
            generator_cpu=(self._generator_seconds - generator) / elapsed,
            load=self.load.factor,
            relays=(status["accepted"] - before["accepted"]) / elapsed,
            errors=refused,
            latency=latency(chain.from_iterable(self._recent)),
            late_ms=report["late_ms"],
            **{name: status[name] for name in ("resident_bytes", "descriptors", "connections", "topics")},
        )
        self.samples.append(sample)
        return sample

    def _adjust(self, sample: Sample) -> None:
        """Move the load towards the one at which the server wants that part of a core that was asked for."""
        wanted = self.options.cpu / 100 / max(sample.cpu + sample.starved, 0.01)
        if sample.generator_cpu > _MOST_GENERATOR_CPU:
            wanted = min(wanted, 0.5)
        self.load.factor *= min(2.0, max(0.5, wanted)) ** _DAMPING

    async def rest(self) -> dict[str, Any]:
        """End the load, wait until the server is at rest, and return its last status."""
        await self.load.finish()
        self.log.close()
        self.log.add((await self.pair.stop())["log"])
        deadline = time.monotonic() + _REST_SECONDS
        status = await self.server.ask("status")
        while (status["connections"] or status["waiting"]) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            status = await self.server.ask("status")
        return status

    def verdict(self, at_last: dict[str, Any]) -> dict[str, bool]:
        """Return everything that was to hold, in words, with whether it does."""
        checks = self.log.balance(at_last)
        opened = at_last["descriptors"] - self.at_first["descriptors"]
        checks[
            f"left at the end: {at_last['connections']} connections, {at_last['topics']} topics, {opened} descriptors"
        ] = not (at_last["connections"] or at_last["topics"] or opened > 0)
        checks[f"scenarios that failed: {len(self.load.failures)}"] = not self.load.failures
        if self.seconds >= _JUDGED_FROM_SECONDS:
            checks |= {str(flat): flat.holds for flat in self.flatness()}
        return checks

    def flatness(self) -> list[Flatness]:
        """Judge what must not grow."""
        return flatness(self.samples, self.warm_up_seconds)


async def soak(options: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    limits = Limits(**dict(options.limit))
    pin(0, 1)
    server = await Child.start("benchmarks.server", json.dumps(dict(options.limit)))
    pin(server.pid, 0)
    pair = None
    try:
        port = server.ready["port"]
        pair = await Child.start("benchmarks.latency", str(port), "probe", str(_PROBES_PER_SECOND))
        log = DeliveryLog(keep=False)
        shared = Run(port, log, limits.handshake_timeout_seconds, limits.write_timeout_seconds)
        at_first = await server.ask("status")
        # Those of the connections, and of the epoll that the server has while there are any.
        at_first["descriptors"] -= at_first["connections"] + (at_first["connections"] > 0)
        run = Soak(options, server, pair, Load(shared, options.load or 1.0), log, at_first)
        with Progress(run.seconds) as progress:
            await run.run(progress)
        at_last = await run.rest()
        await server.stop()
    finally:
        for helper in (server, pair):
            if helper is not None:
                helper.kill()
    return summarize(run, at_last)


def summarize(run: Soak, at_last: dict[str, Any]) -> int:
    """Print and write what the run found; returns the exit status."""
    checks = run.verdict(at_last)
    busy, starved = [sample.cpu for sample in run.samples], [sample.starved for sample in run.samples]
    print(f"\nscenarios: {' '.join(f'{name} {n}' for name, n in sorted(run.load.started.items()))}")
    print(f"server CPU: {sum(busy) / len(busy):.0%} of a core at load {run.load.factor:.2f}", end=" ")
    print(f"(others had its core for {sum(starved) / len(starved):.1%} of the time)")
    print(f"relay latency of the healthy pair: {latency(run.latencies_ms)}", end=" ")
    print(f"(its own delay: at most {max(sample.late_ms for sample in run.samples):.1f} ms)")
    print(f"errors: {' '.join(f'{code} {n}' for code, n in sorted(at_last['refused'].items())) or 'none'}")
    print(f"events dropped: {at_last['events_dropped']}")
    if run.seconds < _JUDGED_FROM_SECONDS:
        print("\n".join(f"not judged in a run this short: {flat}" for flat in run.flatness()))
    holds = judge(checks)
    for text in (run.load.failures + run.log.examples)[:_FEW]:
        print(f"     {text}")
    if run.options.plot:
        plot(run.samples, Path(run.options.plot), f"{run.options.minutes:g} minutes of churn, calls, stalls, garbage")
    if run.options.json:
        written: dict[str, Any] = {
            "checks": checks,
            "at_last": at_last,
            "started": run.load.started,
            "failures": run.load.failures,
        }
        written |= {"breaches": run.log.examples, "samples": [asdict(sample) for sample in run.samples]}
        Path(run.options.json).write_text(json.dumps(written, indent=1))
    print("soak: passed" if holds else "soak: FAILED")
    return 0 if holds else 1


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="how long the load lasts (default: %(default)g)")
    parser.add_argument(
        "--cpu", type=float, default=40.0, help="percent of a core that the load aims at, while warming up"
    )
    parser.add_argument(
        "--load",
        type=float,
        default=0.0,
        help="a fixed load in place of --cpu; 1 is about 40 joins and 25 calls a second",
    )
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two lines (default: %(default)g)")
    parser.add_argument(
        "--limit", type=limit, action="append", default=[], metavar="NAME=VALUE", help="one of the server's Limits"
    )
    parser.add_argument(
        "--plot", default="build/soak.png", help="where to plot; empty for nowhere (default: %(default)s)"
    )
    parser.add_argument("--json", default="", help="where to write all figures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(asyncio.run(soak(parse(sys.argv[1:]))))
