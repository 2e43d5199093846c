"""Metrics for Prometheus (the extra ``metrics``): what the server counts anyway, written down when somebody asks.

Nothing that a client chooses becomes a label: there are no topics, ids, addresses or texts.
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
from signaling.timing.clock import Clock
from signaling.web.resources import BoundedRequest, Endpoint, Refusal, request_headers
from signaling.websocket.protocol import LeanWebSocketProtocol

_TOPIC_SIZES = (1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LOOK_SECONDS = 1.0


class ReactorLag:
    """Measures by how much timers come too late: for that long the reactor was busy with something else.

    Args:
        reactor: runs the timer.
    """

    def __init__(self, reactor: Any) -> None:
        self.histogram = Histogram(_LAG_SECONDS)
        self._reactor = reactor
        self._due = 0.0
        self._loop = LoopingCall(self._look)
        self._loop.clock = reactor

    def start(self) -> None:
        """Look once a second from now on."""
        self._due = self._reactor.seconds() + _LOOK_SECONDS
        self._loop.start(_LOOK_SECONDS, now=False)

    def stop(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()

    def _look(self) -> None:
        now = self._reactor.seconds()
        self.histogram.add(max(0.0, now - self._due))
        # What was missed is one delay, not one for each second of it.
        self._due += _LOOK_SECONDS * max(1, int((now - self._due) // _LOOK_SECONDS) + 1)


class SignalingCollector:
    """Reads a server's counters when Prometheus asks.

    Args:
        factory: the server.
        lag: of its reactor.
    """

    def __init__(self, factory: SignalingFactory, lag: ReactorLag) -> None:
        self._factory = factory
        self._lag = lag

    def collect(self) -> Iterator[Metric]:
        """List all metrics."""
        yield from self._state()
        yield from self._peers()
        yield from self._relays()
        yield from self._times()
        yield InfoMetricFamily(
            "signaling_build",
            "What runs.",
            {
                "version": version("twisted-signaling"),
                "python": platform.python_version(),
                "twisted": version("Twisted"),
                "autobahn": version("autobahn"),
                "fast_path": "on" if LeanWebSocketProtocol.fast else "off",
            },
        )

    def _state(self) -> Iterator[Metric]:
        factory = self._factory
        sizes = Histogram(_TOPIC_SIZES)
        for topic in factory.topics:
            sizes.add(len(topic))
        yield _gauge("connections", "Open connections, those of no peer included.", len(factory.connections))
        yield _gauge("connections_max", "Peers' connections that the server takes.", factory.connection_limits.most)
        yield _gauge("peers", "Peers in topics.", sizes.total)
        yield _gauge(
            "peers_away",
            "Of those, detached peers, which may resume.",
            len(factory.sessions.detached),
        )
        yield _gauge("topics", "Topics.", len(factory.topics))
        yield _histogram("topic_peers", "Peers in each topic now.", sizes)
        yield _gauge("ready", "Whether /readyz says 200.", not any(factory.unready_reasons.values()))

    def _peers(self) -> Iterator[Metric]:
        counters = self._factory.counters
        yield _counter("joins", "Peers that joined.", counters.joins)
        yield _counter("resumes", "Peers that came back on another connection.", counters.resumed)
        yield _counters("leaves", "Peers that left.", ["reason"], (((key,), n) for key, n in counters.leaves.items()))
        outcomes = {"accepted": counters.joins + counters.resumed, "late": counters.requests_late}
        outcomes["topic_full"] = counters.refused[ErrorCode.TOPIC_FULL]
        outcomes |= {str(status): count for status, count in counters.requests_refused.items()}
        yield _counters(
            "handshakes",
            "Requests by what became of them: accepted, late, or the status that refused them.",
            ["outcome"],
            (((outcome,), count) for outcome, count in outcomes.items()),
        )
        yield _counter(
            "connections_evicted",
            "Connections of no peer, cut to make room for newer ones.",
            counters.connections_evicted,
        )

    def _relays(self) -> Iterator[Metric]:
        counters = self._factory.counters
        accepted = [((kind, "accepted"), count) for kind, count in counters.relays.items()]
        refused = [((kind, str(code)), count) for (kind, code), count in counters.relays_refused.items()]
        yield _counters("relays", "Readable relays by what became of them.", ["type", "outcome"], [*accepted, *refused])
        yield _counter(
            "relays_undelivered",
            "Accepted relays that were answered dropped later, because their target went.",
            counters.relays_undelivered,
        )
        yield _gauge("relays_waiting", "Accepted relays that wait for their target now.", self._factory.relays_waiting)
        yield from self._between_nodes()
        yield _counter("relayed_bytes", "Accepted relays, as they were framed.", counters.relayed_bytes)
        codes = (((str(code),), count) for code, count in counters.refused.items())
        yield _counters("messages_refused", "Messages that were answered with an error.", ["code"], codes)
        yield _counter("events_dropped", "peer-joined and peer-left that met a full queue.", counters.events_dropped)

    def _between_nodes(self) -> Iterator[Metric]:
        counters, backplane = self._factory.counters, self._factory.backplane
        yield _gauge("backplane_up", "Whether peers of other nodes can be reached.", not backplane.unready_reasons)
        yield _gauge("relays_forwarding", "Relays to other nodes that have no outcome yet.", backplane.forwarding)
        elsewhere = "Accepted relays that another node wrote."
        yield _counter("relays_delivered_elsewhere", elsewhere, counters.relays_delivered_elsewhere)
        received = "Relays of other nodes' peers that were written or queued here; not among the accepted ones."
        yield _counter("relays_received", received, counters.relays_received)

    def _times(self) -> Iterator[Metric]:
        counters = self._factory.counters
        yield _histogram("queue_depth_at_refusal", "Messages in a queue that refused one.", counters.depths)
        yield _histogram("ping_round_trip_seconds", "From a ping to its pong.", counters.round_trips)
        yield _histogram("reactor_lag_seconds", "How late the reactor's timers came.", self._lag.histogram)


def registry_of(factory: SignalingFactory, lag: ReactorLag) -> CollectorRegistry:
    """Return what collects the metrics of one process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SignalingCollector(factory, lag))
    ProcessCollector(registry=registry)
    return registry


