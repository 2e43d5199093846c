"""Peers that lose their connection and come back to their session."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from websockets.frames import Frame, Opcode

from tests.integration.harness import Harness, Peer

MakeHarness = Callable[..., Harness]
WINDOW = 30.0


@pytest.fixture
def server(make_server: MakeHarness) -> Harness:
    """One server where sessions can be resumed."""
    return make_server(resume_window_seconds=WINDOW)


@pytest.fixture
def harness(make_harness: MakeHarness) -> Harness:
    """A server where sessions can be resumed."""
    return make_harness(resume_window_seconds=WINDOW)


class Guest:
    """A client that resumes: it counts what it receives, and keeps its latest token."""

    def __init__(self, harness: Harness, topic: str = "room", query: str = "") -> None:
        self._world = harness
        self._topic = topic
        self.seen = 0
        self.token = ""
        self.id = ""
        self.peer = harness.peer(f"/ws/{topic}{query}")
        self.welcome, self.peer_list = self.heard()

    def heard(self) -> list[Any]:
        """Return the messages received since the last time."""
        messages = self.peer.heard()
        for message in messages:
            self.seen += 1
            if message["type"] == "welcome":
                self.seen = self.seen if message.get("resumed") else 1
                self.id, self.token = message["selfId"], message["resume"]["token"]
        return messages

    def lose(self) -> None:
        """Lose the connection without a close frame."""
        self.heard()
        self.peer.reset()

    def come_back(self, topic: str | None = None, token: str | None = None, seen: int | None = None) -> list[Any]:
        """Connect again; returns what comes at once."""
        seen = self.seen if seen is None else seen
        self.peer = self._world.peer(f"/ws/{topic or self._topic}?resume={token or self.token}&seen={seen}")
        return self.heard()

    def offer(self, target: Guest | Peer | str, msg_id: str, payload: Any = None) -> None:
        """Send an offer."""
        self.peer.offer(target if isinstance(target, str) else target.id, msg_id, payload)


def request(query: str) -> bytes:
    return (
        f"GET /ws/room?{query} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()


def offers(messages: list[Any]) -> list[str]:
    return [message["msgId"] for message in messages if message["type"] == "offer"]


def errors(messages: list[Any]) -> list[tuple[str, str]]:
    return [(message["code"], message.get("msgId")) for message in messages if message["type"] == "error"]


def test_off_by_default_nothing_tells_of_it(make_harness: MakeHarness) -> None:
    harness = make_harness()
    peer = harness.peer("/ws/room?resume=anything&seen=none")
    text = peer.texts[0]
    assert text == json.dumps({"type": "welcome", "selfId": json.loads(text)["selfId"]}, separators=(",", ":"))
    observer = harness.join("room")
    peer.reset()
    assert [event["type"] for event in observer.heard()] == ["peer-left"]


def test_the_welcome_brings_a_token_and_the_window(harness: Harness) -> None:
    guest = Guest(harness)
    assert guest.welcome["resume"] == {"token": guest.token, "window": WINDOW}
    assert "resumed" not in guest.welcome
    assert len(guest.token) >= 40


def test_a_lost_connection_is_no_news_for_the_others(harness: Harness) -> None:
    observer, guest = harness.join("room"), Guest(harness)
    observer.heard()
    guest.lose()
    harness.advance(WINDOW - 1)
    assert observer.heard() == []
    assert [peer["id"] for peer in harness.join("room").peers] == [observer.id, guest.id]


def test_who_comes_back_is_the_same_peer(harness: Harness) -> None:
    observer, guest = harness.join("room"), Guest(harness)
    observer.heard()
    peer_id, token = guest.id, guest.token
    guest.lose()
    welcome, peer_list = guest.come_back()
    assert (welcome["selfId"], welcome["resumed"]) == (peer_id, True)
    assert welcome["resume"]["token"] != token
    assert peer_list == {"type": "peer-list", "peers": [{"id": observer.id}]}
    observer.offer(guest.id, "after")
    assert offers(guest.heard()) == ["after"]
    assert observer.heard() == []


def test_what_was_said_meanwhile_arrives_in_order(harness: Harness) -> None:
    sender, guest = harness.join("room"), Guest(harness)
    guest.lose()
    for number in range(5):
        sender.offer(guest.id, str(number))
    assert offers(guest.come_back()) == ["0", "1", "2", "3", "4"]
    assert errors(sender.heard()) == []


def test_what_was_lost_with_the_connection_is_sent_again(harness: Harness) -> None:
    sender, guest = harness.join("room"), Guest(harness)
    sender.offer(guest.id, "received")
    guest.heard()
    guest.peer.vanish()
    for number in range(3):
        sender.offer(guest.id, f"lost {number}")
    guest.peer.reset()
    sender.offer(guest.id, "meanwhile")
    assert offers(guest.come_back()) == ["lost 0", "lost 1", "lost 2", "meanwhile"]


def test_what_waited_for_a_stalled_connection_is_sent_again(make_harness: MakeHarness) -> None:
    harness = make_harness(resume_window_seconds=WINDOW, buffer_bytes=2000)
    sender, guest = harness.join("room"), Guest(harness)
    guest.peer.stall()
    for number in range(8):
        sender.offer(guest.id, str(number), "x" * 1000)
    guest.lose()
    assert errors(sender.heard()) == []
    assert offers(guest.come_back()) == [str(number) for number in range(8)]


def test_up_to_the_high_water_mark_waits_and_the_rest_is_dropped(harness: Harness) -> None:
    sender, guest = harness.join("room"), Guest(harness)
    guest.lose()
    sender.heard()
    for number in range(18):
        sender.offer(guest.id, str(number))
    assert errors(sender.heard()) == [("dropped", "16"), ("dropped", "17")]
    assert offers(guest.come_back()) == [str(number) for number in range(16)]


def test_who_does_not_come_back_is_gone_after_the_window_and_its_senders_are_told(harness: Harness) -> None:
    sender, guest = harness.join("room"), Guest(harness)
    guest.lose()
    sender.heard()
    sender.offer(guest.id, "in vain")
    harness.advance(WINDOW)
    left, error = sorted(sender.heard(), key=lambda message: str(message["type"]), reverse=True)
    assert left == {"type": "peer-left", "peerId": guest.id}
    assert (error["code"], error["msgId"]) == ("dropped", "in vain")
    assert harness.relays_queued == 0
    assert harness.counters.relays_undelivered == 1
    welcome, *_ = guest.come_back()
    assert welcome["selfId"] != left["peerId"]
    assert "resumed" not in welcome


def test_senders_are_told_of_exactly_what_was_never_written(make_harness: MakeHarness) -> None:
    harness = make_harness(resume_window_seconds=WINDOW, buffer_bytes=2000)
    sender, guest = harness.join("room"), Guest(harness)
    guest.peer.stall()
    for number in range(4):
        sender.offer(guest.id, f"first {number}", "x" * 1000)
    written = [text for text in guest.peer.transport.texts_written() if "first" in text]
    guest.lose()
    sender.offer(guest.id, "meanwhile")
    sender.heard()
    harness.advance(WINDOW)
    untold = [f"first {number}" for number in range(len(written))]
    told = [msg_id for _, msg_id in errors(sender.heard())]
    assert 0 < len(untold) < 4
    assert sorted([*untold, *told]) == [*(f"first {number}" for number in range(4)), "meanwhile"]
    assert harness.relays_written == len(untold)


def test_a_vanished_peer_may_come_back_before_and_after_it_is_noticed(harness: Harness) -> None:
    observer, guest = harness.join("room"), Guest(harness)
    observer.heard()
    guest.peer.vanish()
    guest.come_back()
    guest.peer.vanish()
    harness.advance(34)
    welcome, *_ = guest.come_back()
    assert welcome["resumed"]
    assert observer.heard() == []


def test_a_connection_that_hangs_is_cut_off_when_its_peer_comes_back(harness: Harness) -> None:
    guest = Guest(harness)
    old = guest.peer
    old.vanish()
    guest.come_back()
    assert old.lost
    assert old.transport.aborted
    assert not guest.peer.lost


@pytest.mark.parametrize("code", [1000, 1001, 4000])
def test_a_close_frame_leaves_at_once(harness: Harness, code: int) -> None:
    observer, guest = harness.join("room"), Guest(harness)
    observer.heard()
    guest.peer.leave(code)
    assert observer.heard() == [{"type": "peer-left", "peerId": guest.id}]
    welcome, *_ = guest.come_back()
    assert "resumed" not in welcome


def test_who_is_closed_by_the_server_leaves_at_once(harness: Harness) -> None:
    observer, guest = harness.join("room"), Guest(harness)
    observer.heard()
    guest.peer.say_frame(Frame(Opcode.CONT, b"out of place"))
    harness.advance(6)
    assert [event["type"] for event in observer.heard()] == ["peer-left"]


def test_a_token_is_good_for_one_use(harness: Harness) -> None:
    guest = Guest(harness)
    used = guest.token
    guest.lose()
    guest.come_back()
    again = Guest(harness, query=f"?resume={used}&seen=2")
    assert "resumed" not in again.welcome
    assert not guest.peer.lost


def test_a_welcome_that_never_arrived_leaves_the_token_good(harness: Harness) -> None:
    sender, guest = harness.join("room"), Guest(harness)
    guest.lose()
    sender.offer(guest.id, "kept")
    connection = harness.connect()
    connection.vanish()
    connection.transport.protocol.dataReceived(request(f"resume={guest.token}&seen={guest.seen}"))
    harness.run()
    assert harness.counters.resumes == 1
    welcome, peer_list, offer = guest.come_back()
    assert welcome["resumed"]
    assert peer_list["type"] == "peer-list"
    assert offer["msgId"] == "kept"


@pytest.mark.parametrize("token", ["x", "01JD0000000000000000000000aaaaaaaaaaaaaaaaaaaaaaaa", "%C3%A9", ""])
def test_a_wrong_token_makes_a_new_peer(harness: Harness, token: str) -> None:
    guest = Guest(harness)
    stranger = Guest(harness, query=f"?resume={token}&seen=2")
    assert "resumed" not in stranger.welcome
    assert stranger.peer_list["peers"] == [{"id": guest.id}]


@pytest.mark.parametrize(("equal", "wrong"), [(True, "x"), (True, ""), (False, "")])
def test_what_compares_tokens_takes_the_same_time_for_all(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, equal: bool, wrong: str
) -> None:
    compared: list[bytes] = []

    def compare(presented: bytes, own: bytes) -> bool:
        compared.append(presented)
        return equal

    guest = Guest(harness)
    guest.lose()
    # What hmac.compare_digest says decides, and nothing else does.
    monkeypatch.setattr("signaling.core.session.compare_digest", compare)
    secret = guest.token[26:] + wrong
    welcome, *_ = guest.come_back(token=guest.id + secret)
    assert bool(welcome.get("resumed")) is equal
    assert set(compared) == {secret.encode()}


def test_a_token_has_144_random_bits(harness: Harness) -> None:
    secrets = {Guest(harness, topic=str(number)).token[26:] for number in range(20)}
    assert len(secrets) == 20
    assert {len(base64.urlsafe_b64decode(secret)) for secret in secrets} == {18}


def test_a_token_of_another_topic_makes_a_new_peer(harness: Harness) -> None:
    guest = Guest(harness)
    guest.lose()
    welcome, peer_list = guest.come_back(topic="other")
    assert "resumed" not in welcome
    assert peer_list["peers"] == []


def test_the_id_of_a_peer_with_a_secret_of_another_makes_a_new_peer(harness: Harness) -> None:
    guest, other = Guest(harness), Guest(harness)
    stranger = Guest(harness, query=f"?resume={guest.id}{other.token[26:]}&seen=2")
    assert "resumed" not in stranger.welcome


@pytest.mark.parametrize("seen", [3, 10**14])
def test_who_says_to_have_seen_more_than_was_sent_is_a_new_peer_and_the_old_one_is_gone(
    harness: Harness, seen: int
) -> None:
    observer, guest = harness.join("room"), Guest(harness)
    observer.heard()
    guest.lose()
    old = guest.id
    welcome, peer_list = guest.come_back(seen=seen)
    assert "resumed" not in welcome
    assert peer_list["peers"] == [{"id": observer.id}]
    assert [event["type"] for event in observer.heard()] == ["peer-left", "peer-joined"]
    assert old != guest.id


@pytest.mark.parametrize("query", ["resume=x", "resume=x&seen=", "resume=x&seen=-1", "resume=x&seen=two"])
def test_a_resume_without_a_number_is_refused(harness: Harness, query: str) -> None:
    status, _, body = harness.request(request(query))
    assert status == 400
    assert body == "seen: has to be the number of messages received so far, beside resume\n"


def test_what_arrived_is_forgotten(harness: Harness) -> None:
    sender, guest = harness.join("room"), Guest(harness)
    for number in range(100):
        sender.offer(guest.id, str(number))
    guest.heard()
    early = guest.seen - 50
    guest.lose()
    assert "resumed" not in guest.come_back(seen=early)[0]


def test_a_peer_that_confirms_nothing_can_come_back_only_from_what_is_kept(make_harness: MakeHarness) -> None:
    harness = make_harness(resume_window_seconds=WINDOW, high_water_messages=2)
    sender, guest = harness.join("room"), Guest(harness)
    guest.peer.vanish()
    for number in range(40):
        sender.offer(guest.id, str(number))
    assert "resumed" not in guest.come_back()[0]


def test_metadata_stays_as_it_was(harness: Harness) -> None:
    guest = Guest(harness, query="?metadata=%7B%22name%22%3A%22Ada%22%7D")
    guest.lose()
    guest.come_back()
    assert harness.join("room").peers == [{"id": guest.id, "metadata": {"name": "Ada"}}]


def test_answers_to_its_own_messages_reach_it_too(server: Harness) -> None:
    guest, target = Guest(server), Guest(server)
    guest.heard()
    target.lose()
    guest.offer(target, "late")
    guest.lose()
    server.advance(WINDOW - 1)
    guest.come_back()
    server.advance(1)
    assert ("dropped", "late") in errors(guest.heard())


def test_a_peer_that_is_away_keeps_its_place(make_server: MakeHarness) -> None:
    harness = make_server(resume_window_seconds=WINDOW, max_connections_per_address=2, max_connections=2)
    guest, other = Guest(harness), Guest(harness)
    guest.lose()
    assert harness.peer("/ws/room").texts == []
    assert guest.come_back()[0]["resumed"]
    guest.lose()
    harness.host = "192.0.2.77"
    assert guest.come_back()[0]["resumed"]
    guest.peer.leave()
    other.peer.leave()
    assert harness.join("room")
    assert harness.join("room")
    assert harness.peer("/ws/room").texts == []


def test_a_connection_that_hangs_gives_its_place_up_once(make_server: MakeHarness) -> None:
    harness = make_server(resume_window_seconds=WINDOW, max_connections=1)
    guest = Guest(harness)
    for _ in range(3):
        guest.peer.vanish()
        assert guest.come_back()[0]["resumed"]
    assert harness.peer("/ws/room").texts == []


def test_the_place_is_free_after_the_window(make_harness: MakeHarness) -> None:
    harness = make_harness(resume_window_seconds=WINDOW, max_connections=1)
    Guest(harness).lose()
    harness.advance(WINDOW)
    assert harness.join("room").peers == []


def test_a_server_that_stops_waits_for_nobody_who_is_away(server: Harness) -> None:
    guest = Guest(server)
    guest.lose()
    drained: list[None] = []
    server.drain().addCallback(drained.append)
    server.run()
    assert drained == [None]
    assert len(server.topics) == 0
    assert [call for call in server.clock.getDelayedCalls() if call.active()] == []


@given(
    steps=st.lists(st.sampled_from(["relay", "relay", "relay", "vanish", "lose", "return", "wait"]), max_size=60),
    site=st.booleans(),
)
def test_nothing_is_missing_or_doubled_whatever_happens(steps: list[str], site: bool) -> None:
    harness = Harness(site=site, resume_window_seconds=WINDOW)
    sender, guest = harness.join("room"), Guest(harness)
    observer = harness.join("room")
    sent = 0
    received: list[str] = []
    dropped: list[str] = []
    for step in [*steps, "return"]:
        if step == "relay":
            sender.offer(guest.id, str(sent))
            sent += 1
        elif step == "vanish":
            received += offers(guest.heard())
            guest.peer.vanish()
        elif step == "lose":
            received += offers(guest.heard())
            guest.peer.reset()
        elif step == "return":
            received += offers(guest.heard())
            received += offers(guest.come_back())
        else:
            harness.advance(2)
        dropped += [msg_id for code, msg_id in errors(sender.heard()) if code == "dropped"]
    assert sorted([*received, *dropped], key=int) == [str(number) for number in range(sent)]
    assert received == sorted(received, key=int)
    assert [event["type"] for event in observer.heard()] == []
    assert harness.relays_queued == 0


def test_who_breaks_off_before_its_turn_gives_the_place_back(make_server: MakeHarness) -> None:
    harness = make_server(resume_window_seconds=WINDOW, max_connections=40)
    crowd = [Guest(harness) for _ in range(34)]
    for guest in crowd:
        newcomer = harness.connect()
        newcomer.transport.protocol.dataReceived(request(f"resume={guest.token}&seen={guest.seen}"))
        newcomer.transport.protocol.connectionLost(Failure(ConnectionLost()))
    harness.run()
    welcomed = [harness.peer("/ws/other") for _ in range(10)]
    assert sum(bool(peer.texts) for peer in welcomed) == 6


def test_who_was_closed_by_the_server_is_nobody_to_come_back_to(harness: Harness) -> None:
    sender, guest = harness.join("room"), Guest(harness)
    guest.peer.stall()
    guest.peer.say_frame(Frame(Opcode.CONT, b"out of place"))
    sender.offer(guest.id, "too late")
    assert errors(sender.heard()) == [("dropped", "too late")]
    welcome, *_ = guest.come_back()
    assert "resumed" not in welcome


def test_a_token_survives_any_number_of_welcomes_that_are_lost(harness: Harness) -> None:
    guest = Guest(harness)
    guest.lose()
    for _ in range(3):
        connection = harness.connect()
        connection.vanish()
        connection.transport.protocol.dataReceived(request(f"resume={guest.token}&seen={guest.seen}"))
        harness.run()
    assert guest.come_back()[0]["resumed"]


def test_questions_of_what_arrived_take_no_room_from_relays(make_harness: MakeHarness) -> None:
    waiting = []
    for window in (0.0, WINDOW):
        harness = make_harness(resume_window_seconds=window, buffer_bytes=2000)
        sender, reader = harness.join("room"), harness.peer("/ws/room")
        reader_id = json.loads(reader.texts[0])["selfId"]
        reader.stall()
        sender.heard()
        for number in range(40):
            sender.offer(reader_id, str(number), "x" * 500)
        waiting.append(harness.relays_queued)
    assert waiting == [16, 16]


def test_who_came_back_and_left_leaves_no_timer(server: Harness) -> None:
    guest = Guest(server)
    guest.lose()
    guest.come_back()
    guest.peer.leave()
    server.advance(6)
    assert [call for call in server.clock.getDelayedCalls() if call.active()] == []


def test_those_who_are_away_leave_in_turns_at_a_drain(make_server: MakeHarness) -> None:
    server = make_server(resume_window_seconds=5)
    observer = server.join("room")
    for _ in range(150):
        server.join("room").reset()
    assert server.topics == {"room": 151}
    server.drain()
    assert server.topics["room"] > 80
    server.run()
    server.advance(5)
    assert observer.closed == 1001
    assert not server.topics
    assert not server.clock.getDelayedCalls()
