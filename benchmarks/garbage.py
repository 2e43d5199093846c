"""What Python's garbage collector costs a server with a crowd of idle peers: ``python -m benchmarks.garbage``.

A full collection visits every object of every connection, and the server does nothing meanwhile. This prints how often
the collector ran while clients did one thing after the other, and how long that took.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.compare.dialects import Wire
from benchmarks.compare.generator import LoadGenerator
from benchmarks.compare.scenarios import Scale, Stage, churn, connect, crowd, room
from benchmarks.compare.servers import RunningServers, Server

_TREE = Path(__file__).parents[1]
_FILE = "collections"
_GENERATIONS = range(3)
_FORCED = 5
_PATIENCE_SECONDS = 10.0
_HEAD = "| | young | ms | middle | ms | full | ms | longest | garbage |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|"


class Collection(NamedTuple):
    """One run of the collector.

    Args:
        found: how many objects were garbage.
    """

    generation: int
    seconds: float
    found: int


class Recording:
    """What ``benchmarks.timed_collections`` has written so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._taken = 1

    @property
    def pid(self) -> int:
        """The server's process."""
        return int(self._path.read_text().split("\n", 1)[0])

    def take(self) -> list[Collection]:
        """Return the collections since the last time."""
        lines = self._path.read_text().splitlines()[self._taken :]
        self._taken += len(lines)
        fields = map(str.split, lines)
        return [Collection(int(generation), float(seconds), int(found)) for generation, seconds, found in fields]

    def force(self) -> list[Collection]:
        """Ask for a full collection, and wait for it."""
        os.kill(self.pid, signal.SIGUSR2)
        until = time.monotonic() + _PATIENCE_SECONDS
        while not (found := self.take()):
            if time.monotonic() > until:
                raise TimeoutError("the server does not collect")
            time.sleep(0.01)  # There is no event for a file that grows.
        return found


def _row(name: str, collections: list[Collection]) -> str:
    cells = []
    for generation in _GENERATIONS:
        seconds = [each.seconds for each in collections if each.generation == generation]
        cells += [str(len(seconds)), f"{1000 * sum(seconds):.1f}"]
    longest = max((each.seconds for each in collections), default=0.0)
    return " | ".join([f"| {name}", *cells, f"{1000 * longest:.1f}", f"{sum(each.found for each in collections)} |"])


def _server(settings: str) -> Server:
    run = [sys.executable, "-m", "benchmarks.timed_collections", _FILE, settings]
    twistd = ["-n", "--pidfile=", "signaling", "--port", "{port}", "--log-level", "warn"]
    return Server("ours", [*run, *twistd], Wire(), {"PYTHONPATH": os.pathsep.join([str(_TREE), *sys.path])})


def measure(options: argparse.Namespace) -> None:
    """Let clients do one thing after the other, and print a row for each."""
    scale = Scale(crowd=options.peers, crowd_seconds=options.seconds, connects=2_000, exchanges=2_000)
    relays_alone, joins_alone = replace(scale, crowd=0), replace(scale, crowd_seconds=0.01)
    phases = [
        (f"{scale.crowd} peers join", crowd, joins_alone),
        (f"100 peers relay for {scale.crowd_seconds:g} s", crowd, relays_alone),
        (f"{scale.connects} join and leave", connect, scale),
        (f"{scale.exchanges} leave topics of {scale.members}, others join", churn, scale),
        (f"a topic of {scale.room} fills", room, scale),
    ]
    with RunningServers([_server(options.settings)]) as servers:
        [running] = servers.running.values()
        recording = Recording(servers.folder / _FILE)
        running.meter.wait_until_idle()
        print(f"{_HEAD}\n{_row('start', recording.take())}")
        with LoadGenerator(running.addresses) as generator:
            stage = Stage(Wire(), generator, running.meter, scale)
            for name, run, stage.scale in phases:
                run(stage)
                stage.wait_until_idle()
                print(_row(name, recording.take()), flush=True)
            print(_row(f"{_FORCED} full collections", [each for _ in range(_FORCED) for each in recording.force()]))
        running.meter.wait_until_idle(_PATIENCE_SECONDS)
        print(_row("all are lost", recording.take()))
        print(_row("a full collection after that", recording.force()))
    names = {"p50_ms": "p50", "p99_ms": "p99", "p999_ms": "p99.9", "max_ms": "longest"}
    print("relays:", ", ".join(f"{text} {stage.figures[name]:.1f} ms" for name, text in names.items()))


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.garbage", description=__doc__)
    parser.add_argument("--peers", type=int, default=15_000, help="that are idle (default: %(default)d)")
    parser.add_argument("--seconds", type=float, default=5.0, help="for which others relay (default: %(default)g)")
    parser.add_argument(
        "--settings",
        default="-",
        help="thresholds, and 'frozen' if the start is to be frozen, instead of the server's own: '700,10,10' are"
        " Python's defaults",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    measure(parse(sys.argv[1:]))
