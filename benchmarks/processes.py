"""Processes of a load: where they run, and how one asks another."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from benchmarks.client import HOST
from signaling import Limits

_TREE = Path(__file__).parents[1]
_ANSWER_BYTES = 1 << 24
_STOP_SECONDS = 30.0
_CORES = sorted(os.sched_getaffinity(0))


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.create_server((HOST, 0)) as free:
        port: int = free.getsockname()[1]
        return port


class Helper:
    """A process that prints one line of JSON when it is ready, and one for each line that it reads.

    Attributes:
        ready: what it printed first.
    """

    def __init__(self, process: asyncio.subprocess.Process, ready: dict[str, Any]) -> None:
        self._process = process
        self._asking = asyncio.Lock()
        self.ready = ready

    @classmethod
    async def start(cls, module: str, *arguments: str) -> Self:
        """Run a module of this package."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, *arguments, stdin=pipe, stdout=pipe, cwd=_TREE, limit=_ANSWER_BYTES
        )
        return cls(process, await _answer(process))

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    async def ask(self, request: str) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises:
            ConnectionError: where the process is gone.
        """
        assert self._process.stdin is not None
        async with self._asking:
            self._process.stdin.write(f"{request}\n".encode())
            return await _answer(self._process)

    async def stop(self) -> dict[str, Any]:
        """Return its last answer, when it has ended."""
        answer = await self.ask("stop")
        await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
        return answer

    def kill(self) -> None:
        """End it, whatever it does; nothing where it has ended."""
        with suppress(ProcessLookupError):
            self._process.kill()


async def _answer(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise ConnectionError(f"process {process.pid} is gone")
    answer: dict[str, Any] = json.loads(line)
    return answer


def pin(pid: int, index: int) -> None:
    """Keep a process on one core, where there is more than one; 0 means this process."""
    if len(_CORES) > 1:
        with suppress(OSError):
            os.sched_setaffinity(pid, {_CORES[index % len(_CORES)]})


def hurry() -> None:
    """Let this process run as soon as it wants to, where the system allows that."""
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def limit(text: str) -> tuple[str, float]:
    """Parse ``NAME=VALUE`` of one of the server's bounds, for argparse."""
    types = {field.name: float if "float" in str(field.type) else int for field in dataclasses.fields(Limits)}
    name, _, value = text.partition("=")
    if name not in types:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(types)}")
    try:
        return name, types[name](value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is no value for {name}") from None
