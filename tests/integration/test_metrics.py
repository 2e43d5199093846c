"""/metrics of one process agrees with what happened."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from signaling.metrics.collector import MetricsResource, ReactorLag, SignalingCollector
from tests.integration.harness import Harness

METRICS = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class MeteredServer:
    """A server on a port of its own with metrics."""

    def __init__(self, **limits: float) -> None:
        self.harness = Harness(**limits)
        self.lag = ReactorLag(self.harness.clock)
        self.harness.factory.site.resource.putChild(b"metrics", MetricsResource(self.harness.factory, self.lag))

    def scrape(self) -> dict[tuple[str, ...], float]:
        """Return all samples, by their name and the values of their labels, which stand in alphabetical order."""
        status, headers, body = self.harness.request(METRICS)
        assert status == 200
        assert headers["content-type"].startswith("text/plain")
        return {
            (sample.name.removeprefix("signaling_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
        }


@pytest.fixture
def metered() -> MeteredServer:
    return MeteredServer()


def test_metrics_are_off_by_default() -> None:
    assert Harness().request(METRICS)[0] == 404


def test_a_call_is_counted(metered: MeteredServer) -> None:
    caller, callee = metered.harness.join("room"), metered.harness.join("room")
    caller.offer(callee, "1")
    callee.say({"type": "answer", "to": caller.id, "payload": {"sdp": "x"}})
    for _ in range(3):
        caller.say({"type": "ice-candidate", "to": callee.id})
    caller.offer("nobody")
    caller.say("{}")
    now = metered.scrape()
    assert (now["connections",], now["peers",], now["topics",]) == (3, 2, 1)
    assert now["joins_total",] == 2
    assert now["relays_total", "accepted", "offer"] == 1
    assert now["relays_total", "accepted", "answer"] == 1
    assert now["relays_total", "accepted", "ice-candidate"] == 3
    assert now["relays_total", "target_not_found", "offer"] == 1
    assert now["errors_sent_total", "invalid_type"] == 1
    assert now["topic_peers_bucket", "2.0"] == 1
    assert now["topic_peers_bucket", "1.0"] == 0
    assert now["topic_peers_count",] == 1
    assert now["relayed_bytes_total",] > 5 * 60
    caller.leave()
    callee.reset()
    then = metered.scrape()
    assert (then["leaves_total", "closed"], then["leaves_total", "connection_lost"], then["topics",]) == (1, 1, 0)


def test_refused_handshakes_are_counted_by_their_status(metered: MeteredServer) -> None:
    metered.harness.peer("/ws/")
    metered.harness.peer("/ws/room?metadata=1")
    metered.harness.connect().send(b"GET")
    metered.harness.advance(11)
    now = metered.scrape()
    assert now["handshakes_total", "404"] == 1
    assert now["handshakes_total", "400"] == 1
    assert now["handshakes_total", "timeout"] == 1


def test_the_depth_of_a_full_queue_is_measured() -> None:
    metered = MeteredServer(high_water_messages=4)
    sender, reader = metered.harness.join("room"), metered.harness.join("room")
    reader.stall()
    for number in range(12):
        sender.offer(reader, str(number), "x" * 60_000)
    now = metered.scrape()
    dropped = now["relays_total", "dropped", "offer"]
    assert dropped > 0
    assert now["queue_depth_at_drop_count",] == dropped
    assert 0 < now["relays_queued",] < 12 - dropped


def test_the_time_from_a_ping_to_its_pong_is_measured(metered: MeteredServer) -> None:
    metered.harness.join("room")
    metered.harness.advance(20)
    now = metered.scrape()
    assert now["ping_round_trip_seconds_count",] == 1
    assert now["ping_round_trip_seconds_bucket", "0.5"] == 1


def test_the_lag_of_the_reactor_is_measured(metered: MeteredServer) -> None:
    metered.lag.start()
    metered.harness.clock.advance(1)
    metered.harness.clock.advance(4)
    metered.harness.clock.advance(1)
    metered.lag.stop()
    now = metered.scrape()
    assert now["reactor_lag_seconds_count",] == 3
    assert now["reactor_lag_seconds_sum",] == pytest.approx(3)
    assert now["reactor_lag_seconds_bucket", "0.001"] == 2


def test_readiness_is_a_metric(metered: MeteredServer) -> None:
    assert metered.scrape()["ready",] == 1
    metered.harness.factory.shutdown.become_unready()
    assert metered.scrape()["ready",] == 0


def test_nothing_that_a_client_chooses_becomes_a_label(metered: MeteredServer) -> None:
    peer = metered.harness.join("a-topic-of-mine", {"name": "my-name"})
    peer.offer("a-target-of-mine", "an-id-of-mine")
    peer.say({"type": "a-type-of-mine", "to": peer.id})
    _, _, body = metered.harness.request(METRICS)
    assert "of-mine" not in body
    assert "my-name" not in body
    assert peer.id not in body


@pytest.mark.parametrize(
    "accept", ["text/plain;version=abc", "application/openmetrics-text; version=1.0.0", "a,,;=", "\xff"]
)
def test_any_accept_header_gets_an_answer(metered: MeteredServer, accept: str) -> None:
    request = f"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n".encode("latin-1")
    status, _, body = metered.harness.request(request)
    assert status == 200
    assert "signaling_peers 0.0" in body


def test_web_pages_may_not_read_metrics(metered: MeteredServer) -> None:
    origin = "Origin: https://other.example\r\n"
    _, headers, _ = metered.harness.request(f"GET /metrics HTTP/1.1\r\nHost: a\r\n{origin}\r\n")
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "accept",
    ["text/plain", "application/openmetrics-text;version=1.0.0", "application/openmetrics-text;version=1.0.%d"],
)
def test_simultaneous_scrapes_are_formatted_once(
    metered: MeteredServer, monkeypatch: pytest.MonkeyPatch, accept: str
) -> None:
    collected = []
    collect = SignalingCollector.collect
    monkeypatch.setattr(SignalingCollector, "collect", lambda self: [collected.append(1), *collect(self)][1:])
    scrapes = [metered.harness.connect() for _ in range(20)]
    for number, scrape in enumerate(scrapes):
        wanted = f"Accept: {accept.replace('%d', str(number))}\r\n\r\n"
        scrape.send_together(METRICS.replace("\r\n\r\n", f"\r\n{wanted}").encode())
    metered.harness.run()
    assert len(collected) == 1
    assert all(b"signaling_joins_total 0.0" in scrape.received for scrape in scrapes)


def test_an_aborted_scrape_does_not_affect_another(metered: MeteredServer) -> None:
    given_up, other = metered.harness.connect(), metered.harness.connect()
    for scrape in (given_up, other):
        scrape.send_together(METRICS.encode())
        scrape.step()
    given_up.reset()
    assert other.received.startswith(b"HTTP/1.1 200 ")


def test_pipelined_scrapes_do_not_block_other_connections(metered: MeteredServer) -> None:
    greedy, other = metered.harness.connect(), metered.harness.connect()
    greedy.send_together(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 32)
    other.send_together(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    metered.harness.run_once()
    metered.harness.run_once()
    assert other.received.endswith(b"ok")
    assert greedy.received.count(b"HTTP/1.1 200 ") < 4
    metered.harness.run()
    assert greedy.received.count(b"HTTP/1.1 200 ") == 32


def test_a_head_has_the_length_and_no_body(metered: MeteredServer) -> None:
    status, headers, body = metered.harness.request(METRICS.replace("GET", "HEAD"))
    assert (status, body) == (200, "")
    assert int(headers["content-length"]) > 1000
