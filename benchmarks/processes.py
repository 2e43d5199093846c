"""Child processes of a load: their cores, and how they are asked over their standard input."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from unittest import SkipTest

from signaling import Limits
from tests.programs import need

_TREE = Path(__file__).parents[1]
_ANSWER_BYTES = 1 << 24
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.05
_CORES = sorted(os.sched_getaffinity(0))


class Child:
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
            ConnectionError: if the process is gone.
        """
        assert self._process.stdin is not None
        async with self._asking:
            self._process.stdin.write(f"{request}\n".encode())
            return await _answer(self._process)

    async def stop(self) -> dict[str, Any]:
        """Ask it to end; returns its last answer."""
        answer = await self.ask("stop")
        await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
        return answer

    def kill(self) -> None:
        """Kill it if it runs."""
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
    """Keep a process on one core, if there is more than one; 0 means this process."""
    if len(_CORES) > 1:
        with suppress(OSError):
            os.sched_setaffinity(pid, {_CORES[index % len(_CORES)]})


def use_realtime_priority() -> None:
    """Run this process before all others, if the system allows that."""
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def limit(text: str) -> tuple[str, float]:
    """Parse ``NAME=VALUE`` of one of the server's ``Limits``, for argparse."""
    types = {field.name: float if "float" in str(field.type) else int for field in dataclasses.fields(Limits)}
    name, _, value = text.partition("=")
    if name not in types:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(types)}")
    try:
        return name, types[name](value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is no value for {name}") from None


def required(name: str) -> str:
    """Return the path of a program, or end this one if it is not installed."""
    try:
        return need(name)
    except SkipTest as missing:
        sys.exit(str(missing))


async def wait_until(condition: Callable[[], Any], seconds: float) -> bool:
    """Wait for something that sends no event; returns whether it came within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True


async def serve_requests(answer: Callable[[str], dict[str, Any]], ready: dict[str, Any]) -> None:
    """Print ``ready``, and in a child process one answer for each line of the standard input, until ``stop``."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print(json.dumps(ready), flush=True)
    while (line := await lines.readline()) not in (b"", b"stop\n"):
        print(json.dumps(answer(line.decode().strip())), flush=True)


def judge(checks: Mapping[str, bool], missed: str = "FAIL") -> bool:
    """Print each check with whether it holds; returns whether all do."""
    for text, holds in checks.items():
        print(f"{'ok  ' if holds else missed} {text}")
    return all(checks.values())
