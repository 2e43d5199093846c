"""A server of two workers, topics of each of them, and a way to wait for the end of any process."""

from __future__ import annotations

import os
import re
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from signaling import Limits
from signaling.workers.topic_router import TopicRouter
from tests.harness.server import Server, serving

WORKERS = 2
END_SECONDS = 60.0
_ROUTER = TopicRouter(WORKERS, Limits())


@contextmanager
def shared(*options: str, **how: object) -> Iterator[Server]:
    """Run a server of two workers that has to survive, as ``serving`` does, from when both are ready."""
    with serving(f"--workers={WORKERS}", *options, **how) as server:
        pids(server)
        yield server


def pids(server: Server) -> list[int]:
    """Wait for the workers; returns the processes that they were first."""
    return [int(server.wait_for(rf"worker {number} is ready, as process (\d+)")[1]) for number in range(WORKERS)]


def topic_of(worker: int, name: str = "room") -> str:
    """Return a topic that lives in one worker."""
    return next(topic for n in range(1000) if _ROUTER.owner(topic := f"{name}-{n}") == worker)


class Ending:
    """Processes whose end can be waited for, even if they are not children of this one."""

    def __init__(self, *processes: int) -> None:
        self._watched = [os.pidfd_open(pid) for pid in processes]

    def wait(self) -> None:
        """Wait until all have ended."""
        for watched in self._watched:
            ended, _, _ = select.select([watched], [], [], END_SECONDS)
            assert ended, "a process lives on"

    def close(self) -> None:
        """Kill what is left."""
        for watched in self._watched:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(watched, signal.SIGKILL)
            os.close(watched)


@contextmanager
def ending(*processes: int) -> Iterator[Ending]:
    """Watch processes, and leave none of them behind."""
    watched = Ending(*processes)
    try:
        yield watched
    finally:
        watched.close()


def port_in(log: str) -> int:
    """Return the port that a JSON log names first."""
    found = re.search(r'"address": "\S+:(\d+)"', log)
    assert found, log
    return int(found[1])
