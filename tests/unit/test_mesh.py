"""The Python mesh with made-up connections, signaling and time."""

from __future__ import annotations

import asyncio
import itertools
import re
import selectors
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiortc import RTCSessionDescription
from OpenSSL import SSL

from signaling.client import mesh as module
from signaling.client.connection import Signaling
from signaling.client.errors import NotDelivered
from signaling.client.mesh import Mesh, MeshPeer
from signaling.client.messages import (
    Answer,
    IceCandidate,
    Notice,
    Offer,
    Peer,
    PeerJoined,
    PeerLeft,
    PeerList,
    PeerUpdated,
    Welcome,
)

NUMBERS = itertools.count(1)


class FakeTime(selectors.SelectSelector):
    """Time passes only while the loop has nothing to do, and then at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        assert ready or timeout is not None, "nothing will ever happen"
        return ready


def play(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario in a loop without real time."""
    selector = FakeTime()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(scenario)


def sdp(fingerprint: object, section: str = "application 9 UDP/DTLS/SCTP webrtc-datachannel") -> str:
    return f"v=0\r\na=fingerprint:sha-256 {fingerprint}\r\nm={section}\r\na=ice-ufrag:{fingerprint}\r\n"


class FakeChannel:
    """A data channel."""

    readyState = "open"
    bufferedAmount = 0

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.listeners: dict[str, Callable[..., None]] = {}

    def on(self, event: str, listener: Callable[..., None]) -> None:
        self.listeners[event] = listener

    def send(self, data: str) -> None:
        self.sent.append(data)


class FakeTransport:
    """A DTLS transport."""

    def __init__(self) -> None:
        self.state = "new"
        self.shutdown = 0
        self.transport = SimpleNamespace(_connection=SimpleNamespace())
        self._ssl = SimpleNamespace(get_shutdown=lambda: self.shutdown)
        self._changed: list[Callable[[], None]] = []

    def on(self, event: str, listener: Callable[[], None]) -> None:
        assert event == "statechange"
        self._changed.append(listener)

    def become(self, state: str) -> None:
        """Change the transport's state."""
        self.state = state
        for listener in self._changed:
            listener()


class FakeTransceiver:
    """What sends the track of a test; each offer that has a section for video has room for it."""

    mid: str | None = None
    _offerDirection: str | None = None

    def __init__(self) -> None:
        self.receiver = SimpleNamespace(transport=FakeTransport())


class FakeConnection:
    """As much of an ``RTCPeerConnection`` as the mesh uses."""

    made: list[FakeConnection]
    rejects = False

    def __init__(self, configuration: object = None) -> None:
        self.made.append(self)
        self.signalingState = "stable"
        self.connectionState = "new"
        self.localDescription: Any = None
        self.remoteDescription: Any = None
        self.candidates = 0
        self.sctp = SimpleNamespace(mid="0", transport=FakeTransport())
        self.transceivers: list[FakeTransceiver] = []
        self._number = f"own-{next(NUMBERS)}"
        self._changed: Callable[[], None] = lambda: None

    def on(self, event: str, listener: Callable[[], None]) -> None:
        self._changed = listener

    def become(self, state: str) -> None:
        """Change the connection's state."""
        self.connectionState = state
        self._changed()

    def createDataChannel(self, label: str, *, negotiated: bool, id: int) -> FakeChannel:  # noqa: A002
        assert (label, negotiated, id) == ("mesh", True, 0)
        return FakeChannel()

    def getTransceivers(self) -> list[FakeTransceiver]:
        return self.transceivers

    async def createOffer(self) -> Any:
        return RTCSessionDescription(sdp(self._number), "offer")

    async def createAnswer(self) -> Any:
        assert all(each._offerDirection for each in self.transceivers), "aiortc raises ValueError"
        return RTCSessionDescription(sdp(self._number), "answer")

    async def setLocalDescription(self, description: Any) -> None:
        self.localDescription = description
        if description.type == "offer":
            self._take_in("own")
        self.signalingState = "have-local-offer" if description.type == "offer" else "stable"

    async def setRemoteDescription(self, description: Any) -> None:
        if self.rejects:
            raise ValueError("rejected")
        self.remoteDescription = description
        if "m=video " in description.sdp:
            self._take_in("theirs")
        self.signalingState = "have-remote-offer" if description.type == "offer" else "stable"

    def _take_in(self, mid: str) -> None:
        for transceiver in self.transceivers:
            transceiver.mid, transceiver._offerDirection = mid, "sendrecv"

    async def addIceCandidate(self, candidate: object) -> None:
        self.candidates += 1

    async def close(self) -> None:
        if self.connectionState == "connected":
            self.sctp.transport.shutdown = SSL.SENT_SHUTDOWN
        self.become("closed")

    def lose_path(self) -> None:
        """End as aiortc does if the path to the other peer breaks."""
        self.become("closed")

    def end_by_peer(self) -> None:
        """End as aiortc does if the other side closes the connection."""
        self.sctp.transport.shutdown = SSL.RECEIVED_SHUTDOWN
        self.become("closed")


