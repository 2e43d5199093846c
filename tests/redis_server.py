"""A real redis-server on a socket in a folder, and the least client that asks it and waits."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha1
from pathlib import Path
from typing import Any

from signaling.backplane.redis import scripts
from tests.programs import need


@contextmanager
def redis_server(folder: Path) -> Iterator[Path]:
    """Run a redis-server that stores nothing on disk; gives the path of its socket."""
    path = folder / "redis.sock"
    command = [
        need("redis-server"),
        *("--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--daemonize", "no"),
        *("--dir", str(folder), "--logfile", str(folder / "redis.log")),
    ]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 20
        while not answers(path):
            assert process.poll() is None, "redis-server ended at once"
            assert time.monotonic() < deadline, "redis-server did not start"
            time.sleep(0.01)
        yield path
    finally:
        process.terminate()
        process.wait()


def answers(path: Path) -> bool:
    """Return whether a server listens on a socket."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


class RedisError(Exception):
    """The server refused a command."""


class RedisClient:
    """A connection that waits for each reply.

    Args:
        path: of the server's socket.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(str(path))
        self._data = b""

    def close(self) -> None:
        self._socket.close()

    def command(self, *parts: bytes | str | int) -> Any:
        """Run one command; returns its reply."""
        self.send(*parts)
        return self.read()

    def script(self, name: str, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
        """Run a cluster's script; returns its reply."""
        try:
            return self.command("EVALSHA", _DIGESTS[name], len(keys), *keys, *arguments)
        except RedisError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            return self.command("EVAL", _TEXTS[name], len(keys), *keys, *arguments)

    def send(self, *parts: bytes | str | int) -> None:
        words = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
        self._socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))

    def read(self) -> Any:
        """Wait for the next reply, or the next message of a channel."""
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            raise RedisError(rest.decode())
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"*":
            return [self.read() for _ in range(int(rest))]
        assert kind == b"$", line
        return self._bytes(int(rest)) if rest != b"-1" else None

    def _line(self) -> bytes:
        while b"\r\n" not in self._data:
            self._receive()
        line, _, self._data = self._data.partition(b"\r\n")
        return line

    def _bytes(self, size: int) -> bytes:
        while len(self._data) < size + 2:
            self._receive()
        data, self._data = self._data[:size], self._data[size + 2 :]
        return data

    def _receive(self) -> None:
        data = self._socket.recv(65_536)
        assert data, "redis-server closed the connection"
        self._data += data


_TEXTS = {name: scripts.text(name) for name in scripts.NAMES}
_DIGESTS = {name: sha1(text.encode()).hexdigest() for name, text in _TEXTS.items()}
