"""A session with a secret, without I/O: what it writes is sealed, and what a server changes is reported."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from twisted.internet.task import Clock

from signaling.client import Error, IceCandidate, Offer, Tampered, join
from signaling.client.sealing import REPEATED, UNOPENED, UNSEALED, Sealing
from signaling.client.session import Session
from signaling.client.twisted import SignalingClient

URL = "ws://example.com/ws/my%2Droom?x=/y"
SECRET = "correct horse battery staple"
TOKEN = {"resume": {"token": "t", "window": 20}}


class Played:
    """A session in a topic, and the server that its connection leads to."""

    def __init__(self, secret: str = SECRET, **options: Any) -> None:
        self.session = Session(URL, secret=secret, **options)

    def enter(self, own: str, *others: str, **extra: Any) -> list[Any]:
        self.session.receive(json.dumps({"type": "welcome", "selfId": own, **extra}))
        return self.receive({"type": "peer-list", "peers": [{"id": other} for other in others]})

    def receive(self, *messages: dict[str, Any]) -> list[Any]:
        """Let the session receive messages; returns the events for the application."""
        for message in messages:
            self.session.receive(json.dumps(message))
        return self.session.events()

    def written(self, kind: str = "offer") -> list[dict[str, Any]]:
        return [message for message in map(json.loads, self.session.writes()) if message["type"] == kind]


class Other:
    """Another peer, as it appears on the wire."""

    def __init__(self, own_id: str = "a") -> None:
        self.own_id = own_id
        self.sealing = Sealing(SECRET, b"my-room")

    def seal(self, number: int, payload: Any, to: str = "me") -> dict[str, Any]:
        sealed = self.sealing.seal("offer", self.own_id, to, number, json.dumps(payload).encode())
        return {"type": "offer", "from": self.own_id, "payload": sealed, "msgId": f"~{number}"}

    def open(self, message: dict[str, Any], sender: str = "me") -> Any:
        return self.sealing.open(message["type"], sender, self.own_id, message["payload"], message["msgId"])


@pytest.fixture
def played() -> Played:
    made = Played()
    made.enter("me", "a", **TOKEN)
    return made


def test_payloads_are_sealed_for_their_target(played: Played) -> None:
    for payload in ({"sdp": "v=0"}, None, "ž\ud800"):
        played.session.send("offer", "a", payload)
    written = played.written()
    assert [set(message["payload"]) for message in written] == [{"sealed", "number", "data"}] * 3
    other = Other()
    assert [other.open(message) for message in written] == [{"sdp": "v=0"}, None, "ž\ud800"]


def test_a_message_that_was_sent_before_this_peer_had_an_id_is_sealed_for_that() -> None:
    played = Played()
    played.session.send("offer", "a", 1)
    played.enter("me", "a")
    assert [Other().open(message) for message in played.written()] == [1]


def test_fences_are_not_sealed(played: Played) -> None:
    outcomes: list[Error | None] = []
    played.session.send("offer", "a", 1, outcomes.append)
    [fence] = played.written("ice-candidate")
    assert "payload" not in fence
    assert played.receive({"type": "ice-candidate", "from": "me", "msgId": fence["msgId"]}) == []
    assert outcomes == [None]


def test_after_a_loss_the_same_bytes_are_sent_again(played: Played) -> None:
    played.session.send("offer", "a", 1)
    before = played.written()
    played.session.lost()
    played.enter("me", "a", **TOKEN, resumed=True)
    [fence] = played.written("ice-candidate")
    played.receive({"type": "ice-candidate", "from": "me", "msgId": fence["msgId"]})
    assert played.written() == before


@pytest.mark.parametrize("claims", [{}, {"resumed": True}])
def test_what_was_sealed_under_a_former_id_is_dropped(played: Played, claims: dict[str, bool]) -> None:
    msg_id = played.session.send("offer", "a", 1)
    played.written()
    played.session.lost()
    assert Error("dropped", "it was sent as a peer that is gone", msg_id) in played.enter("new", "a", **TOKEN, **claims)
    played.session.send("offer", "a", 2)
    assert [Other().open(message, "new") for message in played.written()] == [2]


def test_what_a_server_changes_moves_repeats_or_invents_is_reported_and_the_rest_goes_on(played: Played) -> None:
    other = Other()
    first, second, third = (other.seal(number, number) for number in (1, 2, 3))
    forged = {"type": "offer", "from": "a", "payload": {"sdp": "v=0"}, "msgId": "~99999"}
    events = played.receive(
        first,
        forged,
        {**second, "from": "b"},
        {**second, "type": "answer"},
        third,
        first,
        {**first, "msgId": "~7"},
        second,
    )
    assert events == [
        Offer("a", 1, "~1"),
        Tampered("a", "offer", UNSEALED),
        Tampered("b", "offer", UNOPENED),
        Tampered("a", "answer", UNOPENED),
        Offer("a", 3, "~3"),
        # The first one came again as its sender repeats messages after a loss.
        Tampered("a", "offer", REPEATED),
        Tampered("a", "offer", REPEATED),
    ]
    assert played.receive(other.seal(4, 4)) == [Offer("a", 4, "~4")]


def test_numbers_count_across_the_ids_that_this_peer_has_had(played: Played) -> None:
    other = Other()
    old = other.seal(1, "old")
    assert played.receive(old) == [Offer("a", "old", "~1")]
    played.session.lost()
    played.enter("me", "a")  # The server may give the same id again, and repeat what it has.
    assert played.receive({**old, "msgId": "~2"}) == [Tampered("a", "offer", REPEATED)]
    played.session.lost()
    played.enter("another", "a")
    assert played.receive(other.seal(2, "new", to="another")) == [Offer("a", "new", "~2")]


def test_peers_with_another_secret_hear_only_that() -> None:
    played = Played("another secret of this peer")
    played.enter("me", "a")
    assert played.receive(Other().seal(1, 1)) == [Tampered("a", "offer", UNOPENED)]


def test_without_a_secret_nothing_is_opened() -> None:
    session = Session(URL)
    session.receive(json.dumps({"type": "welcome", "selfId": "me"}))
    session.receive(json.dumps({"type": "peer-list", "peers": []}))
    sealed = Other().seal(1, 1)
    session.receive(json.dumps(sealed))
    assert session.events()[-1] == Offer("a", sealed["payload"], "~1")


def test_an_absent_payload_is_none(played: Played) -> None:
    payload = Other().sealing.seal("ice-candidate", "a", "me", 1, b"")
    assert played.receive({"type": "ice-candidate", "from": "a", "payload": payload}) == [IceCandidate("a")]


@pytest.mark.parametrize("room", [0, -1])
def test_the_size_of_the_sealed_message_counts(room: int) -> None:
    text = "x" * 100
    envelope = {"type": "offer", "to": "a", "payload": {"sealed": 1, "number": 1, "data": ""}, "msgId": "~1"}
    size = len(json.dumps(envelope, separators=(",", ":"))) + 174  # 102 bytes of JSON and 28 of the seal, in base64
    played = Played(max_message_bytes=size + room)
    if room < 0:
        with pytest.raises(ValueError, match="max_message_bytes"):
            played.session.send("offer", "a", text)
        return
    played.session.send("offer", "a", text)
    played.enter("me", "a")
    assert len(played.session.writes()[0]) == size


def test_a_secret_that_is_too_short_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="token_urlsafe") as raised:
        join(URL, secret="too short")
    assert "too short" not in str(raised.value)
    with pytest.raises(ValueError, match="token_urlsafe"):
        SignalingClient(URL, print, secret="too short", clock=Clock())


def test_the_client_without_a_secret_needs_no_cryptography() -> None:
    script = """
import sys
sys.modules["cryptography"] = None
from signaling.client import join
join("ws://example.com/ws/room")
try:
    join("ws://example.com/ws/room", secret="correct horse battery staple")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert "pip install 'twisted-signaling[sealed]'" in done.stdout, done.stderr
