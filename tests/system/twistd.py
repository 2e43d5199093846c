"""A real server in a real process: ``twistd -n signaling``."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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

    def wait_until_healthy(self) -> None:
        """Wait until ``port`` accepts; for a server whose log says nothing."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self.process.poll() is None, self.log
                assert time.monotonic() < deadline, self.log
                time.sleep(0.05)  # A port that opens tells nobody.
            else:
                return

    def join(self) -> None:
        """Read what an ended server printed to its end."""
        self._reader.join(STOP_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def end(self) -> None:
        """End the server, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STOP_SECONDS)
        self.join()

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
    pidfile: str | None = "",
    pass_fds: Sequence[int] = (),
) -> Server:
    """Start a server without waiting for it."""
    twistd = command or [str(Path(sys.executable).parent / "twistd")]
    pidfiles = [] if pidfile is None else [f"--pidfile={pidfile}"]
    process = subprocess.Popen(
        [*twistd, "-n", *pidfiles, *twistd_options, "signaling", *options],
        env={**{k: v for k, v in os.environ.items() if k not in ("PORT", "LOG_LEVEL")}, **(env or {})},
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=pass_fds,
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
    pidfile: str | None = "",
    ready: Callable[[], None] | None = None,
) -> Iterator[Server]:
    """Run a server that is told to choose a free port, and stop it at the end.

    Args:
        ready: called after the log's first line, for a server that starts on its first connection.
    """
    server = start(options, env=env, cwd=cwd, command=command, twistd_options=twistd_options, pidfile=pidfile)
    try:
        if ready is not None:
            server.wait_for("")
            ready()
        found = server.wait_for(r"listening on (?:\S+:(\d+)|unix)")
        server.port = int(found[1] or 0)
        yield server
    finally:
        server.end()
