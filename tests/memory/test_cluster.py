"""What can go wrong between nodes: lost answers, claims that cross, and what others put on a node's channel."""

from __future__ import annotations

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
