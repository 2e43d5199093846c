"""``signaling-probe URL``: joins a topic with two peers and relays once each way, for cron jobs and monitors.

It prints the times and exits with 0, or says what failed and exits with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import ssl
import sys
import time
import uuid
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, WebSocketException

R = TypeVar("R")

_MAX_FAILURE_CHARACTERS = 500
_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}


class ProbeError(Exception):
    """The probe failed; the text says how."""


class Probe:
    """One probe of a server.

    Args:
        url: the URL of the server, or of its ``/ws/``.
        timeout_seconds: the timeout of each step.
        token: a bearer token; None if the server needs none.
        authorities: a PEM file of certificates to trust instead of the system's.

    Raises:
        ProbeError: the URL is invalid.
    """

    def __init__(self, url: str, timeout_seconds: float, token: str | None, authorities: Path | None) -> None:
        self._url = topic_url(url)
        self._timeout = timeout_seconds
        self._headers = {"Authorization": f"Bearer {token}"} if token else None
        self._ssl = None
        if self._url.startswith("wss:"):
            self._ssl = ssl.create_default_context(cafile=authorities)

    async def run(self) -> str:
        """Join with two peers, and relay once each way.

        Returns:
            The time of each step, for a person.

        Raises:
            ProbeError: a step failed.
        """
        connected, first = await _timed("connecting", self._connect())
        async with first:
            joined, (second, ids) = await _timed("joining", self._join(first))
            async with second:
                there, _ = await _timed("relaying", self._relay(first, second, *ids))
                back, _ = await _timed("relaying back", self._relay(second, first, *reversed(ids)))
        return f"connect {connected:.1f} ms, join {joined:.1f} ms, relay {there:.1f} ms there, {back:.1f} ms back"

    async def _connect(self) -> ClientConnection:
        return await connect(
            self._url,
            additional_headers=self._headers,
            ssl=self._ssl,
            open_timeout=self._timeout,
            close_timeout=self._timeout,
            proxy=None,
        )

    async def _join(self, first: ClientConnection) -> tuple[ClientConnection, tuple[str, str]]:
        first_id = (await self._expect(first, "welcome"))["selfId"]
        await self._expect(first, "peer-list")
        second = await self._connect()
        second_id = (await self._expect(second, "welcome"))["selfId"]
        peers = (await self._expect(second, "peer-list"))["peers"]
        if [peer["id"] for peer in peers] != [first_id]:
            raise ProbeError("the two peers do not see each other; is a topic kept on one node?")
        await self._expect(first, "peer-joined")
        return second, (first_id, second_id)

    async def _relay(self, sender: ClientConnection, target: ClientConnection, sender_id: str, target_id: str) -> None:
        payload = uuid.uuid4().hex
        await sender.send(json.dumps({"type": "offer", "to": target_id, "payload": payload}))
        offer = await self._expect(target, "offer")
        if (offer["from"], offer["payload"]) != (sender_id, payload):
            raise ProbeError("a message arrived altered")

    async def _expect(self, connection: ClientConnection, kind: str) -> dict[str, Any]:
        async with asyncio.timeout(self._timeout):
            # An operator may speak to every topic.
            while (message := json.loads(await connection.recv()))["type"] == "notice":
                pass
        if message["type"] != kind:
            code = f": {message['code']}" if message["type"] == "error" else ""
            raise ProbeError(f"expected {kind}, not {message['type']}{code}")
        answer: dict[str, Any] = message
        return answer


def topic_url(url: str) -> str:
    """Return the URL of a new topic on the server.

    Raises:
        ProbeError: ``url`` is not the URL of a server.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise ProbeError(f"{url!r} is not the address of a server (for example wss://signaling.example.com)")
    base = parts.path.rstrip("/")
    path = base if base.endswith("/ws") else f"{base}/ws"
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, f"{path}/probe-{uuid.uuid4().hex}", "", ""))


async def _timed(step: str, act: Awaitable[R]) -> tuple[float, R]:
    start = time.perf_counter()
    try:
        result = await act
    except InvalidStatus as error:
        raise ProbeError(f"{step}: the server answered {error.response.status_code}: {_body(error)}") from None
    except ConnectionClosed as error:
        raise ProbeError(f"{step}: {_close(error)}") from None
    except TimeoutError:
        raise ProbeError(f"{step}: no answer in time") from None
    except (OSError, InvalidHandshake, WebSocketException, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProbeError(f"{step}: {type(error).__name__}: {error}") from None
    return 1000 * (time.perf_counter() - start), result


def _body(error: InvalidStatus) -> str:
    return bytes(error.response.body or b"").decode("utf-8", "replace").strip()[:200]


def _close(error: ConnectionClosed) -> str:
    if error.rcvd is None:
        return "the connection was lost without a close frame"
    reason = f": {error.rcvd.reason}" if error.rcvd.reason else ""
    return f"the server closed the connection with {error.rcvd.code}{reason}"


def main(arguments: list[str] | None = None) -> int:
    """Run the probe.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="signaling-probe", description=__doc__)
    parser.add_argument("url", help="for example wss://signaling.example.com")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds for each step; default: %(default)s")
    parser.add_argument("--token-file", type=Path, help="a file with an access token; default: $SIGNALING_TOKEN")
    parser.add_argument("--ca", type=Path, help="a PEM file of certificate authorities; default: the system's")
    options = parser.parse_args(arguments)
    try:
        token = options.token_file.read_text().strip() if options.token_file else os.environ.get("SIGNALING_TOKEN")
        times = asyncio.run(Probe(options.url, options.timeout, token, options.ca).run())
    except (ProbeError, OSError) as error:
        # Parts of the text come from the server: print one line, without control characters.
        text = "".join(
            character if character.isprintable() else " " for character in str(error)[:_MAX_FAILURE_CHARACTERS]
        )
        print(f"failed: {' '.join(text.split())}", file=sys.stderr)
        return 1
    print(f"ok: {times}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
