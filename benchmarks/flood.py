"""Readers that never read, and a sender that floods them: ``python -m benchmarks.flood`` (docs/soak.md)."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.client import LoggedClient, Message
from benchmarks.processes import Child, judge, limit, pin
from benchmarks.report import MB, latency
from signaling import Limits
from tests.harness.delivery_log import DeliveryLog

_TOPIC = "flood"
_BATCH = 32
_PROBES_PER_SECOND = 100.0
_LAST_SECONDS = 60.0
# The flooder and the healthy pair.
_WITHOUT_READERS = 3

_MOST_KB_PER_READER = 300.0
_MOST_P99_MS = 50.0
# A timer that is due and a log line that is read come a little later.
_LATE_SECONDS = 1.0


@dataclass
class Stall:
    """One reader, as its sender sees it.

    Args:
        unanswered: the ids of what was sent to it since the last ``dropped``, oldest first.
        began: when the first ``dropped`` came since something was accepted for it; None before.
    """

    unanswered: deque[int] = field(default_factory=deque)
    began: float | None = None

    def dropped(self, msg_id: int) -> None:
        """Note that a message was dropped; errors come in the order of sending, but for what had waited."""
        accepted = False
        while self.unanswered and self.unanswered[0] < msg_id:
            self.unanswered.popleft()
            accepted = True
        if self.unanswered and self.unanswered[0] == msg_id:
            self.unanswered.popleft()
            if accepted or self.began is None:
                self.began = time.monotonic()


class Flooder(LoggedClient):
    """Sends to everyone in turn, as fast as the server takes it.

    Attributes:
        stalls: the readers that it floods, by id.
        relays: how many it has sent.
        codes: how many errors it has received, by code.
    """

    def __init__(self, log: DeliveryLog, payload: bytes) -> None:
        super().__init__(log)
        self.stalls: dict[str, Stall] = {}
        self.relays = 0
        self.codes: Counter[str] = Counter()
        self._payload = payload

    async def flood(self) -> None:
        """Send until cancelled."""
        while True:
            targets = tuple(self.stalls.items())
            for at in range(0, len(targets), _BATCH):
                self.send(b"".join(self._frame_for(*target) for target in targets[at : at + _BATCH]))
                await (asyncio.sleep(0) if self.writable else self.drain())
            if not targets:
                await asyncio.sleep(0.01)

    def _frame_for(self, target: str, stall: Stall) -> bytes:
        self.relays += 1
        stall.unanswered.append(self.log.count["sent"])
        return self.relay_frame("offer", target, self._payload)

    def received(self, message: Message) -> None:
        """Count an answer, and note when a reader's queue was full."""
        if message.type != "error":
            super().received(message)
            return
        self.codes[message.code] += 1
        relay = self.log.answered(message.msg_id, self.id, message.code)
        if message.code == "dropped" and relay is not None and relay.target in self.stalls:
            self.stalls[relay.target].dropped(int(message.msg_id))


class Readers:
    """Keeps a number of peers in the topic that never read.

    Attributes:
        began: of readers that are gone, when their stall began.
        joined: how many there were in all.
    """

    def __init__(self, port: int, flooder: Flooder, log: DeliveryLog, receive_buffer: int) -> None:
        self.began: dict[str, float | None] = {}
        self.joined = 0
        self._port = port
        self._flooder = flooder
        self._log = log
        self._receive_buffer = receive_buffer
        self._present: dict[str, LoggedClient] = {}

    async def add(self, count: int) -> None:
        """Let ``count`` readers join, one after the other."""
        for _ in range(count):
            reader = await LoggedClient.join(self._port, _TOPIC, self._log, receive_buffer=self._receive_buffer)
            reader.stop_reading()
            self.joined += 1
            self._present[reader.id] = reader
            self._flooder.stalls[reader.id] = Stall()

    async def replace(self, gone: Iterable[str]) -> None:
        """Let a new reader join for each that was cut off."""
        for reader_id in gone:
            if reader_id in self._present:
                self._remove(reader_id)
                await self.add(1)

    def _remove(self, reader_id: str) -> None:
        self.began[reader_id] = self._flooder.stalls.pop(reader_id).began
        self._present.pop(reader_id).reset()

    def remove_all(self) -> dict[str, float | None]:
        """Reset all readers; returns when their stalls began."""
        ids = tuple(self._present)
        for reader_id in ids:
            self._remove(reader_id)
        return {reader_id: self.began.pop(reader_id) for reader_id in ids}


