"""Write the dashboard for Grafana, deploy/grafana.json: ``tools/dashboard.py``.

Thresholds are those of deploy/alerts.yml.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TREE = Path(__file__).parents[1]
WIDTH = 24
"""Of Grafana's grid."""

SELECTOR = 'job=~"$job",instance=~"$instance"'
BY_PROCESS = ("process_", "signaling_reactor_lag_", "signaling_worker_")
"""With --workers, these have a label for the process; the other metrics are the sums of all workers."""

DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
GREEN, YELLOW, RED = "green", "yellow", "red"

Json = dict[str, Any]


def of(metric: str, more: str = "") -> str:
    """Return the series of a metric that the variables select."""
    process = ',process=~"$process"' if metric.startswith(BY_PROCESS) else ""
    return f"{metric}{{{SELECTOR}{process}{more}}}"


def rate(metric: str, by: str = "instance", more: str = "") -> str:
    """Return a counter's increase in a second, summed."""
    return f"sum by ({by}) (rate({of(metric, more)}[$__rate_interval]))"


def total(metric: str, more: str = "") -> str:
    """Return a counter's increase in a second, of all that is selected."""
    return f"sum(rate({of(metric, more)}[$__rate_interval]))"


def quantiles(metric: str, by: str = "le") -> list[tuple[str, str]]:
    """Return the median and the 99th percentile of a histogram that is observed."""
    return [
        (f"histogram_quantile({quantile}, {rate(f'{metric}_bucket', by)})", name)
        for quantile, name in ((0.5, "median"), (0.99, "99%"))
    ]


def steps(*bounds: tuple[float, str], first: str = GREEN) -> Json:
    """Return colours: the first one, and others from a value on."""
    return {
        "mode": "absolute",
        "steps": [{"color": first, "value": None}, *({"color": c, "value": v} for v, c in bounds)],
    }


def panel(kind: str, title: str, text: str, queries: Iterable[tuple[str, str]], width: int, **fields: Any) -> Json:
    """Return what all panels have in common; positions come later."""
    targets = [
        {
            "datasource": DATA_SOURCE,
            "editorMode": "code",
            "expr": expression,
            "legendFormat": legend,
            "refId": chr(65 + at),
        }
        for at, (expression, legend) in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": DATA_SOURCE,
        "gridPos": {"w": width},
        "targets": targets,
        **fields,
    }


def stat(
    title: str, text: str, expression: str, unit: str = "short", thresholds: Json | None = None, **more: Any
) -> Json:
    """Return one number, coloured by its thresholds, with its curve behind it."""
    made = panel(
        "stat",
        title,
        text,
        [(expression, "")],
        width=3,
        fieldConfig={
            "defaults": {
                "unit": unit,
                "color": {
                    "mode": "thresholds" if thresholds else "fixed",
                    **({} if thresholds else {"fixedColor": "blue"}),
                },
                "thresholds": thresholds or steps(),
            },
            "overrides": [],
        },
        options={
            "colorMode": "background" if thresholds else "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "auto",
            "wideLayout": True,
            "showPercentChange": False,
            "percentChangeColorMode": "standard",
        },
    )
    made["gridPos"]["h"] = 4
    return made


