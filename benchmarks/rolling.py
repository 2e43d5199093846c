"""Two nodes behind HAProxy, restarted in turn under steady calls: ``python -m benchmarks.rolling``."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.client import Client, Message, NotJoinedError, text_frame
from benchmarks.processes import judge, required, wait_until
from benchmarks.report import Progress, drawing, latency
from tests.harness.server import HOST, Node, Server, launch
from tests.programs import free_port

_CONFIGURATION = Path(__file__).parents[1] / "deploy" / "haproxy.cfg"
_CANDIDATES = 5
# Browsers find their candidates over some time, so that calls are on their way when a node stops.
_CANDIDATE_SECONDS = 0.05
_PATIENCE_SECONDS = 2.0
_MOST_ATTEMPTS = 5
# As the client for browsers waits, less a random part of up to a half.
_FIRST_BACKOFF_SECONDS, _MOST_BACKOFF_SECONDS = 0.25, 4.0
_NOTICE_SECONDS = 30.0
# HAProxy hands over its table of topics once it has found no peer that has one.
_LEARNING_SECONDS = 11.0
_LOST = (NotJoinedError, ConnectionError, TimeoutError)


def backoff(attempt: int) -> float:
    """Return the seconds to wait after so many attempts in vain, from 1 up."""
    longest = min(_MOST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1))
    return longest * random.uniform(0.5, 1)


@dataclass
class Call:
    """One call set up, or given up.

    Args:
        start: seconds since the beginning.
        seconds: from the first attempt to the last candidate.
        failures: why attempts failed.
    """

    start: float
    seconds: float
    failures: list[str]

    @property
    def given_up(self) -> bool:
        """Whether the client's own retry was not enough."""
        return len(self.failures) == _MOST_ATTEMPTS


def relay(kind: str, to: str) -> bytes:
    """Frame one relay of a session's usual size."""
    size = 120 if kind == "ice-candidate" else 1500
    return text_frame(f'{{"type":"{kind}","to":"{to}","payload":"{size * "x"}"}}'.encode())


async def set_up(port: int, topic: str) -> None:
    """Let two peers join ``topic`` and exchange an offer, an answer and candidates.

    Raises:
        NotJoinedError: if one cannot join.
        ConnectionError: if a connection ends before.
        TimeoutError: if they do not receive each other's messages.
    """
    peers: list[Client] = []
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            for _ in range(2):
                peers.append(await Client.join(port, topic))
            callee, caller = peers
            if callee.id not in caller.peers:
                raise TimeoutError("they are on two nodes")
            await until_lost(exchange(caller, callee), peers)
    finally:
        for peer in peers:
            peer.reset()


async def until_lost(doing: Coroutine[Any, Any, None], peers: list[Client]) -> None:
    """Do something with ``peers`` as long as all of them have their connection."""
    task = asyncio.ensure_future(doing)
    try:
        done, _ = await asyncio.wait([task, *(peer.ended for peer in peers)], return_when=asyncio.FIRST_COMPLETED)
    finally:
        task.cancel()
    if task not in done:
        raise ConnectionError("a connection ended")
    await task


async def exchange(caller: Client, callee: Client) -> None:
    """Exchange what a call takes."""
    for sender, receiver, kind in ((caller, callee, "offer"), (callee, caller, "answer")):
        received = receiver.next_message(lambda message, kind=kind: message.type == kind)
        sender.send(relay(kind, receiver.id))
        await received
    for _ in range(_CANDIDATES):
        await asyncio.sleep(_CANDIDATE_SECONDS)
        for sender, receiver in ((caller, callee), (callee, caller)):
            received = receiver.next_message(lambda message: message.type == "ice-candidate")
            sender.send(relay("ice-candidate", receiver.id))
            await received


