"""The JavaScript client in WebKit: signaling alone, as the WebKit of Debian has no WebRTC."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium import webdriver

from tests.harness.server import Node
from tests.system.browser import run
from tests.system.pages import add_client, serve
from tests.system.webkit import webkit

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.WebKitGTK]:
    """Open an empty page, in which ``p`` is peers.js."""
    folder = tmp_path_factory.mktemp("pages")
    add_client(folder)
    with webkit() as driver, serve(folder) as address:
        driver.get(address)
        run(driver, "globalThis.p = await import('/peers.js')")
        yield driver


MEET = """
  const { join } = await import("/signaling.js");
  globalThis.pair = [];
  for (const name of ["Ada", "Grace"]) {
    const signaling = join(given[0], { metadata: { name }, backoff: { first: 50, most: 400 } });
    const got = [];
    for (const type of ["offer", "answer", "ice-candidate"]) {
      signaling.addEventListener(type, ({ detail }) => got.push([type, detail.payload]));
    }
    pair.push({ signaling, got, ...p.watch(signaling) });
    await signaling.ready;
  }
  const [ada, grace] = pair;
  await p.until(() => ada.joined.length, "Grace");
  return ada.signaling.peers.get(grace.signaling.selfId).name;
"""
TALK = """
  const [ada, grace] = pair;
  await p.until(() => pair.every(({ signaling }) => signaling.state === "open" && signaling.peers.size === 1), "open");
  for (const { got } of pair) got.length = 0;
  ada.signaling.send("offer", grace.signaling.selfId, { sdp: "v=0" });
  await p.until(() => grace.got.length === 1, "the offer");
  grace.signaling.send("answer", ada.signaling.selfId, { sdp: "ü\\u2028" });
  grace.signaling.send("ice-candidate", ada.signaling.selfId, null);
  await p.until(() => ada.got.length === 2, "the answer and the candidate");
  return [...grace.got, ...ada.got];
"""
TALKED = [["offer", {"sdp": "v=0"}], ["answer", {"sdp": "ü\u2028"}], ["ice-candidate", None]]


def test_a_mesh_says_that_it_needs_webrtc(page: webdriver.WebKitGTK) -> None:
    if run(page, "return Boolean(globalThis.RTCPeerConnection)"):
        pytest.skip("this WebKit has WebRTC: run the tests of meshes in it")
    script = """
      const { join, Mesh } = await import("/signaling.js");
      const signaling = join(given[0], { reconnect: false });
      try {
        new Mesh(signaling);
      } catch (error) {
        return error.message;
      } finally {
        signaling.leave();
      }
    """
    assert run(page, script, "ws://127.0.0.1:9/ws/room") == "There is no WebRTC here: RTCPeerConnection is missing."


def test_two_meet_talk_and_outlive_a_restart_of_the_server(page: webdriver.WebKitGTK) -> None:
    signaling = Node()
    signaling.start()
    try:
        assert run(page, MEET, f"ws://{signaling.address}/ws/room") == "Grace"
        assert run(page, TALK) == TALKED
        ids = run(page, "return pair.map(({ signaling }) => signaling.selfId)")
        signaling.restart()
        run(page, "await p.until(() => pair.every(({ signaling: { selfId } }) => !given[0].includes(selfId)))", ids)
        assert run(page, TALK) == TALKED
        run(page, "for (const { signaling } of pair) signaling.leave()")
        assert run(page, "return pair.map(({ states }) => states.at(-1))") == ["closed", "closed"]
    finally:
        signaling.end()
