"""Peers that replace their metadata after they have joined."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import issuer
from tests.integration.harness import Harness, Peer

pytestmark = pytest.mark.unmeasured

MakeHarness = Callable[..., Harness]
TOO_DEEP = "nested too deeply: at most 64 arrays and objects in each other"
LIST_FULL = "the list of the topic's peers is as long as is allowed"


@pytest.fixture
def harness(make_harness: MakeHarness) -> Harness:
    """A server where metadata may be replaced."""
    return make_harness(metadata_updates=True)


@pytest.fixture
def server(make_server: MakeHarness) -> Harness:
    """One server where metadata may be replaced."""
    return make_server(metadata_updates=True)


def update(metadata: Any, msg_id: str | None = None) -> str:
    message = {"type": "metadata", "metadata": metadata} | ({"msgId": msg_id} if msg_id else {})
    return json.dumps(message, separators=(",", ":"))


def updated(peer: Peer, metadata: Any) -> dict[str, Any]:
    return {"type": "peer-updated", "peerId": peer.id, "metadata": metadata}


def error(peer: Peer) -> tuple[str, str, str | None]:
    [message] = peer.heard()
    assert message["type"] == "error"
    return message["code"], message["message"], message.get("msgId")


def test_every_member_is_told_the_sender_too(harness: Harness) -> None:
    ada, bob, other = harness.join("room", {"name": "Ada"}), harness.join("room"), harness.join("other")
    ada.heard()
    ada.say(update({"name": "Ada L."}, "1"))
    assert ada.heard() == bob.heard() == [updated(ada, {"name": "Ada L."})]
    assert other.heard() == []
    assert harness.counters.metadata_updates == 1


def test_the_metadata_is_passed_on_as_it_was_written(harness: Harness) -> None:
    ada, bob = harness.join("room"), harness.join("room")
    ada.heard()
    written = r'{ "b":1e400 ,"a" : "\u00e4 ä \ud800 \\ud800","a":[]}'
    ada.say('{"type":"metadata","metadata": ' + written + " }")
    text = f'{{"type":"peer-updated","peerId":"{ada.id}","metadata":{written}}}'
    assert ada.texts[-1] == bob.texts[-1] == text
    late = harness.peer("/ws/room")
    assert f'"metadata":{written}' in late.texts[1]


def test_a_peer_that_joins_later_finds_it_in_its_list_and_gets_no_event(harness: Harness) -> None:
    ada = harness.join("room")
    ada.say(update({"n": 1}))
    ada.say(update({"n": 2}))
    late = harness.join("room")
    assert late.peers == [{"id": ada.id, "metadata": {"n": 2}}]
    assert late.heard() == []


def test_metadata_is_replaced_as_a_whole(harness: Harness) -> None:
    ada = harness.join("room", {"name": "Ada", "muted": True})
    ada.say(update({}))
    assert harness.join("room").peers == [{"id": ada.id, "metadata": {}}]


def test_a_peer_that_is_alone_is_answered_too(harness: Harness) -> None:
    ada = harness.join("room")
    ada.say(update({"n": 1}))
    assert ada.heard() == [updated(ada, {"n": 1})]


def test_what_is_relayed_after_an_update_arrives_behind_it(server: Harness) -> None:
    ada, bob = server.join("room"), server.join("room")
    ada.say(update({"n": 1}))
    ada.offer(bob)
    assert [message["type"] for message in bob.heard()] == ["peer-updated", "offer"]


def test_the_welcome_names_the_feature(harness: Harness) -> None:
    assert harness.peer("/ws/room").heard()[0]["features"] == ["metadata-updates"]


def test_it_is_an_unknown_type_if_it_is_off(make_harness: MakeHarness) -> None:
    harness = make_harness()
    ada, bob = harness.join("room"), harness.join("room")
    ada.heard()
    ada.say(update({"n": 1}, "1"))
    assert error(ada) == ("invalid_type", "type must be offer, answer or ice-candidate", "1")
    assert bob.heard() == []
    ada.say(update(None))
    assert error(ada)[0] == "invalid_type"


def nested(depth: int) -> Any:
    return json.loads('{"a":' * depth + "1" + "}" * depth)


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        ('{"type":"metadata","msgId":"1"}', "invalid_message", "metadata must be an object"),
        (update(None, "1"), "invalid_message", "metadata must be an object"),
        (update("Ada", "1"), "invalid_message", "metadata must be an object"),
        (update([{}], "1"), "invalid_message", "metadata must be an object"),
        (update({"a": "x" * 4_090}, "1"), "invalid_metadata", "metadata: at most 4096 bytes, not 4098"),
        (update(nested(65), "1"), "invalid_metadata", f"metadata: {TOO_DEEP}"),
        (f'{{"x":{json.dumps(nested(66))},{update({}, "1")[1:]}', "invalid_message", TOO_DEEP),
        (update({"n": 10**100}, "1"), "invalid_metadata", "metadata: a number with more than 100 digits"),
    ],
)
def test_what_is_no_metadata_changes_nothing(harness: Harness, text: str, code: str, reason: str) -> None:
    ada, bob = harness.join("room", {"n": 0}), harness.join("room")
    ada.heard()
    ada.say(text)
    assert error(ada) == (code, reason, "1")
    assert bob.heard() == []
    assert harness.counters.errors_sent[code] == 1  # type: ignore[index]
    assert harness.join("room").peers[0] == {"id": ada.id, "metadata": {"n": 0}}


def test_the_bounds_are_those_of_joining(server: Harness) -> None:
    largest = {"a": "x" * 4_088}
    ada = server.join("room")
    for metadata in ({}, largest, nested(64), {"n": 10**99}):
        server.advance(1)
        ada.say(update(metadata))
        assert ada.heard() == [updated(ada, metadata)]


def test_updates_have_a_rate_of_their_own(harness: Harness) -> None:
    ada, bob = harness.join("room"), harness.join("room")
    ada.heard()
    for number in range(8):
        ada.say(update({"n": number}, str(number)))
    heard = ada.heard()
    assert [message["metadata"]["n"] for message in heard if message["type"] == "peer-updated"] == [0, 1, 2, 3, 4]
    text = "updates of metadata: at most 1 a second; nothing has changed"
    refused = [{"type": "error", "code": "rate_limited", "message": text, "msgId": str(n)} for n in (5, 6, 7)]
    assert [message for message in heard if message["type"] == "error"] == refused
    assert [message["metadata"]["n"] for message in bob.heard()] == [0, 1, 2, 3, 4]
    ada.offer(bob)
    assert bob.heard()[-1]["type"] == "offer"
    harness.advance(1)
    ada.say(update({"n": 9}))
    assert ada.heard() == [updated(ada, {"n": 9})]


def test_the_rate_is_an_option(make_server: MakeHarness) -> None:
    harness = make_server(metadata_updates=True, metadata_updates_per_second=0.5, metadata_update_burst=1)
    ada = harness.join("room")
    ada.say(update({}))
    ada.say(update({}))
    assert [message["type"] for message in ada.heard()] == ["peer-updated", "error"]
    harness.advance(2)
    ada.say(update({}))
    assert [message["type"] for message in ada.heard()] == ["peer-updated"]


def test_wrong_updates_do_not_count(server: Harness) -> None:
    ada = server.join("room")
    for _ in range(20):
        ada.say(update(None))
    ada.heard()
    ada.say(update({"n": 1}))
    assert ada.heard() == [updated(ada, {"n": 1})]


def test_the_rate_of_messages_counts_updates_too(make_server: MakeHarness) -> None:
    server = make_server(metadata_updates=True, max_messages_per_second=1, message_burst=2)
    ada = server.join("room")
    for number in range(3):
        ada.say(update({"n": number}, str(number)))
    *_, last = ada.heard()
    assert (last["code"], last["msgId"]) == ("rate_limited", "2")
    assert "messages a second" in last["message"]


def test_a_list_that_would_be_too_long_is_topic_full_and_the_peer_stays(make_harness: MakeHarness) -> None:
    harness = make_harness(metadata_updates=True, max_peer_list_bytes=200)
    ada, bob = harness.join("room", {"a": "x" * 20}), harness.join("room")
    ada.heard()
    ada.say(update({"a": "x" * 200}, "1"))
    assert error(ada) == ("topic_full", LIST_FULL, "1")
    assert bob.heard() == []
    ada.offer(bob)
    assert bob.heard()[-1]["type"] == "offer"
    # What is left of 200 bytes beside two ids and the empty metadata of one.
    room = {"a": "x" * (200 - 2 * 36 - 2 * 12 - len("{}") - len('{"a":""}'))}
    for peer, metadata in ((ada, {}), (bob, room), (bob, {}), (ada, room), (ada, {"b": "y"}), (bob, {"b": "y"})):
        peer.say(update(metadata))
        assert peer.heard()[-1] == updated(peer, metadata)
        harness.advance(1)
    ada.heard()
    ada.say(update({"b": "x" * 100}, "2"))
    assert error(ada)[0] == "topic_full"
    bob.hang_up()
    harness.run()
    ada.heard()
    ada.say(update({"b": "x" * 100}, "2"))
    assert ada.heard() == [updated(ada, {"b": "x" * 100})]


def test_a_list_that_is_too_long_already_may_become_shorter(make_server: MakeHarness) -> None:
    server = make_server(metadata_updates=True)
    ada = server.join("room", {"a": "x" * 1_000})
    server.factory.topics.find("room")
    ada.say(update({"a": "x" * 999}))
    assert ada.heard() == [updated(ada, {"a": "x" * 999})]
    ada.hang_up()
    server.run()
    assert server.topics == {}


# Tokens


def admitted(harness: Harness, own: Any) -> Peer:
    peer = harness.peer(f"/ws/room?token={issuer.token({'topics': ['room'], **own})}")
    welcome, _ = peer.heard()
    peer.id = welcome["selfId"]
    return peer


@pytest.fixture
def guarded(make_server: MakeHarness, tmp_path: Path) -> Harness:
    """A server with tokens where metadata may be replaced."""
    return make_server(metadata_updates=True, portal=issuer.portal(tmp_path))


def test_a_token_that_has_metadata_decides_it(guarded: Harness) -> None:
    ada = admitted(guarded, {"metadata": {"name": "Ada"}})
    ada.say(update({"name": "Eve"}, "1"))
    assert error(ada) == ("forbidden", "the token decides the metadata", "1")
    ada.say(update(None, "2"))
    assert error(ada)[0] == "invalid_message"


def test_a_token_that_allows_to_receive_only_forbids_it(guarded: Harness) -> None:
    ada = admitted(guarded, {"send": False})
    ada.say(update({"name": "Eve"}, "1"))
    assert error(ada) == ("forbidden", "the token allows to receive only", "1")


def test_any_other_token_permits_it(guarded: Harness) -> None:
    ada = admitted(guarded, {})
    ada.say(update({"name": "Ada"}))
    assert ada.heard() == [updated(ada, {"name": "Ada"})]


# Sessions


def resumed(harness: Harness, token: str, seen: int, query: str = "") -> list[Any]:
    return harness.peer(f"/ws/room?resume={token}&seen={seen}{query}").heard()


def test_the_list_of_a_client_that_resumes_shows_what_is_in_force(make_harness: MakeHarness) -> None:
    harness = make_harness(metadata_updates=True, resume_window_seconds=30.0)
    ada, bob = harness.join("room"), harness.peer("/ws/room")
    token = bob.heard()[0]["resume"]["token"]
    bob.reset()
    ada.say(update({"n": 1}))
    welcome, peers = resumed(harness, token, 2)
    assert welcome["resumed"]
    assert peers["peers"] == [{"id": ada.id, "metadata": {"n": 1}}]


def test_a_peer_that_resumes_keeps_its_metadata_whatever_the_request_says(make_harness: MakeHarness) -> None:
    harness = make_harness(metadata_updates=True, resume_window_seconds=30.0)
    ada, bob = harness.peer("/ws/room?metadata={}"), harness.join("room")
    welcome, _, _ = ada.heard()
    ada.id = welcome["selfId"]
    ada.say(update({"n": 1}))
    assert ada.heard() == [updated(ada, {"n": 1})]
    ada.reset()
    messages = resumed(harness, welcome["resume"]["token"], 4, "&metadata={}")
    assert [message["type"] for message in messages] == ["welcome", "peer-list"]
    harness.advance(1)
    assert [message["type"] for message in bob.heard()] == ["peer-updated"]
    assert harness.join("room").peers[0] == {"id": ada.id, "metadata": {"n": 1}}


def test_an_event_counts_as_seen_and_is_not_repeated(make_harness: MakeHarness) -> None:
    harness = make_harness(metadata_updates=True, resume_window_seconds=30.0)
    ada, bob = harness.peer("/ws/room"), harness.join("room")
    welcome, _, _ = ada.heard()
    ada.id = welcome["selfId"]
    ada.say(update({"n": 1}))
    bob.say(update({"n": 2}))
    bob.offer(ada)
    ada.heard()
    ada.reset()
    # Everything after the peer-joined is missing.
    messages = resumed(harness, welcome["resume"]["token"], 3)
    assert [message["type"] for message in messages] == ["welcome", "peer-list", "offer"]


# Clients that do not read


def test_the_own_answer_is_not_dropped_by_a_full_queue(make_server: MakeHarness) -> None:
    server = make_server(metadata_updates=True, high_water_messages=1, buffer_bytes=0)
    ada, bob = server.join("room"), server.join("room")
    ada.heard()
    ada.stall()
    for _ in range(3):
        bob.offer(ada)
    ada.say(update({"n": 1}))
    ada.resume()
    assert ada.heard()[-1] == updated(ada, {"n": 1})


def test_a_crowd_that_updates_at_once_is_told_in_one_order(make_server: MakeHarness) -> None:
    server = make_server(metadata_updates=True)
    crowd = [server.join("room") for _ in range(200)]
    for number, peer in enumerate(crowd):
        peer.heard()
        peer.client.send_text(update({"n": number}, str(number)).encode())
        peer.send_together(*peer.client.data_to_send())
    crowd[-1].client.send_text(update({"n": -1}, "again").encode())
    crowd[-1].send_together(*crowd[-1].client.data_to_send())
    server.run()
    told = [peer.heard() for peer in crowd]
    errors = [message for messages in told for message in messages if message["type"] == "error"]
    assert [(message["code"], message["msgId"]) for message in errors] == [("rate_limited", "again")]
    for messages in told:
        metadata = [message["metadata"] for message in messages if message["type"] == "peer-updated"]
        assert metadata == [{"n": number} for number in range(len(crowd))]
