"""Every query of the dashboard finds something in Prometheus, once a server has had what the query is about."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deployments.compose_stack import TREE, Stack, stack
from tests.harness.server import wait_until

DASHBOARD = json.loads((TREE / "deploy" / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# What the server of compose.yaml does not have.
WITHOUT_DATA = {
    "Workers up": "needs --workers",
    "Worker restarts": "needs --workers",
    "Webhook events": "needs --webhook",
    "Webhook events waiting": "needs --webhook",
    "Age of a provider's ICE servers": "needs --ice-source",
    "Requests of the admin API": "needs --admin-listen, and a request",
    "Queue depth at a drop": "needs a peer that does not read",
}

# Two peers meet; one sends an offer, one to nobody; a third one leaves; a request and a check of others are refused.
TRAFFIC = """
import asyncio, json, urllib.error, urllib.request, websockets

URL = "ws://localhost:8081/ws/room"

async def main():
    async with websockets.connect(URL) as first, websockets.connect(URL) as second:
        ids = [json.loads(await peer.recv())["selfId"] for peer in (first, second)]
        for target in (ids[1], "0" * 26):
            await first.send(json.dumps({"type": "offer", "to": target, "payload": {}}))
        while json.loads(await second.recv())["type"] != "offer":
            pass
        while json.loads(await first.recv())["type"] != "error":
            pass
        async with websockets.connect(URL):
            pass
        try:
            await websockets.connect(URL + "?metadata=none")
        except websockets.InvalidStatus:
            pass
        try:
            await asyncio.to_thread(urllib.request.urlopen, URL.replace("ws:", "http:") + "?metadata=none&check")
        except urllib.error.HTTPError:
            pass
        print("done", flush=True)
        await asyncio.Future()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run the services, with what Prometheus needs to tell a rate: a scrape before and one after."""
    with stack(tmp_path_factory.mktemp("compose"), "--ping-interval=0.5") as made:

        def handshakes(text: str = "") -> bool:
            return values(made, f'signaling_handshakes_total{{outcome="accepted"}} {text}') != [[]]

        wait_until(handshakes)
        traffic = made.launch([sys.executable, "-c", TRAFFIC])
        try:
            traffic.wait_for("done")
            wait_until(lambda: handshakes("> 0"))
            # Series that begin with the traffic need a second sample.
            wait_until(lambda: values(made, "count_over_time(signaling_errors_sent_total[1m]) > 1") != [[]])
            yield made
        finally:
            traffic.end()


ASK = """
import json, sys, urllib.parse, urllib.request
for expression in sys.argv[1:]:
    query = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"http://prometheus:9090/api/v1/query?{query}", timeout=60) as answer:
        print(json.dumps(json.load(answer)["data"]["result"]))
"""


def values(made: Stack, *expressions: str) -> list[list[dict[str, Any]]]:
    """Return the results of queries, now, without those that are not a number."""
    lines = made.run([sys.executable, "-c", ASK, *expressions]).splitlines()
    return [[sample for sample in json.loads(line) if sample["value"][1] != "NaN"] for line in lines]


def filled_in(expression: str) -> str:
    """Return a query as Grafana sends it when everything is selected."""
    for variable in DASHBOARD["templating"]["list"]:
        # Without a value of its own, "All" is all values that were found, here the only job.
        expression = expression.replace(f"${variable['name']}", variable.get("allValue", "signaling"))
    return expression.replace("$__rate_interval", "1m")


def test_the_queries_find_data(busy: Stack) -> None:
    queries = [(panel["title"], filled_in(target["expr"])) for panel in PANELS for target in panel["targets"]]
    results = values(busy, *(expression for _, expression in queries))
    empty = {title for (title, _), result in zip(queries, results, strict=True) if not result}
    assert empty == set(WITHOUT_DATA)
    # Prometheus, which is scraped as another job, has metrics of its process as well.
    instances = {sample["metric"].get("instance") for result in results for sample in result}
    assert instances == {None, "signaling:9091"}


def test_the_variables_find_the_server(busy: Stack) -> None:
    labels = {"job": "signaling", "instance": "signaling:9091", "process": None}
    for variable in DASHBOARD["templating"]["list"][1:]:
        [(metric, label)] = re.findall(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        [found] = values(busy, filled_in(metric))
        assert [sample["metric"].get(label) for sample in found] == [labels[label]]


def test_no_alert_fires(busy: Stack) -> None:
    # But for a lag, which this machine may have for other reasons.
    assert values(busy, 'ALERTS{alertname!="SignalingLag"}') == [[]]
