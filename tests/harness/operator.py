"""What an operator does by the admin API of a server."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from tests.harness.server import HOST, HTTP_SECONDS, Server, running

TOKEN = "a-token-of-the-tests-0123456789"


class Operator:
    """An operator of a server with an admin API on this port."""

    def __init__(self, port: int) -> None:
        self._port = port

    def topics(self) -> dict[str, int]:
        """Return the topics, and how many peers each has."""
        return {topic["name"]: topic["peers"] for topic in self._ask("GET", "/v1/topics")["topics"]}

    def notify(self, topic: str, data: Any) -> None:
        """Send a notice to all peers of a topic."""
        self._ask("POST", f"/v1/topics/{quote(topic, safe='')}/notices", {"data": data})

    def remove(self, topic: str, peer_id: str, reason: str = "") -> None:
        """Remove a peer from its topic."""
        self._ask("DELETE", f"/v1/topics/{quote(topic, safe='')}/peers/{peer_id}?{urlencode({'reason': reason})}")

    def close(self, topic: str, reason: str = "") -> None:
        """Remove all peers of a topic."""
        self._ask("DELETE", f"/v1/topics/{quote(topic, safe='')}?{urlencode({'reason': reason})}")

    def _ask(self, method: str, target: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{HOST}:{self._port}{target}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=HTTP_SECONDS) as answer:
            return json.load(answer)


@contextmanager
def operated(folder: Path, *options: str) -> Iterator[tuple[Server, Operator]]:
    """Run a server with an admin API.

    Args:
        folder: for the token of that.
        options: further ones of the server.
    """
    (folder / "admin-token").write_text(TOKEN)
    admin = ("--admin-listen", f"tcp:0:interface={HOST}", "--admin-token-file", f"{folder}/admin-token")
    with running(["--port=0", *admin, *options]) as server:
        ports = {int(server.next_line(r"listening on \S+:(\d+)")[1]) for _ in range(2)}
        [port] = ports - {server.port}
        yield server, Operator(port)
