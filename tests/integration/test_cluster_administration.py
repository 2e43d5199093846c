"""An application or an operator looks at and acts on peers, wherever in the cluster they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest

from signaling.backplane.store import Keys
from signaling.core.admin_queries import (
    BlockSubject,
    CloseTopic,
    DescribeTopic,
    ListTopics,
    Merged,
    Query,
    RemovePeer,
    SendNotice,
    encode,
)
from signaling.core.interfaces import JoinTicket
from signaling.core.join_request import JoinRequest
from signaling.errors import LeaveReason
from signaling.server.asking import carry_out
from tests.integration.harness import Harness, Peer
from tests.integration.resuming_clients import Client
from tests.issuer import portal, token

pytestmark = [pytest.mark.cluster, pytest.mark.unmeasured]

NODES = range(3)


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness(nodes=3, resume_window_seconds=30)
    harness.advance(1)
    yield harness
    harness.close()


def result(harness: Harness, deferred: Any) -> Any:
    """Return what a Deferred fires with, when everything has happened that happens without time."""
    found: list[Any] = []
    deferred.addBoth(found.append)
    harness.run()
    [value] = found
    return value


def ask(harness: Harness, query: Query, node: int = 0) -> Merged:
    merged: Merged = result(harness, carry_out(harness.factories[node].asker, query))
    return merged


def name(harness: Harness, node: int) -> str:
    backplane: Any = harness.factories[node].backplane
    found: str = backplane.node
    return found


def arrive(harness: Harness, node: int, topic: str = "room", headers: Any = None) -> Peer:
    """Join on one of the nodes; what came first is not looked at."""
    peer = harness.knock(f"/ws/{topic}", headers, node=node)
    harness.run()
    welcome = peer.heard()
    peer.id = welcome[0]["selfId"] if welcome else ""
    return peer


@pytest.mark.parametrize("node", NODES)
def test_a_peer_is_removed_on_whatever_node(harness: Harness, node: int) -> None:
    ada, bob, eve = (arrive(harness, node) for node in NODES)
    for peer in (ada, bob, eve):
        peer.heard()
    assert result(harness, harness.factories[node].kick("room", bob.id, "go")) == 1
    assert (bob.closed, bob.close_reason) == (4403, "go")
    for peer in (ada, eve):
        assert peer.heard() == [{"type": "peer-left", "peerId": bob.id}]
    assert harness.counters.leaves == {LeaveReason.REMOVED: 1}


def test_a_detached_peer_of_another_node_loses_its_session(harness: Harness) -> None:
    ada, bob = Client(harness, 1), arrive(harness, 2)
    ada.lose()
    assert result(harness, harness.factories[0].kick("room", ada.id)) == 1
    assert bob.heard() == [{"type": "peer-left", "peerId": ada.id}]
    assert ada.resume(2)[0]["selfId"] != bob.id
    assert not ada.read()


def test_a_topic_is_closed_on_all_nodes(harness: Harness) -> None:
    peers = [arrive(harness, node % 3) for node in range(100)]
    other = arrive(harness, 1, "other")
    assert result(harness, harness.factories[2].close_topic("room", "the end")) == 100
    assert {(peer.closed, peer.close_reason) for peer in peers} == {(4404, "the end")}
    assert (harness.topics, other.closed) == ({"other": 1}, None)
    assert len(harness.join("room").peers) == 0


@pytest.mark.parametrize("node", NODES)
def test_a_notice_reaches_each_peer_once_on_whatever_node(harness: Harness, node: int) -> None:
    peers = [arrive(harness, node) for node in (0, 1, 1, 2)]
    for peer in peers:
        peer.heard()
    assert result(harness, harness.factories[node].notify("room", 7)) == 4
    assert result(harness, harness.factories[node].notify("room", 8, peers[2].id)) == 1
    seven, eight = ({"type": "notice", "data": data} for data in (7, 8))
    assert [peer.heard() for peer in peers] == [[seven], [seven], [seven, eight], [seven]]


def test_the_owner_of_a_removed_peer_is_kept_out_of_the_topic_on_all_nodes(tmp_path: Path) -> None:
    harness = Harness(nodes=3, portal=portal(tmp_path), notices=True)
    harness.advance(1)
    mallory, eve = ({"Authorization": f"Bearer {token(sub=sub)}"} for sub in ("mallory", "eve"))
    first, second = arrive(harness, 0, headers=mallory), arrive(harness, 1, headers=mallory)
    other = arrive(harness, 1, headers=eve)
    assert result(harness, harness.factories[2].kick("room", first.id, block_seconds=60)) == 2
    assert (first.closed, second.closed, other.closed) == (4403, 4403, None)
    for node in NODES:
        assert harness.knock("/ws/room", mallory, node=node).received == b""
        harness.run()
        assert harness.connections[-1].received.startswith(b"HTTP/1.1 403 ")
    harness.advance(61)
    assert arrive(harness, 2, headers=mallory).id
    harness.close()


@pytest.mark.parametrize("topic", ["room", "nowhere"])
def test_who_is_on_no_node_cannot_be_removed(harness: Harness, topic: str) -> None:
    arrive(harness, 1)
    assert result(harness, harness.factories[0].kick(topic, "nobody")) == 0


def test_the_peers_of_a_topic_are_described_in_joining_order_with_their_nodes(harness: Harness) -> None:
    peers = [arrive(harness, node) for node in (2, 0, 1, 0)]
    description: Any = ask(harness, DescribeTopic("room"), node=1).answer
    assert [(peer.id, peer.node) for peer in description.peers] == [
        (peer.id, name(harness, node)) for peer, node in zip(peers, (2, 0, 1, 0), strict=True)
    ]


def test_pages_have_each_topic_once_with_its_peers_on_all_nodes(harness: Harness) -> None:
    for number in range(50):
        for node in NODES[: 1 + number % 3]:
            arrive(harness, (node + number) % 3, f"t{number:02}")
    found, after = {}, ""
    while after is not None:
        page: Any = ask(harness, ListTopics(after=after, limit=7)).answer
        found.update({topic.name: topic.peers for topic in page.topics})
        after = page.after
    assert found == {f"t{number:02}": 1 + number % 3 for number in range(50)}


def test_a_page_names_the_node_that_it_lacks(harness: Harness) -> None:
    arrive(harness, 0), arrive(harness, 1)
    harness.engines[1].dropping = float("inf")
    found: list[Merged] = []
    carry_out(harness.factories[0].asker, ListTopics()).addCallback(found.append)
    harness.advance(2)
    [merged] = found
    answer: Any = merged.answer
    assert [(topic.name, topic.peers) for topic in answer.topics] == [("room", 1)]
    assert merged.missing == [name(harness, 1)]


def test_a_topic_of_the_most_peers_with_long_metadata_is_described() -> None:
    harness = Harness(nodes=2, max_peer_list_bytes=40_000_000, max_connections=None)
    harness.advance(1)
    metadata = b'{"x":"%b"}' % (b"y" * 4_080)
    factory = harness.factories[1]
    for number in range(5_000):
        # Their connections would take a minute.
        connection: Any = Mock()
        peer = factory.new_peer(JoinRequest("room", metadata), connection, JoinTicket(f"{number:026}"))
        factory.topics.join("room", peer)
    description: Any = ask(harness, DescribeTopic("room")).answer
    assert [peer.metadata for peer in description.peers] == [metadata] * 5_000
    harness.close()


# A peer that moves to another node meanwhile


def moving(steps: int) -> tuple[Harness, Client, Peer]:
    """Return a client that is resuming on node 1 and was on node 0, so many steps later, and a peer on node 2."""
    harness = Harness(nodes=3, resume_window_seconds=30)
    client = Client(harness, 0)
    # The node that it goes to may know the topic.
    watching = arrive(harness, 2)
    if steps % 2:
        arrive(harness, 1)
    harness.advance(1)
    client.lose()
    client.read()
    harness.run()
    client.connection = harness.knock(f"/ws/room?resume={client.token}&seen={client.seen}", node=1)
    for _ in range(steps // 2):
        harness.run_once()
    return harness, client, watching


STEPS = range(30)


@pytest.mark.parametrize("node", NODES)
def test_a_notice_is_sent_once_at_most_to_a_peer_that_moves_and_counted_right(node: int) -> None:
    counts = set()
    for steps in STEPS:
        harness, client, _ = moving(steps)
        asked = harness.factories[node].notify("room", 7, client.id)
        harness.advance(10)
        count = result(harness, asked)
        assert [message["data"] for message in client.read() if message["type"] == "notice"] == [7] * count, steps
        assert client.is_welcome
        counts.add(count)
        harness.close()
    assert counts <= {0, 1}
    assert 1 in counts


@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize("node", NODES)
def test_a_peer_that_is_removed_while_it_moves_is_on_no_node_afterwards(node: int, close: bool) -> None:
    ends = set()
    for steps in STEPS:
        harness, client, watching = moving(steps)
        removed, factory = client.id, harness.factories[node]
        watching.heard()
        asked = factory.close_topic("room", "go") if close else factory.kick("room", removed, "go")
        harness.advance(10)
        assert result(harness, asked) >= 1
        assert all(removed not in topic.members for node in harness.factories for topic in node.topics), steps
        if not close:
            assert [message for message in watching.heard() if message["type"] == "peer-left"] == [
                {"type": "peer-left", "peerId": removed}
            ], steps
        client.read()
        # A client that has no connection when it is removed comes back as another peer.
        ends.add(client.connection.closed if client.id == removed else "another peer")
        harness.close()
    assert ends == {4404 if close else 4403, "another peer"}


# A stranger who may write to the store


@pytest.mark.parametrize(
    "query",
    [
        RemovePeer("room", "PEER", "x" * 1_000_000),
        RemovePeer("room", "PEER", "\0\r\n"),
        RemovePeer("room", "PEER", block_seconds=float("inf")),
        RemovePeer("room", "PEER" * 100_000, block_seconds=float("nan")),
        CloseTopic("room", "é" * 100),
        SendNotice("room", None, b"\xff" * 1_000_000),
        SendNotice("room", None, b"no json"),
        BlockSubject("room", "eve", float("nan")),
        BlockSubject("room", "eve", -1e308),
        BlockSubject("room" * 100_000, "eve" * 100_000, 1e308, "i"),
        ListTopics(limit=-1),
        ListTopics("\ud7ff" * 1000, "\0", 2**62),
        DescribeTopic("x" * 1_000_000),
    ],
    ids=lambda query: type(query).__name__,
)
def test_a_query_that_no_node_would_ask_harms_no_node(harness: Harness, query: Query) -> None:
    ada, bob = arrive(harness, 0), arrive(harness, 1)
    text = encode(query).replace(b"\xa4PEER", b"\xba" + bob.id.encode())
    message = msgspec.msgpack.encode(["q", name(harness, 0), 1, text])
    harness.engines[0].publish(Keys("signaling:").channel(name(harness, 1).encode()), message, lambda listeners: None)
    harness.run()
    harness.advance(2)
    assert harness.engines[1].connects == 1
    assert arrive(harness, 1).id
    if bob.closed is None:
        ada.heard(), bob.heard()
        ada.offer(bob)
        assert [each["type"] for each in bob.heard()] == ["offer"]
    else:
        assert len(bob.close_reason.encode()) <= 123
