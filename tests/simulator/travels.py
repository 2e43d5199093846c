"""Stories of peers that lose their connections and come back, to whatever node."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from math import inf
from typing import Any

from signaling.core.interfaces import Forwarding, JoinTicket, OutgoingSession, Receipt
from signaling.core.join_request import JoinRequest, ResumeClaim
from signaling.core.local_peers import LocalPeers
from signaling.core.peer import Peer, return_undelivered
from signaling.core.session import ResumablePeer, Sessions, proof
from signaling.errors import Rejected
from signaling.limits import Limits
from signaling.websocket.outbound_queue import OutboundQueue
from tests.simulator.clients import Client, Sent, payload
from tests.simulator.network import Link, Process
from tests.simulator.nodes import SimulatedNode
from tests.simulator.story import Story

WINDOW_SECONDS = 20.0
_END: Any = object()
_OFFER = b'{"type":"offer"'


class Line(OutboundQueue[Receipt]):
    """One connection of a traveller: what is written arrives a little later, unless the connection is lost before."""

    def __init__(self, node: TravelNode, traveller: Traveller) -> None:
        limits = node.limits
        super().__init__(
            self._write,
            lambda receipt: receipt[0].relay_written(receipt[1]),
            limits.high_water_messages,
            limits.high_water_bytes,
        )
        self.node = node
        self.traveller = traveller
        self.link = Link(node.story.everybody, self._arrived, node.story.latency)
        self.slot: Any = None
        self.said_goodbye = False
        self.peer: ResumablePeer | None = None
        # At the node's end, and at the other.
        self.ended = self.lost = False

    def _write(self, frame: bytes) -> None:
        if payload(frame).startswith(_OFFER):
            self.node.story.wrote(self.node, frame)
        self.link.send((None, frame))

    def offer(self, frame: bytes, receipt: Receipt | None = None) -> bool:
        taken = super().offer(frame, receipt)
        if taken and self.blocked and receipt is not None:
            self.traveller.hold(frame)
        if not taken and receipt is None:
            self.traveller.missed_events = True
        return taken

    def ask(self, mark: bytes) -> None:
        self.link.send((mark, b""))

    def give_up(self) -> None:
        self.abandon()
        self.end()

    def end(self) -> None:
        self.ended = True
        self.peer = None
        self.node.lines.pop(self, None)
        self.link.send(_END)

    def _arrived(self, item: Any) -> None:
        if self.lost:
            return
        if item is _END:
            self.traveller.lose(self)
        elif item[0] is not None:
            self.node.process.take(self, self._acknowledge, item[0])
        else:
            self.traveller.take(item[1])

    def _acknowledge(self, mark: bytes) -> None:
        if self.peer is not None:
            self.peer.acknowledge(mark)


class Traveller(Client):
    """A client that resumes.

    Attributes:
        line: its connection, None where it has none.
    """

    node: TravelNode

    def __init__(self, node: TravelNode, name: str, topic: str, metadata: Any) -> None:
        super().__init__(node, name, topic, metadata)
        self.line: Line | None = None
        self.token = b""
        self.seen = 0
        self._last_node: SimulatedNode | None = None
        self._resumed = False
        # When the ICE servers were made that it knows.
        self._made = 0.0
        # What it does as soon as it can send.
        self.welcomed: Callable[[], Any] | None = None
        self._kinds["ice-servers"] = self._ice_servers

    @property
    def live(self) -> bool:
        return not self.gone and self.line is not None and self.line.peer is not None and self.known is not None

    @property
    def lenient(self) -> bool:
        # What is sent again may be known already.
        return self.missed_events or self._resumed

    @property
    def waits(self) -> bool:
        return not self.gone and not self.live

    def travel(self, node: TravelNode) -> None:
        """Connect, and say who it was if it was anybody."""
        self.node, self.line = node, Line(node, self)
        self.known = None
        self._story.trace(self.name, "connects to", node.name, self.topic, "as", self.id, self.seen)
        claim = ResumeClaim(self.token, self.seen) if self.token else None
        node.arrive(self.line, JoinRequest(self.topic, self.metadata_text, claim))

    def lose(self, line: Line) -> None:
        """Notice that a connection ended, and make another soon."""
        line.lost = True
        if line is self.line and not self.gone:
            self.line = None
            self._story.trace(self.name, "has lost its connection")
            self._story.come_back(self)

    def receive(self, frame: bytes) -> None:
        self.seen += 1
        super().receive(frame)

    def _welcome(self, message: Any) -> None:
        self.token = message["resume"]["token"].encode()
        self.known = None
        if message.get("resumed"):
            if message["selfId"] != self.id:
                self.breach(f"goes on as {message['selfId']}")
            if self._last_node is not self.node:
                self._story.counts["moved"] += 1
            self._story.counts["resumed"] += 1
            self._resumed = True
        else:
            self.seen = 1
            self.id = message["selfId"]
            self._latest.clear()
            self._story.named(self)
            self._resumed = False
        # The list that follows has all.
        self.missed_events = False
        self._last_node = self.node
        self._ice_servers(message)

    def _list(self, message: Any) -> None:
        super()._list(message)
        welcomed, self.welcomed = self.welcomed, None
        if welcomed is not None:
            self._story.timeline.after(0, welcomed)

    def _ice_servers(self, message: Any) -> None:
        made = message["iceServers"]
        if made < self._made:
            self.breach(f"is told of ICE servers of {made} after those of {self._made}")
        self._made = made


class TravelNode(SimulatedNode):
    """A node whose peers may come back."""

    story: TravelStory

    def _local_peers(self) -> LocalPeers:
        self.lines: dict[Line, None] = {}
        self.sessions = Sessions(self.limits, self.process, self.topics, lambda peer, reason: None)
        return LocalPeers(self.topics, self.announcer, self.counters, self._lend, self._moved)

    def _lend(self, peer: Peer, text: bytes) -> OutgoingSession | None:
        # Should this node end before it hears whether another one has taken the peer, it cannot tell.
        self.story.left_behind(peer.id, self.cluster.node)
        return self.sessions.prepare_handoff(peer, text)

    def _moved(self, peer: Peer, taken: Collection[int]) -> Mapping[int, Forwarding]:
        if not isinstance(peer, ResumablePeer) or peer.topic is None:
            return {}
        return self.sessions.hand_over(peer, taken)

    def arrive(self, line: Line, join: JoinRequest) -> None:
        self.lines[line] = None
        self.process.take(line, self._ask, (line, join))

    def _ask(self, arrival: tuple[Line, JoinRequest]) -> None:
        line, join = arrival
        if self.stopping:
            line.end()
        elif self.sessions.find(join) is not None:
            self._open(line, join, None)
        else:
            self._enter(line, join)

    def _enter(self, line: Line, join: JoinRequest, *, late: bool = False) -> None:
        def entered(entrant: JoinTicket) -> None:
            if line.ended:
                self._turn_back(line, join, entrant)
            elif late:
                self._begin(line, join, entrant)
            else:
                self._open(line, join, entrant)

        self.cluster.request_join(join.topic, join.metadata, entered, None if late else proof(join))

    def _turn_back(self, line: Line, join: JoinRequest, entrant: JoinTicket) -> None:
        peer = self._revive(line, join, entrant) if not self.stopping else None
        if peer is not None:
            self.sessions.keep(peer, None)
        self.cluster.finish_join(join.topic, entrant.id or "", joined=peer is not None)

    def _revive(self, line: Line, join: JoinRequest, entrant: JoinTicket) -> ResumablePeer | None:
        if entrant.session is None or join.claim is None:
            return None
        peer = self._new_peer(line, join, entrant)
        return peer if peer.revive(entrant.session, join.topic, join.claim) else None

    def _new_peer(self, line: Line, join: JoinRequest, entrant: JoinTicket) -> ResumablePeer:
        assert entrant.id is not None
        peer = ResumablePeer(entrant.id, join, self.topics, self.announcer, self.cluster, self.counters, self.limits)
        peer.go(line)
        return peer

    def _open(self, line: Line, join: JoinRequest, entrant: JoinTicket | None) -> None:
        found = self.sessions.find(join)
        if found is not None:
            self.sessions.back(found)
        if join.claim is not None and found is not None and not found.reaches(join.claim.seen):
            self.sessions.dismiss(found, "it came back for more than is kept")
            found = None
        if found is not None and join.claim is not None:
            self._go_on(line, found, join.claim)
            if entrant is not None:
                self.cluster.finish_join(join.topic, entrant.id or "", joined=False)
        elif entrant is None:
            self._enter(line, join, late=True)
        else:
            self._begin(line, join, entrant)

    def _begin(self, line: Line, join: JoinRequest, entrant: JoinTicket) -> None:
        assert entrant.id is not None
        if entrant.session is not None and join.claim is not None:
            revived = self._revive(line, join, entrant)
            if revived is not None:
                self._go_on(line, revived, join.claim)
            self.cluster.finish_join(join.topic, entrant.id, joined=revived is not None)
            if revived is None:
                self._enter(line, join, late=True)
            return
        peer = line.peer = self._new_peer(line, join, entrant)
        try:
            peer.join(join.topic, self._ice_servers)
        except Rejected:
            line.end()
        self.cluster.finish_join(join.topic, entrant.id, joined=line.peer is not None)

    @property
    def _ice_servers(self) -> bytes:
        return json.dumps(self.story.now).encode()

    def _go_on(self, line: Line, peer: ResumablePeer, claim: ResumeClaim) -> None:
        way = peer.way
        if isinstance(way, Line) and way is not line:
            way.peer = None
        peer.come_back(line, claim, self._ice_servers)
        line.peer = peer

    def renew(self, line: Line) -> None:
        self.process.take(line, self._renew, line)

    def _renew(self, line: Line) -> None:
        if line.peer is not None:
            line.peer.renew(self._ice_servers)

    def lose(self, line: Line) -> None:
        """Notice that a connection was lost."""
        self.process.take(line, self._lost, line)

    def _lost(self, line: Line) -> None:
        peer = line.peer
        if line.ended:
            return
        receipts = line.abandon()
        line.end()
        if peer is not None and not self.stopping:
            self.sessions.keep(peer, None)
        elif peer is not None:
            self._leave(peer, receipts)

    def _leave(self, peer: ResumablePeer, receipts: list[Receipt]) -> None:
        return_undelivered(receipts, self.counters)
        peer.detach()
        peer.leave()

    def say_goodbye(self, line: Line) -> None:
        self.process.take(line, self._said_goodbye, line)

    def _said_goodbye(self, line: Line) -> None:
        peer = line.peer
        line.said_goodbye = True
        receipts = line.abandon()
        line.end()
        if peer is not None:
            self._leave(peer, receipts)

    def relay(self, sent: Sent) -> None:
        line = sent.sender.line  # type: ignore[attr-defined]
        self.process.take(sent.sender, self._relay_from, (sent, line))

    def _relay_from(self, relay: tuple[Sent, Line]) -> None:
        sent, line = relay
        if line.peer is None or line.lost:
            sent.lost = True
            return
        sent.nodes.add(self.cluster.node)
        message = {"type": "offer", "to": sent.target_id, "payload": sent.number, "msgId": str(sent.number)}
        line.peer.receive(json.dumps(message).encode())

    def stall(self, client: Client) -> None:
        line = client.line  # type: ignore[attr-defined]
        if line is not None:
            self.process.take(client, lambda _: line.block(), None)

    def unstall(self, client: Client) -> None:
        line = client.line  # type: ignore[attr-defined]
        if line is not None:
            self.process.take(client, lambda _: line.unblock() if not line.ended else None, None)

    def crash(self, noticed: bool) -> None:
        super().crash(noticed)
        lines, self.lines = list(self.lines), {}
        for line in lines:
            line.ended = True
            line.traveller.lose(line)

    def _stop(self, _: None) -> None:
        if self.stopping:
            return
        self.stopping = True
        self.story.ended[self.cluster.node] = self.story.now
        for line in tuple(self.lines):
            self._said_goodbye(line)
        for peer in tuple(self.sessions.away):
            self.sessions.dismiss_away(peer)
        self.sessions.rest()
        self.cluster.stop(self._stopped)


class TravelStory(Story):
    """A story of peers that come back.

    What else nobody can promise: what a client said just before its connection was lost may not have reached its node;
    what was written to a connection may be lost with it, if its client never comes back; and a relay may be written and
    answered ``dropped`` if a node dies that its sender or its target had left for another one.
    """

    def __init__(self, seed: int, log: Any = None) -> None:
        super().__init__(seed, log)
        # The nodes that a peer has left, or wanted to leave, for others.
        self.left_nodes: dict[str, set[str]] = {}
        # The relays that were written to a connection.
        self.put: set[int] = set()
        self.everybody = Process(self.timeline, "everybody")

    def make_limits(self) -> Limits:
        window = self.random.choice([WINDOW_SECONDS, WINDOW_SECONDS, 3.0, 30.0])
        return Limits(high_water_messages=self.random.choice([4, 4, 1, 16]), resume_window_seconds=window)

    def _make_node(self, name: str, skew: int) -> SimulatedNode:
        return TravelNode(self, name, self.store, self.latency, skew)

    def _make_client(self, node: Any, name: str, topic: str, metadata: Any) -> Client:
        return Traveller(node, name, topic, metadata)

    def join(self) -> None:
        nodes = self.serving()
        if nodes and sum(not client.gone for client in self.clients) <= 12:
            metadata = self.random.choice([None, {"name": "Ada"}])
            node, topic = self.random.choice(nodes), self.random.choice(self.topics)
            client: Any = self._make_client(node, f"c{len(self.clients)}", topic, metadata)
            self.clients.append(client)
            client.travel(node)

    def left_behind(self, peer: str, node: str) -> None:
        """Notice that another node asks for a peer."""
        self.left_nodes.setdefault(peer, set()).add(node)

    def wrote(self, node: SimulatedNode, frame: bytes) -> None:
        """Notice that a relay was written to a connection, which may be lost with it."""
        sent = self.relay_in(frame)
        sent.nodes.add(node.cluster.node)
        self.put.add(sent.number)

    def relay(self) -> None:
        """Relay, and sometimes do what makes that hard: renew somebody's ICE servers, or change nodes in between."""
        live: list[Any] = self.live()
        choice = self.random.random()
        if live and choice < 0.1:
            line = self.random.choice(live).line
            line.node.renew(line)
        elif live and choice < 0.25:
            self._relay_on_the_move(self.random.choice(live))
        else:
            super().relay()

    def _relay_on_the_move(self, sender: Traveller) -> None:
        """Send, resume on any node at once, and send more."""
        target = self.random.choice([client for client in self.live() if client.topic == sender.topic])
        for _ in range(self.random.choice([1, 3, 7])):
            self.send(sender, target)
        line = sender.line
        assert line is not None
        sender.welcomed = lambda: [self.send(sender, target) for _ in range(3) if sender.live]
        line.lost, sender.line = True, None
        self.timeline.after(self.random.choice([0, 0.01, 2]), line.node.lose, line)
        self._come_back(sender)

    def come_back(self, client: Traveller) -> None:
        self.timeline.after(self.random.choice([0.01, 1, 8, 25]) * self.random.random(), self._come_back, client)

    def _come_back(self, client: Traveller) -> None:
        nodes: list[Any] = self.serving()
        if client.gone or client.line is not None:
            return
        if nodes:
            client.travel(self.random.choice(nodes))
        else:
            self.come_back(client)

    def leave(self) -> None:
        """Let somebody go, or lose a connection, which its node notices sooner or later."""
        there: list[Any] = [client for client in self.clients if not client.gone]
        if not there:
            return
        client = self.random.choice(there)
        line = client.line
        if line is None or self.random.random() < 0.8:
            if line is not None:
                client.lose(line)
                seconds = self.random.choice([0, 0, 0.01, 2, 15])
                self.timeline.after(seconds, line.node.lose, line)
            return
        self.trace(client.name, "says goodbye")
        client.gone, client.line, line.lost = True, None, True
        line.node.say_goodbye(line)

    def verdict(self, sent: Sent) -> str | None:
        if sent.errors and (sent.written or sent.number in self.put):
            return self._excuse(sent)
        if sent.written or sent.errors:
            return None
        if sent.lost:
            excuse = "unheard: lost with its sender's connection"
        elif not sent.sender.live or sent.sender.id != sent.sender_id:
            excuse = "unheard: its sender's session has ended"
        elif sent.number in self.put and not (sent.target.live and sent.target.id == sent.target_id):
            excuse = "cut: written to a connection, and its target's session has ended"
        else:
            return "no end"
        self.excuses[excuse] += 1
        return None

    def _excuse(self, sent: Sent) -> str | None:
        told_at, _ = sent.errors[0]
        left = self.left_nodes.get(sent.target_id, set()) | self.left_nodes.get(sent.sender_id, set())
        if any(sent.at <= self._death(node) <= told_at for node in left | sent.nodes):
            self.excuses["both: a node died or stopped that had to do with it"] += 1
            return None
        return super()._excuse(sent) if sent.written else f"written to a connection, and answered at {told_at:.4f}"

    def _death(self, node_id: str) -> float:
        return min(self.buried.get(node_id, inf), self.ended.get(node_id, inf))

    def _die(self) -> None:
        """Leave it to others: whoever was there comes back."""

    def heard_left(self, client: Client, peer: str) -> None:
        """Notice that somebody hears of a leave; a client that asks two nodes at once may lose its session by it."""
        if peer not in self.left_nodes:
            super().heard_left(client, peer)

    def not_found(self, sent: Sent) -> None:
        """Pass it over: a sender that resumed hears of it when its target may have come meanwhile."""
