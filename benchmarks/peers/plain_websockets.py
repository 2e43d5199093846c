"""A relay in the simplest way on the ``websockets`` package; the only argument is the port."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections import defaultdict

from websockets.asyncio.server import ServerConnection, broadcast, serve

topics: defaultdict[str, dict[str, ServerConnection]] = defaultdict(dict)


async def handle(connection: ServerConnection) -> None:
    """Serve one peer from its welcome to its end."""
    assert connection.request is not None
    topic = connection.request.path
    peer_id = uuid.uuid4().hex
    await connection.send(json.dumps({"type": "welcome", "selfId": peer_id}))
    members = topics[topic]
    others = [{"id": other} for other in members]
    broadcast(members.values(), json.dumps({"type": "peer-joined", "peerId": peer_id}))
    members[peer_id] = connection
    try:
        await connection.send(json.dumps({"type": "peer-list", "peers": others}))
        await relay(connection, peer_id, members)
    finally:
        leave(topic, peer_id)


async def relay(connection: ServerConnection, peer_id: str, members: dict[str, ServerConnection]) -> None:
    """Hand a peer's messages to their targets until it leaves."""
    async for text in connection:
        message = json.loads(text)
        target = members.get(message["to"])
        if target is None:
            await connection.send(json.dumps({"type": "error", "code": "target_not_found"}))
        else:
            relayed = {"type": message["type"], "from": peer_id, "payload": message["payload"]}
            await target.send(json.dumps(relayed))


def leave(topic: str, peer_id: str) -> None:
    """Tell the others, and forget an empty topic."""
    members = topics[topic]
    del members[peer_id]
    broadcast(members.values(), json.dumps({"type": "peer-left", "peerId": peer_id}))
    if not members:
        del topics[topic]


async def main() -> None:
    """Serve until killed."""
    async with serve(handle, "127.0.0.1", int(sys.argv[1])) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
