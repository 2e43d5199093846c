"""What can go wrong between nodes: lost answers, claims that cross, and what others put on a node's channel."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.memory.world import Peer, World


@pytest.fixture
def world() -> Iterator[World]:
    world = World(nodes=3, resume_window_seconds=30)
    yield world
    world.close()


def arrive(world: World, node: int, query: str = "", topic: str = "room") -> Peer:
    """Join on one of the nodes; what came first is not looked at."""
    peer = world.knock(f"/ws/{topic}{query}", node=node)
    world.run()
    return peer


def greeting(peer: Peer) -> tuple[str, str]:
    """Return the id and the token of a peer that was just welcomed."""
    welcome = peer.heard()[0]
    return welcome["selfId"], welcome["resume"]["token"]


def ask(*peers: Peer) -> None:
    """Let requests reach their node, and nothing else happen."""
    for peer in peers:
        while peer.step():
            pass


# A lost connection to the store


def test_a_node_goes_on_where_its_connection_is_lost_under_a_join(world: World) -> None:
    peer = world.knock("/ws/room", node=0)
    ask(peer)
    assert world.engines[0].waiting == 1
    world.engines[0].lose()
    world.run()
    assert [message["type"] for message in peer.heard()] == ["welcome", "peer-list"]
    world.engines[0].come_back()
    world.run()
    assert len(arrive(world, 1).heard()[1]["peers"]) == 1


# Claims that cross


def test_a_token_that_is_shown_twice_at_once_makes_one_of_both_that_peer(world: World) -> None:
    watcher = arrive(world, 0)
    watcher.id, _ = greeting(watcher)
    own, token = greeting(peer := arrive(world, 1))
    peer.reset()
    both = [world.knock(f"/ws/room?resume={token}&seen=2", node=2) for _ in range(2)]
    world.run()
    world.advance(15)
    welcome = both[1].heard()[0]
    assert (welcome["selfId"], welcome["resumed"], [peer.lost for peer in both]) == (own, True, [True, False])
    watcher.offer(own, payload="later")
    assert both[1].heard()[-1]["payload"] == "later"
    assert {entry["id"] for entry in arrive(world, 0).heard()[1]["peers"]} == {own, watcher.id}


def test_who_breaks_off_while_it_comes_back_is_nobody_s_ghost(world: World) -> None:
    watchers = [arrive(world, node) for node in range(3)]
    own, token = greeting(peer := arrive(world, 1))
    peer.reset()
    for watcher in watchers:
        watcher.heard()
    back = world.knock(f"/ws/room?resume={token}&seen=2", node=2)
    ask(back)
    back.reset()
    world.advance(60)
    for watcher in watchers:
        assert watcher.heard() == [{"type": "peer-left", "peerId": own}]


def test_a_relay_that_meets_a_peer_on_its_way_to_another_node_is_dropped(world: World) -> None:
    sender, _ = arrive(world, 0), arrive(world, 1)
    own, token = greeting(peer := arrive(world, 1))
    peer.reset()
    sender.heard()
    back = world.knock(f"/ws/room?resume={token}&seen=2", node=2)
    ask(back)
    while not world.factories[2].topics.size("room"):
        for engine in world.engines[1:]:
            engine.step()
    world.engines[1].step()
    sender.client.send_text(json.dumps({"type": "offer", "to": own, "msgId": "m"}).encode())
    sender.flush()
    world.run()
    assert [(message["code"], message["msgId"]) for message in sender.heard()] == [("dropped", "m")]
