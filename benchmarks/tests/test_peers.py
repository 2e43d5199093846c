"""The plain servers that speak our wire: whether each does all that the comparison asks it for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from benchmarks.compare.servers import OTHERS, Running

SECONDS = 10
PLAIN = ("bun", "go", "websockets", "autobahn", "picows", "deno", "ws")


@pytest.fixture(params=PLAIN)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    other = OTHERS[request.param]
    if missing := other.missing():
        pytest.skip(f"{request.param} needs {missing}")
    with Running(other.server(), tmp_path) as running:
        host, port = running.addresses[0]
        yield f"ws://{host}:{port}/ws/"


def receive(client: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(client.recv(SECONDS))
    return message


def join(client: ClientConnection) -> tuple[str, list[str]]:
    welcome, peer_list = receive(client), receive(client)
    assert (welcome["type"], peer_list["type"]) == ("welcome", "peer-list")
    return welcome["selfId"], [peer["id"] for peer in peer_list["peers"]]


def test_peers_of_a_topic_are_told_of_each_other_and_relay(url: str) -> None:
    with connect(f"{url}one") as first, connect(f"{url}other") as stranger:
        first_id, before = join(first)
        stranger_id, _ = join(stranger)
        with connect(f"{url}one") as second:
            second_id, others = join(second)
            assert (before, others) == ([], [first_id])
            assert receive(first) == {"type": "peer-joined", "peerId": second_id}

            second.send(json.dumps({"type": "offer", "to": first_id, "payload": {"sdp": "v=0"}}))
            assert receive(first) == {"type": "offer", "from": second_id, "payload": {"sdp": "v=0"}}

            second.send(json.dumps({"type": "offer", "to": stranger_id, "payload": {}}))
            refused = receive(second)
            assert (refused["type"], refused["code"]) == ("error", "target_not_found")
        assert receive(first) == {"type": "peer-left", "peerId": second_id}
    with connect(f"{url}one") as later:
        assert join(later)[1] == []
