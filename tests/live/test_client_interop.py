"""The mesh of the browser's client and the mesh of aiortc's connect to each other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from signaling.client import join
from signaling.client.mesh import Mesh
from tests.live.test_webrtc import chromium, wait_until
from tests.live.twistd import Server, running

SECONDS = 40

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")

PAGE = """
const [url] = arguments;
window.heard = [];
import("/signaling.js").then(({join, Mesh}) => {
  const signaling = join(url);
  window.signaling = signaling;
  window.mesh = new Mesh(signaling);
  mesh.addEventListener("data", ({detail: {data}}) => { heard.push(data); mesh.broadcast("hello from the page"); });
});
"""


async def meet(server: Server, driver, *, page_first: bool) -> str:
    """Let a page and an aiortc program meet; returns what the program hears."""
    heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def prepare(connection, peer_id: str, offers: bool) -> None:
        # The browser's mesh agrees on its channel beforehand.
        channel = connection.createDataChannel("mesh", negotiated=True, id=0)
        channel.on("open", lambda: channel.send("hello from aiortc"))
        channel.on("message", lambda text: heard.done() or heard.set_result(text))

    async def open_page() -> None:
        await asyncio.to_thread(driver.execute_script, PAGE, server.url + "room")
        await asyncio.to_thread(wait_until, driver, "window.signaling?.state === 'open'")

    async with asyncio.timeout(SECONDS):
        if page_first:
            await open_page()
        async with join(server.url + "room") as signaling:
            task = asyncio.create_task(Mesh(signaling, prepare).run())
            if not page_first:
                await open_page()
            text = await heard
            await asyncio.to_thread(wait_until, driver, "heard.includes('hello from aiortc')")
            await signaling.leave()
            await task
            await asyncio.to_thread(wait_until, driver, "mesh.peers.size === 0")
    return text


@pytest.mark.parametrize("page_first", [True, False])
def test_a_page_and_an_aiortc_program_meet_whoever_joins_first(tmp_path: Path, page_first: bool) -> None:
    with running(["--port=0", "--serve-client"]) as server, chromium(tmp_path) as driver:
        driver.get(f"http://127.0.0.1:{server.port}/healthz")
        assert asyncio.run(meet(server, driver, page_first=page_first)) == "hello from the page"
