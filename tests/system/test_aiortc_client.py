"""aiortc programs that signal through a topic, its own published example among them."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

import aioice.ice
import pytest
from aiortc import (
    AudioStreamTrack,
    MediaStreamTrack,
    RTCIceCandidate,
    RTCPeerConnection,
    RTCSessionDescription,
    VideoStreamTrack,
)

from signaling.client import NotDelivered, PeerJoined, PeerLeft, Signaling, join
from signaling.client.aiortc import BYE, TopicSignaling, deliver
from signaling.client.mesh import Mesh, MeshPeer
from tests.harness.server import Server, launch, running
from tests.programs import free_port, missing

SECONDS = 120
THEIRS = "from aiortc.contrib.signaling import BYE, add_signaling_arguments, create_signaling"
OURS = "from signaling.client.aiortc import BYE, add_signaling_arguments, create_signaling"

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


@pytest.fixture
def room(server: Server, request: pytest.FixtureRequest) -> str:
    """A topic of its own."""
    return server.url + quote(request.node.name, safe="")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fetch aiortc's example, which its wheel leaves out, and change its one line."""
    folder = tmp_path_factory.mktemp("aiortc")
    wanted = ["--no-deps", "--no-build-isolation", "--no-binary", "aiortc", f"aiortc=={version('aiortc')}"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *wanted]
    if subprocess.run([*command, "--dest", str(folder)], check=False, timeout=280).returncode:
        raise missing("aiortc's source distribution")
    [archive] = folder.glob("aiortc-*.tar.gz")
    with tarfile.open(archive) as opened:
        member = f"{archive.name.removesuffix('.tar.gz')}/examples/datachannel-cli/cli.py"
        source = opened.extractfile(member).read().decode()
    assert source.count(THEIRS) == 1
    path = folder / "cli.py"
    path.write_text(source.replace(THEIRS, OURS))
    return path


@contextmanager
def role(example: Path, name: str, url: str) -> Iterator[Server]:
    """Run one role of the example."""
    command = [sys.executable, "-u", str(example), name, "-s", url]
    watched = launch(command)
    try:
        yield watched
    finally:
        watched.end()


@pytest.mark.parametrize("first", ["offer", "answer"])
def test_aiortcs_own_example_plays_ping_pong_whoever_starts_first(server: Server, example: Path, first: str) -> None:
    second = {"offer": "answer", "answer": "offer"}[first]
    topic = f"{first}-first"
    with role(example, first, server.url + topic) as earlier:
        server.wait_for(f"joined '{topic}'")
        with role(example, second, server.url + topic) as later:
            roles = {first: earlier, second: later}
            roles["answer"].wait_for(r"channel\(chat\) < ping")
            roles["offer"].wait_for(r"channel\(chat\) < pong")
            roles["offer"].process.kill()
            # Its connection breaks, it leaves the topic, and that is its BYE.
            roles["answer"].wait_for("Exiting")
            assert roles["answer"].process.wait(SECONDS) == 0


def interrupt(program: Server) -> None:
    """Press Ctrl-C once the program only waits, and expect a clean end, whatever became of the server."""
    stat = Path(f"/proc/{program.process.pid}/stat")
    before, still = [""], 0
    while still < 5:
        state, *fields = stat.read_text().rpartition(") ")[2].split()
        # Its CPU time: a program that has none and does not sleep waits for a busy machine.
        now = fields[10:12]
        before, still = now, still + 1 if state == "S" and now == before else 0
        time.sleep(0.05)  # There is no event for a program that waits.
    assert program.stop(signal.SIGINT) == 0, program.log
    # The example's own loop of pings fails on a closed channel, also with aiortc's own signaling.
    unexpected = program.log.replace("Task exception was never retrieved", "", program.log.count("in send_pings"))
    assert not re.search("signaling/client|destroyed|never retrieved", unexpected), program.log


@pytest.mark.parametrize("name", ["offer", "answer"])
def test_ctrl_c_ends_aiortcs_own_example_that_is_alone(server: Server, example: Path, name: str) -> None:
    topic = f"{name}-alone"
    with role(example, name, server.url + topic) as program:
        server.wait_for(f"joined '{topic}'")
        interrupt(program)
        server.wait_for(f"left '{topic}'")


@pytest.mark.parametrize("name", ["offer", "answer"])
def test_ctrl_c_ends_aiortcs_own_example_whose_server_is_not_there(example: Path, name: str) -> None:
    port = free_port()
    with role(example, name, f"ws://127.0.0.1:{port}/ws/room") as program:
        program.wait_for(r"no connection: ConnectionRefusedError: .*Connect call failed")
        interrupt(program)


