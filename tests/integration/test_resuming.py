"""Clients that lose their connection and resume their session."""

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

from tests.integration.harness import Harness
from tests.integration.resuming_clients import ResumingClient

pytestmark = pytest.mark.unmeasured

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


def request(query: str) -> bytes:
    return (
        f"GET /ws/room?{query} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()


def offers(messages: list[Any]) -> list[str]:
    return [message["msgId"] for message in messages if message["type"] == "offer"]


def errors(messages: list[Any]) -> list[tuple[str, str]]:
    return [(message["code"], message.get("msgId")) for message in messages if message["type"] == "error"]


def test_without_a_window_nothing_can_be_resumed(make_harness: MakeHarness) -> None:
    harness = make_harness()
    peer = harness.peer("/ws/room?resume=anything&seen=none")
    text = peer.texts[0]
    assert text == json.dumps({"type": "welcome", "selfId": json.loads(text)["selfId"]}, separators=(",", ":"))
    observer = harness.join("room")
    peer.reset()
    assert [event["type"] for event in observer.heard()] == ["peer-left"]


def test_the_welcome_brings_a_token_and_the_window(harness: Harness) -> None:
    client = ResumingClient(harness)
    assert client.welcome["resume"] == {"token": client.token, "window": WINDOW}
    assert "resumed" not in client.welcome
    assert len(client.token) >= 40


def test_the_others_do_not_notice_a_lost_connection(harness: Harness) -> None:
    observer, client = harness.join("room"), ResumingClient(harness)
    observer.heard()
    client.lose_connection()
    harness.advance(WINDOW - 1)
    assert observer.heard() == []
    assert [peer["id"] for peer in harness.join("room").peers] == [observer.id, client.id]


def test_a_resumed_client_is_the_same_peer(harness: Harness) -> None:
    observer, client = harness.join("room"), ResumingClient(harness)
    observer.heard()
    peer_id, token = client.id, client.token
    client.lose_connection()
    welcome, peer_list = client.resume()
    assert (welcome["selfId"], welcome["resumed"]) == (peer_id, True)
    assert welcome["resume"]["token"] != token
    assert peer_list == {"type": "peer-list", "peers": [{"id": observer.id}]}
    observer.offer(client.id, "after")
    assert offers(client.heard()) == ["after"]
    assert observer.heard() == []


def test_relays_to_a_detached_peer_arrive_in_order(harness: Harness) -> None:
    sender, client = harness.join("room"), ResumingClient(harness)
    client.lose_connection()
    for number in range(5):
        sender.offer(client.id, str(number))
    assert offers(client.resume()) == ["0", "1", "2", "3", "4"]
    assert errors(sender.heard()) == []


def test_messages_that_were_lost_with_the_connection_are_sent_again(harness: Harness) -> None:
    sender, client = harness.join("room"), ResumingClient(harness)
    sender.offer(client.id, "received")
    client.heard()
    client.peer.go_silent()
    for number in range(3):
        sender.offer(client.id, f"lost {number}")
    client.peer.reset()
    sender.offer(client.id, "meanwhile")
    assert offers(client.resume()) == ["lost 0", "lost 1", "lost 2", "meanwhile"]


def test_messages_that_waited_for_a_stalled_connection_are_sent_again(make_harness: MakeHarness) -> None:
    harness = make_harness(resume_window_seconds=WINDOW, buffer_bytes=2000)
    sender, client = harness.join("room"), ResumingClient(harness)
    client.peer.stall()
    for number in range(8):
        sender.offer(client.id, str(number), "x" * 1000)
    client.lose_connection()
    assert errors(sender.heard()) == []
    assert offers(client.resume()) == [str(number) for number in range(8)]


def test_relays_wait_up_to_the_high_water_mark_and_the_rest_is_dropped(harness: Harness) -> None:
    sender, client = harness.join("room"), ResumingClient(harness)
    client.lose_connection()
    sender.heard()
    for number in range(18):
        sender.offer(client.id, str(number))
    assert errors(sender.heard()) == [("dropped", "16"), ("dropped", "17")]
    assert offers(client.resume()) == [str(number) for number in range(16)]


def test_a_peer_that_does_not_resume_leaves_after_the_window_and_its_senders_get_errors(harness: Harness) -> None:
    sender, client = harness.join("room"), ResumingClient(harness)
    client.lose_connection()
    sender.heard()
    sender.offer(client.id, "in vain")
    harness.advance(WINDOW)
    left, error = sorted(sender.heard(), key=lambda message: str(message["type"]), reverse=True)
    assert left == {"type": "peer-left", "peerId": client.id}
    assert (error["code"], error["msgId"]) == ("dropped", "in vain")
    assert harness.relays_queued == 0
    assert harness.counters.relays_undelivered == 1
    welcome, *_ = client.resume()
    assert welcome["selfId"] != left["peerId"]
    assert "resumed" not in welcome


def test_senders_get_errors_for_exactly_the_relays_that_were_never_written(make_harness: MakeHarness) -> None:
    harness = make_harness(resume_window_seconds=WINDOW, buffer_bytes=2000)
    sender, client = harness.join("room"), ResumingClient(harness)
    client.peer.stall()
    for number in range(4):
        sender.offer(client.id, f"first {number}", "x" * 1000)
    written = [text for text in client.peer.transport.texts_written() if "first" in text]
    client.lose_connection()
    sender.offer(client.id, "meanwhile")
    sender.heard()
    harness.advance(WINDOW)
    delivered = [f"first {number}" for number in range(len(written))]
    failed = [msg_id for _, msg_id in errors(sender.heard())]
    assert 0 < len(delivered) < 4
    assert sorted([*delivered, *failed]) == [*(f"first {number}" for number in range(4)), "meanwhile"]
    assert harness.relays_written == len(delivered)


def test_a_client_may_resume_before_and_after_its_loss_is_noticed(harness: Harness) -> None:
    observer, client = harness.join("room"), ResumingClient(harness)
    observer.heard()
    client.peer.go_silent()
    client.resume()
    client.peer.go_silent()
    harness.advance(34)
    welcome, *_ = client.resume()
    assert welcome["resumed"]
    assert observer.heard() == []


def test_a_connection_that_hangs_is_cut_off_when_its_client_resumes(harness: Harness) -> None:
    client = ResumingClient(harness)
    old = client.peer
    old.go_silent()
    client.resume()
    assert old.lost
    assert old.transport.aborted
    assert not client.peer.lost


@pytest.mark.parametrize("code", [1000, 1001, 4000])
def test_a_peer_leaves_at_once_with_a_close_frame(harness: Harness, code: int) -> None:
    observer, client = harness.join("room"), ResumingClient(harness)
    observer.heard()
    client.peer.leave(code)
    assert observer.heard() == [{"type": "peer-left", "peerId": client.id}]
    welcome, *_ = client.resume()
    assert "resumed" not in welcome


def test_a_peer_that_the_server_closes_leaves_at_once(harness: Harness) -> None:
    observer, client = harness.join("room"), ResumingClient(harness)
    observer.heard()
    client.peer.say_frame(Frame(Opcode.CONT, b"out of place"))
    harness.advance(6)
    assert [event["type"] for event in observer.heard()] == ["peer-left"]


def test_a_token_is_valid_once(harness: Harness) -> None:
    client = ResumingClient(harness)
    used = client.token
    client.lose_connection()
    client.resume()
    again = ResumingClient(harness, query=f"?resume={used}&seen=2")
    assert "resumed" not in again.welcome
    assert not client.peer.lost


def test_a_token_stays_valid_if_the_next_welcome_is_lost(harness: Harness) -> None:
    sender, client = harness.join("room"), ResumingClient(harness)
    client.lose_connection()
    sender.offer(client.id, "kept")
    connection = harness.connect()
    connection.go_silent()
    connection.transport.protocol.dataReceived(request(f"resume={client.token}&seen={client.seen}"))
    harness.run()
    assert harness.counters.resumes == 1
    welcome, peer_list, offer = client.resume()
    assert welcome["resumed"]
    assert peer_list["type"] == "peer-list"
    assert offer["msgId"] == "kept"


@pytest.mark.parametrize("token", ["x", "01JD0000000000000000000000aaaaaaaaaaaaaaaaaaaaaaaa", "%C3%A9", ""])
def test_a_wrong_token_makes_a_new_peer(harness: Harness, token: str) -> None:
    client = ResumingClient(harness)
    outsider = ResumingClient(harness, query=f"?resume={token}&seen=2")
    assert "resumed" not in outsider.welcome
    assert outsider.peer_list["peers"] == [{"id": client.id}]


@pytest.mark.parametrize(("equal", "wrong"), [(True, "x"), (True, ""), (False, "")])
def test_comparing_tokens_takes_constant_time(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, equal: bool, wrong: str
) -> None:
    compared: list[bytes] = []

    def compare(presented: bytes, own: bytes) -> bool:
        compared.append(presented)
        return equal

    client = ResumingClient(harness)
    client.lose_connection()
    # What hmac.compare_digest says decides, and nothing else does.
    monkeypatch.setattr("signaling.core.session.compare_digest", compare)
    secret = client.token[26:] + wrong
    welcome, *_ = client.resume(token=client.id + secret)
    assert bool(welcome.get("resumed")) is equal
    assert set(compared) == {secret.encode()}


def test_a_token_has_144_random_bits(harness: Harness) -> None:
    secrets = {ResumingClient(harness, topic=str(number)).token[26:] for number in range(20)}
    assert len(secrets) == 20
    assert {len(base64.urlsafe_b64decode(secret)) for secret in secrets} == {18}


def test_a_token_of_another_topic_makes_a_new_peer(harness: Harness) -> None:
    client = ResumingClient(harness)
    client.lose_connection()
    welcome, peer_list = client.resume(topic="other")
    assert "resumed" not in welcome
    assert peer_list["peers"] == []


def test_the_id_of_a_peer_with_a_secret_of_another_makes_a_new_peer(harness: Harness) -> None:
    client, other = ResumingClient(harness), ResumingClient(harness)
    outsider = ResumingClient(harness, query=f"?resume={client.id}{other.token[26:]}&seen=2")
    assert "resumed" not in outsider.welcome


@pytest.mark.parametrize("seen", [3, 10**14])
def test_a_client_that_has_seen_more_than_was_sent_joins_anew_and_the_old_peer_leaves(
    harness: Harness, seen: int
) -> None:
    observer, client = harness.join("room"), ResumingClient(harness)
    observer.heard()
    client.lose_connection()
    old = client.id
    welcome, peer_list = client.resume(seen=seen)
    assert "resumed" not in welcome
    assert peer_list["peers"] == [{"id": observer.id}]
    assert [event["type"] for event in observer.heard()] == ["peer-left", "peer-joined"]
    assert old != client.id


@pytest.mark.parametrize("query", ["resume=x", "resume=x&seen=", "resume=x&seen=-1", "resume=x&seen=two"])
def test_a_resume_without_seen_is_refused(harness: Harness, query: str) -> None:
    status, _, body = harness.request(request(query))
    assert status == 400
    assert body == "seen: has to be the number of messages received so far, beside resume\n"


def test_acknowledged_messages_are_not_kept(harness: Harness) -> None:
    sender, client = harness.join("room"), ResumingClient(harness)
    for number in range(100):
        sender.offer(client.id, str(number))
    client.heard()
    early = client.seen - 50
    client.lose_connection()
    assert "resumed" not in client.resume(seen=early)[0]


def test_a_client_that_acknowledges_nothing_can_resume_only_within_the_replay_buffer(make_harness: MakeHarness) -> None:
    harness = make_harness(resume_window_seconds=WINDOW, high_water_messages=2)
    sender, client = harness.join("room"), ResumingClient(harness)
    client.peer.go_silent()
    for number in range(40):
        sender.offer(client.id, str(number))
    assert "resumed" not in client.resume()[0]


def test_a_resume_does_not_change_the_metadata(harness: Harness) -> None:
    client = ResumingClient(harness, query="?metadata=%7B%22name%22%3A%22Ada%22%7D")
    client.lose_connection()
    client.resume()
    assert harness.join("room").peers == [{"id": client.id, "metadata": {"name": "Ada"}}]


def test_errors_to_its_own_messages_are_sent_again(server: Harness) -> None:
    client, target = ResumingClient(server), ResumingClient(server)
    client.heard()
    target.lose_connection()
    client.offer(target, "late")
    client.lose_connection()
    server.advance(WINDOW - 1)
    client.resume()
    server.advance(1)
    assert ("dropped", "late") in errors(client.heard())


def test_a_detached_session_keeps_its_slot(make_server: MakeHarness) -> None:
    harness = make_server(resume_window_seconds=WINDOW, max_connections_per_address=2, max_connections=2)
    client, other = ResumingClient(harness), ResumingClient(harness)
    client.lose_connection()
    assert harness.peer("/ws/room").texts == []
    assert client.resume()[0]["resumed"]
    client.lose_connection()
    harness.host = "192.0.2.77"
    assert client.resume()[0]["resumed"]
    client.peer.leave()
    other.peer.leave()
    assert harness.join("room")
    assert harness.join("room")
    assert harness.peer("/ws/room").texts == []


def test_a_connection_that_hangs_gives_up_its_slot_once(make_server: MakeHarness) -> None:
    harness = make_server(resume_window_seconds=WINDOW, max_connections=1)
    client = ResumingClient(harness)
    for _ in range(3):
        client.peer.go_silent()
        assert client.resume()[0]["resumed"]
    assert harness.peer("/ws/room").texts == []


def test_the_slot_is_free_after_the_window(make_harness: MakeHarness) -> None:
    harness = make_harness(resume_window_seconds=WINDOW, max_connections=1)
    ResumingClient(harness).lose_connection()
    harness.advance(WINDOW)
    assert harness.join("room").peers == []


def test_a_server_that_stops_does_not_wait_for_detached_sessions(server: Harness) -> None:
    client = ResumingClient(server)
    client.lose_connection()
    drained: list[None] = []
    server.drain().addCallback(drained.append)
    server.run()
    assert drained == [None]
    assert len(server.topics) == 0
    assert [call for call in server.clock.getDelayedCalls() if call.active()] == []


@given(
    steps=st.lists(st.sampled_from(["relay", "relay", "relay", "hang", "lose", "resume", "wait"]), max_size=60),
    site=st.booleans(),
)
def test_each_relay_arrives_once_or_is_dropped_whatever_happens(steps: list[str], site: bool) -> None:
    harness = Harness(site=site, resume_window_seconds=WINDOW)
    sender, client = harness.join("room"), ResumingClient(harness)
    observer = harness.join("room")
    sent = 0
    received: list[str] = []
    dropped: list[str] = []
    for step in [*steps, "resume"]:
        if step == "relay":
            sender.offer(client.id, str(sent))
            sent += 1
        elif step == "hang":
            received += offers(client.heard())
            client.peer.go_silent()
        elif step == "lose":
            received += offers(client.heard())
            client.peer.reset()
        elif step == "resume":
            received += offers(client.heard())
            received += offers(client.resume())
        else:
            harness.advance(2)
        dropped += [msg_id for code, msg_id in errors(sender.heard()) if code == "dropped"]
    assert sorted([*received, *dropped], key=int) == [str(number) for number in range(sent)]
    assert received == sorted(received, key=int)
    assert [event["type"] for event in observer.heard()] == []
    assert harness.relays_queued == 0


def test_a_connection_that_is_lost_before_its_turn_gives_the_slot_back(make_server: MakeHarness) -> None:
    harness = make_server(resume_window_seconds=WINDOW, max_connections=40)
    crowd = [ResumingClient(harness) for _ in range(34)]
    for client in crowd:
        connection = harness.connect()
        connection.transport.protocol.dataReceived(request(f"resume={client.token}&seen={client.seen}"))
        connection.transport.protocol.connectionLost(Failure(ConnectionLost()))
    harness.run()
    welcomed = [harness.peer("/ws/other") for _ in range(10)]
    assert sum(bool(peer.texts) for peer in welcomed) == 6


def test_a_peer_that_the_server_closed_cannot_be_resumed(harness: Harness) -> None:
    sender, client = harness.join("room"), ResumingClient(harness)
    client.peer.stall()
    client.peer.say_frame(Frame(Opcode.CONT, b"out of place"))
    sender.offer(client.id, "too late")
    assert errors(sender.heard()) == [("dropped", "too late")]
    welcome, *_ = client.resume()
    assert "resumed" not in welcome


def test_a_token_survives_any_number_of_welcomes_that_are_lost(harness: Harness) -> None:
    client = ResumingClient(harness)
    client.lose_connection()
    for _ in range(3):
        connection = harness.connect()
        connection.go_silent()
        connection.transport.protocol.dataReceived(request(f"resume={client.token}&seen={client.seen}"))
        harness.run()
    assert client.resume()[0]["resumed"]


def test_requests_for_acknowledgments_take_no_room_from_relays(make_harness: MakeHarness) -> None:
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


def test_a_resumed_client_that_leaves_leaves_no_timer(server: Harness) -> None:
    client = ResumingClient(server)
    client.lose_connection()
    client.resume()
    client.peer.leave()
    server.advance(6)
    assert [call for call in server.clock.getDelayedCalls() if call.active()] == []


def test_detached_peers_leave_in_turns_during_a_drain(make_server: MakeHarness) -> None:
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