@dataclass
class Flood:
    """One run, and what it measured.

    Attributes:
        cut_after: seconds from the beginning of a reader's stall to its cut in the server's log.
        overdue: readers whose stall was too old when the flood ended.
    """

    options: argparse.Namespace
    limits: Limits
    server: Child
    pair: Child
    flooder: Flooder
    readers: Readers
    log: DeliveryLog
    at_first: dict[str, Any]
    peak_bytes: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    late_ms: float = 0.0
    cuts: list[tuple[str, float, str]] = field(default_factory=list)
    cut_after: list[float] = field(default_factory=list)
    overdue: int = 0

    @property
    def most_seconds(self) -> float:
        """How long a stall may last."""
        return self.limits.write_timeout_seconds + _LATE_SECONDS

    async def run(self) -> None:
        """Flood for the whole time."""
        flooding = asyncio.create_task(self.flooder.flood())
        began = printed = time.monotonic()
        while (second := time.monotonic() - began) < self.options.seconds:
            await asyncio.wait([flooding], timeout=min(0.5, self.options.seconds - second))
            if flooding.done():
                flooding.result()
            known = len(self.cuts)
            line = await self._sample(began)
            await self.readers.replace(peer for peer, _, _ in self.cuts[known:])
            if time.monotonic() - printed >= self.options.every:
                printed = time.monotonic()
                print(line, flush=True)
        flooding.cancel()
        await asyncio.wait([flooding])

    async def _sample(self, began: float) -> str:
        status, report = await asyncio.gather(self.server.ask("status"), self.pair.ask("report"))
        self.peak_bytes = max(self.peak_bytes, status["resident_bytes"])
        self.latencies_ms += report["latencies_ms"]
        self.late_ms = max(self.late_ms, report["late_ms"])
        self.cuts += status["cuts"]
        return (
            f"{status['time'] - began:5.0f} s  RSS {status['resident_bytes'] / MB:.1f} MB"
            f"  fds {status['descriptors']}  connections {status['connections']}"
            f"  {latency(report['latencies_ms'])}"
            f"  sent {self.flooder.relays}  dropped {self.flooder.codes['dropped']}  cut {len(self.cuts)}"
        )

    async def rest(self) -> dict[str, Any]:
        """Reset the readers, wait until everything has its end, and return the server's last status."""
        ended = time.monotonic()
        await self._sample(ended)
        stalls = self.readers.remove_all()
        self.overdue = sum(began is not None and ended - began > self.most_seconds for began in stalls.values())
        self.cut_after = [
            at - began for peer, at, _ in self.cuts if (began := self.readers.began.get(peer)) is not None
        ]
        await self._wait_until_alone()
        # It reads every answer up to the end of the server's half.
        async with asyncio.timeout(_LAST_SECONDS):
            await self.flooder.close()
        self.log.close()
        self.log.add((await self.pair.stop())["log"])
        return await self.server.ask("status")

    async def _wait_until_alone(self) -> None:
        async with asyncio.timeout(_LAST_SECONDS):
            while (await self.server.ask("status"))["connections"] > _WITHOUT_READERS:
                await asyncio.sleep(0.05)

    def goals(self) -> dict[str, bool]:
        """Return the goals that depend on the machine, in words, with whether they were reached."""
        grown_kb = (self.peak_bytes - self.at_first["resident_bytes"]) / 1000 / self.options.readers
        measured = latency(self.latencies_ms)
        longest = max(self.cut_after, default=0.0)
        return {
            f"memory: {grown_kb:.0f} KB more for each reader, at most {_MOST_KB_PER_READER:.0f}": grown_kb
            <= _MOST_KB_PER_READER,
            f"latency of the healthy pair: {measured}, p99 below {_MOST_P99_MS:.0f}": measured.p99 < _MOST_P99_MS,
            f"cut off at most {longest:.1f} s after the first dropped, {self.overdue} overdue at the end;"
            f" at most {self.most_seconds:g} s and 0": longest <= self.most_seconds and not self.overdue,
        }


