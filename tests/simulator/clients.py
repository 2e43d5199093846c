"""Clients that believe what they are told, and notice what cannot be true."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from signaling.core.interfaces import Receipt
from signaling.websocket.outbound_queue import OutboundQueue

if TYPE_CHECKING:
    from signaling.core.peer import Peer
    from tests.simulator.nodes import SimulatedNode


class Sent:
    """A relay, and all that came of it.

    Attributes:
        held_by: the id that the target's node had when it began to wait in a queue; empty where it did not.
        lost: whether it never reached its sender's node.
        nodes: the ids of the nodes that had to do with it.
        written: when it was written to its target, and the id that the target's node had then.
        errors: when its sender was told so, and the code.
    """

    __slots__ = (
        "at",
        "errors",
        "held_by",
        "lost",
        "nodes",
        "number",
        "sender",
        "sender_id",
        "target",
        "target_id",
        "written",
    )

    def __init__(self, number: int, sender: Client, target: Client, at: float) -> None:
        self.number = number
        self.sender = sender
        self.sender_id = sender.id
        self.target = target
        self.target_id = target.id
        self.at = at
        self.held_by = ""
        self.lost = False
        self.nodes: set[str] = set()
        self.written: list[tuple[float, str]] = []
        self.errors: list[tuple[float, str]] = []


class Way(OutboundQueue[Receipt]):
    """The way to one client, which notices what its queue refuses."""

    __slots__ = ("client",)

    def __init__(self, client: Client, limits: Any) -> None:
        super().__init__(client.take, _written, limits.high_water_messages, limits.high_water_bytes)
        self.client = client

    def offer(self, frame: bytes, receipt: Receipt | None = None) -> bool:
        taken = super().offer(frame, receipt)
        if taken and self.blocked and receipt is not None:
            self.client.hold(frame)
        if not taken and receipt is None:
            self.client.missed_events = True
        return taken


def _written(receipt: Receipt) -> None:
    sender, msg_id = receipt
    sender.relay_written(msg_id)


class Client:
    """One client, and its connection to a node.

    Attributes:
        id: from its welcome; empty before.
        peer: at its node; None before it joined, and after it left.
        gone: whether its connection has ended.
        known: ids and metadata of the topic's other peers, by what it was told; None before its list.
        missed_events: whether its queue refused one, so that it may believe what is not true.
    """

    def __init__(self, node: SimulatedNode, name: str, topic: str, metadata: Any) -> None:
        self.node = node
        self.name = name
        self.topic = topic
        self.metadata = metadata
        self.id = ""
        self.peer: Peer | None = None
        self.gone = False
        self.known: dict[str, Any] | None = None
        self.missed_events = False
        self.way = Way(self, node.limits)
        self._story = node.story
        self._latest: dict[str, int] = {}
        self._kinds: dict[str, Callable[[Any], None]] = {
            "welcome": self._welcome,
            "peer-list": self._list,
            "peer-joined": self._joined,
            "peer-left": self._left,
            "offer": self._relayed,
            "error": self._error,
        }

    @property
    def live(self) -> bool:
        return self.peer is not None and not self.gone

    @property
    def lenient(self) -> bool:
        """Whether it may be told what it knows, or what it cannot know."""
        return self.missed_events

    @property
    def waits(self) -> bool:
        """Whether it has not joined yet."""
        return not self.gone and self.peer is None

    @property
    def metadata_text(self) -> bytes | None:
        return None if self.metadata is None else json.dumps(self.metadata).encode()

    def hold(self, frame: bytes) -> None:
        """Notice a relay that has to wait."""
        self._story.relay_in(frame).held_by = self.node.cluster.node

    def take(self, data: bytes) -> None:
        """Take what its node writes to it: one frame, or several events together."""
        for frame in frames(data):
            self.receive(frame)

    def receive(self, frame: bytes) -> None:
        """Take one frame."""
        text = payload(frame)
        if self._story.tracing:
            self._story.trace(self.name, "<-", text.decode())
        message = json.loads(text)
        self._kinds[message["type"]](message)

    def breach(self, what: str) -> None:
        self._story.breach(f"{self.name} ({self.id}): {what}")

    def _welcome(self, message: Any) -> None:
        if self.id:
            self.breach("is welcomed twice")
        self.id = message["selfId"]
        self._story.named(self)

    def _list(self, message: Any) -> None:
        ids = [entry["id"] for entry in message["peers"]]
        if self.known is not None or not self.id:
            self.breach("a list at the wrong time")
        if self.id in ids or len(set(ids)) < len(ids):
            self.breach(f"a list that cannot be: {ids}")
        self.known = {entry["id"]: entry.get("metadata") for entry in message["peers"]}

    def _joined(self, message: Any) -> None:
        peer = message["peerId"]
        if self.known is None:
            self.breach("hears of a newcomer before its list")
            return
        if peer == self.id or (peer in self.known and not self.lenient):
            self.breach(f"is told again that {peer} joined")
        self.known[peer] = message.get("metadata")

    def _left(self, message: Any) -> None:
        peer = message["peerId"]
        if self.known is None:
            self.breach("hears of somebody who left before its list")
            return
        if peer not in self.known and not self.lenient:
            self.breach(f"is told that {peer} left, whom it does not know")
        self.known.pop(peer, None)
        self._story.heard_left(self, peer)

    def _relayed(self, message: Any) -> None:
        sent = self._story.sent[int(message["payload"])]
        now = self._story.now
        if self.known is None:
            self.breach("is sent a relay before its list")
        elif message["from"] not in self.known and message["from"] != self.id and not self.lenient:
            self._story.early += 1
        if sent.target_id != self.id or message["from"] != sent.sender_id or sent.sender.topic != self.topic:
            self.breach(f"is sent what is for another: {message}")
        if sent.written:
            self.breach(f"is sent relay {sent.number} again")
        if sent.number <= self._latest.get(sent.sender_id, -1):
            self.breach(f"is sent relay {sent.number} out of order")
        self._latest[sent.sender_id] = sent.number
        sent.written.append((now, self.node.cluster.node))

    def _error(self, message: Any) -> None:
        if "msgId" not in message:
            return
        sent = self._story.sent[int(message["msgId"])]
        if sent.sender_id != self.id:
            self.breach(f"is told of another's relay: {message}")
        if sent.errors:
            self.breach(f"is told twice that relay {sent.number} failed")
        sent.errors.append((self._story.now, message["code"]))
        if message["code"] == "target_not_found":
            self._story.not_found(sent)


def payload(frame: bytes) -> bytes:
    """Return the text in a server's frame."""
    return frame[2:] if frame[1] < 126 else frame[4:] if frame[1] == 126 else frame[10:]


def frames(data: bytes) -> list[bytes]:
    """Split what a server wrote into its frames."""
    found, at = [], 0
    while at < len(data):
        head, size = 2, data[at + 1]
        if size >= 126:
            head = 4 if size == 126 else 10
            size = int.from_bytes(data[at + 2 : at + head])
        found.append(data[at : at + head + size])
        at += head + size
    return found