class MetricsSite(Site):
    """``/metrics`` on an endpoint of its own, without a line in the log for each scrape.

    Args:
        metrics: answers there.
        hosts: the names by which it may be asked.
    """

    noisy = False

    def __init__(self, metrics: MetricsResource, hosts: Hosts) -> None:
        root = Resource()
        root.putChild(b"metrics", metrics)
        super().__init__(root, requestFactory=BoundedRequest)
        self._hosts = hosts

    def getResourceFor(self, request: Request) -> Any:
        """Find what answers ``request``, if it was meant for this host."""
        try:
            self._hosts.check(request_headers(request)(b"host"))
        except Refused as refused:
            return Refusal(refused)
        return super().getResourceFor(request)

    def log(self, request: Any) -> None:
        """Log nothing."""


class MetricsResource(Endpoint):
    """``/metrics``: everything, in the format that is asked for.

    Args:
        factory: the server.
        lag: of its reactor.
    """

    # A page that an operator opens must not read what is bound to the operator's own machine.
    readable_by_pages = False

    def __init__(self, factory: SignalingFactory, lag: ReactorLag) -> None:
        super().__init__(factory)
        self._registry = registry_of(factory, lag)
        self._clock: Clock = factory.reactor
        self._waiting: dict[Request, None] = {}
        self._answering = False

    def answer(self, request: Request) -> Any:
        """Answer all scrapes of one pass of the reactor together, in the next: to write everything down takes 10 ms."""
        self._waiting[request] = None
        request.notifyFinish().addErrback(lambda _: self._waiting.pop(request, None))
        if not self._answering:
            self._answering = True
            self._clock.callLater(0, self.collect)
        return NOT_DONE_YET

    def collect(self) -> None:
        """Collect all metrics for ``answer_all``; in the reactor's thread, so that nothing changes meanwhile."""
        try:
            self.answer_all(self._registry)
        except Exception:
            self.failed(Failure())

    def answer_all(self, metrics: Any) -> None:
        """Write metrics to all who wait, in the format that each asks for.

        Args:
            metrics: what ``collect`` of it lists.
        """
        formats = {request: _format(request) for request in self._waiting}
        texts = {encode: encode(metrics) for encode in {encode for encode, _ in formats.values()}}
        for request in self._take_waiting():
            encode, content_type = formats[request]
            request.setHeader(b"Content-Type", content_type.encode())
            # twisted.web would not know it of an answer that comes later.
            request.setHeader(b"Content-Length", b"%d" % len(texts[encode]))
            if request.method != b"HEAD":
                request.write(texts[encode])
            request.finish()

    def failed(self, failure: Failure) -> None:
        """Answer all who wait that there are no metrics now."""
        for request in self._take_waiting():
            request.processingFailed(failure)

    def _take_waiting(self) -> list[Request]:
        waiting, self._waiting, self._answering = list(self._waiting), {}, False
        return waiting


def _format(request: Request) -> tuple[Callable[[Any], bytes], str]:
    """Choose the format that a scrape asks for; returns what writes it, one of two functions, and its content type."""
    try:
        _, content_type = choose_encoder((request.getHeader(b"accept") or b"").decode("latin-1"))
    except (TypeError, ValueError):
        # It asks for a version that is none.
        _, content_type = choose_encoder("")
    # Not the function that is chosen, nor the version that the client names: both may differ for each scrape, and each
    # text takes 10 ms.
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
    reached, buckets = 0, []
    for bound, count in zip((*map(str, map(float, histogram.bounds)), "+Inf"), histogram.counts, strict=True):
        reached += count
        buckets.append((bound, reached))
    return HistogramMetricFamily(f"signaling_{name}", text, buckets=buckets, sum_value=histogram.total)
