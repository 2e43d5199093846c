"""A real server in a real process: ``twistd -n signaling``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 20.0
STOP_SECONDS = 20.0


class Server:
    """A running ``twistd -n signaling``.

    Attributes:
        port: the first port that it listens on, or 0 where it listens on no port.
        lines: its log so far.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self.port = 0
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def url(self) -> str:
        """Where topics are: append one."""
        return f"ws://127.0.0.1:{self.port}/ws/"

    @property
    def log(self) -> str:
        """All that it printed so far."""
        with self._changed:
            return "\n".join(self.lines)

    def wait_for(self, pattern: str, seconds: float = START_SECONDS) -> re.Match[str]:
        """Wait until a log line matches."""
        compiled = re.compile(pattern)

        def found() -> re.Match[str] | None:
            return next((match for line in self.lines if (match := compiled.search(line))), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or not self._reader.is_alive(), seconds)
            match = found()
        if match is None:
            raise AssertionError(f"no {pattern!r} in the log:\n{self.log}")
        return match

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; returns the exit status."""
        self.process.send_signal(number)
        status = self.process.wait(STOP_SECONDS)
        self._reader.join(STOP_SECONDS)
        return status

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()


def start(
    options: Sequence[str] = ("--port", "0"),
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    command: Sequence[str] | None = None,
    twistd_options: Sequence[str] = (),
) -> Server:
    """Start a server without waiting for it."""
    twistd = command or [str(Path(sys.executable).parent / "twistd")]
    process = subprocess.Popen(
        [*twistd, "-n", "--pidfile=", *twistd_options, "signaling", *options],
        env={**{k: v for k, v in os.environ.items() if k not in ("PORT", "LOG_LEVEL")}, **(env or {})},
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return Server(process)


@contextmanager
def running(
    options: Sequence[str] = ("--port", "0"),
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    command: Sequence[str] | None = None,
    twistd_options: Sequence[str] = (),
) -> Iterator[Server]:
    """Run a server that is told to choose a free port, and stop it at the end."""
    server = start(options, env=env, cwd=cwd, command=command, twistd_options=twistd_options)
    try:
        found = server.wait_for(r"listening on (?:\S+:(\d+)|unix)")
        server.port = int(found[1] or 0)
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait(STOP_SECONDS)
        server._reader.join(STOP_SECONDS)
        if server.process.stdout is not None:
            server.process.stdout.close()
