"""``/metrics`` for Prometheus, of one process (the extra ``metrics``).

The server counts in any case; a scrape only formats the counters. Nothing that a client chooses becomes a label: no
topic, id, address or text.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from signaling.admission.origins import Hosts
from signaling.core.counters import Histogram
from signaling.errors import ErrorCode, Refused
from signaling.server.factory import SignalingFactory
from signaling.server.http import HttpFactory
from signaling.timing.clock import Clock
from signaling.web.resources import Endpoint, Refusal
from signaling.web.site import BoundedRequest, request_headers
from signaling.webhooks.delivery import Webhooks
from signaling.websocket.protocol import WebSocketConnection

_TOPIC_SIZES = (1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LAG_INTERVAL_SECONDS = 1.0


class ReactorLag:
    """Measures how late the reactor runs a timer that is due once a second.

    Args:
        reactor: the reactor to measure.
    """

    def __init__(self, reactor: Any) -> None:
        self.histogram = Histogram(_LAG_SECONDS)
        self._reactor = reactor
        self._due = 0.0
        self._loop = LoopingCall(self._measure)
        self._loop.clock = reactor

    def start(self) -> None:
        """Start measuring."""
        self._due = self._reactor.seconds() + _LAG_INTERVAL_SECONDS
        self._loop.start(_LAG_INTERVAL_SECONDS, now=False)

    def stop(self) -> None:
        """Stop measuring."""
        if self._loop.running:
            self._loop.stop()

    def _measure(self) -> None:
        now = self._reactor.seconds()
        self.histogram.add(max(0.0, now - self._due))
        # A delay of several seconds counts once, not once for each second.
        self._due += _LAG_INTERVAL_SECONDS * max(1, int((now - self._due) // _LAG_INTERVAL_SECONDS) + 1)


class SignalingCollector:
    """Lists the metrics of one server, for ``prometheus_client``.

    Args:
        factory: the server; that of the workers' listener has no peers.
        lag: measures its reactor.
    """

    def __init__(self, factory: HttpFactory, lag: ReactorLag) -> None:
        self._factory = factory
        self._lag = lag

    def collect(self) -> Iterator[Metric]:
        """List all metrics."""
        yield from self._connections()
        yield from self._administration()
        if isinstance(self._factory, SignalingFactory):
            yield from self._peers(self._factory)
            yield from self._relays(self._factory)
            yield from self._backplane(self._factory)
            if isinstance(self._factory.observer, Webhooks):
                yield from self._webhooks(self._factory.observer)
        yield _histogram("reactor_lag_seconds", "How late the reactor ran a timer.", self._lag.histogram)
        yield InfoMetricFamily(
            "signaling_build",
            "Versions, and whether the fast path is on.",
            {
                "version": version("twisted-signaling"),
                "python": platform.python_version(),
                "twisted": version("Twisted"),
                "autobahn": version("autobahn"),
                "fast_path": "on" if WebSocketConnection.fast else "off",
            },
        )

    def _connections(self) -> Iterator[Metric]:
        factory, counters = self._factory, self._factory.counters
        yield _gauge("connections", "Open connections, including those that have not joined.", len(factory.connections))
        yield _gauge("connections_max", "The largest number of connections of peers.", factory.connection_limits.most)
        yield _gauge("ready", "1 if /readyz answers 200.", not any(factory.unready_reasons.values()))
        outcomes = {"accepted": counters.joins + counters.resumes, "timeout": counters.handshake_timeouts}
        outcomes["topic_full"] = counters.errors_sent[ErrorCode.TOPIC_FULL]
        outcomes |= {str(status): count for status, count in counters.requests_refused.items()}
        yield _counters(
            "handshakes",
            "Requests to join, by outcome: accepted, timeout, topic_full, or the HTTP status of the refusal.",
            ["outcome"],
            (((outcome,), count) for outcome, count in outcomes.items()),
        )
        checks = [((str(status),), count) for status, count in counters.checks_refused.items()]
        text = "Requests with ?check that were answered that the client could not join, by status."
        yield _counters("checks_refused", text, ["status"], checks)
        evicted = "Connections that had not joined, closed to make room for newer ones."
        yield _counter("connections_evicted", evicted, counters.connections_evicted)

    def _administration(self) -> Iterator[Metric]:
        requests = [
            ((operation, str(status)), count)
            for (operation, status), count in self._factory.counters.admin_requests.items()
        ]
        text = "Requests of the admin API, by operation and HTTP status."
        yield _counters("admin_requests", text, ["operation", "status"], requests)

    def _peers(self, factory: SignalingFactory) -> Iterator[Metric]:
        counters, sizes = factory.counters, Histogram(_TOPIC_SIZES)
        for topic in factory.topics:
            sizes.add(len(topic))
        yield _gauge("peers", "Peers in topics.", sizes.total)
        detached = "Detached peers: they lost their connection and may resume; signaling_peers includes them."
        yield _gauge("peers_detached", detached, len(factory.sessions.detached))
        yield _gauge("topics", "Topics.", len(factory.topics))
        yield _histogram("topic_peers", "Topics by the number of their peers.", sizes)
        if factory.ice_source is not None:
            age = "Age of the ICE servers of --ice-source; before the first answer, the time since the start."
            yield _gauge("ice_source_age_seconds", age, factory.ice_source.age_seconds)
        yield _counter("joins", "Peers that joined.", counters.joins)
        yield _counter("resumes", "Peers that resumed on another connection.", counters.resumes)
        yield _counter("metadata_updates", "Updates of metadata by peers of this server.", counters.metadata_updates)
        yield _counters(
            "leaves", "Peers that left, by reason.", ["reason"], (((key,), n) for key, n in counters.leaves.items())
        )
        blocks = "Owners of tokens that are kept out of a topic."
        yield _gauge("blocks", blocks, len(factory.blocks))
        displaced = "Blocks that ended early, because there were too many."
        yield _counter("blocks_displaced", displaced, factory.blocks.displaced)
        notices = "Notices that were written or queued for a peer."
        yield _counter("notices_received", notices, counters.notices_received)
        depths = "Messages in an outbound queue when it refused one."
        yield _histogram("queue_depth_at_drop", depths, counters.queue_depths_at_drop)
        yield _histogram("ping_round_trip_seconds", "Time from a ping to its pong.", counters.ping_round_trips)

    def _relays(self, factory: SignalingFactory) -> Iterator[Metric]:
        counters = factory.counters
        accepted = [((kind, "accepted"), count) for kind, count in counters.relays_accepted.items()]
        rejected = [((kind, str(code)), count) for (kind, code), count in counters.relays_rejected.items()]
        yield _counters("relays", "Well-formed relays, by outcome.", ["type", "outcome"], [*accepted, *rejected])
        undelivered = "Accepted relays whose target left before they were written; the sender got dropped."
        yield _counter("relays_undelivered", undelivered, counters.relays_undelivered)
        yield _gauge("relays_queued", "Accepted relays in outbound queues.", factory.relays_queued)
        yield _counter("relayed_bytes", "Accepted relays, in bytes of frames.", counters.relayed_bytes)
        codes = (((str(code),), count) for code, count in counters.errors_sent.items())
        yield _counters("errors_sent", "Error messages sent to clients, by code.", ["code"], codes)
        dropped = "peer-joined, peer-updated and peer-left messages dropped because a queue was full."
        yield _counter("events_dropped", dropped, counters.events_dropped)

    def _webhooks(self, webhooks: Webhooks) -> Iterator[Metric]:
        events = {"delivered": webhooks.delivered, "lost": webhooks.lost}
        by_outcome = (((outcome,), count) for outcome, count in events.items())
        text = "Events for the webhook's receiver, by outcome: delivered, or lost because the queue was full."
        yield _counters("webhook_events", text, ["outcome"], by_outcome)
        attempts = (((outcome,), count) for outcome, count in webhooks.attempts.items())
        yield _counters("webhook_requests", "Requests to the webhook's receiver.", ["outcome"], attempts)
        yield _gauge("webhook_events_waiting", "Events that wait for the webhook's receiver.", webhooks.waiting)

    def _backplane(self, factory: SignalingFactory) -> Iterator[Metric]:
        counters, backplane = factory.counters, factory.backplane
        yield _gauge("backplane_up", "1 if peers on other nodes can be reached.", not backplane.unready_reasons)
        yield _gauge("relays_in_flight", "Relays to other nodes without an outcome yet.", backplane.forwarding)
        remotely = "Accepted relays that another node wrote."
        yield _counter("relays_delivered_remotely", remotely, counters.relays_delivered_remotely)
        received = "Relays from peers of other nodes, written or queued here; signaling_relays_total excludes them."
        yield _counter("relays_received", received, counters.relays_received)


def make_registry(factory: HttpFactory, lag: ReactorLag) -> CollectorRegistry:
    """Return a registry with all metrics of one process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SignalingCollector(factory, lag))
    ProcessCollector(registry=registry)
    return registry


