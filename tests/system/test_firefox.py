"""Firefox and Chromium together: both offer at the same moment, a mesh outlives a restart of the server, the demo."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import pytest
from selenium import webdriver

from tests.harness.server import Node, Server, running
from tests.system.browser import chromium, run
from tests.system.firefox import firefox
from tests.system.pages import add_client, serve

# Of each kind: `BROWSER_CALLS=20 pytest -s tests/system/test_firefox.py` is the long run.
CALLS = int(os.environ.get("BROWSER_CALLS", "1"))
AT_ONCE_SECONDS = 0.3

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


class Page(Protocol):
    """A page of either browser."""

    def open(self, url: str) -> None: ...

    def run(self, body: str, *arguments: Any) -> Any: ...


class ChromiumPage:
    """The window that a Chromium shows now."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self._driver = driver
        self._window = driver.current_window_handle

    def open(self, url: str) -> None:
        self._driver.switch_to.window(self._window)
        self._driver.get(url)

    def run(self, body: str, *arguments: Any) -> Any:
        self._driver.switch_to.window(self._window)
        return run(self._driver, body, *arguments)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(["--port=0", "--demo"]) as started:
        yield started


@pytest.fixture(scope="module")
def browsers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Page]]:
    flags = (
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        # A window behind another one is a page all the same.
        "--disable-background-timer-throttling",
        "--disable-backgrounding-occluded-windows",
        "--disable-renderer-backgrounding",
    )
    with (
        chromium(tmp_path_factory.mktemp("chromium"), *flags) as driver,
        firefox(tmp_path_factory.mktemp("firefox")) as fox,
    ):
        first = ChromiumPage(driver)
        driver.switch_to.new_window("window")
        yield {"chromium": first, "another chromium": ChromiumPage(driver), "firefox": fox}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the client and an empty page; returns their address."""
    folder = tmp_path_factory.mktemp("pages")
    add_client(folder)
    with serve(folder) as address:
        yield address


JOIN = """
  globalThis.one?.signaling.leave();
  globalThis.one = p.peer(given[0]);
  // A network that takes 200 ms: offers that are made within it cross.
  const send = one.signaling.send.bind(one.signaling);
  let number = 0;
  one.signaling.send = (type, to, payload) => {
    const msgId = `later ${++number}`;
    setTimeout(() => send(type, to, payload, msgId), 200);
    return msgId;
  };
  await one.signaling.ready;
"""
LINKED = "await p.until(() => p.linked(one, 1), 'linked')"
RENEGOTIATE = {
    "cameras": """
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true, video: true });
      await p.until(() => Date.now() >= given[0], "the same moment");
      for (const track of stream.getTracks()) one.mesh.addTrack(track, stream);
    """,
    "ICE restarts": """
      await p.until(() => Date.now() >= given[0], "the same moment");
      for (const connection of p.connections(one)) connection.restartIce();
    """,
}
# Whether the call works: both pictures and sounds arrive if they were sent, and the data channel carries.
WORKS = {
    "cameras": """
      const arrive = (connection, wanted) =>
        connection.getReceivers().some(({ track }) => track.kind === wanted && !track.muted);
      const all = (connection) => ["audio", "video"].every((kind) => arrive(connection, kind));
      await p.until(() => p.linked(one, 1) && p.connections(one).every(all), "pictures and sounds");
    """,
    "ICE restarts": """
      const again = ({ localDescription }) => localDescription.sdp.match(/a=ice-ufrag:(.*)/)[1] !== one.ufrag;
      await p.until(() => p.linked(one, 1) && p.connections(one).every(again), "new paths");
    """,
}
BEFORE = "one.ufrag = p.connections(one)[0].localDescription.sdp.match(/a=ice-ufrag:(.*)/)[1];"
# Until both have heard the other: what was sent on a connection that is then begun anew is lost.
TALK = """
  globalThis.talking = setInterval(() => one.mesh.broadcast("still there"), 50);
  const now = one.got.length;
  await p.until(() => one.got.length > now, "a message");
  return [one.sent.filter((type) => type === "offer").length, one.removed.length];
