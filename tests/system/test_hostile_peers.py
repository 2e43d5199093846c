"""What one hostile peer sends to Python clients costs the others nothing: their connections go on and new ones open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from signaling.client import Answer, Backoff, Signaling, join
from signaling.client.aiortc import deliver
from signaling.client.mesh import BEGINNINGS_SECONDS, MAX_BEGINNINGS, Mesh, MeshPeer
from tests.harness.server import Server, running

SECONDS = 120

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


FINGERPRINT = "a=fingerprint:sha-256 " + ":".join(["AA"] * 32)
HEAD = f"v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n{FINGERPRINT}\r\na=setup:actpass\r\n"
ICE = "a=mid:0\r\na=ice-ufrag:uf\r\na=ice-pwd:pw\r\n"
DATA = f"m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n{ICE}a=sctp-port:5000\r\n"
AUDIO = f"m=audio 9 UDP/TLS/RTP/SAVPF 96\r\n{ICE}a=rtcp-mux\r\n"

SDPS = {
    "empty": "",
    "no sdp": "\0\ud800",
    "spaces": "a=fingerprint:" + " " * 60_000 + "x",
    "no media": HEAD,
    "no fingerprint": DATA,
    "no value": HEAD.replace(FINGERPRINT, "a=fingerprint") + DATA,
    "unknown role": HEAD.replace("actpass", "both") + DATA,
    "no ice": HEAD + DATA.replace("a=ice-ufrag:uf\r\n", ""),
    "no port": HEAD + DATA.replace("a=sctp-port:5000\r\n", ""),
    "unknown codec": HEAD + AUDIO + "a=rtpmap:96 x/1\r\na=fmtp:97 x\r\n",
    "no codec": HEAD + AUDIO,
    "unknown kind": HEAD + DATA.replace("application", "text"),
    "huge number": HEAD + DATA.replace("5000", "9" * 5_000),
    "many sections": HEAD + AUDIO * 500,
    "many formats": HEAD + AUDIO + "a=rtpmap:96 x/1\r\na=fmtp:96 x\r\n" * 1_900,
    "many sources": HEAD + AUDIO + "".join(f"a=ssrc:{number} a:\r\n" for number in range(3_000)),
    "many candidates": HEAD + DATA + "a=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n" * 1_300,
    "a good one": HEAD + DATA,
    "a good one with nobody behind": HEAD
    + DATA
    + "a=candidate:1 1 udp 1 127.0.0.1 9 typ host\r\na=end-of-candidates\r\n",
}
PAYLOADS = [None, 7, "offer", [], {}, {"sdp": None}, {"sdp": 7}, {"sdp": []}, {"sdp": "v=0", "type": "rollback"}]
CANDIDATES = [
    *PAYLOADS,
    {"candidate": None},
    {"candidate": 7},
    {"candidate": "candidate:"},
    {"candidate": "x" * 60_000, "sdpMid": "0"},
    {"candidate": "candidate:1 1 udp 1 192.0.2.1 9 typ host"},
    {"candidate": "candidate:1 1 udp 1 192.0.2.1 99999 typ host", "sdpMid": "0"},
    {"candidate": "candidate:1 1 udp 1 nowhere 9 typ host", "sdpMid": "0"},
    {"candidate": f"candidate:{'9' * 5_000} 1 udp 1 192.0.2.1 9 typ host", "sdpMid": "0"},
    {"candidate": "candidate:1 1 udp 1 192.0.2.1 9 typ host", "sdpMid": 7, "sdpMLineIndex": "x"},
    {"type": "bye"},
]


def hostilities() -> Iterator[list[tuple[str, object]]]:
    """Name what each hostile peer sends."""
    candidate = {"candidate": "candidate:1 1 udp 1 192.0.2.1 9 typ host", "sdpMid": "0"}
    for sdp in SDPS.values():
        offer, answer = ((kind, {"type": kind, "sdp": sdp}) for kind in ("offer", "answer"))
        yield [answer, ("ice-candidate", candidate), offer, ("ice-candidate", candidate), answer]
    yield [(kind, payload) for payload in PAYLOADS for kind in ("offer", "answer")]
    yield [("ice-candidate", payload) for payload in CANDIDATES]
    yield [("offer", {"sdp": HEAD + DATA})] + [("ice-candidate", payload) for payload in CANDIDATES]
    yield [("ice-candidate", candidate)] * 1_000


class Member:
    """A mesh whose peers say hello, and echo what they receive."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.channels: dict[str, asyncio.Future] = {}
        self.received: asyncio.Queue[str] = asyncio.Queue()
        self.begun = 0

    async def run(self) -> None:
        async with join(self._url, backoff=Backoff(0.05, 0.5)) as self.signaling:
            self.mesh = Mesh(self.signaling, self._prepare)
            await self.mesh.run()

    def _prepare(self, peer: MeshPeer) -> None:
        self.begun += 1
        opened = self.channels[peer.id] = asyncio.get_running_loop().create_future()
        if peer.channel is not None:
            peer.channel.on("open", lambda: opened.done() or opened.set_result(peer.channel))
            peer.channel.on("message", self.received.put_nowait)

    async def channel_to(self, other: Member):
        """Wait until there is an open channel."""
        while other.signaling.self_id not in self.channels:
            await asyncio.sleep(0)
        return await self.channels[other.signaling.self_id]


