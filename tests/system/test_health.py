"""The image's health check finds the server on whatever it listens."""

from __future__ import annotations

import json
import re
import socket
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import pytest

from signaling.tools import health
from tests.harness.certificates import self_signed
from tests.harness.server import Server, running

TREE = Path(__file__).parents[2]
DOCKERFILE = (TREE / "Dockerfile").read_text()


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A container, as Linux shows it: its network, and no process yet."""
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "net").symlink_to("/proc/net")
    return folder


@contextmanager
def contained(proc: Path, *options: str, port: str | None = None) -> Iterator[Server]:
    """Run a server as the only process of a container."""
    with running(options, env={"PORT": port} if port is not None else None, cwd=proc.parent) as server:
        (proc / str(server.process.pid)).symlink_to(f"/proc/{server.process.pid}")
        yield server


@pytest.mark.parametrize(
    "options",
    [
        ["--port", "0", "--workers", "2"],
        ["--listen", r"tcp6:0:interface=\:\:1"],
        ["--listen", "haproxy:tcp:0:interface=127.0.0.1"],
        ["--listen", "ssl:0:interface=127.0.0.1:privateKey=server.pem"],
        ["--listen", "haproxy:ssl:0:interface=127.0.0.1:privateKey=server.pem"],
        ["--listen", "tcp:0:interface=127.0.0.1", "--metrics-listen", "tcp:0:interface=127.0.0.1"],
    ],
    ids=" ".join,
)
def test_a_server_is_healthy_wherever_it_listens(proc: Path, options: list[str]) -> None:
    (proc.parent / "server.pem").write_bytes(self_signed())
    with contained(proc, *options) as server:
        assert health.main(proc) == 0
        server.end()
        assert health.main(proc) == 1


def test_a_server_on_a_unix_socket_is_healthy(proc: Path) -> None:
    with contained(proc, "--listen", f"unix:{proc.parent}/a socket"):
        assert health.main(proc) == 0


def test_a_server_on_the_port_of_the_environment_is_healthy(proc: Path) -> None:
    with contained(proc, port="0"):
        assert health.main(proc) == 0


def test_another_server_is_unhealthy(proc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (proc / "1").symlink_to(Path("/proc/self").resolve())
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        thread = Thread(target=refuse, args=(other,))
        thread.start()
        assert health.main(proc) == 1
    thread.join()
    # What another test left open would be asked as well, for seconds.
    assert f"none of [('127.0.0.1', {port})]" in capsys.readouterr().out


def test_a_listener_of_something_else_is_asked_once(proc: Path) -> None:
    asked: list[bytes] = []

    def answer() -> None:
        with suppress(OSError):
            while True:
                connection, _ = other.accept()
                asked.append(connection.recv(1000))
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                connection.close()

    (proc / "1").symlink_to(Path("/proc/self").resolve())
    with socket.create_server(("127.0.0.1", 0)) as other:
        thread = Thread(target=answer)
        thread.start()
        assert health.main(proc) == 1
        other.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert len(asked) == 1


def refuse(server: socket.socket) -> None:
    """End every connection, each of which is one try."""
    for _ in range(4):
        connection, _ = server.accept()
        connection.close()


def test_the_dockerfile_checks_by_an_installed_command() -> None:
    [check] = re.findall(r"^HEALTHCHECK .*CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    scripts = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["scripts"]
    [command] = json.loads(check)
    assert scripts[command] == "signaling.tools.health:main"
