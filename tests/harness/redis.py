"""Real Redis servers and sentinels on the loopback, which keep nothing on a disk."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import hiredis

from tests.harness.certificates import self_signed
from tests.harness.server import Server, launch
from tests.programs import free_port, need

SECONDS = 10.0
_STARTS = 3


class RedisServer:
    """A Redis server in a folder of its own; it runs from the beginning.

    Args:
        folder: an empty one.
        password: of the default user; empty means that none is needed.
        users: lines of an ACL, ``ada on >secret ~signaling:* &signaling:* +@all``.
        tls: speak TLS on another port, for ``localhost`` and with a certificate of its own.
        pem: the certificate and its key, in place of that.
        unix: listen on a socket in the folder as well.
        lines: more of its configuration.

    Attributes:
        port: the same after each restart.
        tls_port: the same for TLS, or 0.
        ca: the file with the certificate to trust.
        socket: the path of the UNIX socket, if there is one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        password: str = "",
        users: Sequence[str] = (),
        tls: bool = False,
        pem: bytes = b"",
        unix: bool = False,
        lines: Sequence[str] = (),
    ) -> None:
        self._folder = folder
        self._program = need("redis-server")
        self._password = password
        self.ca = folder / "redis.pem"
        self.socket = str(folder / "redis.sock") if unix else ""
        self.port = self.tls_port = 0
        self._settings = ["bind 127.0.0.1", 'save ""', "appendonly no", f"dir {folder}", "repl-diskless-sync-delay 0"]
        self._settings += [f"user {user}" for user in users]
        if password:
            self._settings += [f"requirepass {password}", f"masterauth {password}"]
        if unix:
            self._settings.append(f"unixsocket {self.socket}")
        if tls or pem:
            self.ca.write_bytes(pem or self_signed())
            self._settings += _tls_settings(self.ca)
        self._settings += lines
        self._start_somewhere(tls=bool(tls or pem))

    def _start_somewhere(self, *, tls: bool) -> None:
        for attempt in range(_STARTS):
            self.port, self.tls_port = free_port(), free_port() if tls else 0
            try:
                self.start()
            except AssertionError:
                # It cannot choose a port by itself, and another process may take this one.
                if attempt == _STARTS - 1:
                    raise
            else:
                return

    def _command(self) -> list[str]:
        ports = [f"port {self.port}", *([f"tls-port {self.tls_port}"] if self.tls_port else ())]
        path = self._folder / "redis.conf"
        path.write_text("\n".join((*self._settings, *ports, "")))
        return [self._program, str(path)]

    @property
    def url(self) -> str:
        """Where it is, with its password; over TCP without TLS."""
        return f"redis://{self.credentials}127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        """Where it is over TLS, with the file to trust."""
        return f"rediss://{self.credentials}localhost:{self.tls_port}?ca={self.ca}"

    @property
    def unix_url(self) -> str:
        """Where it is on this machine."""
        return f"redis+unix://{self.credentials}{self.socket}"

    @property
    def credentials(self) -> str:
        """What stands in front of the host."""
        return f":{quote(self._password, safe='')}@" if self._password else ""

    @property
    def log(self) -> str:
        """All that it printed since its latest start."""
        return self.process.log

    def start(self) -> None:
        """Start it where it was, with nothing in it; returns once it takes connections."""
        self.process = _run(self._command(), r"Ready to accept connections")

    def kill(self) -> None:
        """End it with SIGKILL; what it had is gone."""
        self.process.end()

    def restart(self) -> None:
        """Kill it, and start it anew."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Stop the process: the kernel accepts connections and bytes for it, and nothing is answered."""
        self.process.pause()

    def resume(self) -> None:
        """Continue the process."""
        self.process.resume()

    def end(self) -> None:
        """End it, whatever it does."""
        self.process.end()

    def command(self, *words: str | bytes) -> Any:
        """Carry out one command, on a connection of its own; returns its reply, in bytes, or raises its error."""
        sent = [(b"AUTH", self._password)] if self._password else []
        reader = hiredis.Reader()
        reply: Any = None
        with socket.create_connection(("127.0.0.1", self.port), SECONDS) as connection:
            for each in (*sent, words):
                connection.sendall(hiredis.pack_command(tuple(each)))
                while (reply := reader.gets()) is False:
                    data = connection.recv(65536)
                    assert data, "the server closed the connection"
                    reader.feed(data)
                if isinstance(reply, hiredis.ReplyError):
                    raise reply
        return reply


class RedisSentinel:
    """A sentinel that watches one master, and is enough to replace it.

    Args:
        folder: an empty one.
        service: what it calls the master.
        down_after_milliseconds: without an answer of the master.
        pem: speak TLS, with this certificate and its key, and with the master as well.
        lines: more of its configuration.

    Attributes:
        port: where it listens.
    """

    def __init__(
        self,
        folder: Path,
        master_port: int,
        *,
        service: str = "mymaster",
        down_after_milliseconds: int = 500,
        pem: Path | None = None,
        lines: Sequence[str] = (),
    ) -> None:
        self.port = free_port()
        self._service = service
        path = folder / "sentinel.conf"
        settings = [
            *([f"port {self.port}"] if pem is None else ["port 0", f"tls-port {self.port}", "tls-replication yes"]),
            *(_tls_settings(pem) if pem else ()),
            "bind 127.0.0.1",
            f"dir {folder}",
            f"sentinel monitor {service} 127.0.0.1 {master_port} 1",
            f"sentinel down-after-milliseconds {service} {down_after_milliseconds}",
            f"sentinel failover-timeout {service} 3000",
        ]
        path.write_text("\n".join((*settings, *lines, "")))
        self.process = _run([need("redis-server"), str(path), "--sentinel"], r"\+monitor master")

    @property
    def url(self) -> str:
        """Where the master is asked for."""
        return f"redis+sentinel://127.0.0.1:{self.port}/{self._service}"

    def wait_for(self, pattern: str) -> None:
        """Wait until it prints it."""
        self.process.wait_for(pattern)

    def end(self) -> None:
        """End it, whatever it does."""
        self.process.end()


def _tls_settings(pem: Path) -> list[str]:
    return [*(f"tls-{what}-file {pem}" for what in ("cert", "key", "ca-cert")), "tls-auth-clients no"]


def _run(command: Sequence[str], ready: str) -> Server:
    server = launch(command)
    try:
        server.wait_for(ready, SECONDS)
    except BaseException:
        server.end()
        raise
    return server


@contextmanager
def redis_running(**options: Any) -> Iterator[RedisServer]:
    """Run a server with the options of ``RedisServer``, and end it."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder), **options)
        try:
            yield server
        finally:
            server.end()


@contextmanager
def sentinel_running(master_port: int, **options: Any) -> Iterator[RedisSentinel]:
    """Run a sentinel with the options of ``RedisSentinel``, and end it."""
    with tempfile.TemporaryDirectory() as folder:
        sentinel = RedisSentinel(Path(folder), master_port, **options)
        try:
            yield sentinel
        finally:
            sentinel.end()
