"""A relay in the simplest way on Autobahn and Twisted; the only argument is the port."""

from __future__ import annotations

import json
import sys
import uuid
from collections import defaultdict
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionRequest
from twisted.internet import reactor


class RelayProtocol(WebSocketServerProtocol):
    """One peer."""

    def onConnect(self, request: ConnectionRequest) -> None:
        """Remember where it joins."""
        self.topic = request.path

    def onOpen(self) -> None:
        """Welcome it, and tell the others."""
        self.id = uuid.uuid4().hex
        members = self.factory.topics[self.topic]
        self.send({"type": "welcome", "selfId": self.id})
        self.send({"type": "peer-list", "peers": [{"id": other} for other in members]})
        for member in members.values():
            member.send({"type": "peer-joined", "peerId": self.id})
        members[self.id] = self

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Hand a message to its target."""
        message = json.loads(payload)
        target = self.factory.topics[self.topic].get(message["to"])
        if target is None:
            self.send({"type": "error", "code": "target_not_found"})
        else:
            target.send({"type": message["type"], "from": self.id, "payload": message["payload"]})

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """Tell the others, and forget an empty topic."""
        members = self.factory.topics[self.topic]
        members.pop(self.id, None)
        for member in members.values():
            member.send({"type": "peer-left", "peerId": self.id})
        if not members:
            del self.factory.topics[self.topic]

    def send(self, message: dict[str, Any]) -> None:
        """Send one message."""
        self.sendMessage(json.dumps(message).encode())


class RelayFactory(WebSocketServerFactory):
    """The topics."""

    protocol = RelayProtocol

    def __init__(self) -> None:
        super().__init__()
        self.topics: defaultdict[str, dict[str, RelayProtocol]] = defaultdict(dict)


if __name__ == "__main__":
    reactor.listenTCP(int(sys.argv[1]), RelayFactory(), interface="127.0.0.1")
    reactor.run()
