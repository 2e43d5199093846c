"""The simulated engine: a model of the store, and connections to it that delay, lose and break."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from signaling.backplane.interfaces import EngineListener
from tests.simulator.network import Link, Process, Timeline
from tests.simulator.store import ModelStore

CONNECT_SECONDS = 5.0
FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 5.0
PING_SECONDS = 5.0
MOST_UNANSWERED = 2


class StoreServer(Process):
    """The process that holds the store.

    Attributes:
        model: what it holds.
        connections: that it has not seen the end of, oldest first.
    """

    def __init__(self, timeline: Timeline) -> None:
        super().__init__(timeline, "store")
        self.connections: dict[Connection, None] = {}
        self.subscribers: dict[bytes, list[Connection]] = {}
        self.model = ModelStore(self.seconds, self.publish, timeline.random)
        # How many commands were carried out after their connection had ended at the node.
        self.stale = 0
        self.on_run: Callable[[str, Sequence[bytes], list[Any]], None] = lambda script, arguments, reply: None

    def publish(self, channel: bytes, data: bytes) -> int:
        subscribers = self.subscribers.get(channel, ())
        for connection in subscribers:
            connection.messages.send(data)
        return len(subscribers)

    def run(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[Any]:
        reply = self.model.run(script, keys, arguments)
        self.timeline.trace("store", script, b" ".join(arguments), "->", reply)
        self.on_run(script, arguments, reply)
        return reply

    def forget(self, connection: Connection) -> None:
        """Notice the end of a connection."""
        self.connections.pop(connection, None)
        for subscribers in self.subscribers.values():
            if connection in subscribers:
                subscribers.remove(connection)

    def crash(self, saved: Any) -> None:
        """End, and all connections with it.

        Args:
            saved: what is there after the restart, by ``ModelStore.save``; None for nothing.
        """
        self.end()
        self.subscribers.clear()
        connections, self.connections = list(self.connections), {}
        for connection in connections:
            connection.server_ended()
        self.model.load(saved)

    def restart(self) -> None:
        self.alive = True
        self.paused = False


class Connection:
    """A node's connection to the store, which is two: one for commands, one for its channel.

    Args:
        engine: of the node.
        store: the other end.
        channel: that the node subscribes to.
    """

    def __init__(self, engine: SimulatedEngine, store: StoreServer, channel: bytes) -> None:
        self._engine = engine
        self._store = store
        self._channel = channel
        self._random = store.timeline.random
        self.node_open = self.store_open = True
        self.established = False
        latency = engine.latency
        self.commands = Link(store, self._execute, latency)
        self.replies = Link(engine.process, self._replied, lambda: latency() + engine.reply_delay)
        self.subscriptions = Link(store, self._subscribe, latency)
        self.messages = Link(engine.process, self._received, latency)
        self.links = (self.commands, self.replies, self.subscriptions, self.messages)
        self.waiting: deque[Callable[[Any], None]] = deque()
        self._unanswered = [0, 0]
        self._ping_call: Any = None
        store.connections[self] = None
        self.subscriptions.send(channel)

    # At the store

    def _subscribe(self, channel: bytes) -> None:
        if not self.store_open:
            return
        if channel is _PING:
            self.messages.send(_PING)
            return
        self._store.subscribers.setdefault(channel, []).append(self)
        self.messages.send(None)

    def _execute(self, command: Any) -> None:
        if command is _END:
            self._noticed(None)
        if not self.store_open:
            return
        if command is _PING:
            self.replies.send(_PING)
            return
        if not self.node_open:
            self._store.stale += 1
        name, first, second = command
        reply = self._store.publish(first, second) if name == "publish" else self._store.run(name, first, second)
        if self.node_open:
            self.replies.send(reply)

    def server_ended(self) -> None:
        """Break at the store's end; the node is told unless the link swallows that too."""
        self.store_open = False
        self.commands.cut(keep=False)
        self.subscriptions.cut(keep=False)
        self.replies.cut()
        self.messages.cut()
        self.replies.send(_END)

    # At the node

    def _replied(self, reply: Any) -> None:
        if not self.node_open:
            return
        if reply is _END:
            self._engine.lost(self, "the connection ended")
        elif reply is _PING:
            self._unanswered[0] = 0
        else:
            self.waiting.popleft()(reply)

    def _received(self, data: bytes | None) -> None:
        if not self.node_open:
            return
        if data is None:
            self.established = True
            self._ping_call = self._engine.process.callLater(PING_SECONDS, self._ping)
            self._engine.established(self)
        elif data is _PING:
            self._unanswered[1] = 0
        else:
            self._engine.heard(data)

    def _ping(self) -> None:
        """Ask on both connections whether the other end is there, as ``RedisEngine`` does."""
        if max(self._unanswered) >= MOST_UNANSWERED:
            self._engine.lost(self, "no answer")
            return
        self._ping_call = self._engine.process.callLater(PING_SECONDS, self._ping)
        self._unanswered = [count + 1 for count in self._unanswered]
        self.commands.send(_PING)
        self.subscriptions.send(_PING)

    def close(self) -> None:
        """End at the node; the store may still read what was sent before, or a part of it."""
        if not self.node_open:
            return
        self.node_open = False
        if self._ping_call is not None and self._ping_call.active():
            self._ping_call.cancel()
        for link in (self.commands, self.subscriptions):
            link.cut()
        self.commands.send(_END)
        if self.commands.swallowing:
            self._store.timeline.after(self._random.uniform(20, 90), self._store.take, self, self._noticed, None)
        waiting, self.waiting = self.waiting, deque()
        for done in waiting:
            done(None)

    def _noticed(self, _: None) -> None:
        self.store_open = False
        self._store.forget(self)

    def some_links(self) -> tuple[str, tuple[Link, ...]]:
        """Choose what a fault takes: everything, one of the two connections, or one direction of one; with its name."""
        commands, replies, subscriptions, messages = self.links
        return self._random.choice(
            [
                ("both connections", self.links),
                ("both connections", self.links),
                ("its commands", (commands, replies)),
                ("its channel", (subscriptions, messages)),
                ("what it sends", (commands,)),
                ("its replies", (replies,)),
                ("what it is sent", (messages,)),
            ]
        )

    def swallow(self, links: Sequence[Link]) -> None:
        """Let nothing through any more, without a sign of it."""
        for link in links:
            link.swallowing = True

    def heal(self) -> None:
        for link in self.links:
            link.heal()


