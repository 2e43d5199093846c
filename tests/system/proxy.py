"""A TCP proxy on loopback whose network can go away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any


class Proxy:
    """Carries bytes between whoever connects and a port of this machine.

    Attributes:
        port: where it listens, whenever it does.
    """

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._swallowing = False
        self._transports: set[asyncio.Transport] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.allow()

    def allow(self) -> None:
        """Accept connections."""
        self._do(self._listen())

    def cut(self) -> None:
        """Reset all connections, without a word to either end, and refuse new ones."""
        self._do(self._cut())

    def freeze(self) -> None:
        """Carry nothing more on the connections that there are; they stay open."""
        self._do(self._freeze())

    def swallow(self) -> None:
        """Lose all that is sent, on new connections too, which are accepted as before; until ``cut``."""
        self._swallowing = True

    def end(self) -> None:
        """Cut what there is, and stop."""
        self._do(self._cut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, action: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(action, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await self._loop.create_server(lambda: _End(self), "127.0.0.1", self.port, reuse_address=True)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._swallowing = False
        for transport in self._transports:
            transport.abort()
        while self._transports:
            await asyncio.sleep(0)

    async def _freeze(self) -> None:
        for transport in self._transports:
            transport.pause_reading()

    async def _connect(self, near: _End) -> None:
        try:
            await self._loop.create_connection(lambda: _End(self, near), "127.0.0.1", self._target_port)
        except OSError:
            near.transport.abort()


class _End(asyncio.Protocol):
    """One end of a carried connection."""

    transport: asyncio.Transport

    def __init__(self, proxy: Proxy, other: _End | None = None) -> None:
        self._proxy = proxy
        self._other = other
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._proxy._transports.add(transport)
        if self._other is None:
            self._task = self._proxy._loop.create_task(self._proxy._connect(self))
        elif self._other.transport.is_closing():
            transport.abort()
        else:
            self._other.meet(self)

    def meet(self, other: _End) -> None:
        self._other = other
        for data in self._early:
            other.transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self._proxy._swallowing:
            return
        if self._other is None:
            self._early.append(data)
        else:
            self._other.transport.write(data)

    def connection_lost(self, reason: Exception | None) -> None:
        self._proxy._transports.discard(self.transport)
        if self._other is not None:
            self._other.transport.close()


@contextmanager
def proxied(target_port: int) -> Iterator[Proxy]:
    """Run a proxy to ``target_port``."""
    proxy = Proxy(target_port)
    try:
        yield proxy
    finally:
        proxy.end()