@pytest.mark.parametrize("name", ["offer", "answer"])
@pytest.mark.parametrize("fault", ["killed", "hanging"])
def test_ctrl_c_ends_aiortcs_own_example_whose_server_is_gone(example: Path, name: str, fault: str) -> None:
    with running() as server, role(example, "answer", server.url + "room") as answerer:
        with role(example, "offer", server.url + "room") as offerer:
            offerer.wait_for(r"channel\(chat\) < pong")
            server.process.kill() if fault == "killed" else server.pause()
            interrupt({"answer": answerer, "offer": offerer}[name])
        server.resume()


@pytest.mark.parametrize("name", ["offer", "answer"])
def test_ctrl_c_ends_aiortcs_own_example_on_both_sides(example: Path, room: str, name: str) -> None:
    with role(example, "answer", room) as answerer:
        with role(example, "offer", room) as offerer:
            offerer.wait_for(r"channel\(chat\) < pong")
            roles = {"answer": answerer, "offer": offerer}
            interrupt(roles.pop(name))
            [other] = roles.values()
            other.wait_for("Exiting")
            if other is answerer:
                assert other.process.wait(SECONDS) == 0


def test_send_and_receive_take_and_return_what_aiortcs_own_classes_do(room: str) -> None:
    async def scenario(url: str) -> None:
        ada, ben = TopicSignaling(url), TopicSignaling(url)
        candidate = RTCIceCandidate(1, "f", "192.0.2.1", 4711, 1, "udp", "host", sdpMid="0", sdpMLineIndex=0)
        sent = [RTCSessionDescription(sdp="v=0\r\n", type="offer"), candidate, BYE]
        async with asyncio.timeout(SECONDS):
            sending = asyncio.create_task(send_all(ada, sent))
            await ben.connect()
            assert [await ben.receive() for _ in sent] == sent
            await sending
            await ada.close()
            await ben.close()
            # As aiortc's own after the last object: one BYE, then None, however often.
            assert [await ben.receive() for _ in range(3)] == [BYE, None, None]
            await ben.send(BYE)
            await ben.connect()

    async def send_all(signaling: TopicSignaling, objects: list) -> None:
        for obj in objects:
            await signaling.send(obj)

    asyncio.run(scenario(room))


def test_leaving_is_a_bye_and_the_next_peer_takes_the_place(room: str) -> None:
    async def scenario(url: str) -> None:
        offer = RTCSessionDescription(sdp="v=0\r\n", type="offer")
        ada = TopicSignaling(url)
        async with asyncio.timeout(SECONDS):
            for _ in range(2):
                ben = TopicSignaling(url)
                await ben.connect()
                await ada.send(offer)
                assert await ben.receive() == offer
                await ben.close()
                assert await ada.receive() is BYE
            await ada.close()
            assert await ada.receive() is BYE

    asyncio.run(scenario(room))


NONSENSE = [
    ("answer", {"type": "answer", "sdp": "v=0\r\n"}),
    ("offer", None),
    ("offer", {"sdp": 7}),
    ("offer", {"type": "rollback", "sdp": ""}),
    ("offer", {"type": "offer", "sdp": "a=fingerprint"}),
    ("offer", {"type": "offer", "sdp": "m=audio 9 RTP 0\r\n" * 40}),
    ("offer", {"type": "offer", "sdp": "\n" * 5_000}),
    ("ice-candidate", {"candidate": "candidate:1 1 udp 1 192.0.2.1 99999 typ host", "sdpMid": "0"}),
    ("ice-candidate", {"candidate": "candidate:1 1 udp 1 192.0.2.1 9 typ host"}),
    ("ice-candidate", [7]),
]


def test_what_aiortc_cannot_take_is_left_out(room: str) -> None:
    async def scenario(url: str) -> None:
        ada = TopicSignaling(url)
        offer = RTCSessionDescription(sdp="v=0\r\n", type="offer")
        async with asyncio.timeout(SECONDS), join(url) as mallory:
            await ada.connect()
            [target] = [message.peer_id async for message in first(mallory, PeerJoined)]
            candidate = {"candidate": "candidate:1 1 udp 1 192.0.2.1 9 typ host", "sdpMid": "0"}
            for kind, payload in [*NONSENSE, *[("ice-candidate", candidate)] * 250]:
                await deliver(mallory, kind, target, payload)
            await mallory.deliver("offer", target, {"type": "offer", "sdp": offer.sdp})
            received = []
            while not received or received[-1] != offer:
                received.append(await ada.receive())
            assert 0 < len(received) <= 101
            assert {type(obj) for obj in received[:-1]} == {RTCIceCandidate}
            await ada.close()

    asyncio.run(scenario(room))