"""


ORDERS = pytest.mark.parametrize("order", [("firefox", "chromium"), ("chromium", "firefox")], ids="-".join)


@ORDERS
@pytest.mark.parametrize("what", RENEGOTIATE)
def test_a_call_goes_on_when_both_renegotiate_at_once(
    browsers: dict[str, Page], pages: str, server: Server, order: tuple[str, str], what: str
) -> None:
    both = [browsers[name] for name in order]
    for page in both:
        page.open(pages)
        page.run("globalThis.p = await import('/peers.js')")
    for call in range(CALLS):
        for page in both:
            page.run(JOIN, f"{server.url}{order[0]}-{what.replace(' ', '-')}-{call}")
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda page: page.run(LINKED + ";" + BEFORE), both))
            moment = 1000 * (time.time() + AT_ONCE_SECONDS)
            list(pool.map(lambda page, at: page.run(RENEGOTIATE[what], at), both, [moment, moment]))
            list(pool.map(lambda page: page.run(WORKS[what]), both))
            told = list(pool.map(lambda page: page.run(TALK), both))
            list(pool.map(lambda page: page.run("clearInterval(talking)"), both))
        print(f"call {call + 1} works; offers, and connections begun anew:", dict(zip(order, told, strict=True)))


ENTER = """
  globalThis.p = await import("/peers.js");
  globalThis.one = p.peer(given[0], { metadata: { name: given[1] } });
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true, video: true });
  for (const track of stream.getTracks()) one.mesh.addTrack(track, stream);
  await one.signaling.ready;
"""
# Pictures and sounds of both others are decoded, now.
MEDIA = """
  const decoded = async (connection) => {
    const stats = [...(await connection.getStats()).values()].filter(({ type }) => type === "inbound-rtp");
    const sum = (kind, name) => stats.filter((each) => each.kind === kind).reduce((all, each) => all + each[name], 0);
    return [sum("video", "framesDecoded"), sum("audio", "packetsReceived")];
  };
  await p.until(() => p.linked(one, 2), "linked to both");
  for (const connection of p.connections(one)) {
    const before = await decoded(connection);
    let now = before;
    const counting = setInterval(async () => (now = await decoded(connection)), 50);
    await p.until(() => now.every((count, index) => count > before[index]), "pictures and sounds");
    clearInterval(counting);
  }
"""
SAY = "one.mesh.broadcast(given[0])"
HEAR = """
  const heard = () => one.got.filter(({ data }) => data === given[0]).map(({ from }) => from.metadata.name).sort();
  await p.until(() => heard().length === 2, "both others");
  return heard();
"""
# Names the connections by their paths; a new one, and one whose ICE restarted, have others.
KEPT = """
  const fragment = ({ localDescription }) => localDescription.sdp.match(/a=ice-ufrag:(.*)/)[1];
  return [one.removed.length, ...p.connections(one).map(fragment).sort()];
"""
JOINED_AGAIN = """
  const { signaling } = one;
  await p.until(() => signaling.state === "open" && signaling.selfId !== given[0] && signaling.peers.size === 2);
"""


def test_one_mesh_of_two_chromiums_and_a_firefox_outlives_the_server(browsers: dict[str, Page], pages: str) -> None:
    def talk(word: str) -> None:
        for page in browsers.values():
            page.run(MEDIA)
        for page in browsers.values():
            page.run(SAY, word)
        for name, page in browsers.items():
            assert page.run(HEAR, word) == sorted(browsers.keys() - {name})

    signaling = Node()
    signaling.start()
    try:
        # Firefox offers to the first, and the last offers to Firefox.
        for name in ("chromium", "firefox", "another chromium"):
            page = browsers[name]
            page.open(pages)
            page.run(ENTER, f"ws://{signaling.address}/ws/mesh", name)
        talk("before")
        ids = {name: page.run("return one.signaling.selfId") for name, page in browsers.items()}
        kept = [page.run(KEPT) for page in browsers.values()]
        signaling.restart()
        for name, page in browsers.items():
            page.run(JOINED_AGAIN, ids[name])
        talk("after")
        assert [page.run(KEPT) for page in browsers.values()] == kept
    finally:
        signaling.end()


@ORDERS
def test_the_demo_shows_each_the_other(browsers: dict[str, Page], server: Server, order: tuple[str, str]) -> None:
    enter = """
      document.getElementById("name").value = given[0];
      document.getElementById("join").click();
      const { dataset } = document.getElementById("state");
      while (dataset.state !== "open") await new Promise((done) => setTimeout(done, 20));
    """
    seen = """
      const pictures = () => document.querySelectorAll(".tile[data-picture=yes]").length;
      while (pictures() < 2) await new Promise((done) => setTimeout(done, 20));
      return [...document.querySelectorAll(".tile bdi")].map((name) => name.textContent).sort();
    """
    for name in order:
        browsers[name].open(f"http://127.0.0.1:{server.port}/?for={order[0]}#demo-{order[0]}")
        browsers[name].run(enter, name)
    for name in order:
        assert browsers[name].run(seen) == ["chromium", "firefox"]