class Topic:
    """The signaling of a mesh, played by the test, and the mesh."""

    def __init__(self, self_id: str, **options: Any) -> None:
        self.self_id = self_id
        self.peers: dict[str, dict[str, Any]] = {}
        self.ice_servers: list[Any] = []
        self.sent: list[tuple[str, str]] = []
        self.refuses: dict[str, NotDelivered] = {}
        self._events: asyncio.Queue[object] = asyncio.Queue()
        self.mesh = Mesh(cast("Signaling", self), **options)
        self._running = asyncio.create_task(self.mesh.run())

    def __aiter__(self) -> Topic:
        return self

    async def __anext__(self) -> object:
        event = await self._events.get()
        if event is None:
            raise StopAsyncIteration
        return event

    async def deliver(self, kind: str, to: str, payload: dict[str, str]) -> None:
        await asyncio.sleep(0)
        self.sent.append((kind, to))
        if to in self.refuses:
            raise self.refuses[to]

    # What happens in the topic

    async def event(self, event: object) -> None:
        """Let the mesh react to an event."""
        match event:
            case PeerJoined(peer_id, metadata):
                self.peers[peer_id] = metadata or {}
            case PeerLeft(peer_id):
                self.peers.pop(peer_id)
            case Welcome(self_id):
                self.self_id = self_id
        self._events.put_nowait(event)
        await asyncio.sleep(0.01)

    async def join(self, peer_id: str, instance: str | None = None) -> None:
        await self.event(PeerJoined(peer_id, {"instance": instance} if instance else None))

    async def connect(self, peer_id: str, instance: str | None = None) -> MeshPeer:
        """Let a peer join that answers."""
        await self.join(peer_id, instance)
        await self.event(Answer(peer_id, {"sdp": sdp(peer_id)}))
        peer = self.mesh.peers[peer_id]
        peer.connection.become("connected")
        return peer

    async def offer(self, peer_id: str, fingerprint: object) -> None:
        await self.event(Offer(peer_id, {"sdp": sdp(fingerprint)}))

    async def end(self) -> None:
        self._events.put_nowait(None)
        await self._running
        assert self.mesh.peers == {}
        assert {made.connectionState for made in FakeConnection.made} <= {"closed"}


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> list[FakeConnection]:
    FakeConnection.made = []
    monkeypatch.setattr(module, "RTCPeerConnection", FakeConnection)
    return FakeConnection.made


def test_the_peer_that_joined_later_offers_a_channel() -> None:
    async def scenario() -> None:
        opened: list[MeshPeer] = []
        heard: list[object] = []
        topic = Topic("b", on_open=opened.append, on_data=lambda peer, data: heard.append((peer.id, data)))
        topic.peers = {"a": {}, "c": {}}
        await topic.event(PeerList([Peer("a"), Peer("c")]))
        await topic.offer("c", "c")
        assert topic.sent == [("offer", "a"), ("answer", "c")]
        assert {peer.id: peer.offers for peer in topic.mesh.peers.values()} == {"a": True, "c": False}
        peer = topic.mesh.peers["c"]
        cast("FakeChannel", peer.channel).listeners["open"]()
        cast("FakeChannel", peer.channel).listeners["message"]("hello")
        assert (opened, heard) == ([peer], [("c", "hello")])
        await topic.end()

    play(scenario())


def test_a_peer_that_comes_back_keeps_its_connection() -> None:
    async def scenario() -> None:
        topic = Topic("b")
        peer = await topic.connect("a", "ada")
        connection = peer.connection
        await topic.event(PeerLeft("a"))
        await topic.join("c", "ada")
        await topic.event(PeerLeft("c"))
        await topic.join("d", "ada")
        assert topic.mesh.peers == {"d": peer}
        assert (peer.id, peer.metadata, peer.connection) == ("d", {"instance": "ada"}, connection)
        assert (len(FakeConnection.made), connection.connectionState) == (1, "connected")
        await topic.end()

    play(scenario())


def test_a_peer_that_comes_back_with_its_id_keeps_its_connection() -> None:
    async def scenario() -> None:
        topic = Topic("b")
        peer = await topic.connect("a", "one")
        for _ in range(2):
            await topic.event(PeerLeft("a"))
            await topic.join("a", "one")
            await asyncio.sleep(module.GRACE_SECONDS)
        assert topic.mesh.peers == {"a": peer}
        await topic.end()

    play(scenario())