def test_a_description_that_aiortc_rejects_is_the_programs_exception_once(room: str) -> None:
    async def consume(connection: RTCPeerConnection, signaling: TopicSignaling) -> None:
        while True:
            await connection.setRemoteDescription(await signaling.receive())

    async def scenario(url: str) -> None:
        ada, connection = TopicSignaling(url), RTCPeerConnection()
        good = RTCSessionDescription(sdp="v=0\r\n", type="offer")
        async with asyncio.timeout(SECONDS), join(url) as mallory:
            await ada.connect()
            [target] = [message.peer_id async for message in first(mallory, PeerJoined)]
            incomplete = {"sdp": "v=0\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n"}
            await mallory.deliver("offer", target, incomplete)
            with pytest.raises(ValueError, match="ICE username fragment or password is missing"):
                await consume(connection, ada)
            await mallory.deliver("offer", target, {"sdp": good.sdp})
            assert await ada.receive() == good
            await connection.close()
            await ada.close()

    asyncio.run(scenario(room))


def test_closing_ends_the_calls_that_wait_for_a_server() -> None:
    async def scenario() -> None:
        url = f"ws://127.0.0.1:{free_port()}/ws/room"
        signalings = [TopicSignaling(url) for _ in range(3)]
        calls = [signalings[0].connect(), signalings[1].send(BYE), signalings[2].receive()]
        waiting = asyncio.gather(*calls, return_exceptions=True)
        await asyncio.wait([waiting], timeout=0.1)
        async with asyncio.timeout(SECONDS):
            for signaling in signalings:
                await signaling.close()
            connected, sent, received = await waiting
        assert isinstance(connected, asyncio.CancelledError)
        assert (sent, received) == (None, BYE)

    asyncio.run(scenario())


async def deliver_all(signaling: Signaling, target: str, payloads: list) -> None:
    for payload in payloads:
        await signaling.deliver("offer", target, payload)


async def first(signaling: Signaling, kind: type) -> AsyncIterator[object]:
    """Pass on the first message of a kind."""
    async for message in signaling:
        if isinstance(message, kind):
            yield message
            return


def test_a_peer_that_sends_more_than_the_program_receives_is_told_dropped(room: str) -> None:
    async def scenario(url: str) -> None:
        ada = TopicSignaling(url)
        async with asyncio.timeout(SECONDS), join(url) as mallory:
            await ada.connect()
            [target] = [message.peer_id async for message in first(mallory, PeerJoined)]
            offer = {"type": "offer", "sdp": "v=0\r\n" + "x" * 60_000}
            with pytest.raises(NotDelivered, match="dropped"):
                await deliver_all(mallory, target, [offer] * 2_000)
            # It is read again once the program receives.
            sending = asyncio.create_task(deliver(mallory, "offer", target, {"type": "offer", "sdp": "the last"}))
            while (await ada.receive()).sdp != "the last":
                pass
            await sending
            await ada.close()

    asyncio.run(scenario(room))


@pytest.mark.parametrize("earlier", ["ada", "ben"])
def test_of_two_offers_that_meet_that_of_the_earlier_peer_stands(earlier: str, room: str) -> None:
    async def scenario(url: str) -> None:
        ada, ben = TopicSignaling(url), TopicSignaling(url)
        peers = {"ada": ada, "ben": ben}
        async with asyncio.timeout(SECONDS):
            first = peers.pop(earlier)
            [second] = peers.values()
            await first.connect()
            await second.connect()
            await first.send(RTCSessionDescription(sdp="s=first\r\n", type="offer"))
            await second.send(RTCSessionDescription(sdp="s=second\r\n", type="offer"))
            assert (await second.receive()).sdp == "s=first\r\n"
            await second.send(RTCSessionDescription(sdp="s=answer\r\n", type="answer"))
            assert (await first.receive()).sdp == "s=answer\r\n"
            await first.close()
            await second.close()

    asyncio.run(scenario(room))


