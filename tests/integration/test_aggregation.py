"""/metrics of all workers: sums that never decrease, and labels for metrics of one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from signaling.metrics.aggregation import AggregatedMetricsResource, MetricSums, snapshot
from signaling.metrics.collector import ReactorLag, make_registry
from tests.integration.test_metrics import MeteredServer
from tests.integration.workers_harness import WorkersHarness, killed

SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
Samples = dict[tuple[str, ...], float]


class MeteredListener:
    """A listener whose workers answer with the metrics of in-memory servers."""

    def __init__(self) -> None:
        self.harness = WorkersHarness()
        self.harness.all_ready()
        lag = ReactorLag(self.harness.reactor)
        resource = AggregatedMetricsResource(self.harness.listener, lag)
        self.harness.listener.site.resource.putChild(b"metrics", resource)
        self.servers = [MeteredServer(), MeteredServer()]

    def answer(self, worker: int) -> None:
        """Let a worker answer, if it was asked."""
        process = next(p for p in reversed(self.harness.processes) if p.protocol.number == worker)
        if b"?" in process.received():
            server = self.servers[worker]
            registry = make_registry(server.harness.factory, server.lag)
            process.say(b"M" + json.dumps(snapshot(registry, f"worker-{worker}")).encode())

    def scrape(self, *answering: int) -> Samples:
        """Ask for all metrics; some workers answer."""
        client = self.harness.connect(SCRAPE)
        self.harness.advance(0)
        for worker in answering:
            self.answer(worker)
        self.harness.advance(2)
        _, _, body = client.recv(1 << 20).decode().partition("\r\n\r\n")
        return {
            (sample.name.removeprefix("signaling_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
        }

    def restart(self, worker: int) -> None:
        """Let a worker die, and another take its place."""
        next(p for p in reversed(self.harness.processes) if p.protocol.number == worker).end_with(number=killed())
        # One that dies young again is not started at once.
        self.harness.advance(0.5)
        self.harness.processes[-1].say(b"R")
        self.harness.reactor.run()
        self.servers[worker] = MeteredServer()


@pytest.fixture
def listener() -> Iterator[MeteredListener]:
    listener = MeteredListener()
    yield listener
    listener.harness.end()


def call(server: MeteredServer, count: int = 1) -> None:
    """Let two peers meet and relay."""
    caller, callee = server.harness.join("room"), server.harness.join("room")
    for _ in range(count):
        caller.offer(callee)


def test_counters_of_workers_are_added(listener: MeteredListener) -> None:
    call(listener.servers[0], 2)
    call(listener.servers[1], 3)
    now = listener.scrape(0, 1)
    assert (now["peers",], now["topics",], now["joins_total",]) == (4, 2, 4)
    assert now["relays_total", "accepted", "offer"] == 5
    assert now["topic_peers_bucket", "2.0"] == 2
    assert now["topic_peers_count",] == 2


def test_metrics_of_a_process_are_labelled_instead(listener: MeteredListener) -> None:
    now = listener.scrape(0, 1)
    for process in ("listener", "worker-0", "worker-1"):
        assert now["process_open_fds", process] > 0
        assert ("reactor_lag_seconds_count", process) in now
    assert ("process_open_fds",) not in now
    assert sum(name[0] == "build_info" for name in now) == 1


def test_the_listener_counts_its_own_requests_but_no_connections_max(listener: MeteredListener) -> None:
    most = sum(server.harness.factory.connection_limits.most for server in listener.servers)
    assert listener.scrape(0, 1)["connections_max",] == most
    client = listener.harness.connect(b"GET /ws/a/b HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n")
    assert client.recv(12) == b"HTTP/1.1 404"
    assert listener.scrape(0, 1)["handshakes_total", "404"] == 1


def test_counters_of_a_worker_that_does_not_answer_stay(listener: MeteredListener) -> None:
    for server in listener.servers:
        call(server)
    listener.scrape(0, 1)
    call(listener.servers[0])
    now = listener.scrape(0)
    assert (now["worker_up", "worker-0"], now["worker_up", "worker-1"]) == (1, 0)
    assert (now["peers",], now["joins_total",]) == (4, 6)
    assert ("process_open_fds", "worker-1") not in now


def test_counters_go_on_when_a_worker_is_restarted(listener: MeteredListener) -> None:
    for server in listener.servers:
        call(server)
    listener.scrape(0, 1)
    for deaths in (1, 2):
        listener.restart(1)
        call(listener.servers[1])
        now = listener.scrape(0, 1)
        assert (now["peers",], now["joins_total",]) == (4, 4 + 2 * deaths)
        assert now["topic_peers_count",] == 2
    assert now["worker_restarts_total", "worker-1"] == 2
    assert listener.scrape(0, 1)["joins_total",] == 8


def test_the_listener_is_ready_if_all_workers_are(listener: MeteredListener) -> None:
    assert listener.scrape(0, 1)["ready",] == 1
    listener.servers[0].harness.factory.shutdown.become_unready()
    assert listener.scrape(0, 1)["ready",] == 0


def test_an_aborted_scrape_is_not_an_error(listener: MeteredListener, caplog: Any) -> None:
    listener.harness.connect(SCRAPE).close()
    listener.harness.advance(3)
    assert listener.scrape(0, 1)["ready",] == 1


def test_openmetrics_is_supported(listener: MeteredListener) -> None:
    client = listener.harness.connect(SCRAPE.replace(b"\r\n\r\n", b"\r\nAccept: application/openmetrics-text\r\n\r\n"))
    listener.harness.advance(0)
    listener.answer(0)
    listener.answer(1)
    listener.harness.advance(0.25)
    assert client.recv(1 << 20).endswith(b"# EOF\n")


def test_the_build_is_listed_once() -> None:
    info = [["signaling_build", "info", "", [["signaling_build_info", {"version": "1"}, 1.0]]]]
    assert MetricSums(info, info).answer() == info