def test_an_id_that_is_reused_for_another_peer_leaves_no_connection_behind() -> None:
    async def scenario() -> None:
        topic = Topic("z")
        await topic.connect("a", "one")
        other = await topic.connect("b", "two")
        await topic.event(PeerLeft("a"))
        await topic.join("a", "two")
        await topic.event(PeerLeft("b"))
        assert topic.mesh.peers == {"a": other}
        await topic.end()

    play(scenario())


def test_a_peer_whose_former_id_leaves_later_keeps_its_connection() -> None:
    async def scenario() -> None:
        topic = Topic("x")
        peer = await topic.connect("a", "ada")
        await topic.join("b", "ada")
        assert topic.mesh.peers == {"a": peer}
        await topic.event(PeerLeft("a"))
        assert topic.mesh.peers == {"b": peer}
        assert len(FakeConnection.made) == 1
        await topic.end()

    play(scenario())


def test_updates_change_what_a_mesh_shows_of_a_peer_and_how_it_is_recognised() -> None:
    async def scenario() -> None:
        updated: list[MeshPeer] = []
        topic = Topic("z", on_update=updated.append)
        peer = await topic.connect("a", "one")
        await topic.event(PeerUpdated("a", {"name": "Ada", "instance": "two"}))
        await topic.event(PeerUpdated("nobody", {"name": "Nobody"}))
        assert (updated, peer.metadata) == ([peer], {"name": "Ada", "instance": "two"})
        await topic.event(PeerLeft("a"))
        await topic.join("b", "one")
        await topic.join("c", "two")
        assert topic.mesh.peers["c"] is peer
        await topic.event(PeerUpdated("c"))
        assert (updated, peer.metadata) == ([peer, peer], {})
        await topic.end()

    play(scenario())


def test_a_mesh_passes_notices_on() -> None:
    async def scenario() -> None:
        notices: list[object] = []
        topic = Topic("z", on_notice=notices.append)
        await topic.event(Notice({"text": "soon"}))
        await topic.event(Notice())
        assert notices == [{"text": "soon"}, None]
        await topic.end()

    play(scenario())


def test_a_copied_instance_takes_no_connection() -> None:
    async def scenario() -> None:
        topic = Topic("x")
        peer = await topic.connect("a", "ada")
        await topic.join("b", "ada")
        await topic.join("c", "ada")
        await topic.event(PeerLeft("a"))
        # Nobody knows which of the two it is, until one shows the certificate.
        assert topic.mesh.peers == {"a": peer}
        await topic.offer("c", "a")
        assert topic.mesh.peers["c"] is peer
        await topic.end()

    play(scenario())


def test_of_two_connected_peers_with_one_instance_neither_takes_the_others_connection() -> None:
    async def scenario() -> None:
        topic = Topic("x")
        one = await topic.connect("a", "ada")
        await topic.join("b", "ada")
        await topic.offer("b", "b")
        other = topic.mesh.peers["b"]
        await topic.event(PeerLeft("a"))
        assert topic.mesh.peers == {"a": one, "b": other}
        await topic.end()

    play(scenario())


@pytest.mark.parametrize(("instance", "fingerprint"), [("ada", "c"), ("mallory", "a"), (None, "a")])
def test_an_offer_continues_a_connection_only_with_its_instance_and_its_certificate(
    instance: str | None, fingerprint: str
) -> None:
    async def scenario() -> None:
        topic = Topic("b")
        peer = await topic.connect("a", "ada")
        await topic.join("c", instance)
        await topic.offer("c", fingerprint)
        assert topic.mesh.peers["a"] is peer
        assert topic.mesh.peers["c"] is not peer
        await topic.end()

    play(scenario())


def test_an_offer_with_the_certificate_of_a_connection_continues_it() -> None:
    async def scenario() -> None:
        topic = Topic("b")
        peer = await topic.connect("a", "ada")
        await topic.join("c", "ada")
        await topic.offer("c", "a")
        assert topic.mesh.peers == {"c": peer}
        assert (topic.sent[-1], len(FakeConnection.made)) == (("answer", "c"), 1)
        await topic.end()

    play(scenario())


@pytest.mark.parametrize(("instance", "seconds"), [("ada", 60), (None, 0)])
def test_a_peer_that_does_not_come_back_is_closed(instance: str | None, seconds: int) -> None:
    async def scenario() -> None:
        topic = Topic("b")
        peer = await topic.connect("a", instance)
        await topic.event(PeerLeft("a"))
        if seconds:
            await asyncio.sleep(seconds - 1)
            assert topic.mesh.peers == {"a": peer}
            await asyncio.sleep(1)
        assert topic.mesh.peers == {}
        assert peer.connection.connectionState == "closed"
        await topic.end()

    play(scenario())


@pytest.mark.parametrize("state", ["failed", "closed"])
def test_a_peer_that_left_and_is_lost_is_closed_at_once(state: str) -> None:
    async def scenario() -> None:
        topic = Topic("b")
        peer = await topic.connect("a", "ada")
        await topic.event(PeerLeft("a"))
        peer.connection.become(state)
        assert topic.mesh.peers == {}
        await topic.end()

    play(scenario())