def test_a_description_that_is_longer_than_the_server_takes_is_an_error_at_once(room: str) -> None:
    async def scenario(url: str) -> None:
        ada = TopicSignaling(url)
        async with asyncio.timeout(SECONDS), join(url):
            with pytest.raises(ValueError, match="at most 65,536"):
                await ada.send(RTCSessionDescription(sdp="x" * 70_000, type="offer"))
            await ada.close()

    asyncio.run(scenario(room))


def test_a_server_that_takes_less_than_it_was_told_to_ends_the_sending() -> None:
    async def scenario(url: str) -> None:
        ada = TopicSignaling(url)
        async with asyncio.timeout(SECONDS), join(url):
            for _ in range(2):
                with pytest.raises(NotDelivered, match=r"too_large: .+ limit of 4096 octets"):
                    await ada.send(RTCSessionDescription(sdp="x" * 10_000, type="offer"))
            await ada.close()

    with running(["--port=0", "--max-message-bytes=4096"]) as server:
        asyncio.run(scenario(server.url + "room"))


class Member:
    """A peer of a mesh that says hello on a data channel to each of the others."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.received: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.id = ""

    async def run(self) -> None:
        async with join(self._url) as self.signaling:
            self.id = self.signaling.self_id
            self.mesh = Mesh(self.signaling, on_open=self._greet, on_data=self._hear)
            await self.mesh.run()

    def _greet(self, peer: MeshPeer) -> None:
        peer.send(f"hello from {self.id}")

    def _hear(self, peer: MeshPeer, data: str | bytes) -> None:
        self.received.put_nowait((peer.id, str(data)))


def test_a_mesh_connects_everyone_to_everyone(room: str) -> None:
    async def scenario(url: str) -> None:
        members = [Member(url) for _ in range(3)]
        running_members = [asyncio.create_task(member.run()) for member in members]
        async with asyncio.timeout(SECONDS):
            for member in members:
                received = {await member.received.get() for _ in range(2)}
                others = {other.id for other in members} - {member.id}
                assert received == {(other, f"hello from {other}") for other in others}
            await members[0].signaling.leave()
            await running_members[0]
            assert members[0].mesh.peers == {}
            async with join(url) as observer:
                await members[1].signaling.leave()
                await anext(message async for message in observer if isinstance(message, PeerLeft))
            await members[2].signaling.leave()
            await asyncio.gather(*running_members)

    asyncio.run(scenario(room))


def test_a_connection_that_is_closed_at_the_moment_at_which_it_is_there_leaves_no_task_behind(
    room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running_meshes: list[asyncio.Task[None]] = []
    complete = aioice.ice.Connection.check_complete

    def complete_and_end(connection: aioice.ice.Connection, pair: object) -> None:
        complete(connection, pair)
        if connection._check_list_done:
            for running_mesh in running_meshes:
                running_mesh.cancel()

    monkeypatch.setattr(aioice.ice.Connection, "check_complete", complete_and_end)

    async def scenario(url: str) -> None:
        async with asyncio.timeout(SECONDS):
            async with join(url) as ada, join(url) as bob:
                running_meshes.extend(asyncio.create_task(Mesh(signaling).run()) for signaling in (ada, bob))
                await asyncio.wait(running_meshes)
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.02)

    asyncio.run(scenario(room))


async def picture(url: str) -> None:
    """Be a peer without tracks until a picture of another one has come."""
    seen = asyncio.Event()
    watching: list[asyncio.Task[None]] = []

    async def watch(track: MediaStreamTrack) -> None:
        await track.recv()
        seen.set()

    def show(track: MediaStreamTrack) -> None:
        if track.kind == "video":
            watching.append(asyncio.create_task(watch(track)))

    def prepare(peer: MeshPeer) -> None:
        peer.connection.on("track", show)

    async with join(url) as signaling:
        running_mesh = asyncio.create_task(Mesh(signaling, prepare).run())
        await seen.wait()
        await signaling.leave()
        await running_mesh


def test_a_peer_that_joins_later_gets_the_tracks_for_which_its_offer_has_no_room(room: str) -> None:
    def prepare(peer: MeshPeer) -> None:
        peer.connection.addTrack(VideoStreamTrack())
        peer.connection.addTrack(AudioStreamTrack())

    async def scenario(url: str) -> None:
        async with asyncio.timeout(SECONDS), join(url) as signaling:
            sending = asyncio.create_task(Mesh(signaling, prepare).run())
            await picture(url)
            await signaling.leave()
            await sending

    asyncio.run(scenario(room))
