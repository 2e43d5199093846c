"""Clients that resume, at one node or at several."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.integration.harness import Harness, Peer


class Resumable:
    """What a client needs in order to resume: its id, its latest token, and how many messages it has received."""

    def __init__(self) -> None:
        self.id = self.token = ""
        self.seen = 0

    def count(self, messages: Iterable[Any]) -> None:
        """Count messages that were received."""
        for message in messages:
            self.seen += 1
            if message["type"] == "welcome":
                self.seen = self.seen if message.get("resumed") else 1
                self.id, self.token = message["selfId"], message["resume"]["token"]


class ResumingClient(Resumable):
    """A client that resumes."""

    def __init__(self, harness: Harness, topic: str = "room", query: str = "") -> None:
        super().__init__()
        self._harness = harness
        self._topic = topic
        self.peer = harness.peer(f"/ws/{topic}{query}")
        self.welcome, self.peer_list = self.heard()

    def heard(self) -> list[Any]:
        """Return the messages received since the last time."""
        messages = self.peer.heard()
        self.count(messages)
        return messages

    def lose_connection(self) -> None:
        """Lose the connection without a close frame."""
        self.heard()
        self.peer.reset()

    def resume(self, topic: str | None = None, token: str | None = None, seen: int | None = None) -> list[Any]:
        """Connect again; returns what comes at once."""
        seen = self.seen if seen is None else seen
        self.peer = self._harness.peer(f"/ws/{topic or self._topic}?resume={token or self.token}&seen={seen}")
        return self.heard()

    def offer(self, target: ResumingClient | Peer | str, msg_id: str, payload: Any = None) -> None:
        """Send an offer."""
        self.peer.offer(target if isinstance(target, str) else target.id, msg_id, payload)


class Client(Resumable):
    """A client that resumes on the node that a test names."""

    def __init__(self, harness: Harness, node: int, topic: str = "room") -> None:
        super().__init__()
        self._harness = harness
        self._topic = topic
        self.is_welcome = False
        self._log: list[Any] = []
        self.connection = self._connect(node, "")
        self.read()

    def _connect(self, node: int, query: str) -> Peer:
        connection = self._harness.knock(f"/ws/{self._topic}{query}", node=node)
        self._harness.run()
        return connection

    def read(self) -> list[Any]:
        """Return the messages received since the last time."""
        messages = self.connection.heard()
        self._log += messages
        self.count(messages)
        self.is_welcome = self.is_welcome or any(message["type"] == "welcome" for message in messages)
        return messages

    def lose(self) -> None:
        """Lose the connection."""
        self.read()
        self.is_welcome = False
        self.connection.reset()

    def resume(self, node: int) -> list[Any]:
        """Connect to a node; returns what comes at once."""
        self.connection = self._connect(node, f"?resume={self.token}&seen={self.seen}")
        return self.read()

    def move(self, node: int) -> None:
        """Resume on another node, which has to work."""
        self.lose()
        assert self.resume(node)[0].get("resumed")

    def offer(self, target: Client, *numbers: int) -> None:
        """Send numbered offers in one segment."""
        self.connection.say_many([{"type": "offer", "to": target.id, "msgId": str(number)} for number in numbers])

    def offers(self, *, whole: bool = False) -> list[int]:
        """Return the numbers of the offers received since the last time, or ever."""
        messages = self.read()
        return [int(each["msgId"]) for each in (self._log if whole else messages) if each["type"] == "offer"]

    def errors(self, *, whole: bool = False) -> list[tuple[str, int]]:
        """Return the errors received since the last time, or ever."""
        messages = self.read()
        return [
            (each["code"], int(each["msgId"])) for each in (self._log if whole else messages) if each["type"] == "error"
        ]