class MetricsSite(Site):
    """``/metrics`` on an endpoint of its own.

    Args:
        metrics: the resource.
        hosts: the host names that requests may ask for; others are answered 421.
    """

    noisy = False

    def __init__(self, metrics: MetricsResource, hosts: Hosts) -> None:
        root = Resource()
        root.putChild(b"metrics", metrics)
        super().__init__(root, requestFactory=BoundedRequest)
        self._hosts = hosts

    def getResourceFor(self, request: Request) -> Any:
        """Return the resource for ``request``, after a check of its ``Host``."""
        try:
            self._hosts.check(request_headers(request)(b"host"))
        except Refused as refused:
            return Refusal(refused)
        return super().getResourceFor(request)

    def log(self, request: Any) -> None:
        """Log nothing, as scrapes are frequent."""


class MetricsResource(Endpoint):
    """``/metrics``, in the format that the ``Accept`` header asks for.

    Args:
        factory: the server.
        lag: measures its reactor.
    """

    # A web page in an operator's browser must not read metrics bound to the operator's machine.
    readable_by_pages = False

    def __init__(self, factory: HttpFactory, lag: ReactorLag) -> None:
        super().__init__(factory)
        self._registry = make_registry(factory, lag)
        self._clock: Clock = factory.reactor
        self._waiting: dict[Request, None] = {}
        self._answering = False

    def answer(self, request: Request) -> Any:
        """Answer in the reactor's next pass, together with all scrapes of this one: formatting takes 10 ms."""
        self._waiting[request] = None
        request.notifyFinish().addErrback(lambda _: self._waiting.pop(request, None))
        if not self._answering:
            self._answering = True
            self._clock.callLater(0, self.collect)
        return NOT_DONE_YET

    def collect(self) -> None:
        """Collect all metrics and answer the waiting requests."""
        try:
            self.answer_all(self._registry)
        except Exception:
            self.failed(Failure())

    def answer_all(self, metrics: Any) -> None:
        """Answer all waiting requests, each in its format.

        Args:
            metrics: an object whose ``collect`` lists the metrics.
        """
        formats = {request: _format(request) for request in self._waiting}
        texts = {encode: encode(metrics) for encode in {encode for encode, _ in formats.values()}}
        for request in self._take_waiting():
            encode, content_type = formats[request]
            request.setHeader(b"Content-Type", content_type.encode())
            # twisted.web sets it only for answers that `render` returns.
            request.setHeader(b"Content-Length", b"%d" % len(texts[encode]))
            if request.method != b"HEAD":
                request.write(texts[encode])
            request.finish()

    def failed(self, failure: Failure) -> None:
        """Answer all waiting requests with an error."""
        for request in self._take_waiting():
            request.processingFailed(failure)

    def _take_waiting(self) -> list[Request]:
        waiting, self._waiting, self._answering = list(self._waiting), {}, False
        return waiting


