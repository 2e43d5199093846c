"""Engines that move only when a world moves them: one over a model of the store, one over a real redis-server.

Neither calls back before its call has returned, as an engine over a network never does.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol

from signaling.ports import EngineListener, Reply
from tests.redis_server import RedisClient
from tests.simulator.store import ModelStore

_worlds = itertools.count(1)


class Store(Protocol):
    """What the engines of one world share."""

    prefix: str

    def run(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[Any]:
        """Run a script; returns its reply."""

    def publish(self, channel: bytes, data: bytes) -> int:
        """Publish; returns how many listen."""

    def listen(self, channel: bytes, heard: Callable[[bytes], None]) -> None:
        """Have what is published on a channel from now on."""

    def deafen(self, channel: bytes) -> None:
        """Have it no more."""

    def collect(self) -> None:
        """Hand out what was published until now."""

    def close(self) -> None:
        """Need nothing any more."""


class Model:
    """A model of the store.

    Args:
        seconds: its clock.
    """

    prefix = "signaling:"

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._store = ModelStore(seconds, self.publish, Random(0))
        self._listeners: dict[bytes, Callable[[bytes], None]] = {}
        self.run = self._store.run

    def publish(self, channel: bytes, data: bytes) -> int:
        heard = self._listeners.get(channel)
        if heard is None:
            return 0
        heard(data)
        return 1

    def listen(self, channel: bytes, heard: Callable[[bytes], None]) -> None:
        self._listeners[channel] = heard

    def deafen(self, channel: bytes) -> None:
        self._listeners.pop(channel, None)

    def collect(self) -> None: ...

    def close(self) -> None: ...


class Redis:
    """A real redis-server, in which each world has a prefix of its own.

    Args:
        path: of its socket.
    """

    def __init__(self, path: Path) -> None:
        self.prefix = f"world{next(_worlds)}:"
        self._commands = RedisClient(path)
        self._channels = RedisClient(path)
        self._fence = f"{self.prefix}fence".encode()
        self._channels.command("SUBSCRIBE", self._fence)
        self._listeners: dict[bytes, Callable[[bytes], None]] = {}
        self._quiet = True

    def run(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[Any]:
        self._quiet = False
        reply: list[Any] = self._commands.script(script, keys, arguments)
        return reply

    def publish(self, channel: bytes, data: bytes) -> int:
        self._quiet = False
        listeners: int = self._commands.command("PUBLISH", channel, data)
        return listeners

    def listen(self, channel: bytes, heard: Callable[[bytes], None]) -> None:
        self._listeners[channel] = heard
        self._channels.send("SUBSCRIBE", channel)
        self._read_until(b"subscribe", channel)

    def deafen(self, channel: bytes) -> None:
        if self._listeners.pop(channel, None) is not None:
            self._channels.send("UNSUBSCRIBE", channel)
            self._read_until(b"unsubscribe", channel)

    def collect(self) -> None:
        """Wait for all that was published: one connection hears every channel in order, so one fence is enough."""
        if not self._quiet:
            self._commands.command("PUBLISH", self._fence, b"")
            self._read_until(b"message", self._fence)
            self._quiet = True

    def _read_until(self, kind: bytes, channel: bytes) -> None:
        while (message := self._channels.read())[:2] != [kind, channel]:
            heard = self._listeners.get(message[1])
            if heard is not None:
                heard(message[2])

    def close(self) -> None:
        self._commands.close()
        self._channels.close()


class MemoryEngine:
    """One node's connection to a store; carries out everything in order, when it is moved.

    Args:
        store: which the nodes of a world share.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._channel: bytes | None = None
        self._requests: deque[Callable[[], None]] = deque()
        self._arrived: deque[Callable[[], Any]] = deque()
        self._listener: EngineListener | None = None

    def connect(self, channel: bytes, listener: EngineListener) -> None:
        self.disconnect()
        self._channel, self._listener = channel, listener
        self._store.listen(channel, lambda data: self._arrived.append(lambda: listener.received(data)))
        self._arrived.append(listener.connected)

    def disconnect(self) -> None:
        if self._channel is not None:
            self._store.deafen(self._channel)
            self._channel = None
        self._requests.clear()
        self._arrived.clear()

    def call(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes], done: Reply) -> None:
        def run() -> None:
            reply = self._store.run(script, keys, arguments)
            self._arrived.append(lambda: done(reply))

        self._requests.append(run)

    def publish(self, channel: bytes, data: bytes, done: Callable[[int | None], None]) -> None:
        def run() -> None:
            listeners = self._store.publish(channel, data)
            self._arrived.append(lambda: done(listeners))

        self._requests.append(run)

    def step(self) -> bool:
        """Move what can move now; returns whether anything did."""
        moved = bool(self._requests)
        while self._requests:
            self._requests.popleft()()
        self._store.collect()
        moved = moved or bool(self._arrived)
        for _ in range(len(self._arrived)):
            if self._arrived:
                self._arrived.popleft()()
        return moved
