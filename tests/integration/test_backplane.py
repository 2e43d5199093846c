"""What every backplane has to do: the same tests over each, with peers on one node, on two, on three.

For another backplane, add to ``SETUPS`` what makes its harnesses. Each new peer is on the next node.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration.backends import MemoryStore, RedisStore
from tests.integration.harness import Harness, Peer

pytestmark = pytest.mark.unmeasured

MODEL, REDIS = pytest.mark.cluster, [pytest.mark.cluster, pytest.mark.redis]
SETUPS = [
    pytest.param({"nodes": 1}, id="one node"),
    pytest.param({"nodes": 2, "store": MemoryStore}, id="model, two nodes", marks=MODEL),
    pytest.param({"nodes": 3, "store": MemoryStore}, id="model, three nodes", marks=MODEL),
    pytest.param({"nodes": 2, "store": RedisStore}, id="Redis, two nodes", marks=REDIS),
    pytest.param({"nodes": 3, "store": RedisStore}, id="Redis, three nodes", marks=REDIS),
]


@pytest.fixture(params=SETUPS)
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Harness]]:
    setup = dict(request.param)
    if setup.get("store") is RedisStore:
        path = request.getfixturevalue("redis_socket")
        setup["store"] = lambda seconds: RedisStore(path)
    harnesses: list[Harness] = []

    def make_harness(**limits: Any) -> Harness:
        harnesses.append(Harness(**setup, **limits))
        return harnesses[-1]

    yield make_harness
    for harness in harnesses:
        harness.close()


@pytest.fixture
def harness(make: Callable[..., Harness]) -> Harness:
    return make()


def codes(peer: Peer) -> list[str]:
    return [message["code"] for message in peer.heard() if message["type"] == "error"]


# Presence


def test_a_joining_peer_gets_the_peer_list_and_all_others_its_peer_joined(harness: Harness) -> None:
    first, second, third = harness.join("room"), harness.join("room", {"name": "Ada"}), harness.join("room")
    assert [peer.peers for peer in (first, second)] == [[], [{"id": first.id}]]
    assert third.peers == [{"id": first.id}, {"id": second.id, "metadata": {"name": "Ada"}}]
    assert first.heard() == [
        {"type": "peer-joined", "peerId": second.id, "metadata": {"name": "Ada"}},
        {"type": "peer-joined", "peerId": third.id},
    ]


def test_ids_increase_in_joining_order_within_one_millisecond(harness: Harness) -> None:
    ids = [harness.join("room").id for _ in range(40)]
    assert ids == sorted(set(ids))


def test_who_leaves_is_announced_once(harness: Harness) -> None:
    peers = [harness.join("room") for _ in range(6)]
    for peer in peers:
        peer.heard()
    peers[2].leave()
    harness.advance(60, step=1)
    for peer in peers[:2] + peers[3:]:
        assert peer.heard() == [{"type": "peer-left", "peerId": peers[2].id}]
    assert {entry["id"] for entry in harness.join("room").peers} == {peer.id for peer in peers} - {peers[2].id}


def test_topics_do_not_meet(harness: Harness) -> None:
    here, there = harness.join("a/b"), harness.join("a b")
    assert there.peers == []
    here.offer(there, "m")
    assert codes(here) == ["target_not_found"]


def test_metadata_and_topics_are_carried_as_they_are(harness: Harness) -> None:
    topic, metadata = "grüße/\n 👋 %", {"text": 'a"b\\c\n', "n": 10**20, "e": "\u2028"}
    first, second, third = harness.join(topic), harness.join(topic, metadata), harness.join(topic)
    assert first.heard()[0]["metadata"] == third.peers[1]["metadata"] == metadata
    assert second.peers == [{"id": first.id}]


def test_a_topic_is_forgotten_with_its_last_peer_and_begins_anew(harness: Harness) -> None:
    for _ in range(3):
        peers = [harness.join("room") for _ in range(3)]
        assert [len(peer.peers) for peer in peers] == [0, 1, 2]
        for peer in peers:
            peer.leave()
        assert harness.topics == {}


# Relays


def test_relays_arrive_verbatim_and_in_order(harness: Harness) -> None:
    sender, target = harness.join("room"), harness.join("room")
    sender.heard()
    for number in range(50):
        sender.say(f'{{"type":"offer","to":"{target.id}","payload":[{number}, 1e400],"msgId":"{number}"}}')
    assert target.texts == [
        f'{{"type":"offer","from":"{sender.id}","payload":[{number}, 1e400],"msgId":"{number}"}}'
        for number in range(50)
    ]
    assert sender.heard() == []


def test_a_burst_arrives_whole_and_in_order(harness: Harness) -> None:
    sender, target = harness.join("room"), harness.join("room")
    sender.say_many([{"type": "offer", "to": target.id, "payload": number} for number in range(500)])
    assert [message["payload"] for message in target.heard()] == list(range(500))


def test_a_peer_that_left_is_not_found(harness: Harness) -> None:
    sender, target = harness.join("room"), harness.join("room")
    target.leave()
    sender.heard()
    sender.offer(target, "m")
    assert sender.heard() == [{"type": "error", "code": "target_not_found", "message": "peer not found", "msgId": "m"}]


def test_a_reader_that_takes_nothing_costs_its_sender_a_dropped_for_each_beyond_the_mark(
    make: Callable[..., Harness],
) -> None:
    harness = make(buffer_bytes=2000, high_water_messages=4)
    sender, target = harness.join("room"), harness.join("room")
    sender.heard()
    target.stall()
    for number in range(20):
        sender.offer(target, str(number), "x" * 500)
    answered = [message["msgId"] for message in sender.heard()]
    target.resume()
    arrived = [message["msgId"] for message in target.heard()]
    assert sorted(arrived + answered, key=int) == [str(number) for number in range(20)]
    assert 4 <= len(arrived) < 12


def test_what_waits_for_a_reader_that_goes_is_answered(make: Callable[..., Harness]) -> None:
    harness = make(buffer_bytes=2000, high_water_messages=4)
    sender, target = harness.join("room"), harness.join("room")
    sender.heard()
    target.stall()
    for number in range(10):
        sender.offer(target, str(number), "x" * 500)
    before = codes(sender)
    target.reset()
    after = codes(sender)
    assert set(before + after) == {"dropped"}
    assert len(after) == 4
    written = len([text for text in target.transport.texts_written() if '"offer"' in text])
    assert written + len(before + after) == 10


def test_readers_that_take_nothing_hold_up_nobody_else(make: Callable[..., Harness]) -> None:
    harness = make(buffer_bytes=2000, high_water_messages=64)
    sender = harness.join("room")
    readers = [harness.join("room") for _ in range(66)]
    sender.heard()
    for reader in readers[:-3]:
        reader.stall()
        for count in (10, 70):
            sender.say_many([{"type": "offer", "to": reader.id, "payload": "x" * 300} for _ in range(count)])
    assert set(codes(sender)) == {"dropped"}
    for reader in readers[-3:]:
        sender.offer(reader, "m")
        assert reader.heard()[-1]["msgId"] == "m"
    assert codes(sender) == []


def test_the_counters_of_all_nodes_add_up(harness: Harness) -> None:
    peers = [harness.join("room") for _ in range(3)]
    for sender in peers:
        for target in peers:
            sender.offer(target, payload=1)
        sender.offer("nobody")
    assert harness.relays_written == sum(text.count('"offer"') for peer in peers for text in peer.texts) == 9
    assert (harness.counters.total_relays_accepted, harness.counters.errors_sent["target_not_found"]) == (9, 3)
    assert harness.counters.relays_received == harness.counters.relays_delivered_remotely


# Bounds


def test_a_topic_is_full_over_all_nodes(make: Callable[..., Harness]) -> None:
    harness = make(max_peers_per_topic=3)
    peers = [harness.join("room") for _ in range(3)]
    refused = harness.peer("/ws/room")
    assert (refused.heard()[0]["code"], refused.closed) == ("topic_full", 1013)
    peers[0].leave()
    assert len(harness.join("room").peers) == 2


def test_the_bytes_of_a_list_count_over_all_nodes(make: Callable[..., Harness]) -> None:
    metadata = {"name": "x" * 100}
    entry = len(f'{{"id":"{"0" * 26}","metadata":{json.dumps(metadata)}}},')
    harness = make(max_peer_list_bytes=2 * entry)
    for _ in range(2):
        harness.join("room", metadata)
    query = "?metadata=%7B%22name%22%3A%22" + "x" * 100 + "%22%7D"
    assert harness.peer(f"/ws/room{query}").heard()[0]["code"] == "topic_full"


# Sessions


def test_a_peer_comes_back_wherever_it_connects_and_has_missed_nothing(make: Callable[..., Harness]) -> None:
    harness = make(resume_window_seconds=30)
    other = harness.join("room")
    harness.peer("/ws/elsewhere")
    peer = harness.peer("/ws/room?metadata=%7B%22n%22%3A1%7D")
    welcome = peer.heard()[0]
    token, own = welcome["resume"]["token"], welcome["selfId"]
    peer.reset()
    for number in range(5):
        other.offer(own, str(number), number)
    back = harness.peer(f"/ws/room?resume={token}&seen=2")
    again, peer_list, *missed = back.heard()
    assert (again["selfId"], again["resumed"]) == (own, True)
    assert peer_list["peers"] == [{"id": other.id}]
    assert [message["payload"] for message in missed] == list(range(5))
    other.offer(own, "after", "after")
    assert [message["payload"] for message in back.heard()] == ["after"]
    back.offer(other, "m", "hello")
    assert [message["type"] for message in other.heard()] == ["peer-joined", "offer"]
    assert harness.join("room").peers == [{"id": other.id}, {"id": own, "metadata": {"n": 1}}]


def test_a_wrong_token_makes_a_new_peer_and_leaves_the_old_one_where_it_is(make: Callable[..., Harness]) -> None:
    harness = make(resume_window_seconds=30)
    peer = harness.peer("/ws/room")
    own = peer.heard()[0]["selfId"]
    outsider = harness.peer(f"/ws/room?resume={own}{'x' * 24}&seen=2")
    welcome, peer_list = outsider.heard()
    assert "resumed" not in welcome
    assert [entry["id"] for entry in peer_list["peers"]] == [own]
    assert peer.heard() == [{"type": "peer-joined", "peerId": welcome["selfId"]}]


def test_a_session_that_moved_ends_for_good_at_its_new_node(make: Callable[..., Harness]) -> None:
    harness = make(resume_window_seconds=30)
    watcher = harness.join("room")
    harness.peer("/ws/elsewhere")
    peer = harness.peer("/ws/room")
    welcome = peer.heard()[0]
    peer.reset()
    back = harness.peer(f"/ws/room?resume={welcome['resume']['token']}&seen=2")
    back.leave()
    harness.advance(60, step=1)
    left = {"type": "peer-left", "peerId": welcome["selfId"]}
    assert [message for message in watcher.heard() if message["type"] == "peer-left"] == [left]
