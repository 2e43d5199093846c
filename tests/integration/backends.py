"""The stores that a harness's nodes share, a model or a real redis-server, and their engines.

An engine moves only when the harness moves it. While it is connected it never calls back before its call has returned,
as an engine over a network never does.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Protocol

from signaling.backplane.interfaces import EngineListener, Reply
from tests.harness.redis_client import RedisClient
from tests.simulator.store import ModelStore

_numbers = itertools.count(1)


class Store(Protocol):
    """What the engines of one harness share: scripts, and channels of one subscriber each."""

    prefix: str

    def run(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[Any]:
        """Run a script; returns its reply."""

    def publish(self, channel: bytes, data: bytes) -> int:
        """Publish; returns the number of subscribers."""

    def subscribe(self, channel: bytes, receive: Callable[[bytes], None]) -> None:
        """Pass on what is published on a channel from now on."""

    def unsubscribe(self, channel: bytes) -> None:
        """Stop passing it on."""

    def deliver(self) -> None:
        """Pass on everything that was published until now."""

    def close(self) -> None:
        """Close the connections."""


class MemoryStore:
    """A model of the store.

    Args:
        seconds: its clock.
    """

    prefix = "signaling:"

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._store = ModelStore(seconds, self.publish, Random(0))
        self._subscribers: dict[bytes, Callable[[bytes], None]] = {}
        self.run = self._store.run

    def publish(self, channel: bytes, data: bytes) -> int:
        receive = self._subscribers.get(channel)
        if receive is None:
            return 0
        receive(data)
        return 1

    def subscribe(self, channel: bytes, receive: Callable[[bytes], None]) -> None:
        self._subscribers[channel] = receive

    def unsubscribe(self, channel: bytes) -> None:
        self._subscribers.pop(channel, None)

    def deliver(self) -> None: ...

    def close(self) -> None: ...


class RedisStore:
    """A real redis-server, in which each harness has a prefix of its own.

    Args:
        path: of its socket.
    """

    def __init__(self, path: str) -> None:
        self.prefix = f"harness{next(_numbers)}:"
        self._commands = RedisClient(path)
        self._channels = RedisClient(path)
        self._fence = f"{self.prefix}fence".encode()
        self._channels.command("SUBSCRIBE", self._fence)
        self._subscribers: dict[bytes, Callable[[bytes], None]] = {}
        self._quiet = True

    def run(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[Any]:
        self._quiet = False
        reply: list[Any] = self._commands.script(script, keys, arguments)
        return reply

    def publish(self, channel: bytes, data: bytes) -> int:
        self._quiet = False
        subscribers: int = self._commands.command("PUBLISH", channel, data)
        return subscribers

    def subscribe(self, channel: bytes, receive: Callable[[bytes], None]) -> None:
        self._subscribers[channel] = receive
        self._channels.send("SUBSCRIBE", channel)
        self._read_until(b"subscribe", channel)

    def unsubscribe(self, channel: bytes) -> None:
        if self._subscribers.pop(channel, None) is not None:
            self._channels.send("UNSUBSCRIBE", channel)
            self._read_until(b"unsubscribe", channel)

    def deliver(self) -> None:
        """Wait for all that was published: one connection receives every channel in order, so one fence is enough."""
        if not self._quiet:
            self._commands.command("PUBLISH", self._fence, b"")
            self._read_until(b"message", self._fence)
            self._quiet = True

    def _read_until(self, kind: bytes, channel: bytes) -> None:
        while (message := self._channels.read())[:2] != [kind, channel]:
            receive = self._subscribers.get(message[1])
            if receive is not None:
                receive(message[2])

    def close(self) -> None:
        self._commands.close()
        self._channels.close()


class MemoryEngine:
    """One node's connection to a store; runs everything in order, when it is moved.

    Args:
        store: which the nodes of a harness share.

    Attributes:
        refused: the scripts that get no reply, as if the store's memory was full.
        refusals: how many calls got none.
        dropping: how many of the next messages on its channel are lost on their way.
        connects: how often it was told to connect.
        calls: how often a script was run.
        holds_replies: whether replies wait until ``release``; published messages arrive.
    """

    def __init__(self, store: Store) -> None:
        self.refused: set[str] = set()
        self.refusals = 0
        self.dropping = 0.0
        self.connects = self.calls = 0
        self.holds_replies = False
        self._held: list[Callable[[], Any]] = []
        self._store = store
        self._channel: bytes | None = None
        self._requests: deque[Callable[[], None]] = deque()
        self._arrived: deque[Callable[[], Any]] = deque()
        # The callbacks of the requests without a reply, in their order.
        self._waiting: deque[Callable[[Any], None]] = deque()
        self._listener: EngineListener | None = None
        self._last_channel = b""

    def connect(self, channel: bytes, listener: EngineListener) -> None:
        self.disconnect()
        self._channel, self._listener = channel, listener
        self._last_channel = channel
        self.connects += 1

        def receive(data: bytes) -> None:
            if self.dropping:
                self.dropping -= 1
            else:
                self._arrived.append(lambda: listener.received(data))

        self._store.subscribe(channel, receive)
        self._arrived.append(listener.connected)

    def disconnect(self) -> None:
        if self._channel is not None:
            self._store.unsubscribe(self._channel)
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

    def lose_connection(self) -> None:
        """Lose the connection: pending calls get None, and it is not back before ``reconnect``."""
        self.disconnect()
        assert self._listener is not None
        self._listener.disconnected("it was lost")

    def reconnect(self) -> None:
        """Connect again after ``lose_connection``."""
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

        def run_now() -> None:
            reply = run()
            arrived = self._held if self.holds_replies else self._arrived
            arrived.append(lambda: self._waiting.popleft()(reply))

        self._requests.append(run_now)

    def release(self) -> None:
        """Let the held replies arrive."""
        self.holds_replies = False
        self._arrived.extend(self._held)
        self._held.clear()

    def step(self) -> bool:
        """Move what can move now; returns whether anything did."""
        moved = bool(self._requests)
        while self._requests:
            self._requests.popleft()()
        self._store.deliver()
        moved = moved or bool(self._arrived)
        for _ in range(len(self._arrived)):
            if self._arrived:
                self._arrived.popleft()()
        return moved
