"""Engines that move only when a harness moves them: one over a model of the store, one over a real redis-server.

Neither calls back before its call has returned where there is a connection, as an engine over a network never does.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol

from signaling.backplane.interfaces import EngineListener, Reply
from tests.redis_server import RedisClient
from tests.simulator.store import ModelStore

_worlds = itertools.count(1)


class Store(Protocol):
    """What the engines of one harness share."""

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
    """A real redis-server, in which each harness has a prefix of its own.

    Args:
        path: of its socket.
    """

    def __init__(self, path: Path) -> None:
        self.prefix = f"harness{next(_worlds)}:"
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
        store: which the nodes of a harness share.

    Attributes:
        refused: the scripts that get no reply, as where a store's memory is full.
        refusals: how many calls that were.
        deaf_for: how many of the next messages on its channel are lost on their way.
        connects: how often it was told to connect.
        calls: how often a script was run.
        holds_replies: whether replies wait until ``release``; what others publish arrives.
    """

    def __init__(self, store: Store) -> None:
        self.refused: set[str] = set()
        self.refusals = 0
        self.deaf_for = 0.0
        self.connects = self.calls = 0
        self.holds_replies = False
        self._held: list[Callable[[], Any]] = []
        self._store = store
        self._channel: bytes | None = None
        self._requests: deque[Callable[[], None]] = deque()
        self._arrived: deque[Callable[[], Any]] = deque()
        # Who waits for a reply, in the order of the requests.
        self._waiting: deque[Callable[[Any], None]] = deque()
        self._listener: EngineListener | None = None
        self._last_channel = b""

    def connect(self, channel: bytes, listener: EngineListener) -> None:
        self.disconnect()
        self._channel, self._listener = channel, listener
        self._last_channel = channel
        self.connects += 1

        def heard(data: bytes) -> None:
            if self.deaf_for:
                self.deaf_for -= 1
            else:
                self._arrived.append(lambda: listener.received(data))

        self._store.listen(channel, heard)
        self._arrived.append(listener.connected)

    def disconnect(self) -> None:
        if self._channel is not None:
            self._store.deafen(self._channel)
            self._channel = None
        self._requests.clear()
        self._arrived.clear()
        self._held.clear()
        waiting, self._waiting = self._waiting, deque()
        for done in waiting:
            done(None)

    @property
    def waiting(self) -> int:
        """How many replies it waits for."""
        return len(self._waiting)

    def lose(self) -> None:
        """Lose the connection: nobody who waits for a reply gets one, and there is none until ``connect``."""
        self.disconnect()
        assert self._listener is not None
        self._listener.disconnected("it was lost")

    def come_back(self) -> None:
        """Connect again after ``lose``."""
        assert self._listener is not None
        self.connect(self._last_channel, self._listener)

    def call(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes], done: Reply) -> None:
        def run() -> list[Any] | None:
            self.calls += 1
            if script in self.refused:
                self.refusals += 1
                return None
            return self._store.run(script, keys, arguments)

        self._request(run, done)

    def publish(self, channel: bytes, data: bytes, done: Callable[[int | None], None]) -> None:
        self._request(lambda: self._store.publish(channel, data), done)

    def _request(self, run: Callable[[], Any], done: Callable[[Any], None]) -> None:
        if self._channel is None:
            done(None)
            return
        self._waiting.append(done)

        def carry_out() -> None:
            reply = run()
            arrived = self._held if self.holds_replies else self._arrived
            arrived.append(lambda: self._waiting.popleft()(reply))

        self._requests.append(carry_out)

    def release(self) -> None:
        """Let the replies arrive that were held."""
        self.holds_replies = False
        self._arrived.extend(self._held)
        self._held.clear()

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
