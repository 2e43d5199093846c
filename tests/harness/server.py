"""Real processes on the loopback, watched by their output, and ``twistd -n signaling`` in particular."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.harness.fork_server import ForkedProcess, ForkServer
from tests.programs import free_port

HOST = "127.0.0.1"
START_SECONDS = 60.0
STOP_SECONDS = 60.0
HTTP_SECONDS = 60.0
TWISTD = str(Path(sys.executable).parent / "twistd")

_LISTENING = r"listening on (?:\S+:(\d+)|unix)"
_PROBLEM = re.compile("Traceback|Unhandled|#error|#critical")

Samples = dict[tuple[str, ...], float]


class Server:
    """A running process, ``twistd -n signaling`` unless something else is said.

    Attributes:
        port: the first port that it listens on, or 0 if it listens on none.
        lines: its output so far.
    """

    def __init__(self, process: subprocess.Popen[str] | ForkedProcess, port: int = 0) -> None:
        self.process = process
        self.lines: list[str] = []
        self.port = port
        self._next = 0
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    # Its output

    @property
    def log(self) -> str:
        """All that it has printed so far."""
        with self._changed:
            return "\n".join(self.lines)

    @property
    def problems(self) -> list[str]:
        """The lines that report an exception or an error."""
        with self._changed:
            return [line for line in self.lines if _PROBLEM.search(line)]

    def wait_for(self, pattern: str, seconds: float = START_SECONDS) -> re.Match[str]:
        """Wait until a line matches, from the first on."""
        return self._search(pattern, 0, seconds)[0]

    def next_line(self, pattern: str, seconds: float = START_SECONDS) -> re.Match[str]:
        """Wait until a line matches that comes after the one that this returned before."""
        match, self._next = self._search(pattern, self._next, seconds)
        return match

    def _search(self, pattern: str, first: int, seconds: float) -> tuple[re.Match[str], int]:
        compiled = re.compile(pattern)

        def search() -> tuple[re.Match[str], int] | None:
            nonlocal first
            while first < len(self.lines):
                first += 1
                if match := compiled.search(self.lines[first - 1]):
                    return match, first
            return None

        found: tuple[re.Match[str], int] | None = None
        deadline = time.monotonic() + seconds
        with self._changed:
            while (found := search()) is None and self._reader.is_alive() and time.monotonic() < deadline:
                self._changed.wait(deadline - time.monotonic())
            found = found or search()
        if found is None:
            raise AssertionError(f"no {pattern!r} in the log:\n{self.log}")
        return found

    def wait_until_listening(self) -> int:
        """Wait until the log says that it listens; returns the port."""
        self.port = int(self.wait_for(_LISTENING)[1] or 0)
        return self.port

    def wait_until_accepting(self, seconds: float = START_SECONDS) -> None:
        """Wait until ``port`` accepts connections, for a program that does not log it."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection((HOST, self.port), 1).close()
            except OSError:
                assert self.process.poll() is None, self.log
                assert time.monotonic() < deadline, self.log
                time.sleep(0.05)  # There is no event for a port that opens.
            else:
                return

    # Over HTTP

    @property
    def url(self) -> str:
        """The URL of topics: append one."""
        return f"ws://{HOST}:{self.port}/ws/"

    def get(self, path: str, port: int = 0) -> tuple[int, bytes]:
        """Make a plain request; returns the status and the body."""
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port or self.port}{path}", timeout=HTTP_SECONDS) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def readiness(self) -> tuple[int, dict[str, Any]]:
        """Ask ``/readyz``; returns the status and the body."""
        status, body = self.get("/readyz")
        return status, json.loads(body)

    def wait_until_ready(self, status: int = 200) -> None:
        """Wait until ``/readyz`` has that status."""
        wait_until(lambda: self.readiness()[0] == status)

    def scrape(self, port: int = 0) -> Samples:
        """Return all samples of ``/metrics``, by name and values of labels."""
        from prometheus_client.parser import text_string_to_metric_families

        return {
            (
                sample.name.removeprefix("signaling_"),
                *(sample.labels[name] for name in sorted(sample.labels)),
            ): sample.value
            for family in text_string_to_metric_families(self.get("/metrics", port)[1].decode())
            for sample in family.samples
        }

    # What the kernel knows

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    def memory_bytes(self, field: str = "VmRSS") -> int:
        """Return its resident memory now, or with ``VmHWM`` the most that it has had so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"{field}:\s+(\d+) kB", status)
        assert found, status
        return int(found[1]) * 1024

    def open_files(self) -> int:
        """Return how many descriptors it has."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    # Its end

    def pause(self) -> None:
        """Stop the process; the kernel goes on accepting connections and bytes for it."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue the process."""
        self.process.send_signal(signal.SIGCONT)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        self.process.send_signal(number)
        status = self.process.wait(STOP_SECONDS)
        self._reader.join(STOP_SECONDS)
        return status

    def join(self) -> None:
        """Read what an ended process printed to its end."""
        self._reader.join(STOP_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def end(self) -> None:
        """Kill the process if it runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STOP_SECONDS)
        self.join()

    def assert_no_problem(self) -> None:
        """Fail if it logged an exception or an error."""
        assert not self.problems, self.log


def wait_until(condition: Callable[[], Any], seconds: float = 60.0, state: Callable[[], object] | None = None) -> None:
    """Wait for something that sends no event; ``state`` says what there was instead."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, state() if state is not None else "it did not come to that"
        time.sleep(0.02)


_fork_server: ForkServer | None = None


@contextmanager
def forking() -> Iterator[None]:
    """Start servers as forks meanwhile, if they need no ``command`` and no environment of their own for Python."""
    global _fork_server
    _fork_server = ForkServer()
    try:
        yield
    finally:
        _fork_server.close()
        _fork_server = None


def launch(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    pass_fds: Sequence[int] = (),
    port: int = 0,
) -> Server:
    """Start any program without waiting for it.

    Args:
        env: on top of this process's.
    """
    process = subprocess.Popen(
        command,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=pass_fds,
    )
    return Server(process, port)


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
    """Start a signaling server without waiting for it."""
    pidfiles = [] if pidfile is None else [f"--pidfile={pidfile}"]
    arguments = [*(command or [TWISTD]), "-n", *pidfiles, *twistd_options, "signaling", *options]
    environment = {**{k: v for k, v in os.environ.items() if k not in ("PORT", "LOG_LEVEL")}, **(env or {})}
    if _fork_server and not command and not pass_fds and _fork_server.can_start(environment):
        return Server(_fork_server.start(arguments, environment, cwd))
    process = subprocess.Popen(
        arguments,
        env=environment,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=pass_fds,
    )
    return Server(process)


@contextmanager
def running(
    options: Sequence[str] = ("--port", "0"), *, ready: Callable[[], None] | None = None, **how: Any
) -> Iterator[Server]:
    """Run a server that chooses a free port, and kill it at the end.

    Args:
        ready: called after the log's first line, for a server that starts on its first connection.
        how: as of ``start``.
    """
    server = start(options, **how)
    try:
        if ready is not None:
            server.wait_for("")
            ready()
        server.wait_until_listening()
        yield server
    finally:
        server.end()


@contextmanager
def serving(*options: str, **how: Any) -> Iterator[Server]:
    """Run a server that has to survive: it ends with status 0 and has logged no exception."""
    with running(["--port=0", *options], **how) as server:
        yield server
        assert server.process.poll() is None, server.log
        assert server.stop() == 0, server.log
        server.assert_no_problem()


@contextmanager
def nodes(urls: Sequence[str], *options: str) -> Iterator[list[Server]]:
    """Run a node for each URL of the store; those that still run at the end have to stop well."""
    with ExitStack() as stack:
        servers = [start(["--port=0", f"--backplane={url}", *options]) for url in urls]
        for server in servers:
            stack.callback(server.end)
        for server in servers:
            server.wait_until_listening()
        yield servers
        for server in servers:
            if server.process.poll() is None:
                assert server.stop() == 0, server.log
            server.assert_no_problem()


class Node:
    """A signaling server that can be restarted on its port.

    Args:
        options: but for where it listens.
        name: for people.
        endpoint: where it listens, at its ``{port}``.

    Attributes:
        port: the same after each restart; nobody else takes it meanwhile.
        up: whether it runs and is not about to stop.
    """

    server: Server

    def __init__(
        self,
        *options: str,
        name: str = "",
        env: Mapping[str, str] | None = None,
        endpoint: str = "tcp:{port}:interface=127.0.0.1",
    ) -> None:
        self.name = name
        self.port = free_port()
        self.up = False
        self._options = options
        self._env = env
        self._endpoint = endpoint

    def _launch(self) -> Server:
        return start(["--listen", self._endpoint.format(port=self.port), *self._options], env=self._env)

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self.server = self._launch()
        try:
            self.server.wait_until_listening()
        except BaseException:
            self.server.end()
            raise
        self.up = True

    @property
    def address(self) -> str:
        """Its host and port."""
        return f"{HOST}:{self.port}"

    def stop(self) -> None:
        """Stop it as an operator would."""
        self.up = False
        assert self.server.stop() == 0, self.server.log
        self.server.join()

    def restart(self) -> None:
        """Stop it, and start it again."""
        self.stop()
        self.start()

    def end(self) -> None:
        """Kill it if it runs."""
        if self.up:
            self.up = False
            self.server.end()
