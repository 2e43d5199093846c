"""The output of a load: figures over time, lines of text, a plot."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

MB = 1e6
_MB_PER_CONNECTION = 0.02


@dataclass(frozen=True)
class Latency:
    """Milliseconds; all are 0 if nothing was measured."""

    p50: float
    p99: float
    p999: float
    max: float

    def __str__(self) -> str:
        return f"p50 {self.p50:.1f} p99 {self.p99:.1f} max {self.max:.1f} ms"


def latency(milliseconds: Iterable[float]) -> Latency:
    """Sum up latencies by nearest rank."""
    ordered = sorted(milliseconds) or [0.0]
    return Latency(*(ordered[len(ordered) * rank // 1000] for rank in (500, 990, 999)), ordered[-1])


@dataclass(frozen=True)
class Sample:
    """The figures of a server under load at one moment.

    Args:
        second: since the start.
        cpu: of the server, as a part of one core, since the sample before; so is ``generator_cpu``.
        starved: for which part of the time the server was ready to run and others had its core.
        relays: accepted a second, since the sample before; so is ``errors``, by code.
        latency: of the healthy pair in the last seconds.
        late_ms: the measuring pair's own delay.
    """

    second: float
    resident_bytes: int
    descriptors: int
    connections: int
    topics: int
    cpu: float
    starved: float
    generator_cpu: float
    load: float
    relays: float
    errors: dict[str, float]
    latency: Latency
    late_ms: float

    def __str__(self) -> str:
        errors = " ".join(f"{code} {rate:.0f}" for code, rate in sorted(self.errors.items()) if rate)
        return (
            f"{self.second:5.0f} s  RSS {self.resident_bytes / MB:.1f} MB  fds {self.descriptors}"
            f"  connections {self.connections}  CPU {self.cpu:.0%} (starved {self.starved:.0%},"
            f" generator {self.generator_cpu:.0%})  {self.latency}"
            f"  relays {self.relays:.0f}/s  errors/s: {errors or 'none'}"
        )


@dataclass(frozen=True)
class Flatness:
    """Whether a figure stayed where it was, after a warm-up.

    Args:
        early: its median in the first quarter after the warm-up.
        late: its median in the last quarter.
        tolerance: by how much it may grow.
    """

    name: str
    early: float
    late: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether it grew by no more than the tolerance."""
        return self.late - self.early <= self.tolerance

    def __str__(self) -> str:
        return f"{self.name}: {self.early:.1f} at first, {self.late:.1f} at last, at most +{self.tolerance:.1f} allowed"


def flatness(samples: Sequence[Sample], warm_up_seconds: float) -> list[Flatness]:
    """Judge memory, and the descriptors that are no connection's, after the warm-up.

    An allocator keeps what a peak of connections needed, so each higher peak may cost memory once.
    """
    peaks = accumulate((sample.connections for sample in samples), max)
    pairs = list(zip(samples, peaks, strict=True))
    steady = [pair for pair in pairs if pair[0].second >= warm_up_seconds] or pairs
    quarter = max(1, len(steady) // 4)
    first, last = steady[:quarter], steady[-quarter:]
    memory = [median(sample.resident_bytes / MB for sample, _ in part) for part in (first, last)]
    others = [median(sample.descriptors - sample.connections for sample, _ in part) for part in (first, last)]
    peak = [median(peak for _, peak in part) for part in (first, last)]
    return [
        Flatness("memory in MB", *memory, max(2.0, memory[0] / 20) + (peak[1] - peak[0]) * _MB_PER_CONNECTION),
        Flatness("descriptors beside connections", *others, 0.0),
    ]


class Progress:
    """A progress bar in seconds on a terminal; elsewhere only the lines."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> Self:
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm  # noqa: PLC0415

            self._bar = tqdm(total=round(self._seconds), unit="s", leave=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def at(self, second: float) -> None:
        """Move to ``second``."""
        if self._bar is not None:
            self._bar.n = min(round(second), round(self._seconds))
            self._bar.refresh()

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text)


@contextmanager
def drawing(path: Path, rows: int, columns: int = 1, dpi: int = 100, **how: Any) -> Iterator[tuple[Any, Any]]:
    """Draw into a PNG file; gives the figure and its axes, as ``pyplot.subplots`` does."""
    # Only a plot needs it, and importing it takes a second.
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(rows, columns, **how)
    yield figure, axes
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)


def plot(samples: Sequence[Sample], path: Path, title: str) -> None:
    """Draw memory, descriptors, latency and rates over time into a PNG file."""
    seconds = [sample.second for sample in samples]
    with drawing(path, 4, sharex=True, figsize=(10, 11)) as (_, (memory, descriptors, delay, rates)):
        memory.plot(seconds, [sample.resident_bytes / MB for sample in samples], label="resident")
        memory.set_ylabel("MB")
        descriptors.plot(seconds, [sample.descriptors for sample in samples], label="descriptors")
        descriptors.plot(seconds, [sample.connections for sample in samples], label="connections")
        for name in ("p50", "p99", "max"):
            delay.plot(seconds, [getattr(sample.latency, name) for sample in samples], label=name)
        delay.set_ylabel("relay latency, ms")
        delay.set_yscale("log")
        rates.plot(seconds, [sample.relays for sample in samples], label="relays/s")
        rates.plot(seconds, [sum(sample.errors.values()) for sample in samples], label="errors/s")
        rates.plot(seconds, [1000 * sample.cpu for sample in samples], label="server CPU, 1000 = one core", alpha=0.5)
        rates.set_xlabel("seconds")
        for axes in (memory, descriptors, delay, rates):
            axes.set_ylim(bottom=None if axes is delay else 0)
            axes.grid(alpha=0.3)
            axes.legend(loc="upper right")
        memory.set_title(title)
