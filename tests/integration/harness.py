"""A server and its clients in memory: a fake clock, transports that can stall, and clients that are not ours.

Nothing moves until ``Harness.run`` moves it, so an action never calls back into the code that caused it.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import cycle
from random import Random
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Site
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from signaling import IceServers, IceSource, Limits, SignalingFactory, SignalingResource
from signaling.backplane.cluster import Cluster
from signaling.core.counters import Counters
from tests.harness.memory_transport import MemoryTransport, PassingClock
from tests.harness.wire_schema import check_from_server
from tests.integration.backends import MemoryEngine, MemoryStore, Store

# How long nodes may wait to say several things at once.
SOON = 0.006
SOME_ID = "01M84W4JC063ZB8W6276707TN2"
LIMIT_FIELDS = {field.name for field in fields(Limits)}


class Connection:
    """A client's end of one connection, byte by byte.

    Attributes:
        received: all bytes that came.
        ended: whether the server closed its half.
    """

    def __init__(self, harness: Harness, transport: MemoryTransport) -> None:
        self.harness = harness
        self.transport = transport
        self.received = b""
        self.ended = False
        self._outgoing: list[bytes] = []
        self._leaving: Failure | None = None
        self._silent = False

    def send(self, data: bytes) -> None:
        """Send bytes, as one segment."""
        self._outgoing.append(data)
        self.harness.run()

    def send_together(self, *segments: bytes) -> None:
        """Have segments on their way; they move with the next ``Harness.run``."""
        self._outgoing += segments

    def go_silent(self) -> None:
        """Go without a word: nothing is sent any more, and what the kernel takes nobody reads."""
        self._silent = True
        self._outgoing = []

    def hang_up(self) -> None:
        """Close both halves."""
        self._leaving = Failure(ConnectionDone())
        self.harness.run()

    def reset(self) -> None:
        """Reset the connection."""
        self._leaving = Failure(ConnectionLost())
        self.harness.run()

    def stall(self) -> None:
        """Take nothing."""
        self.transport.taking = False

    def resume(self) -> None:
        """Take everything again."""
        self.transport.taking = True
        self.harness.run()

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""
        return self.transport.lost

    def receive(self, data: bytes) -> None:
        self.received += data

    def receive_eof(self) -> None:
        self.ended = True

    def step(self) -> bool:
        """Move what can move now; returns whether anything did."""
        transport = self.transport
        if transport.lost:
            return False
        if transport.aborted:
            return self._lose(Failure(ConnectionAborted()))
        return self._to_client() or self._to_server()

    def _to_client(self) -> bool:
        transport = self.transport
        if transport.dataBuffer and transport.taking:
            data = transport.take()
            if not self._silent:
                self.receive(data)
            return True
        if not transport.dataBuffer and transport.write_ended and not self.ended and not transport.disconnecting:
            self.ended = True
            self.receive_eof()
            return True
        if not transport.dataBuffer and transport.disconnecting and transport.producer is None:
            return self._lose(Failure(ConnectionDone()))
        return False

    def _to_server(self) -> bool:
        if self._outgoing and self.transport.reading and not self.transport.disconnecting:
            self.transport.protocol.dataReceived(self._outgoing.pop(0))
            return True
        # A transport that does not read notices a reset, but no end of the stream.
        noticed = self.transport.reading or (self._leaving is not None and not self._leaving.check(ConnectionDone))
        if self._leaving is not None and not self._outgoing and noticed:
            return self._lose(self._leaving)
        return False

    def _lose(self, reason: Failure) -> bool:
        self.transport.lost = True
        if self.transport.producer is not None:
            self.transport.producer.stopProducing()
        self.transport.protocol.connectionLost(reason)
        self.receive_eof()
        self.ended = True
        return True


class Peer(Connection):
    """A client that speaks WebSocket by the ``websockets`` package.

    Attributes:
        id: from its ``welcome``.
        peers: from its ``peer-list``.
        texts: text messages received and not looked at yet, as they came.
        closed: the code of the server's close frame, or None.
    """

    def __init__(
        self, harness: Harness, transport: MemoryTransport, path: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(harness, transport)
        headers = dict(headers or {})
        protocols = headers.pop("Sec-WebSocket-Protocol", "").split(", ")
        offered = [Subprotocol(name) for name in protocols if name]
        self.client = ClientProtocol(parse_uri(f"ws://server:8081{path}"), max_size=None, subprotocols=offered or None)
        self._headers = headers
        self.texts: list[str] = []
        self.pings = 0
        self.pongs: list[bytes] = []
        self.closed: int | None = None
        self.close_reason = ""
        self.id = ""
        self.peers: list[Any] = []

    def open(self) -> None:
        request = self.client.connect()
        request.headers.update(self._headers)
        self.client.send_request(request)
        self.flush()

    def flush(self) -> None:
        """Send what the client wrote."""
        for data in self.client.data_to_send():
            if data:
                self._outgoing.append(data)
            else:
                self._leaving = Failure(ConnectionDone())

    def receive(self, data: bytes) -> None:
        super().receive(data)
        self.client.receive_data(data)
        self._events()

    def receive_eof(self) -> None:
        self.client.receive_eof()
        self._events()

    def _events(self) -> None:
        for event in self.client.events_received():
            if isinstance(event, Frame):
                self._frame(event)
        self.flush()

    def _frame(self, event: Frame) -> None:
        if event.opcode is Opcode.TEXT:
            self.texts.append(bytes(event.data).decode())
            foreign = self.harness.foreign_id
            check_from_server(self.texts[-1].replace(foreign, SOME_ID) if foreign else self.texts[-1])
        elif event.opcode is Opcode.PING:
            self.pings += 1
        elif event.opcode is Opcode.PONG:
            self.pongs.append(bytes(event.data))
        elif event.opcode is Opcode.CLOSE:
            self.closed = int.from_bytes(event.data[:2], "big") if event.data else None
            self.close_reason = bytes(event.data[2:]).decode()

    # What a test says and sees

    def say(self, message: Any) -> None:
        """Send one text message: a string as it is, anything else as JSON."""
        text = message if isinstance(message, str) else json.dumps(message)
        self.client.send_text(text.encode())
        self.flush()
        self.harness.run()

    def say_many(self, messages: list[Any]) -> None:
        """Send text messages in one segment."""
        for message in messages:
            self.client.send_text(json.dumps(message).encode())
        self._outgoing.append(b"".join(self.client.data_to_send()))
        self.harness.run()

    def say_frame(self, *frames: Frame) -> None:
        """Send frames in one segment, correct or not."""
        self._outgoing.append(b"".join(frame.serialize(mask=True) for frame in frames))
        self.harness.run()

    def offer(self, target: Peer | str, msg_id: str | None = None, payload: Any = None) -> None:
        """Send an offer."""
        to = target if isinstance(target, str) else target.id
        message = {"type": "offer", "to": to, "payload": payload}
        self.say(message if msg_id is None else {**message, "msgId": msg_id})

    def heard(self) -> list[Any]:
        """Return the messages received since the last time."""
        texts, self.texts = self.texts, []
        return [json.loads(text) for text in texts]

    def leave(self, code: int = 1000) -> None:
        """Close as a browser does."""
        self.client.send_close(code)
        self.flush()
        self.harness.run()


class Harness:
    """One server, or a cluster of them, and everyone who connects.

    Attributes:
        clock: moves by ``advance`` only.
        host: the address that new connections come from.
        foreign_id: of a peer that another program wrote into the store; no server gives such an id.
        start: what the wall clock showed when ``clock`` began.
        engines: of the nodes, where there are several.
        factories: of the nodes. Connections go to each in turn, so that peers that come one after the other never meet
            on one node.

    Args:
        site: whether the server is mounted in a foreign site instead of having its own port.
        nodes: how many there are; one has no backplane.
        store: what the nodes share, given its clock.
        ice_servers: makes them, given the clock.
        ice_source: makes one, given the clock.
        log: of the nodes, is told who comes and goes.
        observe: makes the observer of a node.
        wall_ahead: by how much somebody set the wall clock forward.
        buffer_bytes: what a transport holds before it pauses its producer.
        of_nodes: bounds of single nodes, besides those of all.
        arguments: the fields of ``Limits``, and what else ``SignalingFactory`` takes. Tokens expire by ``clock``, which
            starts now.
    """

    def __init__(
        self,
        site: bool = False,
        *,
        nodes: int = 1,
        store: Callable[[Callable[[], float]], Store] = MemoryStore,
        buffer_bytes: int = 65_536,
        ice_servers: Callable[[Clock], IceServers] = lambda clock: IceServers(),
        ice_source: Callable[[Clock], IceSource | None] = lambda clock: None,
        log: Any = None,
        observe: Callable[[], Any] = lambda: None,
        wall_ahead: Callable[[], float] = lambda: 0.0,
        of_nodes: Sequence[Mapping[str, Any]] = (),
        **arguments: Any,
    ) -> None:
        self.clock = PassingClock()
        self._log, self._wall_ahead = log, wall_ahead
        # Whole seconds, as in tokens.
        self.start = float(int(time.time()))
        limits = {name: arguments.pop(name) for name in LIMIT_FIELDS & arguments.keys()}
        self.limits = Limits(**limits)
        self._limits = [Limits(**limits, **bounds) for bounds in of_nodes] or [self.limits] * nodes
        self.host = "192.0.2.1"
        self.foreign_id = ""
        self._buffer_bytes = buffer_bytes
        self.connections: list[Connection] = []
        self.engines: list[MemoryEngine] = []
        self._store = store(self.clock.seconds) if nodes > 1 else None
        self.factories = [
            SignalingFactory(
                self._limits[number],
                ice_servers=ice_servers(self.clock),
                ice_source=ice_source(self.clock),
                backplane=self._backplane(number),
                observer=observe(),
                wall_clock=lambda: self.start + self.clock.seconds() + wall_ahead(),
                reactor=self.clock,  # type: ignore[arg-type]
                **arguments,
            )
            for number in range(nodes)
        ]
        self._builds = [self._mounted(factory) if site else self._listening(factory) for factory in self.factories]
        self._turns = cycle(range(nodes))
        self.run()

    def _backplane(self, number: int) -> Cluster | None:
        if self._store is None:
            return None
        engine = MemoryEngine(self._store)
        self.engines.append(engine)
        return Cluster(
            engine,
            self.clock,
            self._limits[number],
            prefix=self._store.prefix,
            choose=Random(number),
            log=self._log,
            wall_clock=lambda: self.clock.seconds() + self._wall_ahead(),
        )

    def _listening(self, factory: SignalingFactory) -> Callable[[Any], Any]:
        factory.doStart()
        return factory.buildProtocol

    def _mounted(self, factory: SignalingFactory) -> Callable[[Any], Any]:
        root = Resource()
        root.putChild(b"ws", SignalingResource(factory))  # type: ignore[arg-type]
        self.site = Site(root, reactor=self.clock)
        build: Callable[[Any], Any] = self.site.buildProtocol
        return build

    @property
    def factory(self) -> SignalingFactory:
        """The only node."""
        (factory,) = self.factories
        return factory

    @property
    def topics(self) -> dict[str, int]:
        """How many peers each topic has, on whatever nodes."""
        sizes: Counter[str] = Counter()
        for factory in self.factories:
            sizes.update({topic.name: len(topic) for topic in factory.topics})
        return dict(sizes)

    @property
    def open_connections(self) -> int:
        """How many connections the nodes have."""
        return sum(len(factory.connections) for factory in self.factories)

    @property
    def relays_written(self) -> int:
        """How many relays were written to their target's transport, by whatever node."""
        return sum(factory.relays_written for factory in self.factories)

    @property
    def relays_queued(self) -> int:
        """How many relays wait for their target's transport, on whatever node."""
        return sum(factory.relays_queued for factory in self.factories)

    @property
    def counters(self) -> Counters:
        """What all nodes counted, added up."""
        return added([factory.counters for factory in self.factories])

    def drain(self) -> Deferred[None]:
        """Drain every node."""
        return DeferredList([factory.shutdown.drain() for factory in self.factories]).addCallback(lambda _: None)

    def close(self) -> None:
        """Need the store no more."""
        if self._store is not None:
            self._store.close()

    def connect(self) -> Connection:
        """Open a connection and say nothing."""
        return self._connected(Connection(self, self._transport()))

    def peer(self, path: str, headers: Mapping[str, str] | None = None) -> Peer:
        """Ask for ``path`` as a WebSocket client.

        Args:
            headers: which it sends besides.
        """
        peer = self.knock(path, headers)
        self.run()
        return peer

    def knock(self, path: str, headers: Mapping[str, str] | None = None, node: int | None = None) -> Peer:
        """Ask for ``path``, and let nothing happen yet.

        Args:
            node: the number of the node; None for the next.
        """
        peer = Peer(self, self._transport(node), path, headers)
        self._connected(peer)
        peer.open()
        return peer

    def join(self, topic: str, metadata: Any = None) -> Peer:
        """Join a topic; returns the peer after its welcome and its peer-list."""
        query = "" if metadata is None else f"?metadata={quote(json.dumps(metadata))}"
        peer = self.peer(f"/ws/{quote(topic, safe='')}{query}")
        welcome, peer_list = peer.heard()
        assert (welcome["type"], peer_list["type"]) == ("welcome", "peer-list")
        peer.id, peer.peers = welcome["selfId"], peer_list["peers"]
        return peer

    def request(self, data: bytes | str) -> tuple[int, dict[str, str], str]:
        """Make one HTTP request; returns its status, headers and body."""
        connection = self.connect()
        connection.send(data.encode() if isinstance(data, str) else data)
        return response(connection.received)

    def run(self) -> None:
        """Let everything happen that happens without time; and, between nodes, what takes some milliseconds."""
        while self.run_once() or self._run_soon():
            pass

    def _run_soon(self) -> bool:
        if self._store is None:
            return False
        now = self.clock.seconds()
        due = min((call.getTime() for call in self.clock.getDelayedCalls()), default=now + 1)
        if due > now + SOON:
            return False
        self.clock.advance(due - now)
        return True

    def run_once(self) -> bool:
        """Let everyone move once; returns whether anyone did."""
        moved = [mover.step() for mover in (*self.connections, *self.engines)]
        due = any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls())
        self.clock.advance(0)
        return due or any(moved)

    def advance(self, seconds: float, step: float = 0.25) -> None:
        """Let time pass."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.clock.advance(min(step, end - self.clock.seconds()))
            self.run()

    def _transport(self, node: int | None = None) -> MemoryTransport:
        transport = MemoryTransport(self.host, 40_000 + len(self.connections))
        transport.bufferSize = self._buffer_bytes
        transport.protocol = self._builds[next(self._turns) if node is None else node](transport.getPeer())
        return transport

    def _connected(self, connection: Connection) -> Connection:
        self.connections.append(connection)
        connection.transport.protocol.makeConnection(connection.transport)
        return connection


def added(all_counters: list[Counters]) -> Counters:
    """Add up what several servers counted, but for the histograms."""
    total = Counters()
    for counters in all_counters:
        for name in (field.name for field in fields(Counters)):
            value, so_far = getattr(counters, name), getattr(total, name)
            if isinstance(value, int):
                setattr(total, name, so_far + value)
            elif isinstance(value, dict):
                for key, count in value.items():
                    so_far[key] = so_far.get(key, 0) + count
    return total


def response(data: bytes) -> tuple[int, dict[str, str], str]:
    """Parse one HTTP response."""
    head, _, body = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status_line.split(" ")[1]), headers, body.decode(errors="replace")


def upgrade(target: str, **headers: str | None) -> str:
    """Write an upgrade request. A keyword replaces the header of that name; None leaves it out."""
    values: dict[str, str | None] = {
        "Host": "server",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    values |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in values.items() if value is not None)
    return f"GET {target} HTTP/1.1\r\n{lines}\r\n"
