"""Peers with a secret behind a server that reads and tampers: pages, Python programs, and one with the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription
from selenium import webdriver

from signaling.client.aiortc import BYE, TopicSignaling
from signaling.client.sealing import REPEATED, UNOPENED, UNSEALED
from tests.harness.hostile_relay import ATTACKER, HostileRelay, relaying
from tests.harness.server import Server, running
from tests.system.browser import run, wait_until

SECONDS = 120
SECRET = "correct horse battery staple"
# What an offer, an answer and a candidate consist of.
SECRETS_OF_PEERS = ("a=fingerprint", "candidate:", "ice-pwd", "v=0")

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")

MEMBERS = """
  const { join, Mesh } = await import("/signaling.js");
  const [url, ...secrets] = given;
  window.members = secrets.map((secret) => {
    const signaling = join(url, { ...(secret && { secret }), backoff: { first: 20, most: 200 } });
    const member = { signaling, mesh: new Mesh(signaling), tampered: [], received: [] };
    signaling.addEventListener("tampered", ({ detail: { reason } }) => member.tampered.push(reason));
    member.mesh.addEventListener("peer-added", ({ detail: { channel } }) => {
      channel.addEventListener("open", () => channel.send("hello"));
    });
    member.mesh.addEventListener("data", ({ detail: { data } }) => member.received.push(data));
    return member;
  });
"""
REMOTE = (
    "window.members.flatMap(({ mesh }) => [...mesh.peers.values()].map((p) => p.connection.remoteDescription?.sdp))"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(["--port=0", "--serve-client", "--resume-window=20"]) as made:
        yield made


@pytest.fixture
def page(browser: webdriver.Chrome, server: Server) -> Iterator[webdriver.Chrome]:
    browser.get(f"http://127.0.0.1:{server.port}/healthz")
    yield browser
    browser.execute_script("window.members?.forEach(({ signaling }) => signaling.leave())")


def url_of(relay: HostileRelay, topic: str) -> str:
    return f"ws://127.0.0.1:{relay.port}/ws/{topic}"


def assert_nothing_was_read(relay: HostileRelay) -> None:
    text = "\n".join(relay.recorded)
    assert '"sealed":1' in text
    assert [secret for secret in SECRETS_OF_PEERS if secret in text] == []


def test_without_a_secret_a_server_reads_everything_and_takes_a_pages_place(
    page: webdriver.Chrome, server: Server
) -> None:
    with relaying(server.port) as relay:
        run(page, MEMBERS, url_of(relay, "open"), None, None)
        wait_until(page, f"{REMOTE}.some((sdp) => sdp?.includes('{ATTACKER}'))")
        text = "\n".join(relay.recorded)
        assert "a=fingerprint" in text
        assert "v=0" in text


def test_pages_connect_behind_a_server_that_tampers(page: webdriver.Chrome, server: Server) -> None:
    with relaying(server.port) as relay:
        run(page, MEMBERS, url_of(relay, "pages"), SECRET, SECRET, SECRET)
        wait_until(page, "members.every(({ received }) => received.length >= 2)")
        reasons = page.execute_script("return members.map(({ tampered }) => [...new Set(tampered)].sort())")
        assert reasons == [sorted([UNSEALED, UNOPENED, REPEATED])] * 3
        assert ATTACKER not in str(page.execute_script(f"return {REMOTE}"))
        assert_nothing_was_read(relay)


async def talk(signaling: TopicSignaling, *, offers: bool, descriptions: list[str]) -> str:
    """Make a call, as aiortc's examples do; returns what is received on the channel that browsers' meshes have."""
    received: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    connection = RTCPeerConnection()
    channel = connection.createDataChannel("mesh", negotiated=True, id=0)
    channel.on("open", lambda: channel.send("hello"))
    channel.on("message", lambda text: received.done() or received.set_result(text))

    async def signal() -> None:
        if offers:
            await connection.setLocalDescription(await connection.createOffer())
            await signaling.send(connection.localDescription)
        while (message := await signaling.receive()) is not BYE:
            if not isinstance(message, RTCSessionDescription):
                await connection.addIceCandidate(message)
                continue
            descriptions.append(message.sdp)
            await connection.setRemoteDescription(message)
            if message.type == "offer":
                await connection.setLocalDescription(await connection.createAnswer())
                await signaling.send(connection.localDescription)

    signals = asyncio.create_task(signal())
    try:
        await asyncio.wait({signals, received}, return_when=asyncio.FIRST_COMPLETED)
        if signals.done():
            signals.result()
        return await received
    finally:
        signals.cancel()
        await asyncio.wait([signals])
        await connection.close()


def reasons_in(caplog: pytest.LogCaptureFixture) -> set[str]:
    return {record.args[1] for record in caplog.records if "not passed on" in record.msg and record.args}


def test_python_programs_connect_behind_a_server_that_tampers(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(url: str) -> None:
        first, second = (TopicSignaling(url, secret=SECRET) for _ in range(2))
        async with asyncio.timeout(SECONDS):
            await first.connect()
            await second.connect()
            calls = (talk(first, offers=False, descriptions=sdps), talk(second, offers=True, descriptions=sdps))
            both = await asyncio.gather(*calls)
            await asyncio.gather(first.close(), second.close())
        assert both == ["hello", "hello"]

    sdps: list[str] = []
    with relaying(server.port) as relay, caplog.at_level(logging.INFO, "signaling.client"):
        asyncio.run(scenario(url_of(relay, "programs")))
        assert reasons_in(caplog) == {UNSEALED, UNOPENED, REPEATED}
        assert ATTACKER not in str(sdps)
        assert_nothing_was_read(relay)


def test_a_page_and_a_python_program_connect_behind_a_server_that_tampers(
    page: webdriver.Chrome, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(url: str) -> None:
        signaling = TopicSignaling(url, secret=SECRET)
        async with asyncio.timeout(SECONDS):
            await signaling.connect()
            talking = asyncio.create_task(talk(signaling, offers=True, descriptions=sdps))
            await asyncio.to_thread(run, page, MEMBERS, url, SECRET)
            assert await talking == "hello"
            await signaling.close()

    sdps: list[str] = []
    with relaying(server.port) as relay, caplog.at_level(logging.INFO, "signaling.client"):
        asyncio.run(scenario(url_of(relay, "both")))
        wait_until(page, "members[0].received.includes('hello')")
        assert {UNSEALED, UNOPENED, REPEATED} <= reasons_in(caplog)
        assert set(page.execute_script("return members[0].tampered")) == {UNSEALED, UNOPENED, REPEATED}
        assert ATTACKER not in str(sdps) + str(page.execute_script(f"return {REMOTE}"))
        assert_nothing_was_read(relay)


RENEGOTIATE = """
  const [peer] = members[0].mesh.peers.values();
  const fragment = () => /a=ice-ufrag:(.*)/.exec(peer.connection.remoteDescription.sdp)[1];
  const before = fragment();
  peer.connection.restartIce();
  while (fragment() === before || peer.connection.signalingState !== "stable") {
    await new Promise((done) => setTimeout(done, 20));
  }
