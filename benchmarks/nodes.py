"""The processes of a cluster on the loopback, and what can befall them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from benchmarks.client import HOST
from benchmarks.processes import free_port

_NOTICE_SECONDS = 30.0
_TROUBLE = re.compile("Traceback|Unhandled|#error|#critical")


def program(name: str) -> str:
    """Find a program that is installed; where Debian keeps servers, too, or end this one."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    return path or sys.exit(f"{name} is not installed")


class Program:
    """A process whose output can be waited for.

    Attributes:
        unready_reasons: lines that tell of an exception or an error.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.unready_reasons: list[str] = []
        self._lines: list[str] = []
        self._changed = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, *command: str, environment: Mapping[str, str] | None = None) -> Self:
        """Run ``command``.

        Args:
            environment: on top of this process's.
        """
        pipe = asyncio.subprocess.PIPE
        out = asyncio.subprocess.STDOUT
        env = {**os.environ, **(environment or {})}
        return cls(await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=out, env=env))

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for data in self.process.stdout:
            line = data.decode(errors="replace")
            if _TROUBLE.search(line):
                self.unready_reasons.append(line.rstrip())
            async with self._changed:
                self._lines.append(line)
                self._changed.notify_all()

    async def line(self, pattern: str) -> re.Match[str]:
        """Wait for a line from now on, or since the last one waited for."""
        found: list[re.Match[str]] = []

        def read() -> bool:
            while self._lines and not found:
                match = re.search(pattern, self._lines.pop(0))
                found.extend([match] if match else [])
            return bool(found)

        async with asyncio.timeout(_NOTICE_SECONDS), self._changed:
            await self._changed.wait_for(read)
        return found[0]

    def pause(self) -> None:
        """Let it stand still; the kernel goes on taking connections and bytes for it."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    async def stop(self) -> None:
        """Let it end."""
        with suppress(ProcessLookupError):
            self.process.terminate()
        await self.process.wait()
        await self._reading

    async def kill(self) -> None:
        """End it, whatever it does."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self._reading


class Node:
    """A server that can be restarted on its port.

    Args:
        name: for people.
        options: of ``twistd signaling``, but for where it listens.
        environment: on top of this process's.

    Attributes:
        port: the same after each restart.
        up: whether it is there.
    """

    def __init__(self, name: str, options: list[str], environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._options = options
        self._environment = environment
        self.port = 0
        self.up = False

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        listen = f"--listen=tcp:{self.port}:interface={HOST}"
        twistd = str(Path(sys.executable).parent / "twistd")
        self.program = await Program.start(
            twistd, "-n", "--pidfile=", "signaling", listen, *self._options, environment=self._environment
        )
        self.port = int((await self.program.line(r"listening on \S+:(\d+)"))[1])
        self.up = True

    async def stop(self) -> None:
        """Send it SIGTERM and wait for its end."""
        self.up = False
        await self.program.stop()

    async def kill(self) -> None:
        """End it, whatever it does."""
        self.up = False
        await self.program.kill()


class Store:
    """A Redis server that keeps nothing on a disk.

    Attributes:
        port: the same after each restart.
    """

    def __init__(self) -> None:
        self.port = free_port()

    async def start(self) -> None:
        """Start it, empty."""
        settings = ("--bind", HOST, "--port", str(self.port), "--save", "", "--appendonly", "no")
        self.program = await Program.start(program("redis-server"), *settings)
        await self.program.line("Ready to accept connections")

    async def kill(self) -> None:
        """End it with all that it knows."""
        await self.program.kill()


class Link:
    """The way between nodes and the store, which can fail without a word to either.

    Attributes:
        port: where the nodes find the store.
    """

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self._target_port = target_port
        self._swallowing = self._deaf = False
        self._late_seconds = 0.0
        self._moving = asyncio.Event()
        self._moving.set()
        self._carrying: set[asyncio.Task[None]] = set()
        self._spoilt: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._accepted, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def swallow(self) -> None:
        """Lose all bytes of both directions, and take new connections as if nothing were."""
        self._swallowing = True

    def deafen(self) -> None:
        """Lose all bytes from the store to the nodes; nothing is reset, not even in the end."""
        self._deaf = True

    def hold(self) -> None:
        """Carry nothing for now: what is sent arrives late, and even if its connection was given up meanwhile."""
        self._moving.clear()

    def delay(self, seconds: float) -> None:
        """Let everything from the store arrive so much later."""
        self._late_seconds = seconds

    def heal(self) -> None:
        """Carry bytes again; a connection that lost some of both directions is reset."""
        self._swallowing = self._deaf = False
        self._late_seconds = 0.0
        self._moving.set()
        for task in self._spoilt:
            task.cancel()
        self._spoilt.clear()

    async def close(self) -> None:
        """Reset all connections, and take no more."""
        self._server.close()
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)
        with suppress(asyncio.CancelledError, OSError):
            await task

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own = asyncio.current_task()
        assert own is not None
        writers = [writer]
        try:
            there, back = await asyncio.open_connection(HOST, self._target_port)
            writers.append(back)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._copy(reader, back, own))
                late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
                both.create_task(self._read_store(there, late))
                both.create_task(self._copy_late(late, writer, own))
        except* OSError:
            pass
        finally:
            for each in writers:
                each.transport.abort()

    async def _read_store(self, reader: asyncio.StreamReader, late: asyncio.Queue[tuple[float, bytes]]) -> None:
        """Read what the store says as it comes, with the moment at which it may go on."""
        data = b"x"
        while data:
            data = await reader.read(65_536)
            late.put_nowait((time.monotonic() + self._late_seconds, data))

    async def _copy_late(
        self, late: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, own: asyncio.Task[None]
    ) -> None:
        while True:
            due, data = await late.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if not await self._pass_on(data, writer, own, deaf=self._deaf):
                return

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, own: asyncio.Task[None]) -> None:
        while await self._pass_on(await reader.read(65_536), writer, own):
            pass

    async def _pass_on(
        self, data: bytes, writer: asyncio.StreamWriter, own: asyncio.Task[None], *, deaf: bool = False
    ) -> bool:
        """Carry bytes, or lose them; returns False at their end, which is a byte like any other."""
        await self._moving.wait()
        if self._swallowing:
            self._spoilt.add(own)
            if not data:
                await asyncio.Event().wait()
        elif data and not deaf:
            writer.write(data)
            await writer.drain()
        elif not data:
            writer.write_eof()
        return bool(data)
