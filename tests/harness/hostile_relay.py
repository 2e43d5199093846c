"""A server that reads along and tampers with what peers send each other: it sits between them and a real one."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.harness.wire_schema import from_client, from_server

_RELAYED = ("offer", "answer", "ice-candidate")
ATTACKER = ":".join(["AA"] * 32)
"""The fingerprint of the attacker's certificate."""
_SDP = "\r\n".join(
    (
        "v=0",
        "o=- 1 1 IN IP4 127.0.0.1",
        "s=-",
        "t=0 0",
        "a=group:BUNDLE 0",
        "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
        "c=IN IP4 0.0.0.0",
        "a=ice-ufrag:atta",
        "a=ice-pwd:attackerattackerattacker",
        f"a=fingerprint:sha-256 {ATTACKER}",
        "a=setup:{setup}",
        "a=mid:0",
        "a=sctp-port:5000",
        "",
    )
)


class HostileRelay:
    """The relay, in a thread of its own.

    Attributes:
        recorded: every message in either direction, as it came from a peer or from the server.
        invalid: what the schemas say against these.
    """

    def __init__(self, target_port: int, *, tampers: bool) -> None:
        self.recorded: list[str] = []
        self.invalid: list[str] = []
        self._target_port = target_port
        self._tampers = tampers
        self._ids: list[str] = []
        self._clients: set[ServerConnection] = set()
        self.port = 0
        self.loop = asyncio.new_event_loop()

    async def run(self, ready: threading.Event, stop: asyncio.Event) -> None:
        async with serve(self._handle, "127.0.0.1", 0, compression=None) as server:
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await stop.wait()

    def lead_to(self, target_port: int) -> None:
        """Lead new connections to another server."""
        self._target_port = target_port

    def cut(self) -> None:
        """End all connections without a close frame."""

        def cut() -> None:
            for client in self._clients:
                client.transport.abort()

        self.loop.call_soon_threadsafe(cut)

    async def _handle(self, client: ServerConnection) -> None:
        assert client.request is not None
        url = f"ws://127.0.0.1:{self._target_port}{client.request.path}"
        self._clients.add(client)
        try:
            async with connect(url, compression=None, proxy=None) as server:
                await asyncio.gather(self._up(client, server), self._down(client, server))
                await client.close()
        except (OSError, ConnectionClosed):
            pass
        finally:
            self._clients.discard(client)
            client.transport.abort()

    async def _up(self, client: ServerConnection, server: Any) -> None:
        with suppress(ConnectionClosed):
            async for text in client:
                self.recorded.append(str(text))
                self.invalid += from_client.problems(text)
                await server.send(text)
        # A peer that was cut off sends no close frame.
        if client.close_code == 1006:
            server.transport.abort()
        else:
            await server.close()

    async def _down(self, client: ServerConnection, server: Any) -> None:
        late: list[dict[str, Any]] = []
        with suppress(ConnectionClosed):
            async for text in server:
                self.recorded.append(str(text))
                self.invalid += from_server.problems(text)
                message = json.loads(text)
                if message["type"] == "welcome":
                    self._ids.append(message["selfId"])
                is_fence = str(message.get("msgId")).startswith("fence")
                if not self._tampers or message["type"] not in _RELAYED or is_fence:
                    await client.send(text)
                    continue
                for tampered in self._tamper(message, late):
                    await client.send(json.dumps(tampered))
                # To those for whom it is not.
                for other in [other for other in self._clients if other is not client]:
                    with suppress(ConnectionClosed):
                        await other.send(text)

    def _tamper(self, message: dict[str, Any], late: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield what the target gets for a message: it comes out of order, or after all kinds of forgeries."""
        kind, payload = message["type"], message.get("payload")
        if kind != "ice-candidate":
            setup = "actpass" if kind == "offer" else "active"
            yield {**message, "payload": {"type": kind, "sdp": _SDP.format(setup=setup)}}
        if not isinstance(payload, dict) or "sealed" not in payload:
            yield message
            return
        data = payload["data"]
        yield {**message, "payload": {**payload, "data": data[:-8] + ("A" if data[-8] != "A" else "B") + data[-7:]}}
        yield {**message, "payload": {**payload, "number": payload["number"] + 1_000}}
        yield {**message, "type": "answer" if kind == "offer" else "offer"}
        for other in self._ids:
            if other != message["from"]:
                yield {**message, "from": other}
        if kind == "ice-candidate" and not late:
            late.append(message)
            return
        yield message
        yield {**message, "msgId": "~1000000"}
        if late and late[0]["from"] == message["from"]:
            yield late[0]


@contextmanager
def relaying(target_port: int, *, tampers: bool = True) -> Iterator[HostileRelay]:
    """Run a relay in front of a server on this machine.

    Args:
        tampers: whether it does more than read.
    """
    relay = HostileRelay(target_port, tampers=tampers)
    ready, stop = threading.Event(), asyncio.Event()
    thread = threading.Thread(target=lambda: relay.loop.run_until_complete(relay.run(ready, stop)))
    thread.start()
    try:
        assert ready.wait(60)
        yield relay
        assert not relay.invalid
    finally:
        relay.loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        relay.loop.close()
