"""``/metrics`` of a listener and its workers: sums, and a label ``process`` for metrics of one process.

A counter never decreases: the counters of a worker that died, as of its last scrape, are added to those of its
successor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from signaling.metrics.collector import MetricsResource, ReactorLag
from signaling.workers.listener import WorkerListener
from signaling.workers.supervisor import Answer, Supervisor

# Not summed, but labelled with the process.
_PER_PROCESS = ("process_", "signaling_reactor_lag_seconds")
# The listener has no peers.
_WORKERS_ONLY = "signaling_connections_max"
_MINIMUM = ("signaling_ready", "signaling_backplane_up")
_MAXIMUM = ("signaling_ice_source_age_seconds",)
_SAME_EVERYWHERE = "signaling_build"
# The only histogram of the current state; the others accumulate like counters.
_CURRENT_HISTOGRAM = "signaling_topic_peers"

_Key = tuple[str, tuple[tuple[str, str], ...]]


def snapshot(registry: CollectorRegistry, process: str) -> Answer:
    """Return all metrics of one process, as values for JSON.

    Args:
        process: the value of the label ``process``.
    """
    return [
        [metric.name, metric.type, metric.documentation, _samples(metric, process)] for metric in registry.collect()
    ]


def _samples(metric: Metric, process: str) -> list[Any]:
    label = {"process": process} if metric.name.startswith(_PER_PROCESS) else {}
    return [[sample.name, {**sample.labels, **label}, sample.value] for sample in metric.samples]


class MetricSums:
    """The metrics of several processes, added up.

    Args:
        answers: the metrics of each process.
    """

    def __init__(self, *answers: Answer) -> None:
        self._metrics: dict[str, tuple[str, str, dict[_Key, float]]] = {}
        for answer in answers:
            self.add(answer)

    def add(self, answer: Answer) -> None:
        """Add the metrics of one process."""
        for name, kind, text, samples in answer:
            _, _, values = self._metrics.setdefault(name, (kind, text, {}))
            for sample, labels, value in samples:
                key = sample, tuple(labels.items())
                before = values.get(key)
                values[key] = value if before is None else _combine(name, before, value)

    def answer(self) -> Answer:
        """Return the sums in the form of one process's answer."""
        return [
            [name, kind, text, [[sample, dict(labels), value] for (sample, labels), value in values.items()]]
            for name, (kind, text, values) in self._metrics.items()
        ]

    def collect(self) -> Iterator[Metric]:
        """List the sums, for ``prometheus_client``."""
        for name, kind, text, samples in self.answer():
            metric = Metric(name, text, kind)
            for sample in samples:
                metric.add_sample(*sample)
            yield metric


def _combine(name: str, one: float, other: float) -> float:
    if name == _SAME_EVERYWHERE:
        return one
    if name in _MAXIMUM:
        return max(one, other)
    return min(one, other) if name in _MINIMUM else one + other


class WorkerMetrics:
    """The metrics of one worker, whose counters go on when its process is restarted."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._latest: Answer = []
        self._earlier_processes: Answer = []

    def update(self, pid: int | None, answer: Answer | None) -> Answer:
        """Add the counters of the worker's earlier processes to its answer.

        Args:
            pid: the process that was asked.
            answer: None if the worker did not answer.

        Returns:
            The worker's metrics; if it did not answer, its last known counters only.
        """
        if answer is None:
            return MetricSums(self._earlier_processes, _counters(self._latest)).answer()
        if pid != self._pid:
            self._earlier_processes = MetricSums(self._earlier_processes, _counters(self._latest)).answer()
            self._pid = pid
        self._latest = answer
        return MetricSums(self._earlier_processes, answer).answer()


def _counters(answer: Answer) -> Answer:
    return [metric for metric in answer if metric[1] in ("counter", "histogram") and metric[0] != _CURRENT_HISTOGRAM]


class AggregatedMetricsResource(MetricsResource):
    """``/metrics`` of a listener and its workers, together.

    Args:
        listener: the listener of the workers.
        lag: measures its reactor.
    """

    def __init__(self, listener: WorkerListener, lag: ReactorLag) -> None:
        super().__init__(listener, lag)
        self._workers = listener.supervisor
        self._worker_metrics = [WorkerMetrics() for _ in self._workers]

    def collect(self) -> None:
        """Ask the workers for their metrics, then answer the waiting requests."""
        pids = [worker.pid for worker in self._workers]
        self._workers.request_metrics().addCallback(self._answered, pids).addErrback(self.failed)

    def _answered(self, answers: list[Answer | None], pids: list[int | None]) -> None:
        sums = MetricSums()
        for metrics, pid, answer in zip(self._worker_metrics, pids, answers, strict=True):
            sums.add(metrics.update(pid, answer))
        sums.add([metric for metric in snapshot(self._registry, "listener") if metric[0] != _WORKERS_ONLY])
        sums.add(_worker_states(self._workers, answers))
        self.answer_all(sums)


def _worker_states(workers: Supervisor, answers: list[Answer | None]) -> Answer:
    up = GaugeMetricFamily("signaling_worker_up", "1 if the worker answered this scrape.", labels=["process"])
    restarts = CounterMetricFamily("signaling_worker_restarts", "How often the worker died.", labels=["process"])
    for worker, answer in zip(workers, answers, strict=True):
        name = worker_name(worker.number)
        up.add_metric([name], answer is not None)
        restarts.add_metric([name], worker.deaths)
    return [[metric.name, metric.type, metric.documentation, _samples(metric, "")] for metric in (up, restarts)]


def worker_name(number: int) -> str:
    """Return the value of the label ``process`` for a worker."""
    return f"worker-{number}"