@asynccontextmanager
async def pair(url: str) -> AsyncIterator[tuple[Member, Member]]:
    """Connect two members, and check at the end that their connection is the same one and works."""
    async with asyncio.timeout(SECONDS):
        members = Member(url), Member(url)
        tasks = [asyncio.create_task(member.run()) for member in members]
        try:
            ada, ben = members
            while not all(hasattr(member, "mesh") for member in members):
                await asyncio.sleep(0)
            channel = await ada.channel_to(ben)
            await ben.channel_to(ada)
            yield ada, ben
            assert await ada.channel_to(ben) is channel
            channel.send("still here")
            assert await ben.received.get() == "still here"
            assert not any(task.done() for task in tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


GOOD_OFFER = {"type": "offer", "sdp": HEAD + DATA.replace("a=ice-ufrag:uf", "a=ice-ufrag:good")}


async def attack(mallory: Signaling, target: str, messages: list[tuple[str, object]]) -> None:
    """Send messages, and then a good offer, which is answered."""
    for kind, payload in messages:
        await deliver(mallory, kind, target, payload)
    await deliver(mallory, "offer", target, GOOD_OFFER)
    await anext(message async for message in mallory if isinstance(message, Answer) and message.sender == target)


def test_a_mesh_goes_on_whatever_one_peer_sends(server: Server) -> None:
    async def scenario() -> list[str]:
        unretrieved: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unretrieved.append(str(context)))
        async with pair(server.url + "room") as (ada, ben), AsyncExitStack() as stack:
            for messages in hostilities():
                mallory = await stack.enter_async_context(join(server.url + "room"))
                for member in (ada, ben):
                    await attack(mallory, member.signaling.self_id, messages)
            # A new peer is connected to both.
            late = Member(server.url + "room")
            task = asyncio.create_task(late.run())
            while not hasattr(late, "mesh"):
                await asyncio.sleep(0)
            for member in (ada, ben):
                await late.channel_to(member)
                await member.channel_to(late)
            task.cancel()
            await asyncio.wait([task])
        return unretrieved

    assert asyncio.run(scenario()) == []


def test_a_peer_that_begins_anew_without_end_is_slowed_down(server: Server) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with pair(server.url + "anew") as (ada, _), join(server.url + "anew") as mallory:
            before, started = ada.begun, loop.time()
            for number in range(300):
                sdp = (HEAD + DATA).replace("AA:AA", f"{number // 256:02X}:{number % 256:02X}")
                await deliver(mallory, "offer", ada.signaling.self_id, {"type": "offer", "sdp": sdp})
            spans = 1 + (loop.time() - started) / BEGINNINGS_SECONDS
            assert ada.begun - before <= MAX_BEGINNINGS + spans

    asyncio.run(scenario())
