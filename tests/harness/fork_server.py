"""Signaling servers as forks of one process, because imports are most of what the start of a server costs.

The fork server is a process with one thread that has imported what each server needs, and has no reactor. A fork of it
becomes a ``twistd`` with its own environment, folder and output, and imports what its options add. A test that is about
the imports starts a server by a ``command`` instead.
"""

from __future__ import annotations

import gc
import json
import os
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60.0

_MODULES = (
    "signaling.app.service",
    "twisted.internet.epollreactor",
    "twisted.scripts._twistd_unix",
    "twisted.trial.itrial",  # A plugin of Twisted's imports it.
)
# Variables that nothing reads during an import; Python, the C library and libraries read others.
_READ_LATE = re.compile("LOG_LEVEL|NOTIFY_SOCKET|PORT|PYTEST_CURRENT_TEST|TURN_SECRET|SIGNALING_(?!FAST_PATH).*")


class ForkedProcess:
    """What tests use of ``subprocess.Popen``, for a child of the fork server. Several threads may wait for its end.

    Attributes:
        pid: its id.
        stdout: its output and its errors.
        returncode: as of ``Popen``; None while it runs.
    """

    def __init__(self, reports: socket.socket, stdout: IO[str]) -> None:
        self.stdout = stdout
        self.returncode: int | None = None
        self._reports = reports
        # Not at the end of the process: another thread may be about to poll it.
        weakref.finalize(self, reports.close)
        self._lock = threading.Lock()
        if not self._is_reported(PATIENCE_SECONDS):
            raise AssertionError("the fork server does not answer")
        self.pid = self._report()

    def _is_reported(self, seconds: float | None) -> bool:
        # Not select.select: a test may have thousands of descriptors.
        poll = select.poll()
        poll.register(self._reports, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))

    def _report(self) -> int:
        report = self._reports.recv(64)
        if not report:
            raise AssertionError("the fork server has ended")
        return int(report)

    def poll(self) -> int | None:
        """Return the exit status if the process has ended."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; returns the exit status, or the negative number of a signal.

        Raises:
            subprocess.TimeoutExpired: it still runs after so many seconds.
        """
        if self.returncode is None and not self._is_reported(timeout):
            raise subprocess.TimeoutExpired("twistd", timeout or 0)
        with self._lock:
            if self.returncode is None:
                self.returncode = self._report()
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal if the process runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM if the process runs."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL if the process runs."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The process whose forks are servers; it starts at the first of them. Several threads may start servers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._environment: dict[str, str] = {}

    def _start(self) -> None:
        self._environment = dict(os.environ)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def can_start(self, environment: Mapping[str, str]) -> bool:
        """Whether a fork with this environment is like a process that starts with it."""
        try:
            os.close(os.pidfd_open(os.getpid()))
        except (AttributeError, OSError):
            # Not Linux, Linux before 5.3, or a sandbox that forbids it.
            return False
        with self._lock:
            if self._process is None:
                self._start()
        differences = environment.items() ^ self._environment.items()
        return all(_READ_LATE.fullmatch(name) for name, _ in differences)

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path | str | None
    ) -> ForkedProcess:
        """Start a program written in Python.

        Args:
            arguments: of the program, from its path on.
        """
        request = {"arguments": arguments, "environment": dict(environment), "folder": str(folder or Path.cwd())}
        output, its_output = os.pipe()
        reports, its_reports = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its_reports:
            socket.send_fds(self._channel, [json.dumps(request).encode()], [its_output, its_reports.fileno()])
        os.close(its_output)
        return ForkedProcess(reports, open(output))

    def close(self) -> None:
        """End the fork server; what it started goes on."""
        if self._process is not None:
            self._channel.close()
            self._process.wait(PATIENCE_SECONDS)
            self._process = None


def _serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork for each request, and report the process and its end; returns the request in a fork, and None at the end."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    running: dict[int, tuple[int, int]] = {}
    while True:
        for ready, _ in poll.poll():
            if ready in running:
                pid, reports = running.pop(ready)
                poll.unregister(ready)
                os.close(ready)
                _report(reports, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os.close(reports)
                continue
            request, descriptors, _, _ = socket.recv_fds(channel, 1 << 20, 2)
            if not request:
                return None
            output, reports = descriptors
            pid = os.fork()
            if not pid:
                channel.detach()
                os.dup2(output, 1)
                os.dup2(output, 2)
                for name in os.listdir("/proc/self/fd"):
                    if int(name) > 2:
                        with suppress(OSError):  # The folder itself is closed already.
                            os.close(int(name))
                return json.loads(request)
            os.close(output)
            process = os.pidfd_open(pid)
            running[process] = pid, reports
            poll.register(process, select.POLLIN)
            _report(reports, pid)


def _report(reports: int, number: int) -> None:
    # The test may be gone.
    with suppress(OSError):
        os.write(reports, str(number).encode())


def _become(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).parent)
    runpy.run_path(arguments[0], run_name="__main__")


def main() -> None:
    """Serve the channel that the command line names, as long as its other end is open."""
    # Ctrl-C is for pytest, which then closes the channel.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in _MODULES:
        import_module(module)
    # The forks neither look for garbage in what is shared nor write to it.
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        request = _serve(channel)
    if request is not None:
        _become(**request)


if __name__ == "__main__":
    main()
