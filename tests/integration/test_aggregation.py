"""Metrics over all workers: sums that never go back, and labels for what is a process's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from signaling.metrics.aggregation import Totals, TotalsResource, numbers
from signaling.metrics.collector import ReactorLag, registry_of
from tests.integration.test_metrics import Metered
from tests.integration.workers_harness import WorkersHarness, killed

SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
Samples = dict[tuple[str, ...], float]


class Metering:
    """A listener whose workers answer with the numbers of servers in memory."""

    def __init__(self) -> None:
        self.shop = WorkersHarness()
        self.shop.all_ready()
        lag = ReactorLag(self.shop.reactor)
        resource = TotalsResource(self.shop.dispatcher, lag)
        self.shop.dispatcher.site.resource.putChild(b"metrics", resource)
        self.servers = [Metered(), Metered()]

    def answer(self, worker: int) -> None:
        """Let a worker answer, if it was asked."""
        process = next(p for p in reversed(self.shop.processes) if p.protocol.number == worker)
        if b"?" in process.heard():
            server = self.servers[worker]
            registry = registry_of(server.harness.factory, server.lag)
            process.say(b"N" + json.dumps(numbers(registry, f"worker-{worker}")).encode())

    def scrape(self, *answering: int) -> Samples:
        """Ask for all metrics; some workers answer."""
        client = self.shop.connect(SCRAPE)
        self.shop.advance(0)
        for worker in answering:
            self.answer(worker)
        self.shop.advance(2)
        _, _, body = client.recv(1 << 20).decode().partition("\r\n\r\n")
        return {
            (sample.name.removeprefix("signaling_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
        }

    def start_anew(self, worker: int) -> None:
        """Let a worker die, and another take its place."""
        next(p for p in reversed(self.shop.processes) if p.protocol.number == worker).end_with(number=killed())
        # One that dies young again is not started at once.
        self.shop.advance(0.5)
        self.shop.processes[-1].say(b"R")
        self.shop.reactor.run()
        self.servers[worker] = Metered()


@pytest.fixture
def metering() -> Iterator[Metering]:
    metering = Metering()
    yield metering
    metering.shop.end()


def call(server: Metered, count: int = 1) -> None:
    """Let two peers meet and relay."""
    caller, callee = server.harness.join("room"), server.harness.join("room")
    for _ in range(count):
        caller.offer(callee)


def test_what_workers_count_is_added(metering: Metering) -> None:
    call(metering.servers[0], 2)
    call(metering.servers[1], 3)
    now = metering.scrape(0, 1)
    assert (now["peers",], now["topics",], now["joins_total",]) == (4, 2, 4)
    assert now["relays_total", "accepted", "offer"] == 5
    assert now["topic_peers_bucket", "2.0"] == 2
    assert now["topic_peers_count",] == 2


def test_what_is_a_processs_own_is_not(metering: Metering) -> None:
    now = metering.scrape(0, 1)
    for process in ("listener", "worker-0", "worker-1"):
        assert now["process_open_fds", process] > 0
        assert ("reactor_lag_seconds_count", process) in now
    assert ("process_open_fds",) not in now
    assert sum(name[0] == "build_info" for name in now) == 1


def test_the_listener_takes_no_peers_and_answers_the_rest(metering: Metering) -> None:
    most = sum(server.harness.factory.admission.most for server in metering.servers)
    assert metering.scrape(0, 1)["connections_max",] == most
    client = metering.shop.connect(b"GET /ws/a/b HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n")
    assert client.recv(12) == b"HTTP/1.1 404"
    assert metering.scrape(0, 1)["handshakes_total", "404"] == 1


def test_one_that_does_not_answer_is_missed_and_its_counters_stay(metering: Metering) -> None:
    for server in metering.servers:
        call(server)
    metering.scrape(0, 1)
    call(metering.servers[0])
    now = metering.scrape(0)
    assert (now["worker_up", "worker-0"], now["worker_up", "worker-1"]) == (1, 0)
    assert (now["peers",], now["joins_total",]) == (4, 6)
    assert ("process_open_fds", "worker-1") not in now


def test_counters_go_on_where_a_worker_was_started_again(metering: Metering) -> None:
    for server in metering.servers:
        call(server)
    metering.scrape(0, 1)
    for deaths in (1, 2):
        metering.start_anew(1)
        call(metering.servers[1])
        now = metering.scrape(0, 1)
        assert (now["peers",], now["joins_total",]) == (4, 4 + 2 * deaths)
        assert now["topic_peers_count",] == 2
    assert now["worker_restarts_total", "worker-1"] == 2
    assert metering.scrape(0, 1)["joins_total",] == 8


def test_it_is_ready_when_all_are(metering: Metering) -> None:
    assert metering.scrape(0, 1)["ready",] == 1
    metering.servers[0].harness.factory.shutdown.become_unready()
    assert metering.scrape(0, 1)["ready",] == 0


def test_a_scrape_that_is_given_up_is_no_error(metering: Metering, caplog: Any) -> None:
    metering.shop.connect(SCRAPE).close()
    metering.shop.advance(3)
    assert metering.scrape(0, 1)["ready",] == 1


def test_openmetrics_is_spoken_too(metering: Metering) -> None:
    client = metering.shop.connect(SCRAPE.replace(b"\r\n\r\n", b"\r\nAccept: application/openmetrics-text\r\n\r\n"))
    metering.shop.advance(0)
    metering.answer(0)
    metering.answer(1)
    metering.shop.advance(0.25)
    assert client.recv(1 << 20).endswith(b"# EOF\n")


def test_of_several_builds_one_is_told() -> None:
    info = [["signaling_build", "info", "", [["signaling_build_info", {"version": "1"}, 1.0]]]]
    assert Totals(info, info).answer() == info
