"""Kill a worker under load, and account for every relay: ``python -m benchmarks.killed_worker``.

The figures are in docs/scaling-figures.md.

Pairs relay to each other, in topics of every worker; some of their relays go to nobody. Half-way one worker is killed.
Its pairs reconnect and go on. At the end every relay was delivered, answered or cut, and only relays of the killed
worker were cut. The pairs of the other workers noticed nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable

from benchmarks.client import End, LoggedClient, NotJoinedError
from benchmarks.compare.meter import children
from benchmarks.compare.payloads import candidate
from benchmarks.observe import metered
from benchmarks.processes import judge
from signaling import Limits
from signaling.workers.topic_router import TopicRouter
from tests.harness.delivery_log import DeliveryLog
from tests.harness.server import Samples

_UNDER_WAY = 4
_TO_NOBODY = 10
_PATIENCE_SECONDS = 20.0
_AGAIN_SECONDS = 0.02


class WorkerLog(DeliveryLog):
    """What became of the relays of one worker's topics.

    Attributes:
        events: joins and ends of connections, by kind.
    """

    def __init__(self) -> None:
        super().__init__(keep=False)
        self.events: Counter[str] = Counter()


class Caller(LoggedClient):
    """One end of a pair, that keeps some relays under way."""

    log: WorkerLog

    def __init__(self, log: WorkerLog) -> None:
        super().__init__(log)
        self.room = asyncio.Semaphore(_UNDER_WAY)
        self._number = 0

    async def send_one(self, target: str) -> None:
        """Send one relay, once there is room for it."""
        await self.room.acquire()
        if self.ended.done():
            raise ConnectionError("it ended")
        # The log calls this for each relay that has its end.
        self.log.on_end[self.id] = self.room.release
        self._number += 1
        to = "nobody" if self._number % _TO_NOBODY == 0 else target
        self.relay("ice-candidate", to, candidate(self._number))

    def connection_ended(self, end: End) -> None:
        """Wake what waits for room that will never come."""
        super().connection_ended(end)
        self.room.release()


class Pair:
    """Two peers of a topic, until the end, over as many connections as that takes."""

    def __init__(self, port: int, topic: str, log: WorkerLog) -> None:
        self._port = port
        self._topic = topic
        self._log = log

    async def run(self, until: float) -> None:
        """Relay, and reconnect if the connection is lost."""
        while time.monotonic() < until:
            callers = await self._meet(until)
            relaying = [self._relay(*callers, until), self._relay(*reversed(callers), until)]
            broken = await asyncio.gather(*relaying, return_exceptions=True)
            await self._part(callers, any(isinstance(each, ConnectionError) for each in broken))

    async def _meet(self, until: float) -> tuple[Caller, Caller]:
        first = await self._join(until)
        return first, await self._join(until)

    async def _join(self, until: float) -> Caller:
        while True:
            try:
                caller = await Caller.join(self._port, self._topic, self._log)
            except NotJoinedError:
                self._log.events["joins refused"] += 1
                if time.monotonic() > until + _PATIENCE_SECONDS:
                    raise
                await asyncio.sleep(_AGAIN_SECONDS)  # As a client would.
            else:
                self._log.events["joined"] += 1
                return caller

    async def _relay(self, sender: Caller, target: Caller, until: float) -> None:
        while time.monotonic() < until:
            await sender.send_one(target.id)
            await asyncio.sleep(0)
        # With all its room back, everything that it sent has its end.
        for _ in range(_UNDER_WAY):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await sender.room.acquire()
            if sender.ended.done():
                raise ConnectionError("it ended")

    async def _part(self, callers: tuple[Caller, Caller], broken: bool) -> None:
        for caller in callers:
            if broken:
                caller.reset()
                self._log.events["lost"] += 1
                for relay in self._log.open(caller.id):
                    self._log.excuse(relay, "cut")
            else:
                await caller.close()
                self._log.events["closed"] += 1


async def load(
    pid: int, port: int, scrape: Callable[[], Samples], options: argparse.Namespace
) -> tuple[list[WorkerLog], Samples]:
    """Let pairs relay, kill the first worker, and wait for all; returns the logs by worker, and the last metrics."""
    router, logs = TopicRouter(options.workers, Limits()), [WorkerLog() for _ in range(options.workers)]
    topics = [f"pair-{number}" for number in range(options.pairs)]
    until = time.monotonic() + options.seconds
    running = [asyncio.create_task(Pair(port, topic, logs[router.owner(topic)]).run(until)) for topic in topics]
    await asyncio.sleep(options.seconds / 2)
    os.kill(children(pid)[0], signal.SIGKILL)
    await asyncio.gather(*running)
    for log in logs:
        log.close()
    return logs, await asyncio.to_thread(scrape)


def verdict(logs: list[WorkerLog], last: Samples) -> dict[str, bool]:
    """Return everything that was to hold, in words, with whether it does."""
    checks: dict[str, bool] = {}
    for worker, log in enumerate(logs):
        events, sent = log.events, log.count["sent"]
        excused = log.count["cut"] + log.count["unread"]
        ends = {"delivered": log.count["delivered"], "answered": log.answers.total(), "cut or unread": excused}
        sum_of_ends = " + ".join(f"{name} {count}" for name, count in ends.items())
        checks[f"worker {worker}: sent {sent} = {sum_of_ends}"] = sent == sum(ends.values())
        checks[f"worker {worker}: lost, doubled or misordered {dict(log.breaches) or 0}"] = not log.breaches
        disturbed = events["lost"] + excused + events["joins refused"]
        if worker:
            checks[f"worker {worker}: its peers noticed nothing ({disturbed} disturbances)"] = not disturbed
        else:
            checks[f"worker {worker}: {events['lost']} peers lost, and as many came back"] = events["lost"] > 0 and (
                events["joined"] == events["lost"] + events["closed"]
            )
    return checks | _compared(logs, last)


def _compared(logs: list[WorkerLog], last: Samples) -> dict[str, bool]:
    """Compare with the server's own counters; what the killed worker counted since it was last asked is gone."""
    least = sum(log.count["delivered"] for log in logs[1:])
    most = least + sum(logs[0].count[name] for name in ("delivered", "cut", "unread"))
    counted = int(last["relays_total", "accepted", "ice-candidate"])
    restarts = sum(value for name, value in last.items() if name[0] == "worker_restarts_total")
    return {
        f"server: accepted {counted}, from {least} of the others to {most} of all": least <= counted <= most,
        f"server: {restarts:g} restart": restarts == 1,
        "server: no peers and no topics are left": not (last["peers",] or last["topics",]),
    }


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.killed_worker", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--pairs", type=int, default=40, help="default: %(default)s")
    options = parser.parse_args()
    with metered(options.workers) as (server, scrape):
        logs, last = asyncio.run(load(server.pid, server.port, scrape, options))
    return 0 if judge(verdict(logs, last)) else 1


if __name__ == "__main__":
    sys.exit(main())
