"""The examples do what the documents say of them."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.harness.server import launch

EMBED = Path(__file__).parents[2] / "examples" / "embed.py"


def test_embedded_signaling_serves_beside_the_applications_own_page() -> None:
    command = [sys.executable, str(EMBED), "--port", "0"]
    server = launch(command)
    try:
        server.port = int(server.wait_for(r"listening on (\d+)")[1])
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/", timeout=60) as page:
            assert page.read() == b"the application's own page\n"
        with connect(server.url + "room") as caller, connect(server.url + "room") as callee:
            caller_id = json.loads(caller.recv(60))["selfId"]
            target = json.loads(callee.recv(60))["selfId"]
            caller.send(json.dumps({"type": "offer", "to": target, "payload": 1}))
            callee.recv(60)
            assert json.loads(callee.recv(60)) == {"type": "offer", "from": caller_id, "payload": 1}
            server.process.terminate()
            with pytest.raises(ConnectionClosed, match="1001"):
                callee.recv(60)
        server.process.wait(60)
    finally:
        server.end()
