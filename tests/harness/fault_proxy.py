"""A TCP proxy on the loopback that is a faulty network: it cuts, freezes, swallows, delays and refuses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tests.programs import free_port

_HOST = "127.0.0.1"
_READ_BYTES = 65_536
# At most so many reads wait in the proxy for each direction; then TCP's own flow control is at work.
_MAX_READS = 64


class FaultProxy:
    """Carries bytes between clients and a port of this machine, in a thread of its own.

    All methods may be called from any thread, also from that of an asyncio loop: they return at once.

    Attributes:
        port: where it listens; it stays the same, and nobody else takes it while connections are refused.
        accepted: how many connections it has accepted so far.
    """

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self.accepted = 0
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._swallowing = self._swallowing_replies = self._freezing_new = False
        self._delay_seconds = 0.0
        self._connections: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.accept()

    # Faults

    def accept(self) -> None:
        """Accept connections, again after ``refuse``."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(60)

    def refuse(self) -> None:
        """Refuse new connections; those that are open stay."""
        self._do(self._refuse)

    def aim_at(self, target_port: int) -> None:
        """Carry new connections to another port."""
        self._target_port = target_port

    def cut(self, *, refuse: bool = False) -> None:
        """End every connection at once, with whatever is under way, and without a close frame.

        Args:
            refuse: refuse new connections as well.
        """

        def cut() -> None:
            if refuse:
                self._refuse()
            for connection in self._connections:
                connection.task.cancel()

        self._do(cut)

    def freeze(self, *, new_connections: bool = False) -> None:
        """Carry nothing more on open connections: what is sent arrives after ``heal``.

        Args:
            new_connections: treat new connections alike; they are accepted.
        """

        def freeze() -> None:
            self._freezing_new = new_connections
            for connection in self._connections:
                connection.flowing.clear()

        self._do(freeze)

    def swallow(self, *, replies_only: bool = False) -> None:
        """Lose all bytes, on new connections too, which are accepted as before.

        Args:
            replies_only: lose what the target sends, and nothing else. ``heal`` does not cut such connections.
        """
        self._swallowing, self._swallowing_replies = not replies_only, replies_only

    def delay(self, seconds: float) -> None:
        """Deliver everything that the target sends so much later."""
        self._delay_seconds = seconds

    def heal(self) -> None:
        """Carry bytes again. A connection that lost bytes of both directions is cut."""

        def heal() -> None:
            self._swallowing = self._swallowing_replies = self._freezing_new = False
            self._delay_seconds = 0.0
            for connection in self._connections:
                connection.flowing.set()
                if connection.lossy:
                    connection.task.cancel()

        self._do(heal)

    def stop(self) -> None:
        """Cut all connections, and end."""
        self.cut(refuse=True)

        async def finish() -> None:
            await asyncio.gather(*(connection.task for connection in self._connections), return_exceptions=True)

        asyncio.run_coroutine_threadsafe(finish(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # In the loop

    def _do(self, action: Callable[[], Any]) -> None:
        async def run() -> None:
            action()
            # A cancelled connection closes its sockets in the next pass.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(60)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accepted, _HOST, self.port, reuse_address=True, backlog=1024)

    def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        connection = _Connection(self)
        if self._freezing_new:
            connection.flowing.clear()
        self._connections.add(connection)
        connection.task = asyncio.create_task(connection.carry(reader, writer))
        with suppress(asyncio.CancelledError):
            await connection.task
        self._connections.discard(connection)


class _Connection:
    """One connection of a client, and the proxy's own to the target.

    Attributes:
        lossy: whether bytes of it were swallowed in both directions.
    """

    task: asyncio.Task[None]

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self.lossy = False
        self.flowing = asyncio.Event()
        self.flowing.set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            replies, target = await asyncio.open_connection(_HOST, self._proxy._target_port)
            writers.append(target)
            async with asyncio.TaskGroup() as both:
                for source, sink, reply in ((reader, target, False), (replies, writer, True)):
                    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MAX_READS)
                    both.create_task(self._read(source, waiting, reply=reply))
                    both.create_task(self._write(waiting, sink, reply=reply))
            for each in writers:
                each.close()
        except* OSError:
            pass
        finally:
            for each in writers:
                if not each.is_closing():
                    each.transport.abort()

    async def _read(
        self, reader: asyncio.StreamReader, waiting: asyncio.Queue[tuple[float, bytes]], *, reply: bool
    ) -> None:
        data = b"x"
        while data:
            try:
                data = await reader.read(_READ_BYTES)
            except OSError:
                # The other end of a frozen connection does not see a reset either.
                await self.flowing.wait()
                raise
            late = self._proxy._delay_seconds if reply else 0.0
            await waiting.put((self._proxy._loop.time() + late, data))

    async def _write(
        self, waiting: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, *, reply: bool
    ) -> None:
        data = b"x"
        while data:
            due, data = await waiting.get()
            if (seconds := due - self._proxy._loop.time()) > 0:
                await asyncio.sleep(seconds)
            await self.flowing.wait()
            if self._proxy._swallowing:
                self.lossy = True
                if not data:
                    # The end of a stream is lost like any other byte.
                    await asyncio.Event().wait()
            elif not data:
                writer.write_eof()
            elif not (reply and self._proxy._swallowing_replies):
                writer.write(data)
                await writer.drain()


@contextmanager
def fault_proxy(target_port: int) -> Iterator[FaultProxy]:
    """Run a proxy to ``target_port``."""
    proxy = FaultProxy(target_port)
    try:
        yield proxy
    finally:
        proxy.stop()