_END: Any = object()
_PING: Any = object()


class SimulatedEngine:
    """An ``Engine`` whose network is simulated.

    Args:
        process: the node that uses it.
        store: the other end.
        latency: draws how long anything is on its way.
    """

    def __init__(self, process: Process, store: StoreServer, latency: Callable[[], float]) -> None:
        self.process = process
        self.latency = latency
        self._store = store
        self._listener: EngineListener | None = None
        self._channel = b""
        self.connection: Connection | None = None
        self._retry: Any = None
        self._failures = 0
        # Whether new connections get nowhere either.
        self.partitioned = False
        # How much later than anything else replies come.
        self.reply_delay = 0.0

    def connect(self, channel: bytes, listener: EngineListener) -> None:
        self._drop()
        if self.connection is not None:
            # The caller of an unanswered command connected anew.
            return
        self._channel, self._listener, self._failures = channel, listener, 0
        self._try()

    def disconnect(self) -> None:
        self._listener = None
        self._drop()

    def call(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes], done: Callable[[Any], None]) -> None:
        self._send((script, keys, arguments), done)

    def publish(self, channel: bytes, data: bytes, done: Callable[[int | None], None]) -> None:
        self._send(("publish", channel, data), done)

    def _send(self, command: tuple[str, Any, Any], done: Callable[[Any], None]) -> None:
        connection = self.connection
        if connection is None or not connection.established:
            done(None)
            return
        connection.waiting.append(done)
        connection.commands.send(command)

    def _try(self) -> None:
        self._retry = self.process.callLater(CONNECT_SECONDS, self._late)
        if self._store.alive:
            self.connection = Connection(self, self._store, self._channel)
            if self.partitioned:
                self.connection.swallow(self.connection.links)
        else:
            self._retry.cancel()
            self._try_later()

    def _try_later(self) -> None:
        seconds = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2**self._failures)
        self._failures += 1
        self._retry = self.process.callLater(seconds * self._store.timeline.random.uniform(0.5, 1), self._try)

    def _late(self) -> None:
        self._drop()
        self._try_later()

    def _drop(self) -> None:
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def established(self, connection: Connection) -> None:
        if connection is self.connection and self._listener is not None:
            self._retry.cancel()
            self._failures = 0
            self._listener.connected()

    def heard(self, data: bytes) -> None:
        if self._listener is not None:
            self._listener.received(data)

    def lost(self, connection: Connection, reason: str) -> None:
        """Replace a connection that broke."""
        if connection is not self.connection or self._listener is None:
            return
        was_established, listener = connection.established, self._listener
        self._drop()
        if self._listener is not listener or self.connection is not None:
            # A call that was answered with None disconnected, or connected anew.
            return
        if was_established:
            listener.disconnected(reason)
        if self._listener is listener and self.connection is None:
            self._try_later()
