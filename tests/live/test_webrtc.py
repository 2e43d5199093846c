"""Real WebRTC: data channels whose every signaling message passed through ``twistd -n signaling``."""

from __future__ import annotations

import asyncio
import functools
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.sdp import candidate_from_sdp
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait
from websockets.asyncio.client import connect

from tests.live.twistd import Server, running
from tests.programs import need

EXAMPLES = Path(__file__).parents[2] / "examples"
OPEN_SECONDS = 30

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
    "--allow-loopback-in-peer-connection",
)

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def pages() -> Iterator[str]:
    """Serve the examples; returns their address."""
    handler = functools.partial(Quiet, directory=str(EXAMPLES))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextmanager
def chromium(folder: Path) -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = need("chromium")
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(need("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def page_url(pages: str, server: Server) -> str:
    return f"{pages}/datachannel.html?server={quote(f'ws://127.0.0.1:{server.port}')}&topic=room"


def wait_until(driver: webdriver.Chrome, script: str) -> None:
    WebDriverWait(driver, OPEN_SECONDS, 0.05).until(lambda d: d.execute_script(f"return {script}"))


class AiortcPeer:
    """An aiortc peer that does what the example page does."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.signals: list[str] = []
        self.heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.joined = asyncio.Event()
        self.connection = RTCPeerConnection()
        self.connection.on("datachannel", self.use)

    def use(self, channel) -> None:
        @channel.on("message")
        def on_message(text: str) -> None:
            if not self.heard.done():
                self.heard.set_result(text)

        if channel.readyState == "open":
            channel.send("hello")
        else:
            channel.on("open", lambda: channel.send("hello"))

    async def run(self) -> None:
        async with connect(self.url) as socket:
            async for text in socket:
                message = json.loads(text)
                self.signals.append(f"received {message['type']}")
                await self.answer(socket, message)

    async def answer(self, socket, message) -> None:
        if message["type"] == "peer-list":
            self.joined.set()
            for peer in message["peers"]:
                self.use(self.connection.createDataChannel("chat"))
                await self.describe(socket, "offer", peer["id"])
        elif message["type"] in ("offer", "answer"):
            await self.connection.setRemoteDescription(RTCSessionDescription(**message["payload"]))
            if message["type"] == "offer":
                await self.describe(socket, "answer", message["from"])
        elif message["type"] == "ice-candidate" and message["payload"]["candidate"]:
            candidate = candidate_from_sdp(message["payload"]["candidate"].removeprefix("candidate:"))
            candidate.sdpMid = message["payload"]["sdpMid"]
            candidate.sdpMLineIndex = message["payload"]["sdpMLineIndex"]
            await self.connection.addIceCandidate(candidate)

    async def describe(self, socket, kind: str, to: str) -> None:
        make = self.connection.createOffer if kind == "offer" else self.connection.createAnswer
        await self.connection.setLocalDescription(await make())
        local = self.connection.localDescription
        self.signals.append(f"sent {kind}")
        await socket.send(json.dumps({"type": kind, "to": to, "payload": {"type": local.type, "sdp": local.sdp}}))


@contextmanager
def debug_server() -> Iterator[Server]:
    with running(["--port=0", "--log-level=debug"]) as server:
        yield server
        for kind in ("offer", "answer"):
            server.wait_for(rf"relayed {kind} of \d+ bytes to ")
        assert "a=fingerprint" not in server.log
        assert "candidate:" not in server.log


async def close(*peers: tuple[AiortcPeer, asyncio.Task]) -> None:
    for peer, task in peers:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await peer.connection.close()


def test_an_aiortc_pair_opens_a_data_channel() -> None:
    async def scenario(url: str) -> None:
        first = AiortcPeer(url)
        first_task = asyncio.create_task(first.run())
        await first.joined.wait()
        second = AiortcPeer(url)
        second_task = asyncio.create_task(second.run())
        assert await asyncio.wait_for(asyncio.gather(first.heard, second.heard), OPEN_SECONDS) == ["hello", "hello"]
        await close((first, first_task), (second, second_task))

    with debug_server() as server:
        asyncio.run(scenario(server.url + "room"))


def test_a_chromium_pair_opens_a_data_channel(pages: str, tmp_path: Path) -> None:
    with debug_server() as server, chromium(tmp_path) as driver:
        driver.get(page_url(pages, server))
        wait_until(driver, "signals.length >= 2")
        first = driver.current_window_handle
        driver.switch_to.new_window("window")
        driver.get(page_url(pages, server))
        wait_until(driver, "heard.includes('hello')")
        second = driver.execute_script("return signals")
        driver.switch_to.window(first)
        wait_until(driver, "heard.includes('hello')")
        signals = driver.execute_script("return signals")
        server.wait_for("relayed ice-candidate of")
        print("first:", signals, "\nsecond:", second)
        assert signals[:4] == ["received welcome", "received peer-list", "received peer-joined", "received offer"]
        assert second[:3] == ["received welcome", "received peer-list", "sent offer"]
        assert {"received answer", "sent ice-candidate"} <= set(second)
        driver.execute_script("channels.values().next().value.send('over the wire')")
        handles = [handle for handle in driver.window_handles if handle != first]
        driver.switch_to.window(handles[0])
        wait_until(driver, "heard.includes('over the wire')")


def test_chromium_and_aiortc_open_a_data_channel(pages: str, tmp_path: Path) -> None:
    async def scenario(server: Server, driver: webdriver.Chrome) -> None:
        peer = AiortcPeer(server.url + "room")
        task = asyncio.create_task(peer.run())
        await peer.joined.wait()
        await asyncio.to_thread(driver.get, page_url(pages, server))
        assert await asyncio.wait_for(peer.heard, OPEN_SECONDS) == "hello"
        await asyncio.to_thread(wait_until, driver, "heard.includes('hello')")
        await close((peer, task))

    with debug_server() as server, chromium(tmp_path) as driver:
        asyncio.run(scenario(server, driver))