async def flood(options: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    limits = Limits(**dict(options.limit))
    pin(0, 1)
    server = await Child.start("benchmarks.server", json.dumps(dict(options.limit)))
    pin(server.pid, 0)
    pair = None
    try:
        port = server.ready["port"]
        pair = await Child.start("benchmarks.latency", str(port), _TOPIC, str(_PROBES_PER_SECOND))
        log = DeliveryLog(keep=False)
        payload = json.dumps({"type": "offer", "sdp": "x" * options.payload_bytes}).encode()
        flooder = await Flooder.join(port, _TOPIC, log, payload)
        readers = Readers(port, flooder, log, options.receive_buffer)
        await readers.add(options.readers)
        run = Flood(options, limits, server, pair, flooder, readers, log, await server.ask("status"))
        await run.run()
        at_last = await run.rest()
        await server.stop()
    finally:
        for helper in (server, pair):
            if helper is not None:
                helper.kill()
    return summarize(run, at_last)


def summarize(run: Flood, at_last: dict[str, Any]) -> int:
    """Print what the run found; returns the exit status."""
    flooder = run.flooder
    others = " ".join(f"{code} {n}" for code, n in sorted(flooder.codes.items()) if code != "dropped")
    print(f"\nthe sender: sent {flooder.relays} relays, {flooder.relays / run.options.seconds:.0f}/s", end="; ")
    print(f"answered dropped {flooder.codes['dropped']}, otherwise {others or 0}")
    print(f"the server: accepted {at_last['accepted']}, of which {at_last['undelivered']} came back", end="; ")
    print(f"refused {sum(at_last['refused'].values())}; events dropped {at_last['events_dropped']}")
    print(f"readers: {run.readers.joined} joined, {len(run.cuts)} were cut off", end=" ")
    if run.cut_after:
        print(
            f"after {min(run.cut_after):.1f} to {max(run.cut_after):.1f} s, median {median(run.cut_after):.1f}", end=" "
        )
    print(dict(Counter(reason for _, _, reason in run.cuts)) or "")
    starved = at_last["starved_seconds"] - run.at_first["starved_seconds"]
    print(f"disturbances: others had the server's core for {starved:.1f} s,", end=" ")
    print(f"a probe left {run.late_ms:.1f} ms late at most")
    holds = judge(run.log.balance(at_last))
    holds = (judge(run.goals(), "miss" if run.options.report_only else "FAIL") or run.options.report_only) and holds
    print("flood: passed" if holds else "flood: FAILED")
    return 0 if holds else 1


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flood", description=__doc__)
    parser.add_argument("--readers", type=int, default=200, help="peers that never read (default: %(default)d)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to flood (default: %(default)g)")
    parser.add_argument("--payload-bytes", type=int, default=2500, help="of one message (default: %(default)d)")
    parser.add_argument(
        "--receive-buffer", type=int, default=4096, help="SO_RCVBUF of a reader; 0: the kernel's (default: %(default)d)"
    )
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two lines (default: %(default)g)")
    parser.add_argument(
        "--limit", type=limit, action="append", default=[], metavar="NAME=VALUE", help="one of the server's Limits"
    )
    parser.add_argument("--report-only", action="store_true", help="let the delivery log alone decide the exit status")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(asyncio.run(flood(parse(sys.argv[1:]))))