def chart(
    title: str,
    text: str,
    *queries: tuple[str, str],
    unit: str = "short",
    stacked: bool = False,
    thresholds: Json | None = None,
) -> Json:
    """Return curves; thresholds are lines in it."""
    custom: Json = {"drawStyle": "line", "fillOpacity": 10, "lineWidth": 1, "showPoints": "never"}
    if stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    defaults: Json = {"unit": unit, "min": 0, "custom": custom}
    if thresholds:
        custom["thresholdsStyle"] = {"mode": "dashed"}
        defaults["thresholds"] = thresholds
    made = panel(
        "timeseries",
        title,
        text,
        queries,
        width=8,
        fieldConfig={"defaults": defaults, "overrides": []},
        options={
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    )
    made["gridPos"]["h"] = 8
    return made


def states(title: str, text: str, query: tuple[str, str]) -> Json:
    """Return one bar for each series, green while it is 1 and red while it is 0."""
    mappings = [{"type": "value", "options": {"0": {"text": "no", "index": 0}, "1": {"text": "yes", "index": 1}}}]
    made = panel(
        "state-timeline",
        title,
        text,
        [query],
        width=8,
        fieldConfig={
            "defaults": {
                "color": {"mode": "thresholds"},
                "thresholds": steps((1, GREEN), first=RED),
                "mappings": mappings,
                "custom": {"fillOpacity": 70, "lineWidth": 0},
            },
            "overrides": [],
        },
        options={
            "mergeValues": True,
            "showValue": "never",
            "alignValue": "left",
            "rowHeight": 0.8,
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
            "tooltip": {"mode": "single", "sort": "none"},
        },
    )
    made["gridPos"]["h"] = 8
    return made


FULL = f"max({of('signaling_peers')} / {of('signaling_connections_max')})"
_DROPPED = total("signaling_relays_total", ',outcome="dropped"')
DROPPED = f"{_DROPPED} / ({total('signaling_relays_total')} > 0) or vector(0)"
REFUSED = total("signaling_handshakes_total", ',outcome=~"401|403|429|503"')
LAG_BY_PROCESS = f"histogram_quantile(0.99, {rate('signaling_reactor_lag_seconds_bucket', 'instance, process, le')})"
LAG = f"max({LAG_BY_PROCESS} >= 0)"
"""The worst process; NaN until a process has measured something."""

ROWS: list[tuple[str, list[Json]]] = [
    (
        "At a glance",
        [
            stat(
                "Nodes down",
                "Servers that Prometheus cannot scrape.",
                'count(up{job=~"$job",instance=~"$instance"} == 0) or vector(0)',
                thresholds=steps((1, RED)),
            ),
            stat(
                "Nodes not ready",
                "Servers whose /readyz is not 200: stopping, missing a worker, or without their backplane.",
                f"count({of('signaling_ready')} == 0) or vector(0)",
                thresholds=steps((1, YELLOW)),
            ),
            stat("Peers", "Peers in all topics.", f"sum({of('signaling_peers')})"),
            stat(
                "Topics",
                "Topics with at least one peer, added up over nodes: a topic on two nodes counts twice.",
                f"sum({of('signaling_topics')})",
            ),
            stat(
                "Fullest node",
                "Peers of the most that the node accepts.",
                FULL,
                "percentunit",
                steps((0.7, YELLOW), (0.9, RED)),
            ),
            stat(
                "Refused requests",
                "Requests to join that were refused for load, origin or token, in a second.",
                f"{REFUSED} or vector(0)",
                "reqps",
                steps((0.1, YELLOW), (1, RED)),
            ),
            stat(
                "Dropped relays",
                "Part of the relays that were dropped because their target did not read.",
                DROPPED,
                "percentunit",
                steps((0.001, YELLOW), (0.01, RED)),
            ),
            stat(
                "Worst reactor lag",
                "How late the slowest process runs its timers, 99th percentile.",
                LAG,
                "s",
                steps((0.05, YELLOW), (0.1, RED)),
            ),
        ],
    ),
    (
        "Peers and topics",
        [
            chart(
                "Peers",
                "Detached peers lost their connection, and may resume.",
                (of("signaling_peers"), "{{instance}}"),
                (of("signaling_peers_detached"), "{{instance}} detached"),
            ),
            chart(
                "Topics",
                "Topics with at least one peer.",
                (of("signaling_topics"), "{{instance}}"),
            ),
            chart(
                "Peers per topic",
                "Half of the topics have at most as many peers as the median.",
                (f"histogram_quantile(0.5, sum by (le) ({of('signaling_topic_peers_bucket')}))", "median"),
                (f"histogram_quantile(0.99, sum by (le) ({of('signaling_topic_peers_bucket')}))", "99%"),
            ),
            chart(
                "Joins, resumes and metadata updates",
                "In a second.",
                (rate("signaling_joins_total"), "{{instance}} joins"),
                (rate("signaling_resumes_total"), "{{instance}} resumes"),
                (rate("signaling_metadata_updates_total"), "{{instance}} metadata updates"),
                unit="ops",
            ),
            chart(
                "Leaves by reason",
                "Many of connection_lost, ping_timeout or resume_timeout at once: a proxy or a network failed.",
                (rate("signaling_leaves_total", "reason"), "{{reason}}"),
                unit="ops",
                stacked=True,
            ),
            chart(
                "Errors sent",
                "Errors that clients received, by code.",
                (rate("signaling_errors_sent_total", "code"), "{{code}}"),
                unit="ops",
                stacked=True,
            ),
        ],
    ),
    (
        "Connections",
        [
            chart(
                "Connections",
                "Open ones, unjoined ones included, and the most that peers may have.",
                (of("signaling_connections"), "{{instance}}"),
                (of("signaling_connections_max"), "{{instance}} most"),
            ),
            chart(
                "Handshakes by outcome",
                "Requests to join: accepted, or the HTTP status of the refusal. Checks (?check) that were refused.",
                (rate("signaling_handshakes_total", "outcome"), "{{outcome}}"),
                (rate("signaling_checks_refused_total", "status"), "check {{status}}"),
                unit="reqps",
                stacked=True,
            ),
            chart(
                "Unjoined connections evicted",
                "Connections that were closed before they joined, to make room for newer ones.",
                (rate("signaling_connections_evicted_total"), "{{instance}}"),
                unit="ops",
            ),
        ],
    ),
    (
        "Relays",
        [
            chart(
                "Relays by type",
                "Accepted offers, answers and ICE candidates.",
                (rate("signaling_relays_total", "type", ',outcome="accepted"'), "{{type}}"),
                unit="ops",
                stacked=True,
            ),
            chart(
                "Relays not delivered",
                "Refused ones by the code of their error, and those whose target left before they were written.",
                (rate("signaling_relays_total", "outcome", ',outcome!="accepted"'), "{{outcome}}"),
                (rate("signaling_relays_undelivered_total"), "{{instance}} target left"),
                unit="ops",
            ),
            chart(
                "Relayed bytes",
                "Accepted relays, in bytes of frames.",
                (rate("signaling_relayed_bytes_total"), "{{instance}}"),
                unit="Bps",
            ),
            chart(
                "Queues",
                "Relays that wait for slow peers, and news of a topic that such a peer missed, in a second.",
                (of("signaling_relays_queued"), "{{instance}} relays queued"),
                (rate("signaling_events_dropped_total"), "{{instance}} events dropped"),
            ),
            chart(
                "Queue depth at a drop",
                "Messages in an outbound queue that refused another one.",
                *quantiles("signaling_queue_depth_at_drop"),
            ),
            chart(
                "Ping round trip",
                "From a ping to its pong: the network, and the client's own delay.",
                *quantiles("signaling_ping_round_trip_seconds"),
                unit="s",
            ),
        ],
    ),
    (
        "Cluster",
        [
            states(
                "Backplane reachable",
                "Whether the node reaches the other ones. Always so without --backplane.",
                (of("signaling_backplane_up"), "{{instance}}"),
            ),
            chart(
                "Relays between nodes",
                "Relays that another node wrote, and that came from there.",
                (rate("signaling_relays_delivered_remotely_total"), "{{instance}} sent"),
                (rate("signaling_relays_received_total"), "{{instance}} received"),
                unit="ops",
            ),
            chart(
                "Relays in flight",
                "Relays to other nodes without an outcome yet.",
                (of("signaling_relays_in_flight"), "{{instance}}"),
            ),
        ],
    ),
    (
        "Nodes and workers",
        [
            states("Ready", "Whether /readyz answers 200.", (of("signaling_ready"), "{{instance}}")),
            states(
                "Workers up",
                "With --workers only.",
                (of("signaling_worker_up"), "{{instance}} {{process}}"),
            ),
            chart(
                "Worker restarts",
                "In an hour. With --workers only.",
                (f"increase({of('signaling_worker_restarts_total')}[1h])", "{{instance}} {{process}}"),
                thresholds=steps((2, RED)),
            ),
            chart(
                "Reactor lag",
                "How late a process runs its timers, 99th percentile.",
                (
                    LAG_BY_PROCESS,
                    "{{instance}} {{process}}",
                ),
                unit="s",
                thresholds=steps((0.1, RED)),
            ),
            chart(
                "CPU",
                "Of one core. A process uses no more than one.",
                (f"rate({of('process_cpu_seconds_total')}[$__rate_interval])", "{{instance}} {{process}}"),
                unit="percentunit",
                thresholds=steps((0.8, RED)),
            ),
            chart(
                "Memory",
                "Resident.",
                (of("process_resident_memory_bytes"), "{{instance}} {{process}}"),
                unit="bytes",
            ),
            chart(
                "Open files",
                "And the most that the system allows.",
                (of("process_open_fds"), "{{instance}} {{process}}"),
                (of("process_max_fds"), "{{instance}} {{process}} most"),
            ),
            chart(
                "Versions",
                "Servers by their version; two of them during a rollout.",
                (
                    f"count by (version, python, fast_path) ({of('signaling_build_info')})",
                    "{{version}}, Python {{python}}, fast path {{fast_path}}",
                ),
            ),
        ],
    ),
    (
        "Webhooks, ICE servers and the admin API",
        [
            chart(
                "Webhook events",
                "With --webhook only. Lost events found the queue full, or the receiver gone.",
                (rate("signaling_webhook_events_total", "outcome"), "events {{outcome}}"),
                (rate("signaling_webhook_requests_total", "outcome"), "requests {{outcome}}"),
                unit="ops",
            ),
            chart(
                "Webhook events waiting",
                "With --webhook only. More and more of them: the receiver is slow or down.",
                (of("signaling_webhook_events_waiting"), "{{instance}}"),
                thresholds=steps((5000, RED)),
            ),
            chart(
                "Age of a provider's ICE servers",
                "With --ice-source only.",
                (of("signaling_ice_source_age_seconds"), "{{instance}}"),
                unit="s",
                thresholds=steps((64800, RED)),
            ),
            chart(
                "Requests of the admin API",
                "In a second, by operation and status.",
                (rate("signaling_admin_requests_total", "operation, status"), "{{operation}} {{status}}"),
                unit="reqps",
                stacked=True,
            ),
            chart(
                "Notices",
                "Notices of operators that peers received, in a second.",
                (rate("signaling_notices_received_total"), "{{instance}}"),
                unit="ops",
            ),
            chart(
                "Blocks",
                "Owners of tokens that are kept out of a topic, and blocks that ended early as there were too many.",
                (of("signaling_blocks"), "{{instance}} blocks"),
                (rate("signaling_blocks_displaced_total"), "{{instance}} displaced"),
            ),
        ],
    ),
]


def laid_out() -> list[Json]:
    """Return all panels with their places and ids, each row under a heading."""
    placed: list[Json] = []
    y = 0
    for title, panels in ROWS:
        placed.append(
            {
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y},
            }
        )
        x, y = 0, y + 1
        for each in panels:
            width, height = each["gridPos"]["w"], each["gridPos"]["h"]
            if x + width > WIDTH:
                x, y = 0, y + height
            placed.append({**each, "gridPos": {"h": height, "w": width, "x": x, "y": y}})
            x += width
        y += panels[-1]["gridPos"]["h"]
    return [{"id": number, **each} for number, each in enumerate(placed, 1)]


