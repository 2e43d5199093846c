"""Kill a worker in mid-run, and keep the books: ``python -m benchmarks.killing`` (docs/workers.md).

Pairs relay to each other, in topics of every worker; some of their messages go to nobody. Half-way one worker is
killed. Its pairs come back and go on. At the end every message has to have one of three ends: it was delivered, its
sender was answered, or it was cut, which only those may be that were under way in the killed worker. What the other
pairs noticed of all that has to be nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections import Counter

from benchmarks.client import Client, Message, NotJoinedError, text_frame
from benchmarks.compare.meter import children
from benchmarks.compare.payloads import candidate
from benchmarks.observe import Samples, Server
from signaling import Limits
from signaling.workers.topic_router import TopicRouter

_UNDER_WAY = 4
_TO_NOBODY = 10
_PATIENCE_SECONDS = 20.0
_AGAIN_SECONDS = 0.02


class Books:
    """What became of the messages of one worker's topics.

    Attributes:
        counts: by what happened.
        open: the messages without an end, with their senders.
        wrong: what must not happen.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.open: dict[str, Caller] = {}
        self.wrong: list[str] = []

    def ended(self, msg_id: str, how: str) -> None:
        """Take note of an end."""
        if self.open.pop(msg_id, None) is None:
            self.wrong.append(f"message {msg_id} was {how}, twice or by mistake")
        self.counts[how] += 1

    def cut(self, lost: Caller) -> None:
        """Take note that a connection ended, with all that its peer had under way."""
        for msg_id in [msg_id for msg_id, sender in self.open.items() if sender is lost]:
            self.ended(msg_id, "cut")


class Caller(Client):
    """One end of a pair, that keeps some messages under way."""

    def __init__(self, books: Books) -> None:
        super().__init__()
        self._books = books
        self._room = asyncio.Semaphore(_UNDER_WAY)
        self._number = 0

    async def say(self, target: str) -> None:
        """Send one message, when there is room for it."""
        await self._room.acquire()
        if self.ended.done():
            raise ConnectionError("it ended")
        self._number += 1
        to = "nobody" if self._number % _TO_NOBODY == 0 else target
        msg_id = f"{self.id}-{self._number}"
        self._books.open[msg_id] = self
        self._books.counts["sent"] += 1
        body = b'{"type":"ice-candidate","to":"%b","msgId":"%b","payload":%b}'
        self.send(text_frame(body % (to.encode(), msg_id.encode(), candidate(self._number))))

    def heard(self, message: Message) -> None:
        """Keep the books."""
        if message.type == "error":
            self._books.ended(message.msg_id, "answered")
            self.release()
        elif message.sender:
            sender = self._books.open.get(message.msg_id)
            self._books.ended(message.msg_id, "delivered")
            if sender is not None:
                sender.release()

    def release(self) -> None:
        """Make room for one message more."""
        self._room.release()

    def over(self, end: object) -> None:
        """Wake who waits for room that will never come."""
        self._room.release()


class Pair:
    """Two peers of a topic, until the end, over as many connections as that takes."""

    def __init__(self, port: int, topic: str, books: Books) -> None:
        self._port = port
        self._topic = topic
        self._books = books

    async def run(self, until: float) -> None:
        """Relay, and come back where the connection is lost."""
        while time.monotonic() < until:
            callers = await self._meet(until)
            talks = [self._talk(*callers, until), self._talk(*reversed(callers), until)]
            broken = await asyncio.gather(*talks, return_exceptions=True)
            await self._part(callers, any(isinstance(each, ConnectionError) for each in broken))

    async def _meet(self, until: float) -> tuple[Caller, Caller]:
        first = await self._join(until)
        return first, await self._join(until)

    async def _join(self, until: float) -> Caller:
        while True:
            try:
                caller = await Caller.join(self._port, self._topic, self._books)
            except NotJoinedError:
                self._books.counts["joins refused"] += 1
                if time.monotonic() > until + _PATIENCE_SECONDS:
                    raise
                await asyncio.sleep(_AGAIN_SECONDS)  # As a client would.
            else:
                self._books.counts["joined"] += 1
                return caller

    async def _talk(self, sender: Caller, target: Caller, until: float) -> None:
        while time.monotonic() < until:
            await sender.say(target.id)
            await asyncio.sleep(0)
        # With all its room back, all that it sent has an end.
        for _ in range(_UNDER_WAY):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await sender._room.acquire()
            if sender.ended.done():
                raise ConnectionError("it ended")

    async def _part(self, callers: tuple[Caller, Caller], broken: bool) -> None:
        for caller in callers:
            if broken:
                caller.reset()
                self._books.counts["lost"] += 1
                self._books.cut(caller)
            else:
                await caller.close()
                self._books.counts["closed"] += 1


async def load(server: Server, options: argparse.Namespace) -> tuple[list[Books], Samples]:
    """Let pairs relay, kill the first worker, and wait for all; returns the books by worker, and the last metrics."""
    router, books = TopicRouter(options.workers, Limits()), [Books() for _ in range(options.workers)]
    topics = [f"pair-{number}" for number in range(options.pairs)]
    until = time.monotonic() + options.seconds
    running = [asyncio.create_task(Pair(server.port, topic, books[router.owner(topic)]).run(until)) for topic in topics]
    await asyncio.sleep(options.seconds / 2)
    os.kill(children(server.pid)[0], signal.SIGKILL)
    await asyncio.gather(*running)
    return books, await asyncio.to_thread(server.scrape)


def verdict(books: list[Books], last: Samples) -> dict[str, bool]:
    """Return everything that was to hold, in words, with whether it does."""
    checks: dict[str, bool] = {}
    for worker, book in enumerate(books):
        counts = book.counts
        parts = {name: counts[name] for name in ("delivered", "answered", "cut")}
        told = " + ".join(f"{name} {count}" for name, count in parts.items())
        checks[f"worker {worker}: sent {counts['sent']} = {told}"] = counts["sent"] == sum(parts.values())
        checks[f"worker {worker}: without an end {len(book.open)}, wrong {len(book.wrong)}"] = not (
            book.open or book.wrong
        )
        disturbed = counts["lost"] + counts["cut"] + counts["joins refused"]
        if worker:
            checks[f"worker {worker}: its peers noticed nothing ({disturbed} disturbances)"] = not disturbed
        else:
            checks[f"worker {worker}: {counts['lost']} peers lost, and as many came back"] = counts["lost"] > 0 and (
                counts["joined"] == counts["lost"] + counts["closed"]
            )
    return checks | _compared(books, last)


def _compared(books: list[Books], last: Samples) -> dict[str, bool]:
    """Compare with the server's own counters; what the killed worker counted since it was last asked is gone."""
    after = sum((book.counts for book in books[1:]), Counter())
    least, most = after["delivered"], after["delivered"] + books[0].counts["delivered"] + books[0].counts["cut"]
    counted = int(last["signaling_relays_total", "accepted", "ice-candidate"])
    restarts = sum(value for name, value in last.items() if name[0] == "signaling_worker_restarts_total")
    return {
        f"server: accepted {counted}, from {least} of the others to {most} of all": least <= counted <= most,
        f"server: {restarts:g} restart": restarts == 1,
        "server: no peers and no topics are left": not (last["signaling_peers",] or last["signaling_topics",]),
    }


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.killing", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--pairs", type=int, default=40, help="default: %(default)s")
    options = parser.parse_args()
    server = Server(options.workers)
    try:
        books, last = asyncio.run(load(server, options))
    finally:
        server.stop()
    checks = verdict(books, last)
    for text, holds in checks.items():
        print(f"{'ok  ' if holds else 'FAIL'} {text}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
