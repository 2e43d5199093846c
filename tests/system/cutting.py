"""A TCP proxy between clients and a server that can cut: connections reset without a close frame, newcomers refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class CuttingProxy:
    """Passes bytes on, until it is told to cut.

    Attributes:
        port: where it listens.
        accepted: how many connections it took so far.
    """

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._transports: set[asyncio.BaseTransport] = set()
        self._listener: asyncio.Server | None = None
        self.port = 0
        self.accepted = 0

    async def listen(self) -> None:
        """Accept connections, on the same port as before."""
        self._listener = await asyncio.start_server(self._pass_on, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Refuse newcomers."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def cut(self) -> None:
        """Reset every connection on both sides, with whatever is under way."""
        for transport in tuple(self._transports):
            transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        there, back = await asyncio.open_connection("127.0.0.1", self._server_port)
        own = {writer.transport, back.transport}
        self._transports |= own
        try:
            await asyncio.gather(_copy(reader, back), _copy(there, writer), return_exceptions=True)
        finally:
            self._transports -= own
            for transport in own:
                transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


@asynccontextmanager
async def cutting(server_port: int) -> AsyncIterator[CuttingProxy]:
    """Run a proxy in front of a server."""
    proxy = CuttingProxy(server_port)
    await proxy.listen()
    try:
        yield proxy
    finally:
        proxy.refuse()
        proxy.cut()
