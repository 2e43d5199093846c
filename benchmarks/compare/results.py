"""What was measured: medians, ratios, goals, and how they are written."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from textwrap import fill

from benchmarks.compare.scenarios import Figures
from benchmarks.compare.servers import OURS

_WIDEST = 1.8


@dataclass(frozen=True)
class Measure:
    """A figure that is compared; less is better.

    Args:
        figure: its name among a burst's figures.
        goals: the most that ours may be of another server's.
        floors: the least that it may be: the other is ours as well, and does more.
        ceilings: the most that the other may be by itself.
        bound: the most that ours may be by itself.
    """

    scenario: str
    figure: str
    unit: str
    goals: dict[str, float]
    bound: float | None = None
    floors: dict[str, float] = field(default_factory=dict)
    ceilings: dict[str, float] = field(default_factory=dict)


# A relay that crosses nodes costs at most six times one that does not, one in a worker at most a tenth more.
_CLUSTERS = dict.fromkeys(("cluster-2", "cluster-3"), 1 / 6)
_WORKERS = dict.fromkeys(("workers-2", "workers-4"), 0.9)
_OTHERS = ("bun", "go", "peerjs-server", "y-webrtc")


def _of(bun: float, go: float, peerjs: float | None, y_webrtc: float) -> dict[str, float]:
    """Name the goals beside each of the servers that have one."""
    goals = zip(_OTHERS, (bun, go, peerjs, y_webrtc), strict=True)
    return {name: goal for name, goal in goals if goal is not None}


_LATENCY = _of(1.0, 0.6, 1.0, 1.0)

MEASURES = (
    Measure("relay", "cpu_us", "µs CPU", _of(1.25, 0.5, 0.5, 0.4), floors=_CLUSTERS),
    Measure("relay-small", "cpu_us", "µs CPU", {}),
    Measure("relay-large", "cpu_us", "µs CPU", {}),
    Measure("burst", "cpu_us", "µs CPU", _of(0.8, 0.3, 0.35, 0.25)),
    Measure("call", "cpu_us", "µs CPU", _of(1.8, 0.7, 0.5, 0.45)),
    Measure("connect", "cpu_us", "µs CPU", _of(2.0, 0.85, 0.5, 0.45)),
    Measure("room", "cpu_us", "µs CPU", _of(1.0, 0.4, None, 0.6)),
    Measure("churn", "cpu_us", "µs CPU", {}),
    Measure("idle", "bytes", "bytes", _of(0.25, 0.04, 0.14, 0.13), bound=1_300.0),
    Measure("latency", "cpu_us", "µs CPU", {}),
    Measure("latency", "p50_ms", "ms p50", {}),
    Measure("latency", "p99_ms", "ms p99", _LATENCY),
    Measure("crowd", "cpu_us", "µs CPU", {}),
    Measure("crowd", "p50_ms", "ms p50", {}),
    Measure("crowd", "p99_ms", "ms p99", {}),
    Measure("crowd", "p999_ms", "ms p99.9", _LATENCY),
    Measure("crowd", "max_ms", "ms maximum", {}),
    Measure("steady", "cpu_us", "µs CPU", {}, floors=_CLUSTERS | _WORKERS),
    Measure("steady", "p99_ms", "ms p99", {}, ceilings=dict.fromkeys(_CLUSTERS, 20.0)),
)


@dataclass(frozen=True)
class Comparison:
    """Ours beside another server, in one measure.

    Args:
        ratios: ours by theirs, for each round.
    """

    measure: Measure
    other: str
    ours: float
    theirs: float
    ratios: Sequence[float]

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios."""
        return median(self.ratios)

    @property
    def verdict(self) -> str:
        """The goal, and whether it is met."""
        measure, other = self.measure, self.other
        goal, floor, ceiling = measure.goals.get(other), measure.floors.get(other), measure.ceilings.get(other)
        if floor is not None:
            return f"≥ {floor:.2g} | {'met' if self.ratio >= floor else 'missed'}"
        if ceiling is not None:
            return f"theirs {_verdict(self.theirs, ceiling)}"
        return "" if goal is None else _verdict(self.ratio, goal)


def _verdict(value: float, goal: float) -> str:
    return f"≤ {goal:,g} | {'met' if value <= goal else 'missed'}"