def variable(name: str, label: str, values: str, all_values: str | None = ".*") -> Json:
    """Return a variable whose values are those of a label.

    Args:
        all_values: what "All" selects; None means the values that were found.
    """
    made: Json = {
        "name": name,
        "type": "query",
        "label": label,
        "datasource": DATA_SOURCE,
        "query": {"query": values, "refId": name},
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "multi": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }
    if all_values is not None:
        made["allValue"] = all_values
    return made


def dashboard() -> Json:
    """Return the whole dashboard."""
    return {
        "title": "WebRTC signaling",
        "uid": "twisted-signaling",
        "description": "Servers of twisted-signaling, scraped by Prometheus.",
        "tags": ["signaling", "webrtc"],
        "timezone": "browser",
        "schemaVersion": 39,
        "version": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "editable": True,
        "graphTooltip": 1,
        "annotations": {"list": []},
        "links": [],
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
                # Other jobs have a process and are up or down, too.
                variable("job", "Job", "label_values(signaling_build_info, job)", all_values=None),
                variable("instance", "Node", 'label_values(signaling_build_info{job=~"$job"}, instance)'),
                # Without --workers none has a name, and "All" selects what has no such label as well.
                variable(
                    "process", "Worker", f"label_values(signaling_reactor_lag_seconds_count{{{SELECTOR}}}, process)"
                ),
            ]
        },
        "panels": laid_out(),
    }


def text() -> str:
    """Return the content of the file."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    (TREE / "deploy" / "grafana.json").write_text(text())
