"""The browser's client and those of aiortc connect to each other.

``OFFERERS=10`` lets ten programs one after the other offer to a page that offers as well.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
from aiortc import RTCIceCandidate, RTCPeerConnection, RTCSessionDescription
from selenium import webdriver

from signaling.client import join
from signaling.client.aiortc import BYE, TopicSignaling
from signaling.client.mesh import Mesh, MeshPeer
from tests.harness.server import Server, running
from tests.system.browser import wait_until

SECONDS = 120

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")

PAGE = """
const [url] = arguments;
window.received = [];
import("/signaling.js").then(({join, Mesh}) => {
  const signaling = join(url);
  window.signaling = signaling;
  window.mesh = new Mesh(signaling);
  mesh.addEventListener("data", ({detail: {data}}) => { received.push(data); mesh.broadcast("hello from the page"); });
});
"""


async def meet(url: str, driver, *, page_first: bool) -> str:
    """Let a page and an aiortc program meet; returns what the program receives."""
    received: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def greet(peer: MeshPeer) -> None:
        peer.send("hello from aiortc")

    def hear(peer: MeshPeer, data: str | bytes) -> None:
        if not received.done():
            received.set_result(str(data))

    async def open_page() -> None:
        await asyncio.to_thread(driver.execute_script, PAGE, url)
        await asyncio.to_thread(wait_until, driver, "window.signaling?.state === 'open'")

    async with asyncio.timeout(SECONDS):
        if page_first:
            await open_page()
        async with join(url) as signaling:
            task = asyncio.create_task(Mesh(signaling, on_open=greet, on_data=hear).run())
            if not page_first:
                await open_page()
            text = await received
            await asyncio.to_thread(wait_until, driver, "received.includes('hello from aiortc')")
            await signaling.leave()
            await task
            await asyncio.to_thread(wait_until, driver, "mesh.peers.size === 0")
    return text


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(["--port=0", "--serve-client"]) as started:
        yield started


@pytest.fixture
def driver(browser: webdriver.Chrome, server: Server) -> webdriver.Chrome:
    """A browser with a new page, which has left every topic."""
    browser.get(f"http://127.0.0.1:{server.port}/healthz")
    return browser


@pytest.mark.parametrize("page_first", [True, False])
def test_a_page_and_an_aiortc_program_meet_whoever_joins_first(
    server: Server, driver: webdriver.Chrome, page_first: bool
) -> None:
    url = f"{server.url}page-{'first' if page_first else 'last'}"
    assert asyncio.run(meet(url, driver, page_first=page_first)) == "hello from the page"


OFFERERS = int(os.environ.get("OFFERERS", "3"))


async def call_with_a_page(url: str, driver) -> str:
    """Let an aiortc program that offers wait for a page with a mesh; returns what it receives on the data channel."""
    received: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    connection = RTCPeerConnection()
    channel = connection.createDataChannel("mesh", negotiated=True, id=0)
    channel.on("open", lambda: channel.send("hello from aiortc"))
    channel.on("message", lambda text: received.done() or received.set_result(text))
    signaling = TopicSignaling(url)

    async def offer() -> None:
        await connection.setLocalDescription(await connection.createOffer())
        await signaling.send(connection.localDescription)
        await consume(connection, signaling)

    async with asyncio.timeout(SECONDS):
        await signaling.connect()
        offering = asyncio.create_task(offer())
        await asyncio.to_thread(driver.execute_script, PAGE, url)
        await asyncio.wait({offering, received}, return_when=asyncio.FIRST_COMPLETED)
        if offering.done():
            offering.result()
        text = await received
        await asyncio.to_thread(driver.execute_script, "signaling.leave()")
        await offering
        await connection.close()
        await signaling.close()
    return text


async def consume(connection: RTCPeerConnection, signaling: TopicSignaling) -> None:
    """Do what aiortc's examples do with what they receive."""
    while True:
        received = await signaling.receive()
        if isinstance(received, RTCSessionDescription):
            await connection.setRemoteDescription(received)
            if received.type == "offer":
                await connection.setLocalDescription(await connection.createAnswer())
                await signaling.send(connection.localDescription)
        elif isinstance(received, RTCIceCandidate):
            await connection.addIceCandidate(received)
        elif received is BYE:
            break


def test_an_aiortc_program_that_offered_first_meets_a_page_that_offers_as_well(
    server: Server, driver: webdriver.Chrome
) -> None:
    for number in range(OFFERERS):
        assert asyncio.run(call_with_a_page(f"{server.url}room-{number}", driver)) == "hello from the page"
