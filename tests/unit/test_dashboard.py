"""The dashboard, the alert rules and the table of metrics name existing metrics; the table lists all of them."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from twisted.internet.task import Clock
from twisted.logger import LogLevel

from signaling import IceSource, SignalingFactory
from signaling.log.events import Events
from signaling.metrics.collector import ReactorLag, SignalingCollector
from signaling.webhooks.delivery import Webhooks
from tests.programs import need
from tools import dashboard

TREE = Path(__file__).parents[2]
DASHBOARD = TREE / "deploy" / "grafana.json"
ALERTS = TREE / "deploy" / "alerts.yml"
# From the client library, from a listener about its workers, and from Prometheus about a scrape.
OTHERS = {
    *("signaling_worker_up", "signaling_worker_restarts_total"),
    *("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds"),
    "up",
}


def series(metric: Metric) -> set[str]:
    """Return the names under which Prometheus stores a metric."""
    if isinstance(metric, HistogramMetricFamily):
        return {f"{metric.name}{suffix}" for suffix in ("_bucket", "_sum", "_count")}
    if isinstance(metric, CounterMetricFamily):
        return {f"{metric.name}_total"}
    return {f"{metric.name}_info" if isinstance(metric, InfoMetricFamily) else metric.name}


@pytest.fixture
def metrics() -> list[Metric]:
    clock: Any = Clock()
    sender: Any = None
    source = IceSource("https://example.com", reactor=clock)
    observer = Webhooks(sender, [], 1, clock, Events(LogLevel.info, clock.seconds), wall_clock=time.time)
    factory = SignalingFactory(reactor=clock, observer=observer, ice_source=source)
    return list(SignalingCollector(factory, ReactorLag(clock)).collect())


def names(text: str) -> set[str]:
    return set(re.findall(r"\b(?:signaling|process)_[a-z_]+|\bup(?={)", text))


def test_the_dashboard_queries_only_existing_metrics(metrics: list[Metric]) -> None:
    existing = set().union(*map(series, metrics)) | OTHERS
    assert names(json.dumps(dashboard.dashboard())) <= existing


def test_the_dashboard_is_what_its_tool_writes() -> None:
    assert DASHBOARD.read_text() == dashboard.text(), "run tools/dashboard.py"


def test_the_thresholds_of_the_dashboard_are_those_of_the_alerts() -> None:
    alerts = re.sub(r"#.*", "", ALERTS.read_text())
    bounds = {
        "Fullest node": 0.9,
        "Refused requests": 1,
        "Dropped relays": 0.01,
        "Worst reactor lag": 0.1,
        "Reactor lag": 0.1,
        "Worker restarts": 2,
        "Age of a provider's ICE servers": 64800,
    }
    panels = {panel["title"]: panel for panel in dashboard.laid_out()}
    for title, bound in bounds.items():
        red = panels[title]["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]
        assert red == {"color": "red", "value": bound}, title
        assert re.search(rf"> {bound}$", alerts, re.MULTILINE), title


def test_the_panels_of_the_dashboard_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard.laid_out():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        columns, lines = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in columns for y in lines}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_dashboard_shows_every_metric(metrics: list[Metric]) -> None:
    shown = names(DASHBOARD.read_text())
    for metric in metrics:
        assert series(metric) & shown, metric.name


def test_the_alerts_query_only_existing_metrics_and_each_is_explained(metrics: list[Metric]) -> None:
    existing = set().union(*map(series, metrics)) | OTHERS
    text = ALERTS.read_text()
    assert names(re.sub(r"#.*", "", text)) <= existing
    page = (TREE / "docs" / "monitoring.md").read_text()
    assert set(re.findall(r"alert: (\w+)", text)) == set(re.findall(r"^\| `(Signaling\w+)`", page, re.MULTILINE))


def test_the_table_lists_every_metric(metrics: list[Metric]) -> None:
    page = (TREE / "docs" / "metrics.md").read_text()
    rows = "".join(re.findall(r"^\| `signaling_.*?\|", page, re.MULTILINE))
    listed = set(re.findall(r"`(signaling_\w+)`", rows))
    assert listed == {
        min(series(metric), key=len) if not isinstance(metric, HistogramMetricFamily) else metric.name
        for metric in metrics
    }


def test_promtool_accepts_the_alerts() -> None:
    checked = subprocess.run(
        [need("promtool"), "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False, timeout=60
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
