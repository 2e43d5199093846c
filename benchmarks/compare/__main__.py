"""Measure our server beside its peers on one machine, or a server that runs already."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.compare import servers
from benchmarks.compare.contest import Contest, measure
from benchmarks.compare.dialects import Wire
from benchmarks.compare.generator import WrongAnswerError
from benchmarks.compare.meter import Meter
from benchmarks.compare.results import Results, plain_table, plot, table
from benchmarks.compare.scenarios import QUICK, SCENARIOS, Scale
from benchmarks.compare.servers import CannotStartError, RunningServers, Server

_DEFAULT_OTHERS = ("bun", "go", "peerjs-server", "y-webrtc")
_ALONE = "server"


_SIZES = {name: type(value) for name, value in dataclasses.asdict(Scale()).items()}


def _size(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in _SIZES:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(_SIZES)}")
    try:
        return name, _SIZES[name](value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is no value for {name}") from None


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="default: all; repeatable")
    parser.add_argument("--rounds", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="little of everything: whether it runs, not how fast")
    parser.add_argument(
        "--scale",
        action="append",
        type=_size,
        default=[],
        metavar="NAME=VALUE",
        help=f"how much of something: {', '.join(_SIZES)}; repeatable",
    )
    parser.add_argument(
        "--per-process", action="store_true", help="give N times as much to do to a server of N --workers"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the order in each round")
    compared = parser.add_argument_group("what is compared")
    compared.add_argument(
        "--peer", action="append", choices=servers.OTHERS, help=f"default: {', '.join(_DEFAULT_OTHERS)}; repeatable"
    )
    compared.add_argument("--no-peers", action="store_true", help="compare with variants and --server alone")
    compared.add_argument("--reactor", default="", help="twistd's, for ours")
    compared.add_argument(
        "--variant",
        action="append",
        type=servers.parse_variant,
        default=[],
        metavar="NAME=WORDS",
        help="ours with other variables (A=B) or options: poll=--reactor=poll, two='signaling --workers=2'; repeatable",
    )
    compared.add_argument(
        "--server",
        action="append",
        type=servers.parse_server,
        default=[],
        metavar="NAME=COMMAND",
        help="any server that speaks our wire; {port} stands for its port; repeatable",
    )
    compared.add_argument(
        "--cluster",
        action="append",
        type=int,
        default=[],
        metavar="NODES",
        help="ours as so many nodes that share topics through Redis, peers on different ones; repeatable. Default: 2,"
        " and 2 workers, unless --peer or --no-peers says who is compared",
    )
    alone = parser.add_argument_group("a server that runs already")
    alone.add_argument("--url", help="where its topics are: ws://host:port/ws/")
    alone.add_argument("--pid", type=int, help="its process on this machine, to measure that as well")
    output = parser.add_argument_group("output")
    output.add_argument("--output", type=Path, default=Path("build/bench"), help="a folder, default: %(default)s")
    output.add_argument("--no-plot", action="store_true")
    return parser.parse_args(arguments)


def _progress(names: Iterator[str], total: int) -> Iterable[str]:
    """Show how far it is, on a terminal."""
    if not sys.stderr.isatty() or find_spec("tqdm") is None:
        return names
    from tqdm import tqdm  # noqa: PLC0415

    bar: Iterable[str] = tqdm(names, total=total, unit="burst", leave=False)
    return bar


def _chosen(options: argparse.Namespace) -> list[Server]:
    """List the servers; those that need what is not installed are left out with a warning."""
    others = []
    for name in [] if options.no_peers else options.peer or _DEFAULT_OTHERS:
        other = servers.OTHERS[name]
        if missing := other.missing():
            print(f"{name} is left out: it needs {missing}", file=sys.stderr)
        else:
            others.append(other.server())
    return [
        servers.ours(options.reactor),
        *options.variant,
        *_several(options),
        *options.server,
        *others,
    ]


def _several(options: argparse.Namespace) -> list[Server]:
    """List those of several processes; a cluster that was not asked for is left out if there is no Redis."""
    clusters = [servers.cluster(nodes) for nodes in options.cluster]
    if options.no_peers or options.peer:
        return clusters
    if not clusters and servers.has_redis():
        clusters = [servers.cluster(2)]
    if not clusters:
        print("cluster-2 is left out: it needs redis-server", file=sys.stderr)
    return [servers.workers(2), *clusters]


def compare(options: argparse.Namespace, scale: Scale, scenarios: list[str]) -> tuple[Results, str]:
    """Measure ours beside the others; returns the results, and what was compared."""
    with RunningServers(_chosen(options)) as running:
        contest = Contest(running, scale, options.rounds, options.seed, per_process=options.per_process)
        for _ in _progress(contest.run(scenarios), contest.bursts(scenarios)):
            pass
        names = [f"{each.server.name} {each.server.version}".strip() for each in running.running.values()]
    return contest.results, ", ".join(names)


def alone(options: argparse.Namespace, scale: Scale, scenarios: list[str]) -> tuple[Results, str]:
    """Measure a server that runs already."""
    url = urlsplit(options.url)
    address = (url.hostname or "127.0.0.1", url.port or 80)
    meter = None if options.pid is None else Meter(options.pid)
    results = Results()
    for name in scenarios:
        for _ in _progress(iter([name] * options.rounds), options.rounds):
            figures = measure(SCENARIOS[name], Wire(url.path), [address], meter, scale)
            results.add(name, _ALONE, figures)
    return results, options.url


def _write(options: argparse.Namespace, results: Results, text: str, title: str, scale: Scale) -> None:
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(f"{title}\n\n{text}\n")
    about = {"title": title, "scale": dataclasses.asdict(scale), "machine": platform.platform()}
    (folder / "results.json").write_text(json.dumps({**about, **results.as_json()}, indent=1))
    if options.no_plot or find_spec("matplotlib") is None:
        return
    plot(results, folder / "results.png", title)


def main(arguments: list[str] | None = None) -> int:
    """Measure, write and print; returns the exit status."""
    options = _options(arguments)
    scale = dataclasses.replace(QUICK if options.quick else Scale(), **dict(options.scale))
    scenarios = options.scenario or [name for name in SCENARIOS if not options.url or options.pid or name != "idle"]
    try:
        results, compared = (alone if options.url else compare)(options, scale, scenarios)
    except (CannotStartError, WrongAnswerError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    title = f"{compared}; Python {platform.python_version()}, {options.rounds} rounds"
    text = plain_table(results) if options.url else table(results)
    _write(options, results, text, title, scale)
    print(f"{title}\n\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