def test_connections_go_on_when_this_peer_gets_another_id() -> None:
    async def scenario() -> None:
        topic = Topic("b")
        peer = await topic.connect("a", "ada")
        await topic.event(Welcome("c"))
        assert topic.mesh.peers == {"a": peer}
        assert len(FakeConnection.made) == 1
        await topic.end()

    play(scenario())


def test_what_was_not_connected_begins_anew_when_this_peer_gets_another_id() -> None:
    async def scenario() -> None:
        topic = Topic("b")
        await topic.join("a", "ada")
        before = topic.mesh.peers["a"]
        await topic.event(Welcome("c"))
        assert topic.mesh.peers["a"] is not before
        assert topic.sent == [("offer", "a")] * 2
        await topic.end()

    play(scenario())


def test_a_peer_whose_connection_was_closed_is_connected_when_this_peer_gets_another_id() -> None:
    async def scenario() -> None:
        topic = Topic("b")
        peer = await topic.connect("a", "ada")
        # aiortc reports a lost network as "closed" if it was sending.
        await peer.connection.close()
        await asyncio.sleep(1)
        assert topic.mesh.peers == {}
        await topic.event(Welcome("c"))
        assert list(topic.mesh.peers) == ["a"]
        assert topic.sent == [("offer", "a")] * 2
        await topic.end()

    play(scenario())


def test_an_offer_to_a_former_id_does_not_meet_that_of_the_new_one() -> None:
    async def scenario() -> None:
        topic = Topic("b")
        await topic.join("a", "ada")
        await topic.join("c", "ada")
        await topic.event(PeerLeft("a"))
        # From now on the other side offers, and this one waits.
        await topic.offer("c", "c")
        assert topic.sent == [("offer", "a"), ("answer", "c")]
        assert list(topic.mesh.peers) == ["c"]
        await topic.end()

    play(scenario())


@pytest.mark.parametrize(("another_id", "offers"), [(True, 2), (False, 1)])
def test_a_connection_that_the_other_side_closes_is_made_again_only_after_a_new_id(
    another_id: bool, offers: int
) -> None:
    async def scenario() -> None:
        topic = Topic("b")
        peer = await topic.connect("a", "ada")
        if another_id:
            # A peer that does not know the instance closes the connection to the former id.
            await topic.event(Welcome("c"))
        await peer.connection.close()
        await asyncio.sleep(1)
        assert topic.sent == [("offer", "a")] * offers
        assert len(topic.mesh.peers) == offers - 1
        await topic.end()

    play(scenario())


def test_a_failed_connection_is_made_again_by_the_side_that_offers() -> None:
    async def scenario() -> None:
        topic = Topic("b")
        peer = await topic.connect("a")
        await topic.join("c")
        await topic.offer("c", "c")
        for each in (peer, topic.mesh.peers["c"]):
            each.connection.become("failed")
            await each.connection.close()
        await asyncio.sleep(1)
        assert topic.sent == [("offer", "a"), ("answer", "c"), ("offer", "a")]
        assert list(topic.mesh.peers) == ["a"]
        await topic.end()

    play(scenario())


def test_a_connection_whose_path_broke_is_made_again_by_the_side_that_offers() -> None:
    async def scenario() -> None:
        topic = Topic("b")
        peers = [await topic.connect("a")]
        await topic.join("c")
        await topic.offer("c", "c")
        peers.append(topic.mesh.peers["c"])
        peers[1].connection.become("connected")
        for peer in peers:
            cast("Any", peer.connection).lose_path()
        await asyncio.sleep(1)
        assert topic.sent == [("offer", "a"), ("answer", "c"), ("offer", "a")]
        assert list(topic.mesh.peers) == ["a"]
        # The other side of the second one notices it later.
        await topic.offer("c", "c2")
        assert topic.sent[-1] == ("answer", "c")
        assert topic.mesh.peers["c"] not in peers
        await topic.end()

    play(scenario())


def test_a_connection_that_the_other_side_of_it_closed_is_not_made_again() -> None:
    async def scenario() -> None:
        topic = Topic("b")
        peer = await topic.connect("a")
        cast("Any", peer.connection).end_by_peer()
        await asyncio.sleep(1_000)
        assert (topic.sent, topic.mesh.peers) == ([("offer", "a")], {})
        await topic.end()

    play(scenario())