def _format(request: Request) -> tuple[Callable[[Any], bytes], str]:
    """Choose the format that a scrape asks for; returns its encoder and its content type."""
    try:
        _, content_type = choose_encoder((request.getHeader(b"accept") or b"").decode("latin-1"))
    except (TypeError, ValueError):
        # An invalid version: fall back to the default.
        _, content_type = choose_encoder("")
    # choose_encoder returns a new function each time and repeats the client's version. With just two fixed encoders,
    # scrapes that arrive together share one text, which takes 10 ms.
    if content_type.startswith("application/openmetrics-text"):
        return openmetrics.generate_latest, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest, content_type


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"signaling_{name}", text, float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"signaling_{name}", text, float(value))


def _counters(name: str, text: str, labels: list[str], values: Iterable[tuple[tuple[str, ...], int]]) -> Metric:
    family = CounterMetricFamily(f"signaling_{name}", text, labels=labels)
    for labelled, value in values:
        family.add_metric(labelled, value)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    cumulative, buckets = 0, []
    for bound, count in zip((*map(str, map(float, histogram.bounds)), "+Inf"), histogram.counts, strict=True):
        cumulative += count
        buckets.append((bound, cumulative))
    return HistogramMetricFamily(f"signaling_{name}", text, buckets=buckets, sum_value=histogram.total)
