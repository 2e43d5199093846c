"""A client of the admin API on a UNIX socket."""

from __future__ import annotations

import json
import socket
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class AdminClient:
    """Asks one server.

    Args:
        path: of its socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def request(self, method: str, target: str, body: Any = None) -> tuple[int, Any]:
        """Make one request; returns its status and its JSON."""
        connection = _UnixConnection(self._path)
        headers = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, target, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        return response.status, answer

    def topics(self, **parameters: Any) -> tuple[int, Any]:
        """List topics."""
        return self.request("GET", f"/v1/topics?{urlencode(parameters)}")

    def describe(self, topic: str) -> tuple[int, Any]:
        """List the peers of a topic."""
        return self.request("GET", f"/v1/topics/{quote(topic, safe='')}")

    def remove(self, topic: str, peer: str, **parameters: Any) -> tuple[int, Any]:
        """Remove a peer."""
        return self.request("DELETE", f"/v1/topics/{quote(topic, safe='')}/peers/{peer}?{urlencode(parameters)}")

    def close(self, topic: str, **parameters: Any) -> tuple[int, Any]:
        """Close a topic."""
        return self.request("DELETE", f"/v1/topics/{quote(topic, safe='')}?{urlencode(parameters)}")

    def notify(self, topic: str, data: Any, to: str | None = None) -> tuple[int, Any]:
        """Send a notice."""
        body = {"data": data} if to is None else {"data": data, "to": to}
        return self.request("POST", f"/v1/topics/{quote(topic, safe='')}/notices", body)