def test_a_transport_that_was_never_used_says_nothing_about_the_path() -> None:
    async def scenario() -> None:
        topic = Topic("b", prepare=add_track)
        await topic.join("a")
        await topic.event(Answer("a", {"sdp": sdp("a", "video 9 UDP/TLS/RTP/SAVPF 96")}))
        connection = cast("Any", topic.mesh.peers["a"].connection)
        connection.become("connected")
        # It comes with a section that the other side has not bundled.
        connection.transceivers[0].receiver.transport._ssl = None
        connection.lose_path()
        await asyncio.sleep(0.1)
        assert topic.sent == [("offer", "a")] * 2
        await topic.end()

    play(scenario())


def test_a_connection_that_the_application_closed_is_not_made_again() -> None:
    async def scenario() -> None:
        topic = Topic("b")
        peer = await topic.connect("a")
        await peer.connection.close()
        await asyncio.sleep(1_000)
        assert (topic.sent, topic.mesh.peers) == ([("offer", "a")], {})
        await topic.end()

    play(scenario())


async def fail(topic: Topic, peer_id: str) -> None:
    """Let a peer answer, and its connection fail."""
    await topic.event(Answer(peer_id, {"sdp": sdp(peer_id)}))
    connection = cast("FakeConnection", topic.mesh.peers[peer_id].connection)
    connection.become("failed")


def test_connections_to_a_peer_that_cannot_be_reached_are_made_ever_more_rarely() -> None:
    async def scenario() -> None:
        topic = Topic("b")
        peer = await topic.connect("a")
        cast("Any", peer.connection).lose_path()
        await asyncio.sleep(0.1)
        times = []
        while len(FakeConnection.made) < 12:
            made = len(FakeConnection.made)
            await fail(topic, "a")
            while len(FakeConnection.made) == made:
                await asyncio.sleep(0.1)
            times.append(asyncio.get_running_loop().time())
        pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
        for pause, most in zip(pauses, [16, 32, *[60] * 8], strict=False):
            assert most / 2 <= pause <= most + 1
        # Once it is reached, the next one is made at once.
        topic.sent.clear()
        await topic.event(Answer("a", {"sdp": sdp("a")}))
        found = cast("Any", topic.mesh.peers["a"].connection)
        found.become("connected")
        await asyncio.sleep(10)
        found.lose_path()
        await asyncio.sleep(0.1)
        assert topic.sent == [("offer", "a")]
        await topic.end()

    play(scenario())


@pytest.mark.parametrize("ending", ["leaves", "offers", "comes back", "comes back and offers"])
def test_a_pause_before_the_next_connection_ends_with_what_the_peer_does(ending: str) -> None:
    async def scenario() -> None:
        topic = Topic("b")
        await topic.join("a", "ada")
        await fail(topic, "a")
        await asyncio.sleep(0.1)
        await fail(topic, "a")
        topic.sent.clear()
        expected = []
        match ending:
            case "leaves":
                await topic.event(PeerLeft("a"))
            case "offers":
                await topic.offer("a", "new")
                topic.mesh.peers["a"].connection.become("connected")
                expected = [("answer", "a")]
            case "comes back":
                await topic.join("a2", "ada")
                await topic.event(PeerLeft("a"))
                await topic.event(Answer("a2", {"sdp": sdp("a2")}))
                topic.mesh.peers["a2"].connection.become("connected")
                expected = [("offer", "a2")]
            case "comes back and offers":
                await topic.join("c", "ada")
                await topic.event(PeerLeft("a"))
                assert topic.mesh.peers == {}
                await topic.offer("c", "new")
                topic.mesh.peers["c"].connection.become("connected")
                expected = [("answer", "c")]
        await asyncio.sleep(1_000)
        assert topic.sent == expected
        await topic.end()

    play(scenario())


def test_in_a_full_mesh_a_peer_that_cannot_be_reached_gives_its_place_to_one_that_waits() -> None:
    async def scenario() -> None:
        topic = Topic("z", max_connections=1)
        await topic.join("a")
        await topic.join("b")
        await fail(topic, "a")
        await asyncio.sleep(0.1)
        await fail(topic, "a")
        await asyncio.sleep(2)
        assert list(topic.mesh.peers) == ["b"]
        # It waits in its turn.
        await topic.event(PeerLeft("b"))
        await asyncio.sleep(2)
        assert list(topic.mesh.peers) == ["a"]
        await topic.end()

    play(scenario())


def test_an_offer_without_an_answer_is_repeated_ever_more_rarely() -> None:
    async def scenario() -> None:
        topic = Topic("b")
        await topic.join("a")
        await asyncio.sleep(10 + 20 + 40 + 80 + 120 + 1)
        assert topic.sent == [("offer", "a")] * 6
        assert len(FakeConnection.made) == 1
        await topic.end()

    play(scenario())