class RoomPeer(Client):
    """A peer of a room, which knows who else is there."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[str] = set()

    def received(self, message: Message) -> None:
        """Keep the list."""
        if message.type == "peer-list":
            self.known = {entry.id for entry in message.peers}
        elif message.type == "peer-joined":
            self.known.add(message.peer_id)
        elif message.type == "peer-left":
            self.known.discard(message.peer_id)


class Room:
    """Two peers that stay, and reconnect when their connection is lost."""

    def __init__(self, port: int, topic: str) -> None:
        self.topic = topic
        self._port = port
        self._peers: list[RoomPeer | None] = [None, None]
        self.tasks = [asyncio.create_task(self._stay(n)) for n in range(2)]

    async def _stay(self, n: int) -> None:
        attempt = 0
        while True:
            with suppress(*_LOST):
                self._peers[n] = peer = await RoomPeer.join(self._port, self.topic)
                attempt = 0
                await peer.ended
            self._peers[n] = None
            attempt += 1
            await asyncio.sleep(backoff(attempt))

    @property
    def whole(self) -> bool:
        """Whether both are there and know each other."""
        first, second = self._peers
        return first is not None and second is not None and second.id in first.known and first.id in second.known

    async def admits(self) -> bool:
        """Return whether a new peer meets both."""
        peer = await RoomPeer.join(self._port, self.topic)
        met = {other.id for other in self._peers if other is not None} <= set(peer.peers)
        peer.reset()
        return met and self.whole


@dataclass
class Rolling:
    """One run, and what it measured."""

    options: argparse.Namespace
    port: int
    began: float = field(default_factory=time.monotonic)
    calls: list[Call] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)
    apart: list[tuple[float, int]] = field(default_factory=list)
    rooms: list[Room] = field(default_factory=list)

    @property
    def second(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def note(self, text: str, progress: Progress) -> None:
        """Record and print what happens now."""
        self.events.append((self.second, text))
        progress.line(f"{self.second:5.1f} s  {text}")

    async def call(self, n: int) -> None:
        """Set a call up as a client does, with its retries."""
        start, failures = self.second, []
        while len(failures) < _MOST_ATTEMPTS:
            try:
                await set_up(self.port, f"call-{n}")
            except _LOST as error:
                failures.append(str(error) or "they do not receive each other's messages")
                await asyncio.sleep(backoff(len(failures)))
            else:
                break
        self.calls.append(Call(start, self.second - start, failures))

    async def call_steadily(self) -> None:
        """Start calls at a fixed rate, whatever becomes of those before."""
        async with asyncio.TaskGroup() as running:
            with suppress(asyncio.CancelledError):
                n, due = 0, time.monotonic()
                while True:
                    running.create_task(self.call(n))
                    n, due = n + 1, due + 1 / self.options.rate
                    await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def watch_rooms(self) -> None:
        """Count every 50 ms how many rooms are not whole."""
        while True:
            self.apart.append((self.second, sum(not room.whole for room in self.rooms)))
            await asyncio.sleep(0.05)

    async def rooms_whole(self) -> None:
        """Wait until all are."""
        if not await wait_until(lambda: all(room.whole for room in self.rooms), _NOTICE_SECONDS):
            raise TimeoutError("a room is not whole")


def configuration(options: argparse.Namespace, port: int, nodes: list[Node]) -> str:
    """Return ``deploy/haproxy.cfg`` for this machine, without TLS."""
    text = _CONFIGURATION.read_text()
    changes = {
        ":443 ssl crt /etc/haproxy/signaling.pem alpn http/1.1": f"{HOST}:{port}",
        "127.0.0.1:10000": f"{HOST}:{free_port()}",
        "10.0.0.11:8081": f"{HOST}:{nodes[0].port}",
        "10.0.0.12:8081": f"{HOST}:{nodes[1].port}",
        "maxconn 50000": "maxconn 2000",
        "inter 1s fastinter 250ms": f"inter {options.check_ms} fastinter {options.check_ms // 4}",
    }
    for old, new in changes.items():
        if old not in text:
            raise ValueError(f"{_CONFIGURATION.name} has no {old!r}")
        text = text.replace(old, new)
    return text


async def roll(options: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    haproxy = required("haproxy")
    nodes = [Node(f"--drain-delay={options.drain_delay}", f"--trusted-proxy={HOST}", name=name) for name in "ab"]
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for node in nodes:
            node.start()
            stack.callback(node.end)
        run = Rolling(options, free_port())
        file = Path(folder, "haproxy.cfg")
        file.write_text(configuration(options, run.port, nodes))
        proxy = launch([haproxy, "-db", "-f", str(file)], port=run.port)
        stack.callback(proxy.end)
        proxy.wait_until_accepting()
        progress = stack.enter_context(Progress(3 * options.seconds))
        run.rooms = [Room(run.port, f"room-{n}") for n in range(options.rooms)]
        await run.rooms_whole()
        background = [asyncio.create_task(run.call_steadily()), asyncio.create_task(run.watch_rooms())]
        for node in nodes:
            await asyncio.sleep(options.seconds)
            await restart(run, node, proxy, progress)
        await asyncio.sleep(options.seconds)
        if options.reload:
            await asyncio.sleep(max(0.0, _LEARNING_SECONDS - run.second))
            run.note("HAProxy reloads", progress)
            successor = launch([haproxy, "-db", "-f", str(file), "-sf", str(proxy.pid)])
            stack.callback(successor.end)
            await asyncio.to_thread(proxy.next_line, "Proxy public stopped")
            await asyncio.sleep(options.seconds)
        background[0].cancel()
        await background[0]
        await run.rooms_whole()
        admitting = sum([await room.admits() for room in run.rooms])
        for task in (background[1], *(task for room in run.rooms for task in room.tasks)):
            task.cancel()
    return summarize(run, admitting)


async def restart(run: Rolling, node: Node, proxy: Server, progress: Progress) -> None:
    """Restart one node as an operator would, and wait until HAProxy uses it again."""
    run.note(f"{node.name} stops", progress)
    stopping = asyncio.create_task(asyncio.to_thread(node.stop))
    await asyncio.to_thread(proxy.next_line, f"Server nodes/{node.name} is DOWN")
    run.note(f"HAProxy leaves {node.name}", progress)
    await stopping
    run.note(f"{node.name} is gone", progress)
    await asyncio.to_thread(node.start)
    await asyncio.to_thread(proxy.next_line, f"Server nodes/{node.name} is UP")
    run.note(f"HAProxy uses {node.name} again", progress)


def summarize(run: Rolling, admitting: int) -> int:
    """Print and plot what the run found; returns the exit status."""
    attempts = Counter(len(call.failures) for call in run.calls)
    given_up = sum(call.given_up for call in run.calls)
    print(f"\ncalls: {len(run.calls)}, {latency(1000 * call.seconds for call in run.calls)}")
    for failures, count in sorted(attempts.items()):
        print(f"  {count} set up at attempt {failures + 1}" if failures < _MOST_ATTEMPTS else f"  {count} given up")
    for reason, count in Counter(reason for call in run.calls for reason in call.failures).most_common():
        print(f"  {count} attempts failed: {reason}")
    longest = longest_apart(run.apart)
    print(f"rooms: {len(run.rooms)}, at least one not whole for at most {longest:.1f} s at a time")
    whole = admitting == len(run.rooms)
    judge(
        {
            f"calls given up: {given_up}": not given_up,
            f"rooms in which a new peer meets everybody at the end: {admitting}": whole,
        }
    )
    if run.options.plot:
        plot(run, Path(run.options.plot))
    passed = whole and not given_up and bool(run.calls)
    print("rolling: passed" if passed else "rolling: FAILED")
    return 0 if passed else 1


def longest_apart(counts: list[tuple[float, int]]) -> float:
    """Return for how many seconds at a time a room was not whole."""
    longest, since = 0.0, None
    for second, count in counts:
        since = (second if since is None else since) if count else None
        longest = max(longest, second - since if since is not None else 0.0)
    return longest


def plot(run: Rolling, path: Path) -> None:
    """Draw set-up times, rooms that are not whole, and the restarts into a PNG file."""
    with drawing(path, 2, sharex=True, figsize=(10, 6), height_ratios=[3, 1]) as (_, (times, rooms)):
        kinds: list[tuple[str, str, Callable[[Call], bool]]] = [
            ("first attempt", "tab:blue", lambda call: not call.failures),
            ("after retries", "tab:orange", lambda call: bool(call.failures) and not call.given_up),
            ("given up", "tab:red", lambda call: call.given_up),
        ]
        for label, colour, wanted in kinds:
            calls = [call for call in run.calls if wanted(call)]
            seconds = [1000 * call.seconds for call in calls]
            times.scatter([call.start for call in calls], seconds, s=6, color=colour, label=f"{label}: {len(calls)}")
        times.set_yscale("log")
        times.set_ylabel("call set-up, ms")
        times.legend(loc="upper left")
        rooms.step([second for second, _ in run.apart], [count for _, count in run.apart], color="tab:red")
        rooms.set_ylabel(f"rooms of {len(run.rooms)}\nnot whole")
        rooms.set_xlabel("seconds")
        for second, text in run.events:
            for axes in (times, rooms):
                axes.axvline(second, color="grey", linewidth=0.8, linestyle="--")
            times.text(
                second, 0.98, f" {text}", rotation=90, va="top", fontsize=7, transform=times.get_xaxis_transform()
            )
        times.set_title(f"{run.options.rate:g} calls a second through HAProxy while both nodes are restarted")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rolling", description=__doc__)
    parser.add_argument("--rate", type=float, default=20.0, help="calls a second (default: %(default)g)")
    parser.add_argument("--rooms", type=int, default=50, help="rooms of two that stay (default: %(default)d)")
    parser.add_argument("--seconds", type=float, default=10.0, help="before, between and after (default: %(default)g)")
    parser.add_argument("--drain-delay", type=float, default=5.0, help="of the nodes (default: %(default)g)")
    parser.add_argument("--check-ms", type=int, default=1000, help="between HAProxy's checks (default: %(default)d)")
    parser.add_argument("--reload", action="store_true", help="reload HAProxy at the end as well")
    parser.add_argument("--plot", default="build/rolling.png", help="where to plot; empty for nowhere")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(asyncio.run(roll(parse(sys.argv[1:]))))
