"""Scenarios of clients that lose their connections and resume, on whatever node."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from random import Random
from typing import Any
from urllib.parse import parse_qs, urlsplit

from signaling.client.session import Session
from signaling.core.join_request import JoinRequest, ResumeClaim
from signaling.limits import Limits
from tests.simulator.clients import Client, Sent, payload
from tests.simulator.connections import SimulatedConnection
from tests.simulator.network import Link, Process
from tests.simulator.nodes import LARGEST_HIGH_WATER, SimulatedNode
from tests.simulator.scenario import Scenario

WINDOW_SECONDS = 20.0
_ACCEPTED: Any = object()
_END: Any = object()
_OFFER = b'{"type":"offer"'


class DelayedConnection(SimulatedConnection):
    """A connection that delivers what is written a little later, unless it is lost before."""

    client: ResumingClient
    scenario: ResumingScenario

    def __init__(self, node: SimulatedNode, client: ResumingClient) -> None:
        super().__init__(node, client)
        self._link = Link(self.scenario.all_clients, self._arrived, self.scenario.latency)

    @property
    def source(self) -> object:
        return self

    def write(self, frame: bytes) -> None:
        if payload(frame).startswith(_OFFER):
            self.scenario.wrote(self.node, frame)
        self._link.send((None, frame))

    def request_ack(self, payload: bytes) -> None:
        self._link.send((payload, b""))

    def tell_accepted(self) -> None:
        if self.scenario.joins.is_early():
            self._link.send(_ACCEPTED)

    def tell_end(self) -> None:
        self._link.send(_END)

    def node_crashed(self) -> None:
        self.ended = True
        self.client.lose(self)

    def _arrived(self, item: Any) -> None:
        if self.lost:
            return
        if item is _ACCEPTED:
            self.client.send_early()
        elif item is _END:
            self.client.lose(self)
        elif item[0] is not None:
            self.node.process.take(self, self._acknowledge, item[0])
        else:
            self.client.take(item[1])

    def _acknowledge(self, payload: bytes) -> None:
        if self.peer is not None:
            self.peer.acknowledge(payload)


class ResumingClient(Client):
    """A client that resumes, as the session of the Python clients does.

    Attributes:
        turned_away: whether the node that it asked last did not let it join.
        welcomed: what it does as soon as it can send.
    """

    _scenario: ResumingScenario

    def __init__(self, node: SimulatedNode, name: str, topic: str, metadata: Any) -> None:
        super().__init__(node, name, topic, metadata)
        self._session = Session("ws://example.com/ws/room")
        self.turned_away = False
        self._last_node: SimulatedNode | None = None
        self._resumed = False
        # Its metadata if it joins as a new peer.
        self._joins_with: Any = None
        # When the ICE servers were made that it knows.
        self._made = 0.0
        self.welcomed: Callable[[], Any] | None = None
        self._kinds["ice-servers"] = self._ice_servers
        self._kinds["notice"] = lambda message: self._scenario.noticed(self.id, message["data"])

    @property
    def live(self) -> bool:
        return super().live and self.known is not None

    @property
    def lenient(self) -> bool:
        # What is sent again may be known already.
        return self.missed_events or self._resumed

    @property
    def waits(self) -> bool:
        return super().waits and not self.turned_away

    def connect_to(self, node: SimulatedNode) -> None:
        """Connect, and ask for the session that it had, if any."""
        connection = DelayedConnection(node, self)
        self.node, self.connection = node, connection
        self.known = None
        self._session.lost()
        self._joins_with = self.own.value
        claim = self._claim()
        self._scenario.trace(self.name, "connects to", node.name, self.topic, "as", self.id, claim and claim.seen)
        node.connect(connection, JoinRequest(self.topic, self.metadata_text, claim))

    def _claim(self) -> ResumeClaim | None:
        query = parse_qs(urlsplit(self._session.url).query)
        return ResumeClaim(query["resume"][0].encode(), int(query["seen"][0])) if query else None

    def lose(self, connection: SimulatedConnection) -> None:
        """Notice that a connection ended, and make another soon."""
        connection.lost = True
        if connection is not self.connection or self.gone:
            return
        self.connection = None
        self._scenario.trace(self.name, "has lost its connection", connection.turned_away)
        self.turned_away = bool(connection.turned_away)
        if self.turned_away and not self._scenario.joins.comes_back():
            self.gone = True
        else:
            self._scenario.come_back(self)

    def send_early(self) -> None:
        """Send before the welcome, if this is not the first connection."""
        if self.id:
            self._scenario.send_early(self)

    def receive(self, frame: bytes) -> None:
        self._session.receive(payload(frame))
        self._session.events()
        super().receive(frame)

    def _welcome(self, message: Any) -> None:
        self.known = None
        if message.get("resumed"):
            if message["selfId"] != self.id:
                self.violation(f"goes on as {message['selfId']}")
            if self._last_node is not self.node:
                self._scenario.counts["moved"] += 1
            self._scenario.counts["resumed"] += 1
            self._resumed = True
        else:
            self.id = message["selfId"]
            self.own.joined(self._joins_with)
            self._latest.clear()
            self._scenario.named(self)
            self._resumed = False
        self.turned_away = False
        # The list that follows has all.
        self.missed_events = False
        self._last_node = self.node
        self._ice_servers(message)

    def _list(self, message: Any) -> None:
        super()._list(message)
        welcomed, self.welcomed = self.welcomed, None
        if welcomed is not None:
            self._scenario.timeline.after(0, welcomed)

    def _ice_servers(self, message: Any) -> None:
        made = message["iceServers"]
        if made < self._made:
            self.violation(f"receives ICE servers of {made} after those of {self._made}")
        self._made = made


class ResumingScenario(Scenario):
    """A scenario of clients that resume.

    More is excused: a relay that was sent just before its connection was lost may not have reached its node; a relay
    that was written to a connection is lost with it if the client never resumes; and a relay may be written *and*
    answered ``dropped`` if a node dies that its sender or its target had left for another one.
    """

    kind = "t"

    def __init__(self, seed: int, log: Any = None) -> None:
        super().__init__(seed, log)
        # The relays that were written to a connection.
        self.put_on_connections: set[int] = set()
        self.all_clients = Process(self.timeline, "clients")
        # Of its own, so that everything else under a seed stays as it was.
        self._expiries = Random(f"expiries {seed}")

    def make_limits(self) -> Limits:
        window = self.random.choice([WINDOW_SECONDS, WINDOW_SECONDS, 3.0, 30.0])
        return Limits(
            high_water_messages=self.random.choice([4, 4, 1, LARGEST_HIGH_WATER]), resume_window_seconds=window
        )

    def join(self) -> None:
        nodes = self.serving()
        if nodes and sum(not client.gone for client in self.clients) <= 12:
            metadata = self.random.choice([None, {"name": "Ada"}])
            node, topic = self.random.choice(nodes), self.random.choice(self.topics)
            client = ResumingClient(node, f"c{len(self.clients)}", topic, metadata)
            self.clients.append(client)
            client.connect_to(node)

    def noticed(self, peer: str, number: int) -> None:
        """A client received a notice."""

    def wrote(self, node: SimulatedNode, frame: bytes) -> None:
        """Notice that a relay was written to a connection, which may be lost with it."""
        sent = self.relay_in(frame)
        sent.nodes.add(node.backplane.node)
        self.put_on_connections.add(sent.number)

    def relay(self) -> None:
        """Relay; sometimes renew ICE servers instead, or change nodes between two relays."""
        live: list[Any] = self.live()
        choice = self.random.random()
        if live and choice < 0.1:
            connection = self.random.choice(live).connection
            connection.node.renew(connection)
        elif live and choice < 0.25:
            self._relay_while_resuming(self.random.choice(live))
        else:
            super().relay()

    def update(self, number: int) -> None:
        """Let a client replace its metadata; sometimes it changes nodes at once."""
        live: list[Any] = self.live()
        if live and self.updates.random.random() < 0.25:
            sender = self.updates.random.choice(live)
            self.send_updates(sender, number)
            self._change_nodes(sender)
        else:
            super().update(number)

    def _relay_while_resuming(self, sender: ResumingClient) -> None:
        """Send, resume on any node at once, and send more."""
        target = self.random.choice([client for client in self.live() if client.topic == sender.topic])
        for _ in range(self.random.choice([1, 3, 7])):
            self.send(sender, target)
        sender.welcomed = lambda: [self.send(sender, target) for _ in range(3) if sender.live]
        self._change_nodes(sender)

    def _change_nodes(self, client: ResumingClient) -> None:
        """Let a client lose its connection, and resume on any node at once."""
        connection = client.connection
        assert connection is not None
        connection.lost, client.connection = True, None
        self.timeline.after(self.random.choice([0, 0.01, 2]), connection.node.lose, connection)
        self._come_back(client)

    def send_early(self, sender: ResumingClient) -> None:
        """Send to a present or former peer of the topic, before the sender's welcome."""
        known = [client for client in self.clients if client.id and client.topic == sender.topic]
        self.counts["early relays"] += 1
        self.send(sender, self.joins.random.choice(known))

    def come_back(self, client: ResumingClient) -> None:
        self.timeline.after(self.random.choice([0.01, 1, 8, 25]) * self.random.random(), self._come_back, client)

    def _come_back(self, client: ResumingClient) -> None:
        nodes = self.serving()
        if client.gone or client.connection is not None:
            return
        if nodes:
            client.connect_to(self.random.choice(nodes))
        else:
            self.come_back(client)

    def leave(self) -> None:
        """Let a client leave, or lose its connection, which its node notices now or later, or let its token expire."""
        there: list[Any] = [client for client in self.clients if not client.gone]
        if not there:
            return
        client = self.random.choice(there)
        connection = client.connection
        if connection is None or self.random.random() < 0.8:
            if connection is not None and self.joins.active and self._expiries.random() < 0.35:
                self.trace(client.name, "its token expires")
                connection.node.expire(connection)
            elif connection is not None:
                client.lose(connection)
                seconds = self.random.choice([0, 0, 0.01, 2, 15])
                self.timeline.after(seconds, connection.node.lose, connection)
            return
        self.trace(client.name, "says goodbye")
        client.gone, client.connection, connection.lost = True, None, True
        connection.node.say_goodbye(connection)

    def verdict(self, sent: Sent) -> str | None:
        if sent.errors and (sent.written or sent.number in self.put_on_connections):
            return self._excuse(sent)
        if sent.written or sent.errors:
            return None
        if sent.lost:
            excuse = "no outcome: lost with its sender's connection"
        elif not sent.sender.live or sent.sender.id != sent.sender_id:
            excuse = "no outcome: its sender's session has ended"
        elif sent.number in self.put_on_connections and not (sent.target.live and sent.target.id == sent.target_id):
            excuse = "lost: written to a connection, and its target's session has ended"
        else:
            return "no outcome"
        self.excuses[excuse] += 1
        return None

    def _excuse(self, sent: Sent) -> str | None:
        answered_at, _ = sent.errors[0]
        left = self.left_nodes.get(sent.target_id, set()) | self.left_nodes.get(sent.sender_id, set())
        if any(sent.at <= self._died_or_stopped_at(node) <= answered_at for node in left | sent.nodes):
            self.excuses["both: a node died or stopped that had to do with it"] += 1
            return None
        return super()._excuse(sent) if sent.written else f"written to a connection, and answered at {answered_at:.4f}"

    def _died_or_stopped_at(self, node_id: str) -> float:
        return min(self.evicted.get(node_id, inf), self.ended.get(node_id, inf))

    def _crash_in_calm(self) -> None:
        """Do nothing: the clients of the node would reconnect."""

    def peer_left(self, client: Client, peer: str) -> None:
        # A client that asks two nodes at once may lose its session.
        if peer not in self.left_nodes:
            super().peer_left(client, peer)

    def relayed(self, node: SimulatedNode, sent: Sent, outcome: Any) -> None:
        """Check nothing: the target may be about to leave or to resume."""

    def not_found(self, sent: Sent) -> None:
        """Check nothing: a sender that resumed is answered late, and its target may have joined meanwhile."""
