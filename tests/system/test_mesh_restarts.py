"""Meshes through restarts of their server: connected again each time, as data that flows anew shows.

``MESH_RESTARTS=10`` restarts it ten times for each test.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from aiortc import RTCPeerConnection

from signaling.client import Backoff, join
from signaling.client.mesh import Mesh
from tests.harness.server import Server, running
from tests.system.test_webrtc import chromium, wait_until

SECONDS = 60
RESTARTS = int(os.environ.get("MESH_RESTARTS", "3"))

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.timeout(60 + 40 * RESTARTS),
]

PAGE = """
const [url] = arguments;
window.received = [];
import("/signaling.js").then(({ join, Mesh }) => {
  window.signaling = join(url, { backoff: { first: 50, most: 500 } });
  window.mesh = new Mesh(signaling);
  mesh.addEventListener("peer-added", ({ detail: { channel } }) => {
    channel.addEventListener("open", () => channel.send(`hello from ${signaling.selfId}`));
  });
  mesh.addEventListener("data", ({ detail: { data } }) => received.push(data));
});
"""


class Restarting:
    """A server that is killed and started anew on its port."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._server: Server | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}/ws/room"

    def start(self) -> None:
        """Start, after killing the one before."""
        if self._server is not None:
            self._server.process.kill()
            self._server.process.wait(SECONDS)
        options = [f"--listen=tcp:{self.port}:interface=127.0.0.1", "--serve-client"]
        self._server = self._stack.enter_context(running(options))


class Member:
    """A Python mesh that says hello on the channel that browsers agree on beforehand."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.received: asyncio.Queue[str] = asyncio.Queue()

    async def run(self) -> None:
        async with join(self._url, backoff=Backoff(0.05, 0.5)) as signaling:

            def prepare(connection: RTCPeerConnection, peer_id: str, offers: bool) -> None:
                channel = connection.createDataChannel("mesh", negotiated=True, id=0)
                channel.on("open", lambda: channel.send(f"hello from {signaling.self_id}"))
                channel.on("message", self.received.put_nowait)

            await Mesh(signaling, prepare).run()


@asynccontextmanager
async def members(url: str, number: int) -> AsyncIterator[list[Member]]:
    """Let members run."""
    made = [Member(url) for _ in range(number)]
    tasks = [asyncio.create_task(member.run()) for member in made]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.mark.parametrize("number", [2, 3])
def test_python_meshes_are_connected_again_after_each_restart(number: int) -> None:
    async def scenario(server: Restarting) -> None:
        async with members(server.url, number) as made:
            for _ in range(1 + RESTARTS):
                await asyncio.to_thread(server.start)
                async with asyncio.timeout(SECONDS):
                    for member in made:
                        received = {await member.received.get() for _ in range(number - 1)}
                        assert len(received) == number - 1
            assert all(member.received.empty() for member in made)

    with ExitStack() as stack:
        asyncio.run(scenario(Restarting(stack)))


def test_a_python_and_a_browser_mesh_are_connected_again_after_each_restart(tmp_path: Path) -> None:
    async def scenario(server: Restarting, driver) -> None:
        async with members(server.url, 1) as [member]:
            for count in range(1, 2 + RESTARTS):
                async with asyncio.timeout(SECONDS):
                    await member.received.get()
                await asyncio.to_thread(wait_until, driver, f"received.length >= {count}")
                if count <= RESTARTS:
                    await asyncio.to_thread(server.start)

    with ExitStack() as stack:
        server = Restarting(stack)
        server.start()
        driver = stack.enter_context(chromium(tmp_path))
        driver.get(f"http://127.0.0.1:{server.port}/healthz")
        driver.execute_script(PAGE, server.url)
        wait_until(driver, "window.signaling?.state === 'open'")
        asyncio.run(scenario(server, driver))
