"""Stories of peers that lose their connections and come back, to whatever node."""

from __future__ import annotations

import json
from typing import Any

from signaling.admission import Admission
from signaling.errors import Rejected
from signaling.limits import Limits
from signaling.local import LocalPeers
from signaling.outbound import OutboundQueue
from signaling.peer import Peer, return_undelivered
from signaling.ports import Entrant, Receipt
from signaling.sessions import ResumablePeer, Sessions, proof
from signaling.upgrade import Claim, Join
from tests.simulator.clients import Client, Sent
from tests.simulator.network import Link, Process
from tests.simulator.nodes import SimulatedNode
from tests.simulator.story import Story

WINDOW_SECONDS = 20.0
_END: Any = object()


class Line(OutboundQueue[Receipt]):
    """One connection of a traveller: what is written arrives a little later, unless the connection is lost before."""

    def __init__(self, node: TravelNode, traveller: Traveller) -> None:
        limits = node.limits
        super().__init__(
            lambda frame: self.link.send((None, frame)),
            lambda receipt: receipt[0].written(),
            limits.high_water_messages,
            limits.high_water_bytes,
        )
        self.node = node
        self.traveller = traveller
        self.link = Link(node.story.everybody, self._arrived, node.story.latency)
        self.place: Any = None
        self.said_goodbye = False
        self.peer: ResumablePeer | None = None
        # At the node's end, and at the other.
        self.ended = self.lost = False

    def offer(self, frame: bytes, receipt: Receipt | None = None) -> bool:
        taken = super().offer(frame, receipt)
        if taken and self.blocked and receipt is not None:
            self.traveller.hold(frame)
        if not taken and receipt is None:
            self.traveller.missed_events = True
        return taken

    def ask(self, mark: bytes) -> None:
        self.link.send((mark, b""))

    def give_up(self) -> list[Receipt]:
        receipts = self.abandon()
        self.end()
        return receipts

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
        claim = Claim(self.token, self.seen) if self.token else None
        node.arrive(self.line, Join(self.topic, self.metadata_text, claim))

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