class Results:
    """The figures of all rounds, by scenario and server."""

    def __init__(self) -> None:
        self.rounds: defaultdict[str, defaultdict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))

    def add(self, scenario: str, server: str, figures: Figures) -> None:
        """Add what one burst measured."""
        self.rounds[scenario][server].append(figures)

    def median(self, scenario: str, server: str, figure: str) -> float | None:
        """Return the median of a figure, or None if it was not measured."""
        values = self._values(scenario, server, figure)
        return median(values) if values else None

    def comparisons(self, measure: Measure) -> Iterator[Comparison]:
        """Compare ours with each of the others that were measured in the same rounds."""
        ours = self._values(measure.scenario, OURS, measure.figure)
        for other in self._of(measure.scenario):
            theirs = self._values(measure.scenario, other, measure.figure)
            if other != OURS and ours and theirs:
                # The memory of a process may not have grown at all.
                ratios = [mine / its if its else math.inf for mine, its in zip(ours, theirs, strict=True)]
                yield Comparison(measure, other, median(ours), median(theirs), ratios)

    def _values(self, scenario: str, server: str, figure: str) -> list[float]:
        return [figures[figure] for figures in self._of(scenario).get(server, []) if figure in figures]

    def _of(self, scenario: str) -> Mapping[str, list[Figures]]:
        return self.rounds.get(scenario, {})

    def median_of_all(self, figure: str) -> float | None:
        """Return the median of a figure over all bursts of all servers, or None if it was not measured."""
        rounds = [figures for servers in self.rounds.values() for each in servers.values() for figures in each]
        values = [figures[figure] for figures in rounds if figure in figures]
        return median(values) if values else None

    def as_json(self) -> dict[str, object]:
        """Return all figures of all rounds, and the ratios."""
        ratios = [
            {"scenario": measure.scenario, "figure": measure.figure, "other": each.other, "ratio": each.ratio}
            for measure in MEASURES
            for each in self.comparisons(measure)
        ]
        return {"rounds": self.rounds, "ratios": ratios}


def table(results: Results) -> str:
    """Write the ratios as a Markdown table, one line for each scenario and other server."""
    lines = [
        "| scenario | unit | server | ours | theirs | ratio | rounds | goal | |",
        "|---|---|---|--:|--:|--:|---|---|---|",
    ]
    for measure in MEASURES:
        lines += _bound_line(results, measure)
        for each in results.comparisons(measure):
            spread = f"{min(each.ratios):.2f} to {max(each.ratios):.2f}"
            lines.append(
                f"| {measure.scenario} | {measure.unit} | {each.other} | {_number(each.ours)} | {_number(each.theirs)}"
                f" | {each.ratio:.2f} | {spread} | {each.verdict or '|'} |"
            )
    return "\n".join([*lines, "", _quietness(results)])


def _quietness(results: Results) -> str:
    starved = results.median_of_all("starved") or 0.0
    line = f"Servers waited for their core, which others had, for {starved:.0%} of the time."
    late = results.median_of_all("late_p99_ms")
    return line if late is None else f"{line} One message in a hundred left {late:.2g} ms late or more."


def _bound_line(results: Results, measure: Measure) -> list[str]:
    value = results.median(measure.scenario, OURS, measure.figure)
    if measure.bound is None or value is None:
        return []
    verdict = _verdict(value, measure.bound)
    return [f"| {measure.scenario} | {measure.unit} | | {_number(value)} | | | | {verdict} |"]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def plain_table(results: Results) -> str:
    """Write all medians, for a server that is compared with no other."""
    lines = ["| scenario | server | figure | median |", "|---|---|---|--:|"]
    for scenario, servers in results.rounds.items():
        for server, rounds in servers.items():
            for figure in rounds[0]:
                lines.append(f"| {scenario} | {server} | {figure} | {_number(_median_of(rounds, figure))} |")
    return "\n".join(lines)


def _median_of(rounds: Sequence[Figures], figure: str) -> float:
    return median(figures[figure] for figures in rounds)


def _is_known(results: Results, measure: Measure) -> bool:
    servers = results.rounds.get(measure.scenario, {}).values()
    return bool(servers) and all(measure.figure in figures for rounds in servers for figures in rounds)


def plot(results: Results, path: Path, title: str) -> None:
    """Draw every measure as bars, the rounds as dots, into a PNG file."""
    # Only a plot needs it, and importing it takes a second.
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    # A server that was only named by its address has no CPU time and no memory.
    drawn = [measure for measure in MEASURES if _is_known(results, measure)]
    if not drawn:
        return
    figure, axes = pyplot.subplots(len(drawn), 1, figsize=(9, 2.0 * len(drawn)), squeeze=False)
    for measure, axis in zip(drawn, axes[:, 0], strict=True):
        shown = results.rounds[measure.scenario]
        for place, (server, rounds) in enumerate(reversed(shown.items())):
            values = [figures[measure.figure] for figures in rounds]
            axis.barh(place, median(values), color="tab:blue" if server == OURS else "lightsteelblue")
            axis.plot(values, [place] * len(values), ".", color="black", markersize=3)
        axis.set_yticks(range(len(shown)), reversed(shown))
        axis.set_title(f"{measure.scenario}, {measure.unit}: less is better", loc="left", fontsize=9)
        # One round that was disturbed would squeeze all others together.
        axis.set_xlim(0, _WIDEST * max(_median_of(rounds, measure.figure) for rounds in shown.values()))
    figure.suptitle(fill(title, 100), fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    figure.savefig(path, dpi=100)
