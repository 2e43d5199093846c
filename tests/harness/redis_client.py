"""A Redis client that waits for each reply, and runs the scripts of the cluster."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from hashlib import sha1
from typing import Any

import hiredis

from signaling.backplane.redis import scripts

SECONDS = 60.0
_TEXTS = {name: scripts.text(name) for name in scripts.NAMES}
_DIGESTS = {name: sha1(text.encode()).hexdigest() for name, text in _TEXTS.items()}


class RedisClient:
    """A connection to a Redis server's UNIX socket."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SECONDS)
        self._socket.connect(path)
        self._reader = hiredis.Reader()

    def close(self) -> None:
        self._socket.close()

    def command(self, *words: bytes | str | int) -> Any:
        """Run one command; return its reply, or raise its error."""
        self.send(*words)
        return self.read()

    def script(self, name: str, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
        """Run a cluster's script; return its reply."""
        try:
            return self.command("EVALSHA", _DIGESTS[name], len(keys), *keys, *arguments)
        except hiredis.ReplyError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            return self.command("EVAL", _TEXTS[name], len(keys), *keys, *arguments)

    def send(self, *words: bytes | str | int) -> None:
        self._socket.sendall(hiredis.pack_command(words))

    def read(self) -> Any:
        """Wait for the next reply, or the next message of a channel."""
        while (reply := self._reader.gets()) is False:
            data = self._socket.recv(65_536)
            assert data, "redis-server closed the connection"
            self._reader.feed(data)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply
