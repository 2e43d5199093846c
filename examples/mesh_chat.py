"""All peers in a topic greet each other over data channels (aiortc): python examples/mesh_chat.py ws://... NAME."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

from signaling.client.mesh import Mesh, MeshPeer, join


async def main(url: str, name: str) -> None:
    """Stay in the topic until the program ends."""

    def greet(peer: MeshPeer) -> None:
        peer.send(f"hello from {name}")

    def show(peer: MeshPeer, data: str | bytes) -> None:
        print(data, flush=True)

    async with join(url, metadata={"name": name}) as signaling:
        await Mesh(signaling, on_open=greet, on_data=show).run()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