def test_a_rejected_answer_ends_the_attempt(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        topic = Topic("b")
        other = await topic.connect("0")
        await topic.join("a")
        FakeConnection.made[-1].rejects = True
        await topic.event(Answer("a", {"sdp": sdp("a")}))
        await asyncio.sleep(1_000)
        assert topic.sent == [("offer", "0"), ("offer", "a")]
        assert topic.mesh.peers == {"0": other}
        # The peer may try again.
        await topic.offer("a", "new")
        assert topic.sent[-1] == ("answer", "a")
        await topic.end()

    play(scenario())
    assert re.fullmatch(r"the negotiation with a failed: ValueError \(test_mesh\.py, line \d+\)", caplog.messages[0])


def test_rejected_offers_are_slowed_down_and_cost_no_other_peer_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        topic = Topic("b")
        other = await topic.connect("a")
        await topic.join("mallory")
        monkeypatch.setattr(FakeConnection, "rejects", True)
        for number in range(3_000):
            await topic.offer("mallory", number)
        assert len(FakeConnection.made) - 1 <= 5 + 30 / 10 + 1
        monkeypatch.setattr(FakeConnection, "rejects", False)
        assert topic.mesh.peers["a"] is other
        for number in range(50):
            await topic.connect(f"a{number}")
        await topic.end()

    play(scenario())


def test_of_offers_that_wait_the_latest_counts() -> None:
    async def scenario() -> None:
        topic = Topic("b")
        await topic.join("c")
        for number in range(8):
            await topic.offer("c", number)
        assert len(FakeConnection.made) == 5
        await asyncio.sleep(11)
        assert len(FakeConnection.made) == 6
        assert "sha-256 7" in topic.mesh.peers["c"].connection.remoteDescription.sdp
        await topic.end()

    play(scenario())


def test_a_peer_that_begins_anew_takes_nothing_from_new_peers() -> None:
    async def scenario() -> None:
        topic = Topic("b", max_connections=3)
        await topic.join("mallory")
        for number in range(5):
            await topic.offer("mallory", number)
        before = asyncio.get_running_loop().time()
        await topic.connect("a")
        await topic.connect("a2")
        assert asyncio.get_running_loop().time() - before < 0.1
        await topic.end()

    play(scenario())


def test_an_offer_that_nobody_can_read_takes_no_room() -> None:
    async def scenario() -> None:
        topic = Topic("b", max_connections=1)
        for peer_id in ("c", "d"):
            await topic.join(peer_id)
            await topic.event(Offer(peer_id, {"sdp": 7}))
        await topic.connect("a")
        await topic.end()

    play(scenario())


def test_an_application_that_fails_to_prepare_is_not_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[str] = []

    def prepare(peer: MeshPeer) -> None:
        asked.append(peer.id)
        raise RuntimeError("oops")

    async def scenario() -> None:
        topic = Topic("b", prepare=prepare)
        await topic.join("a")
        await topic.join("c")
        await topic.offer("c", "c")
        await asyncio.sleep(1_000)
        assert asked == ["a", "c"]
        assert (topic.sent, topic.mesh.peers) == ([], {})
        await topic.end()

    play(scenario())
    assert "oops" in caplog.text


@pytest.mark.parametrize("code", ["too_large", "forbidden"])
def test_a_description_that_is_refused_is_not_sent_again(code: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        topic = Topic("c")
        topic.refuses["a"] = NotDelivered(code, "at most 4096 bytes")
        await topic.join("a")
        other = await topic.connect("b")
        await asyncio.sleep(1_000)
        assert topic.sent == [("offer", "a"), ("offer", "b")]
        assert topic.mesh.peers == {"b": other}
        await topic.end()

    play(scenario())
    assert "at most 4096 bytes" in caplog.text


def test_further_peers_wait_until_there_is_room() -> None:
    async def scenario() -> None:
        topic = Topic("m", max_connections=2)
        first = await topic.connect("a")
        await topic.connect("b")
        await topic.join("c")
        await topic.join("z")
        await topic.offer("z", "z")
        assert list(topic.mesh.peers) == ["a", "b"]
        await first.connection.close()
        await asyncio.sleep(2)
        assert list(topic.mesh.peers) == ["b", "c"]
        await topic.event(PeerLeft("b"))
        await asyncio.sleep(2)
        # It has offered, and was not heard, so this side offers; its own repetition is ignored.
        assert topic.sent[-1] == ("offer", "z")
        await topic.offer("z", "z2")
        assert topic.sent[-1] == ("offer", "z")
        await topic.event(Answer("z", {"sdp": sdp("z")}))
        assert topic.mesh.peers["z"].connection.remoteDescription is not None
        await topic.end()

    play(scenario())


def test_candidates_have_a_bound_and_bad_ones_cost_no_connection() -> None:
    async def scenario() -> None:
        topic = Topic("b")
        peer = await topic.connect("a")
        good = {"candidate": "candidate:1 1 udp 1 192.0.2.1 9 typ host", "sdpMid": "0"}
        for payload in [{"candidate": "candidate:"}, None, *[good] * 200]:
            await topic.event(IceCandidate("a", payload))
        assert topic.mesh.peers == {"a": peer}
        assert peer.connection.candidates == 98
        await topic.end()

    play(scenario())


def test_a_peer_without_a_data_channel_gets_none() -> None:
    async def scenario() -> None:
        topic = Topic("b")
        await topic.join("c")
        await topic.event(Offer("c", {"sdp": sdp("c", "audio 9 UDP/TLS/RTP/SAVPF 0")}))
        peer = topic.mesh.peers["c"]
        assert peer.channel is None
        assert not peer.send("hello")
        await topic.end()

    play(scenario())


def test_what_a_slow_peer_does_not_read_has_a_bound() -> None:
    async def scenario() -> None:
        topic = Topic("c")
        slow, other = await topic.connect("a"), await topic.connect("b")
        cast("FakeChannel", slow.channel).bufferedAmount = module.MAX_BUFFERED_BYTES + 1
        topic.mesh.broadcast("hello")
        assert [cast("FakeChannel", peer.channel).sent for peer in (slow, other)] == [[], ["hello"]]
        await topic.end()

    play(scenario())


def test_a_listener_that_fails_costs_no_connection(caplog: pytest.LogCaptureFixture) -> None:
    def fail(peer: MeshPeer, data: str | bytes) -> None:
        raise RuntimeError("oops")

    async def scenario() -> None:
        topic = Topic("b", on_data=fail)
        peer = await topic.connect("a")
        cast("FakeChannel", peer.channel).listeners["message"]("hello")
        assert topic.mesh.peers == {"a": peer}
        await topic.end()

    play(scenario())
    assert "oops" in caplog.text


def test_listeners_may_be_coroutine_functions() -> None:
    async def scenario() -> None:
        events: list[object] = []

        async def note(*what: object) -> None:
            await asyncio.sleep(1)
            events.append(what)

        topic = Topic("b", on_open=note, on_data=note, on_update=note, on_notice=note)
        peer = await topic.connect("a")
        listeners = cast("FakeChannel", peer.channel).listeners
        listeners["open"]()
        listeners["message"]("one")
        listeners["message"]("two")
        await topic.event(PeerUpdated("a", {"name": "Ada"}))
        await topic.event(Notice("soon"))
        assert events == []
        # One listener does not wait for another one.
        await asyncio.sleep(1.1)
        assert events == [(peer,), (peer, "one"), (peer,), ("soon",)]
        await asyncio.sleep(1)
        assert events[4:] == [(peer, "two")]
        listeners["message"]("three")
        await topic.end()
        await asyncio.sleep(2)
        assert len(events) == 5

    play(scenario())


def test_a_listener_that_does_not_end_is_cancelled_a_minute_after_the_connection() -> None:
    async def scenario() -> None:
        ended: list[float] = []

        async def hear(peer: MeshPeer, data: str | bytes) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(asyncio.get_running_loop().time())

        topic = Topic("b", on_data=hear)
        peer = await topic.connect("a")
        cast("FakeChannel", peer.channel).listeners["message"]("one")
        await topic.event(PeerLeft("a"))
        left = asyncio.get_running_loop().time()
        await asyncio.sleep(module.GRACE_SECONDS + 1)
        assert ended == [pytest.approx(left + module.GRACE_SECONDS, abs=0.1)]
        await topic.end()

    play(scenario())


def test_a_negotiation_waits_for_prepare() -> None:
    async def prepare(peer: MeshPeer) -> None:
        await asyncio.sleep(1)
        add_track(peer)

    async def scenario() -> None:
        topic = Topic("b", prepare=prepare)
        await topic.join("a")
        await topic.join("c")
        await topic.event(Offer("c", {"sdp": sdp("c", "video 9 UDP/TLS/RTP/SAVPF 96")}))
        assert topic.sent == []
        await asyncio.sleep(1)
        assert sorted(topic.sent) == [("answer", "c"), ("offer", "a")]
        answering = cast("Any", topic.mesh.peers["c"].connection)
        assert [each.mid for each in answering.transceivers] == ["theirs"]
        await topic.end()

    play(scenario())


def test_a_negotiation_does_not_wait_for_a_task_that_prepare_starts() -> None:
    async def scenario() -> None:
        started: list[asyncio.Task[bool]] = []

        def prepare(peer: MeshPeer) -> asyncio.Task[bool]:
            started.append(asyncio.create_task(asyncio.Event().wait()))
            return started[-1]

        topic = Topic("b", prepare=prepare)
        await topic.join("a")
        assert topic.sent == [("offer", "a")]
        await topic.end()
        assert not started[0].done()
        started[0].cancel()

    play(scenario())


def test_run_ends_after_the_calls_of_prepare_that_it_cancels() -> None:
    ended: list[str] = []

    async def prepare(peer: MeshPeer) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)
            ended.append(peer.id)

    async def scenario() -> None:
        topic = Topic("b", prepare=prepare)
        await topic.join("a")
        await topic.end()
        assert ended == ["a"]

    play(scenario())


@pytest.mark.parametrize("what", ["another offer", "a new id", "leaves"])
def test_what_happens_while_an_application_prepares_counts(what: str) -> None:
    cancelled: list[str] = []

    async def prepare(peer: MeshPeer) -> None:
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            cancelled.append(peer.id)
            raise

    async def scenario() -> None:
        topic = Topic("b", prepare=prepare)
        await topic.join("c")
        await topic.offer("c", "one")
        match what:
            case "another offer":
                await topic.offer("c", "two")
                await asyncio.sleep(3)
                assert topic.sent == [("answer", "c")]
                assert "sha-256 two" in topic.mesh.peers["c"].connection.remoteDescription.sdp
            case "a new id":
                await topic.event(Welcome("d"))
                await asyncio.sleep(3)
                # From now on, this side offers.
                assert topic.sent[-1] == ("offer", "c")
            case "leaves":
                await topic.event(PeerLeft("c"))
                await asyncio.sleep(3)
                assert (topic.sent, topic.mesh.peers, cancelled) == ([], {}, ["c"])
        await topic.end()

    play(scenario())


@pytest.mark.parametrize("error", [RuntimeError("oops"), asyncio.CancelledError("oops")])
def test_a_coroutine_function_that_fails_to_prepare_is_not_asked_again(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def prepare(peer: MeshPeer) -> None:
        raise error

    async def scenario() -> None:
        topic = Topic("b", prepare=prepare)
        await topic.join("a")
        await asyncio.sleep(1_000)
        assert (topic.sent, topic.mesh.peers) == ([], {})
        await topic.end()

    play(scenario())
    assert "oops" in caplog.text


def add_track(peer: MeshPeer) -> None:
    cast("Any", peer.connection).transceivers.append(FakeTransceiver())


@pytest.mark.parametrize(("self_id", "offered"), [("a", []), ("c", [("offer", "b")])])
def test_tracks_for_which_an_offer_has_no_room_are_offered_once_the_connection_works(
    self_id: str, offered: list[tuple[str, str]]
) -> None:
    async def scenario() -> None:
        topic = Topic(self_id, prepare=add_track)
        await topic.join("b")
        await topic.offer("b", "b")
        assert topic.sent == [*offered, ("answer", "b")]
        topic.sent.clear()
        peer = topic.mesh.peers["b"]
        transport = cast("Any", peer.connection).sctp.transport
        await asyncio.sleep(1_000)
        transport.become("connecting")
        await asyncio.sleep(1_000)
        assert topic.sent == []
        transport.become("connected")
        await asyncio.sleep(0.01)
        assert topic.sent == [("offer", "b")]
        await topic.event(Answer("b", {"sdp": sdp("b")}))
        # Nothing more is offered, and the connection stays the same.
        await topic.offer("b", "b")
        transport.become("connected")
        await asyncio.sleep(1_000)
        assert topic.sent == [("offer", "b"), ("answer", "b")]
        assert topic.mesh.peers == {"b": peer}
        await topic.end()

    play(scenario())


def test_an_offer_with_room_for_the_tracks_is_only_answered() -> None:
    async def scenario() -> None:
        topic = Topic("a", prepare=add_track)
        await topic.join("b")
        await topic.event(Offer("b", {"sdp": sdp("b", "video 9 UDP/TLS/RTP/SAVPF 96")}))
        cast("Any", topic.mesh.peers["b"].connection).transceivers[0].receiver.transport.become("connected")
        await asyncio.sleep(1_000)
        assert topic.sent == [("answer", "b")]
        await topic.end()

    play(scenario())


@pytest.mark.parametrize(("fingerprint", "sent"), [("b", []), ("another", [("answer", "b")])])
def test_while_tracks_are_offered_only_another_connection_is_answered(
    fingerprint: str, sent: list[tuple[str, str]]
) -> None:
    async def scenario() -> None:
        topic = Topic("a", prepare=add_track)
        await topic.join("b")
        await topic.offer("b", "b")
        first = topic.mesh.peers["b"]
        cast("Any", first.connection).sctp.transport.become("connected")
        await asyncio.sleep(0.01)
        assert topic.sent == [("answer", "b"), ("offer", "b")]
        await topic.offer("b", fingerprint)
        assert topic.sent[2:] == sent
        assert (topic.mesh.peers["b"] is first) == (not sent)
        # The transport of a connection that was replaced changes nothing.
        cast("Any", first.connection).sctp.transport.become("connected")
        await asyncio.sleep(0.01)
        assert topic.sent[2:] == sent
        await topic.end()

    play(scenario())
