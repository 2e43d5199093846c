"""A relay in the simplest way on ``picows``, with msgspec for JSON; the only argument is the port."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections import defaultdict

import msgspec
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

topics: defaultdict[str, dict[str, RelayListener]] = defaultdict(dict)
encode = msgspec.json.encode


class Message(msgspec.Struct):
    """What a client sends."""

    type: str
    to: str
    payload: msgspec.Raw


decode = msgspec.json.Decoder(Message).decode


class RelayListener(WSListener):
    """One peer."""

    def __init__(self, request: WSUpgradeRequest) -> None:
        super().__init__()
        self.topic = request.path

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Welcome it, and inform the others."""
        self.transport = transport
        self.id = uuid.uuid4().hex[:26]
        members = topics[self.topic]
        self.send(encode({"type": "welcome", "selfId": self.id}))
        self.send(encode({"type": "peer-list", "peers": [{"id": other} for other in members]}))
        self.inform({"type": "peer-joined", "peerId": self.id})
        members[self.id] = self

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Relay a message to its target."""
        if frame.msg_type is WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
            return
        message = decode(frame.get_payload_as_memoryview())
        target = topics[self.topic].get(message.to)
        if target is None:
            self.send(encode({"type": "error", "code": "target_not_found"}))
        else:
            target.send(encode({"type": message.type, "from": self.id, "payload": message.payload}))

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Inform the others, and forget an empty topic."""
        members = topics[self.topic]
        del members[self.id]
        self.inform({"type": "peer-left", "peerId": self.id})
        if not members:
            del topics[self.topic]

    def inform(self, message: dict[str, str]) -> None:
        """Send one message to all of the topic."""
        data = encode(message)
        for member in topics[self.topic].values():
            member.send(data)

    def send(self, data: bytes) -> None:
        """Send one message."""
        self.transport.send(WSMsgType.TEXT, data)


async def main() -> None:
    """Serve until killed."""
    server = await ws_create_server(RelayListener, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
