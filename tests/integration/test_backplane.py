"""What a backplane has to do, whichever it is: the same tests over each, with peers on one node, on two, on three.

For another one, add what ``WAYS`` needs to make its worlds. Every peer that comes is on the next node.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration.engines import Model, Redis
from tests.integration.world import Peer, World

WAYS = {
    "memory": {"nodes": 1},
    "model, two nodes": {"nodes": 2, "store": Model},
    "model, three nodes": {"nodes": 3, "store": Model},
    "Redis, two nodes": {"nodes": 2, "store": Redis},
    "Redis, three nodes": {"nodes": 3, "store": Redis},
}


@pytest.fixture(params=WAYS)
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., World]]:
    way = dict(WAYS[request.param])
    if way.get("store") is Redis:
        path = request.getfixturevalue("redis_socket")
        way["store"] = lambda seconds: Redis(path)
    worlds: list[World] = []

    def make_world(**limits: Any) -> World:
        worlds.append(World(**way, **limits))
        return worlds[-1]

    yield make_world
    for world in worlds:
        world.close()


@pytest.fixture
def world(make: Callable[..., World]) -> World:
    return make()


def codes(peer: Peer) -> list[str]:
    return [message["code"] for message in peer.heard() if message["type"] == "error"]


# Presence


def test_a_newcomer_is_told_who_is_there_and_everyone_there_of_the_newcomer(world: World) -> None:
    first, second, third = world.join("room"), world.join("room", {"name": "Ada"}), world.join("room")
    assert [peer.peers for peer in (first, second)] == [[], [{"id": first.id}]]
    assert third.peers == [{"id": first.id}, {"id": second.id, "metadata": {"name": "Ada"}}]
    assert first.heard() == [
        {"type": "peer-joined", "peerId": second.id, "metadata": {"name": "Ada"}},
        {"type": "peer-joined", "peerId": third.id},
    ]


def test_ids_increase_in_joining_order_within_one_millisecond(world: World) -> None:
    ids = [world.join("room").id for _ in range(40)]
    assert ids == sorted(set(ids))


def test_who_leaves_is_announced_once(world: World) -> None:
    peers = [world.join("room") for _ in range(6)]
    for peer in peers:
        peer.heard()
    peers[2].leave()
    world.advance(60, step=1)
    for peer in peers[:2] + peers[3:]:
        assert peer.heard() == [{"type": "peer-left", "peerId": peers[2].id}]
    assert {entry["id"] for entry in world.join("room").peers} == {peer.id for peer in peers} - {peers[2].id}


def test_topics_do_not_meet(world: World) -> None:
    here, there = world.join("a/b"), world.join("a b")
    assert there.peers == []
    here.offer(there, "m")
    assert codes(here) == ["target_not_found"]


def test_metadata_and_topics_are_carried_as_they_are(world: World) -> None:
    topic, metadata = "grüße/\n 👋 %", {"text": 'a"b\\c\n', "n": 10**20, "e": "\u2028"}
    first, second, third = world.join(topic), world.join(topic, metadata), world.join(topic)
    assert first.heard()[0]["metadata"] == third.peers[1]["metadata"] == metadata
    assert second.peers == [{"id": first.id}]


def test_a_topic_is_forgotten_with_its_last_peer_and_begins_anew(world: World) -> None:
    for _ in range(3):
        peers = [world.join("room") for _ in range(3)]
        assert [len(peer.peers) for peer in peers] == [0, 1, 2]
        for peer in peers:
            peer.leave()
        assert world.topics == {}


# Relays


def test_relays_arrive_verbatim_and_in_order(world: World) -> None:
    sender, target = world.join("room"), world.join("room")
    sender.heard()
    for number in range(50):
        sender.say(f'{{"type":"offer","to":"{target.id}","payload":[{number}, 1e400],"msgId":"{number}"}}')
    assert target.texts == [
        f'{{"type":"offer","from":"{sender.id}","payload":[{number}, 1e400],"msgId":"{number}"}}'
        for number in range(50)
    ]
    assert sender.heard() == []


def test_a_burst_arrives_whole_and_in_order(world: World) -> None:
    sender, target = world.join("room"), world.join("room")
    sender.say_many([{"type": "offer", "to": target.id, "payload": number} for number in range(500)])
    assert [message["payload"] for message in target.heard()] == list(range(500))


def test_a_peer_that_left_is_not_found(world: World) -> None:
    sender, target = world.join("room"), world.join("room")
    target.leave()
    sender.heard()
    sender.offer(target, "m")
    assert sender.heard() == [{"type": "error", "code": "target_not_found", "message": "peer not found", "msgId": "m"}]


def test_a_reader_that_takes_nothing_costs_its_sender_a_dropped_for_each_beyond_the_mark(
    make: Callable[..., World],
) -> None:
    world = make(buffer_bytes=2000, high_water_messages=4)
    sender, target = world.join("room"), world.join("room")
    sender.heard()
    target.stall()
    for number in range(20):
        sender.offer(target, str(number), "x" * 500)
    answered = [message["msgId"] for message in sender.heard()]
    target.resume()
    arrived = [message["msgId"] for message in target.heard()]
    assert sorted(arrived + answered, key=int) == [str(number) for number in range(20)]
    assert 4 <= len(arrived) < 12


def test_what_waits_for_a_reader_that_goes_is_answered(make: Callable[..., World]) -> None:
    world = make(buffer_bytes=2000, high_water_messages=4)
    sender, target = world.join("room"), world.join("room")
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


def test_readers_that_take_nothing_hold_up_nobody_else(make: Callable[..., World]) -> None:
    world = make(buffer_bytes=2000, high_water_messages=64)
    sender = world.join("room")
    readers = [world.join("room") for _ in range(66)]
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


def test_the_counters_of_all_nodes_add_up(world: World) -> None:
    peers = [world.join("room") for _ in range(3)]
    for sender in peers:
        for target in peers:
            sender.offer(target, payload=1)
        sender.offer("nobody")
    assert world.relays_written == sum(text.count('"offer"') for peer in peers for text in peer.texts) == 9
    assert (world.counters.relays_accepted, world.counters.refused["target_not_found"]) == (9, 3)
    assert world.counters.relays_received == world.counters.relays_delivered_elsewhere


# Bounds


def test_a_topic_is_full_over_all_nodes(make: Callable[..., World]) -> None:
    world = make(max_peers_per_topic=3)
    peers = [world.join("room") for _ in range(3)]
    refused = world.peer("/ws/room")
    assert (refused.heard()[0]["code"], refused.closed) == ("topic_full", 1013)
    peers[0].leave()
    assert len(world.join("room").peers) == 2


def test_the_bytes_of_a_list_count_over_all_nodes(make: Callable[..., World]) -> None:
    metadata = {"name": "x" * 100}
    entry = len(f'{{"id":"{"0" * 26}","metadata":{json.dumps(metadata)}}},')
    world = make(max_peer_list_bytes=2 * entry)
    for _ in range(2):
        world.join("room", metadata)
    query = "?metadata=%7B%22name%22%3A%22" + "x" * 100 + "%22%7D"
    assert world.peer(f"/ws/room{query}").heard()[0]["code"] == "topic_full"


# Sessions


def test_a_peer_comes_back_wherever_it_connects_and_has_missed_nothing(make: Callable[..., World]) -> None:
    world = make(resume_window_seconds=30)
    other = world.join("room")
    world.peer("/ws/elsewhere")
    peer = world.peer("/ws/room?metadata=%7B%22n%22%3A1%7D")
    welcome = peer.heard()[0]
    token, own = welcome["resume"]["token"], welcome["selfId"]
    peer.reset()
    for number in range(5):
        other.offer(own, str(number), number)
    back = world.peer(f"/ws/room?resume={token}&seen=2")
    again, peer_list, *missed = back.heard()
    assert (again["selfId"], again["resumed"]) == (own, True)
    assert peer_list["peers"] == [{"id": other.id}]
    assert [message["payload"] for message in missed] == list(range(5))
    other.offer(own, "after", "after")
    assert [message["payload"] for message in back.heard()] == ["after"]
    back.offer(other, "m", "hello")
    assert [message["type"] for message in other.heard()] == ["peer-joined", "offer"]
    assert world.join("room").peers == [{"id": other.id}, {"id": own, "metadata": {"n": 1}}]


def test_a_wrong_token_makes_a_new_peer_and_leaves_the_old_one_where_it_is(make: Callable[..., World]) -> None:
    world = make(resume_window_seconds=30)
    peer = world.peer("/ws/room")
    own = peer.heard()[0]["selfId"]
    stranger = world.peer(f"/ws/room?resume={own}{'x' * 24}&seen=2")
    welcome, peer_list = stranger.heard()
    assert "resumed" not in welcome
    assert [entry["id"] for entry in peer_list["peers"]] == [own]
    assert peer.heard() == [{"type": "peer-joined", "peerId": welcome["selfId"]}]


def test_a_session_that_moved_ends_for_good_at_its_new_node(make: Callable[..., World]) -> None:
    world = make(resume_window_seconds=30)
    watcher = world.join("room")
    world.peer("/ws/elsewhere")
    peer = world.peer("/ws/room")
    welcome = peer.heard()[0]
    peer.reset()
    back = world.peer(f"/ws/room?resume={welcome['resume']['token']}&seen=2")
    back.leave()
    world.advance(60, step=1)
    left = {"type": "peer-left", "peerId": welcome["selfId"]}
    assert [message for message in watcher.heard() if message["type"] == "peer-left"] == [left]
