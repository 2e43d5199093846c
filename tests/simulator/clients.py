"""Simulated clients, which check each message that they receive."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from signaling.core.join_request import JoinRequest
from tests.simulator.connections import SimulatedConnection
from tests.simulator.updates import OwnMetadata

if TYPE_CHECKING:
    from tests.simulator.nodes import SimulatedNode


class Sent:
    """A relay and its outcome.

    Attributes:
        held_by: the id that the target's node had when the relay began to wait in a queue; empty if it did not wait.
        lost: whether it never reached its sender's node.
        nodes: the ids of the nodes that handled it.
        written: when it was written to its target, and the id that the target's node had then.
        errors: when its sender received an error, and the code.
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


class Client:
    """One client, and its connection to a node.

    Attributes:
        id: from its welcome; empty before.
        connection: its latest; None if it has none.
        gone: whether it has ended for good.
        known: ids and metadata of the topic's other peers, by the messages received; None before its list.
        missed_events: whether its queue refused one, so that ``known`` may be wrong.
    """

    connection: SimulatedConnection | None = None

    def __init__(self, node: SimulatedNode, name: str, topic: str, metadata: Any) -> None:
        self.node = node
        self.name = name
        self.topic = topic
        self.own = OwnMetadata(metadata)
        self.id = ""
        self.gone = False
        self.known: dict[str, Any] | None = None
        self.missed_events = False
        self._scenario = node.scenario
        self.address = self._scenario.joins.address()
        self._latest: dict[str, int] = {}
        self._kinds: dict[str, Callable[[Any], None]] = {
            "welcome": self._welcome,
            "peer-list": self._list,
            "peer-joined": self._joined,
            "peer-updated": self._updated,
            "peer-left": self._left,
            "offer": self._relayed,
            "error": self._error,
        }

    def connect(self) -> None:
        """Connect to its node."""
        self.connection = SimulatedConnection(self.node, self)
        self.node.connect(self.connection, JoinRequest(self.topic, self.metadata_text))

    @property
    def live(self) -> bool:
        """Whether it has joined and not left."""
        return not self.gone and self.connection is not None and self.connection.peer is not None

    @property
    def lenient(self) -> bool:
        """Whether it may receive events that it knows already, or of peers that it does not know."""
        return self.missed_events

    @property
    def waits(self) -> bool:
        """Whether it has not joined yet, and does not know why."""
        return not self.gone and not self.live

    @property
    def metadata_text(self) -> bytes | None:
        """The metadata that it joins with."""
        return None if self.own.value is None else json.dumps(self.own.value).encode()

    @property
    def stored_metadata(self) -> bytes | None:
        """The metadata that its node has."""
        assert self.connection is not None
        assert self.connection.peer is not None
        return self.connection.peer.metadata

    @property
    def metadata(self) -> Any:
        """The metadata in force."""
        text = self.stored_metadata
        return None if text is None else json.loads(text)

    def waits_at(self, frame: bytes) -> None:
        """Notice a relay that has to wait for this client's connection."""
        self._scenario.relay_in(frame).held_by = self.node.backplane.node

    def take(self, data: bytes) -> None:
        """Take what its node writes to it: one frame, or several events together."""
        for frame in frames(data):
            self.receive(frame)

    def receive(self, frame: bytes) -> None:
        """Take one frame."""
        text = payload(frame)
        if self._scenario.tracing:
            self._scenario.trace(self.name, "<-", text.decode())
        message = json.loads(text)
        self._kinds[message["type"]](message)

    def violation(self, what: str) -> None:
        self._scenario.violation(f"{self.name} ({self.id}): {what}")

    def _welcome(self, message: Any) -> None:
        if self.id:
            self.violation("is welcomed twice")
        self.id = message["selfId"]
        self._scenario.named(self)

    def _list(self, message: Any) -> None:
        ids = [entry["id"] for entry in message["peers"]]
        if self.known is not None or not self.id:
            self.violation("a list at the wrong time")
        if self.id in ids or len(set(ids)) < len(ids):
            self.violation(f"a list that cannot be: {ids}")
        self.known = {entry["id"]: entry.get("metadata") for entry in message["peers"]}

    def _joined(self, message: Any) -> None:
        peer = message["peerId"]
        if self.known is None:
            self.violation("receives peer-joined before its list")
            return
        if peer == self.id or (peer in self.known and not self.lenient):
            self.violation(f"receives peer-joined of {peer} again")
        self.known[peer] = message.get("metadata")

    def _updated(self, message: Any) -> None:
        peer, metadata = message["peerId"], message["metadata"]
        if self.known is None:
            self.violation("receives peer-updated before its list")
        elif peer == self.id:
            wrong = self.own.received(metadata)
            if wrong is not None:
                self.violation(wrong)
        elif peer in self.known:
            self.known[peer] = metadata
        elif not self.lenient:
            self.violation(f"receives peer-updated of {peer}, which it does not know")

    def _left(self, message: Any) -> None:
        peer = message["peerId"]
        if self.known is None:
            self.violation("receives peer-left before its list")
            return
        if peer not in self.known and not self.lenient:
            self.violation(f"receives peer-left of {peer}, which it does not know")
        self.known.pop(peer, None)
        self._scenario.peer_left(self, peer)

    def _relayed(self, message: Any) -> None:
        sent = self._scenario.sent[int(message["payload"])]
        now = self._scenario.now
        if self.known is None:
            self.violation("is sent a relay before its list")
        elif message["from"] not in self.known and message["from"] != self.id and not self.lenient:
            self._scenario.early += 1
        if sent.target_id != self.id or message["from"] != sent.sender_id or sent.sender.topic != self.topic:
            self.violation(f"is sent what is for another: {message}")
        if sent.written:
            self.violation(f"is sent relay {sent.number} again")
        if sent.number <= self._latest.get(sent.sender_id, -1):
            self.violation(f"is sent relay {sent.number} out of order")
        self._latest[sent.sender_id] = sent.number
        sent.written.append((now, self.node.backplane.node))

    def _error(self, message: Any) -> None:
        if "msgId" not in message:
            return
        if message["msgId"].startswith("update "):
            wrong = self.own.failed(int(message["msgId"].removeprefix("update ")), message["code"])
            if wrong is not None:
                self.violation(wrong)
            return
        sent = self._scenario.sent[int(message["msgId"])]
        if sent.sender_id != self.id:
            self.violation(f"receives the error of another's relay: {message}")
        if sent.errors:
            self.violation(f"receives two errors of relay {sent.number}")
        sent.errors.append((self._scenario.now, message["code"]))
        if message["code"] == "target_not_found":
            self._scenario.not_found(sent)


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
