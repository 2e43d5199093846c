"""Metrics of several processes as if they were of one: sums, and a label for what is a process's own.

A worker's counters never go back: what a worker that died had counted, as far as it was asked, is added to those of the
next. So a rate over a restart is no leap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from signaling.metrics.collector import MetricsResource, ReactorLag
from signaling.workers.listener import Dispatcher
from signaling.workers.supervisor import Answer, Workers

# Of each process, told apart by a label.
_OWN = ("process_", "signaling_reactor_lag_seconds")
# Of workers alone: the listener takes no peers.
_OF_WORKERS = "signaling_connections_max"
_LOWEST = ("signaling_ready", "signaling_backplane_up")
_ONCE = "signaling_build"
# The only histogram of what is now, and not of what was so far.
_OF_NOW = "signaling_topic_peers"

_Key = tuple[str, tuple[tuple[str, str], ...]]


def numbers(registry: CollectorRegistry, process: str) -> Answer:
    """Write all metrics of one process down, for JSON.

    Args:
        process: its name, for the label of what is its own.
    """
    return [
        [metric.name, metric.type, metric.documentation, _samples(metric, process)] for metric in registry.collect()
    ]


def _samples(metric: Metric, process: str) -> list[Any]:
    own = {"process": process} if metric.name.startswith(_OWN) else {}
    return [[sample.name, {**sample.labels, **own}, sample.value] for sample in metric.samples]


class Totals:
    """What the metrics of several processes come to."""

    def __init__(self, *answers: Answer) -> None:
        self._metrics: dict[str, tuple[str, str, dict[_Key, float]]] = {}
        for answer in answers:
            self.add(answer)

    def add(self, answer: Answer) -> None:
        """Add those of one process."""
        for name, kind, text, samples in answer:
            _, _, values = self._metrics.setdefault(name, (kind, text, {}))
            for sample, labels, value in samples:
                key = sample, tuple(labels.items())
                before = values.get(key)
                values[key] = value if before is None else _together(name, before, value)

    def answer(self) -> Answer:
        """Write them down as one process would."""
        return [
            [name, kind, text, [[sample, dict(labels), value] for (sample, labels), value in values.items()]]
            for name, (kind, text, values) in self._metrics.items()
        ]

    def collect(self) -> Iterator[Metric]:
        """List them for Prometheus."""
        for name, kind, text, samples in self.answer():
            metric = Metric(name, text, kind)
            for sample in samples:
                metric.add_sample(*sample)
            yield metric


def _together(name: str, one: float, other: float) -> float:
    if name == _ONCE:
        return one
    return min(one, other) if name in _LOWEST else one + other


class Counted:
    """What the processes that were one worker, one after the other, have counted."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._latest: Answer = []
        self._before: Answer = []

    def with_those_before(self, pid: int | None, answer: Answer | None) -> Answer:
        """Take what the worker answers now.

        Args:
            pid: of the process that was asked.
            answer: None where there was none.

        Returns:
            What counts for this worker; where it did not answer, its counters as they were last.
        """
        if answer is None:
            return Totals(self._before, _counters(self._latest)).answer()
        if pid != self._pid:
            self._pid, self._before = pid, Totals(self._before, _counters(self._latest)).answer()
        self._latest = answer
        return Totals(self._before, answer).answer()


def _counters(answer: Answer) -> Answer:
    return [metric for metric in answer if metric[1] in ("counter", "histogram") and metric[0] != _OF_NOW]


class TotalsResource(MetricsResource):
    """``/metrics`` of a listener and its workers, together.

    Args:
        dispatcher: the listener's server.
        lag: of its reactor.
    """

    def __init__(self, dispatcher: Dispatcher, lag: ReactorLag) -> None:
        super().__init__(dispatcher, lag)
        self._workers = dispatcher.workers
        self._counted = [Counted() for _ in self._workers]

    def collect(self) -> None:
        """Ask the workers, then collect all metrics."""
        pids = [worker.pid for worker in self._workers]
        self._workers.ask().addCallback(self._answered, pids).addErrback(self.failed)

    def _answered(self, answers: list[Answer | None], pids: list[int | None]) -> None:
        totals = Totals()
        for counted, pid, answer in zip(self._counted, pids, answers, strict=True):
            totals.add(counted.with_those_before(pid, answer))
        totals.add([metric for metric in numbers(self._registry, "listener") if metric[0] != _OF_WORKERS])
        totals.add(_own(self._workers, answers))
        self.answer_all(totals)


def _own(workers: Workers, answers: list[Answer | None]) -> Answer:
    """Tell of the workers themselves."""
    up = GaugeMetricFamily("signaling_worker_up", "Whether a worker answered and is in these sums.", labels=["process"])
    restarts = CounterMetricFamily(
        "signaling_worker_restarts", "Workers that died and were started again.", labels=["process"]
    )
    for worker, answer in zip(workers, answers, strict=True):
        name = worker_name(worker.number)
        up.add_metric([name], answer is not None)
        restarts.add_metric([name], worker.deaths)
    return [[metric.name, metric.type, metric.documentation, _samples(metric, "")] for metric in (up, restarts)]


def worker_name(number: int) -> str:
    """Return what a worker is called in a label."""
    return f"worker-{number}"