class TravelNode(SimulatedNode):
    """A node whose peers may come back."""

    story: TravelStory

    def _local_peers(self) -> LocalPeers:
        self.lines: dict[Line, None] = {}
        admission = Admission(self.limits, 10_000, self.process.seconds)
        self.sessions = Sessions(self.limits, self.process, self.topics, admission, lambda peer, reason: None)
        return LocalPeers(self.topics, self.announcer, self.counters, self.sessions.lend, self._moved)

    def _moved(self, peer: Peer) -> None:
        if isinstance(peer, ResumablePeer) and peer.topic is not None:
            # Its client may hear of it, or go on to yet another node before.
            self.story.went_on(peer.id)
            self.sessions.hand_over(peer)

    def arrive(self, line: Line, join: Join) -> None:
        self.lines[line] = None
        self.process.take(line, self._ask, (line, join))

    def _ask(self, arrival: tuple[Line, Join]) -> None:
        line, join = arrival
        if self.stopping:
            line.end()
        elif self.sessions.find(join) is not None:
            self._open(line, join, None)
        else:
            self._enter(line, join)

    def _enter(self, line: Line, join: Join, *, late: bool = False) -> None:
        def entered(entrant: Entrant) -> None:
            if line.ended:
                self._turn_back(line, join, entrant)
            elif late:
                self._begin(line, join, entrant)
            else:
                self._open(line, join, entrant)

        self.cluster.enter(join.topic, join.metadata, entered, None if late else proof(join))

    def _turn_back(self, line: Line, join: Join, entrant: Entrant) -> None:
        peer = self._revive(line, join, entrant) if not self.stopping else None
        if peer is not None:
            self.sessions.keep(peer, None)
        self.cluster.settle(join.topic, entrant.id or "", joined=peer is not None)

    def _revive(self, line: Line, join: Join, entrant: Entrant) -> ResumablePeer | None:
        if entrant.session is None or join.claim is None:
            return None
        peer = self._new_peer(line, join, entrant)
        return peer if peer.revive(entrant.session, join.topic, join.claim) else None

    def _new_peer(self, line: Line, join: Join, entrant: Entrant) -> ResumablePeer:
        assert entrant.id is not None
        peer = ResumablePeer(entrant.id, join, self.topics, self.announcer, self.cluster, self.counters, self.limits)
        peer.go(line)
        return peer

    def _open(self, line: Line, join: Join, entrant: Entrant | None) -> None:
        found = self.sessions.find(join)
        if join.claim is not None and found is not None and not found.reaches(join.claim.seen):
            self.sessions.dismiss(found, "it came back for more than is kept")
            found = None
        if found is not None and join.claim is not None:
            self.sessions.back(found)
            self._go_on(line, found, join.claim)
            if entrant is not None:
                self.cluster.settle(join.topic, entrant.id or "", joined=False)
        elif entrant is None:
            self._enter(line, join, late=True)
        else:
            self._begin(line, join, entrant)

    def _begin(self, line: Line, join: Join, entrant: Entrant) -> None:
        assert entrant.id is not None
        if entrant.session is not None and join.claim is not None:
            revived = self._revive(line, join, entrant)
            if revived is not None:
                self._go_on(line, revived, join.claim)
            self.cluster.settle(join.topic, entrant.id, joined=revived is not None)
            if revived is None:
                self._enter(line, join, late=True)
            return
        peer = line.peer = self._new_peer(line, join, entrant)
        try:
            peer.join(join.topic)
        except Rejected:
            line.end()
        self.cluster.settle(join.topic, entrant.id, joined=line.peer is not None)

    @staticmethod
    def _go_on(line: Line, peer: ResumablePeer, claim: Claim) -> None:
        way = peer.way
        if isinstance(way, Line) and way is not line:
            way.peer = None
        peer.come_back(line, claim, None)
        line.peer = peer

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
            peer.unwritten += receipts
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
        for line in tuple(self.lines):
            self._said_goodbye(line)
        for peer in tuple(self.sessions.away):
            self.sessions.dismiss_away(peer)
        self.sessions.rest()
        self.cluster.stop(self._stopped)


class TravelStory(Story):
    """A story of peers that come back.

    What else nobody can promise: who goes on at another node hears nothing more of what it had sent before, and what is
    on its way to a peer is lost with that peer.
    """

    def __init__(self, seed: int, log: Any = None) -> None:
        super().__init__(seed, log)
        # When a peer went on at another node.
        self.moved_at: dict[str, list[float]] = {}
        self.everybody = Process(self.timeline, "everybody")

    def _make_limits(self) -> Limits:
        return Limits(high_water_messages=4, resume_window_seconds=WINDOW_SECONDS)

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

    def went_on(self, peer: str) -> None:
        """Notice that a peer is at another node now."""
        self.moved_at.setdefault(peer, []).append(self.now)

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
        sender: Any = sent.sender
        if sent.written and sent.errors:
            return self._excuse(sent)
        if sent.written or sent.errors or sent.lost:
            return None
        if not sender.live or sender.id != sent.sender_id:
            return None
        if not sent.target.live or sent.target.id != sent.target_id:
            # Written to a connection that was lost, and never asked for again.
            self.counters_lost(sent)
            return None
        if any(moved_at >= sent.at for moved_at in self.moved_at.get(sent.sender_id, ())):
            self.counts["unanswered: its sender went on elsewhere"] += 1
            return None
        return "no end"

    def _excuse(self, sent: Sent) -> str | None:
        (_, node_id), (told_at, _) = sent.written[0], sent.errors[0]
        died = {buried for buried, at in self.buried.items() if sent.at <= at <= told_at}
        if died - {node_id}:
            # Its target went on elsewhere with it, and the node that it had come to died before it could say so.
            self.counts["both: the node that its target left died"] += 1
            return None
        return super()._excuse(sent)

    def counters_lost(self, sent: Sent) -> None:
        self.counts["lost with its target"] += 1

    def _die(self) -> None:
        """Leave it to others: whoever was there comes back."""

    def heard_left(self, client: Client, peer: str) -> None: ...

    def not_found(self, sent: Sent) -> None: ...
