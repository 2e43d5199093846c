"""All peers in a topic greet each other over data channels (aiortc): python examples/mesh_chat.py ws://... NAME."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from signaling.client import join
from signaling.client.mesh import Mesh


async def main(url: str, name: str) -> None:
    """Stay in the topic until the program ends."""

    def prepare(connection: Any, peer_id: str, offers: bool) -> None:
        # One of two peers offers and makes the channel; the other one receives it.
        if offers:
            use(connection.createDataChannel("chat"))
        else:
            connection.on("datachannel", use)

    def use(channel: Any) -> None:
        channel.on("message", lambda text: print(text, flush=True))
        if channel.readyState == "open":
            channel.send(f"hello from {name}")
        else:
            channel.on("open", lambda: channel.send(f"hello from {name}"))

    async with join(url, metadata={"name": name}) as signaling:
        await Mesh(signaling, prepare).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