"""


def test_pages_with_a_secret_go_on_through_a_resume_and_a_restart(page: webdriver.Chrome, server: Server) -> None:
    """A new server has no session of before, so each page gets a new id."""

    def ids() -> Any:
        return page.execute_script("return members.map(({ signaling }) => signaling.selfId)")

    def lose(relay: HostileRelay) -> None:
        page.execute_script("""
          window.welcomes = 0;
          const note = () => welcomes++;
          for (const { signaling } of members) signaling.addEventListener("peer-list", note, { once: true });
        """)
        relay.cut()
        wait_until(page, "welcomes === 2 && members.every(({ signaling }) => signaling.peers.size === 1)")

    with running(["--port=0"]) as another, relaying(server.port, tampers=False) as relay:
        run(page, MEMBERS, url_of(relay, "losses"), SECRET, SECRET)
        wait_until(page, "members.every(({ received }) => received.length === 1)")
        before = ids()
        lose(relay)
        assert ids() == before
        run(page, RENEGOTIATE)
        relay.lead_to(another.port)
        lose(relay)
        assert not set(ids()) & set(before)
        run(page, RENEGOTIATE)
        assert page.execute_script(
            "return members.map(({ tampered, received }) => [tampered.length, received.length])"
        ) == [
            [0, 1],
            [0, 1],
        ]
        assert_nothing_was_read(relay)


def test_pages_with_different_secrets_report_that_and_cause_no_storm(page: webdriver.Chrome, server: Server) -> None:
    with relaying(server.port, tampers=False) as relay:
        run(page, MEMBERS, url_of(relay, "different"), SECRET, f"not {SECRET}")
        wait_until(page, "members.every(({ tampered }) => tampered.length)")  # The other one offers after 2 s.
        reasons = page.execute_script("return members.flatMap(({ tampered }) => tampered)")
        assert set(reasons) == {UNOPENED}
        assert sum('"sealed":1' in text and '"to"' in text for text in relay.recorded) < 30
        connected = "[...members[0].mesh.peers.values()].some((peer) => peer.connection.remoteDescription)"
        assert not page.execute_script(f"return {connected}")
