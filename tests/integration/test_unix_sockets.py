"""UNIX sockets of servers that were killed, and of servers that run."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from signaling.server.endpoints import endpoint
from signaling.transport.private_api import UnixPortAdopter


class Sockets:
    """Listens on one path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ports: list[Any] = []

    def leave_behind(self, lock: int) -> None:
        """Leave what a killed server does: a socket on which nobody listens, and a lock with its process id."""
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.path))
        self.path.with_name("socket.lock").symlink_to(str(lock))

    def listen(self, kind: str = "unix:") -> None:
        failures: list[Failure] = []
        listening = endpoint(reactor, "listen", f"{kind}{self.path}").listen(Factory())
        listening.addCallbacks(self.ports.append, failures.append)
        for failure in failures:
            failure.raiseException()

    def connect(self) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.path))


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[Sockets]:
    sockets = Sockets(tmp_path / "socket")
    yield sockets
    for port in sockets.ports:
        port.connectionLost(Failure(ConnectionDone()))


@pytest.mark.parametrize("kind", ["unix:", "unix:address=", "haproxy:unix:"])
def test_a_server_listens_where_a_killed_one_had_its_process_id(sockets: Sockets, kind: str) -> None:
    sockets.leave_behind(os.getpid())
    sockets.listen(kind)
    sockets.connect()


def test_a_lock_without_a_socket_does_not_count_either(sockets: Sockets) -> None:
    sockets.leave_behind(os.getpid())
    sockets.path.unlink()
    sockets.listen()
    sockets.connect()


def test_a_path_cannot_be_taken_from_another_process(sockets: Sockets) -> None:
    sockets.leave_behind(os.getppid())
    with pytest.raises(CannotListenError, match="lock"):
        sockets.listen()


def test_a_path_cannot_be_taken_from_another_port_of_the_same_process(sockets: Sockets) -> None:
    sockets.listen()
    with pytest.raises(CannotListenError, match="lock"):
        sockets.listen()
    sockets.connect()


def test_a_file_that_is_no_socket_stays(sockets: Sockets) -> None:
    sockets.leave_behind(os.getpid())
    sockets.path.unlink()
    sockets.path.write_text("precious")
    with pytest.raises(CannotListenError):
        sockets.listen()
    assert sockets.path.read_text() == "precious"


def test_a_socket_of_systemd_is_left_as_it_was(sockets: Sockets) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(sockets.path))
        sockets.path.chmod(0o600)
        listening.listen()
        listening.setblocking(False)
        adopter = UnixPortAdopter(reactor)
        port = adopter.adoptStreamPort(listening.fileno(), socket.AF_UNIX, Factory())
        port.connectionLost(Failure(ConnectionDone()))
        assert stat.S_IMODE(sockets.path.stat().st_mode) == 0o600
        # The next server accepts it.
        sockets.connect()
