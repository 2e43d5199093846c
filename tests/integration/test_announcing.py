"""Peers that join or leave together are announced together, and nobody waits for that."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from tests.integration.conftest import MakeHarness
from tests.integration.harness import Harness, Peer, upgrade

pytestmark = pytest.mark.unmeasured

CROWD = 60


def reset_together(peers: list[Peer]) -> None:
    """Have the connections end in one pass of the reactor, with nothing between them."""
    for peer in peers:
        peer.transport.lost = True
        peer.transport.protocol.connectionLost(Failure(ConnectionLost()))


def writes(peers: list[Peer]) -> int:
    return sum(peer.transport.writes for peer in peers)


def left(peer: Peer) -> list[str]:
    return [message["peerId"] for message in peer.heard() if message["type"] == "peer-left"]


def due(harness: Harness) -> list[Any]:
    return [call for call in harness.clock.getDelayedCalls() if call.getTime() <= harness.clock.seconds()]


def test_peers_that_all_leave_together_are_announced_to_hardly_anybody(server: Harness) -> None:
    crowd = [server.join("room") for _ in range(CROWD)]
    before = writes(crowd)
    reset_together(crowd)
    server.run()
    assert writes(crowd) - before < CROWD
    assert not server.factory.topics
    assert not due(server)


def test_leaves_that_happen_together_are_written_together(harness: Harness) -> None:
    *crowd, observer = [harness.join("room") for _ in range(CROWD)]
    observer.heard()
    before = writes([observer])
    reset_together(crowd)
    harness.run()
    assert sorted(left(observer)) == sorted(peer.id for peer in crowd)
    # Each node says at once what it sees first.
    assert writes([observer]) - before < CROWD / 3


def test_a_joining_peer_is_told_of_nobody_that_left_before_it_joined(server: Harness) -> None:
    *crowd, observer = [server.join("room") for _ in range(CROWD)]
    observer.heard()
    connection = server.knock("/ws/room")
    reset_together(crowd)
    connection.step()
    server.run()
    messages = connection.heard()
    assert [message["type"] for message in messages] == ["welcome", "peer-list"]
    assert [entry["id"] for entry in messages[1]["peers"]] == [observer.id]
    assert [message["type"] for message in observer.heard()] == ["peer-left"] * len(crowd) + ["peer-joined"]


def test_a_relay_comes_behind_the_announcement_of_its_sender(harness: Harness) -> None:
    crowd = [harness.join("room") for _ in range(CROWD)]
    target = crowd[0]
    target.heard()
    joining = [harness.connect() for _ in range(10)]
    relay = b'{"type":"offer","to":"%b"}' % target.id.encode()
    frame = b"\x81%c\0\0\0\0%b" % (0x80 | len(relay), relay)
    for connection in joining:
        connection.send_together(upgrade("/ws/room").encode() + frame)
    harness.run()
    known: set[str] = set()
    relays = 0
    for message in target.heard():
        if message["type"] == "peer-joined":
            known.add(message["peerId"])
        else:
            assert message["from"] in known
            relays += 1
    assert relays == len(joining)


@pytest.mark.parametrize("window", [0, 5])
def test_a_full_queue_takes_no_more_events_of_a_mass_leave_than_its_mark(make_server: MakeHarness, window: int) -> None:
    server = make_server(buffer_bytes=1000, high_water_messages=4, resume_window_seconds=window)
    *crowd, slow, observer = [server.join("room") for _ in range(CROWD)]
    for peer in (slow, observer):
        peer.heard()
    slow.stall()
    observer.offer(slow, payload="x" * 1000)
    dropped = server.counters.events_dropped
    for peer in crowd:
        peer.leave()
    server.run()
    slow.resume()
    heard = len(left(slow))
    assert heard == 4
    assert server.counters.events_dropped - dropped == len(crowd) - heard
    assert len(left(observer)) == len(crowd)


def test_a_client_that_resumes_while_events_wait_gets_only_its_list(make_server: MakeHarness) -> None:
    server = make_server(resume_window_seconds=5)
    *crowd, observer = [server.join("room") for _ in range(CROWD)]
    lost = server.peer("/ws/room")
    token = lost.heard()[0]["resume"]["token"]
    lost.reset()
    again = server.knock(f"/ws/room?resume={token}&seen=2")
    for peer in crowd[:30]:
        peer.client.send_close(1000)
        peer.flush()
    server.run()
    messages = again.heard()
    assert [message["type"] for message in messages[:2]] == ["welcome", "peer-list"]
    listed = {entry["id"] for entry in messages[1]["peers"]}
    gone = {message["peerId"] for message in messages[2:]}
    assert gone <= listed
    assert listed - gone == {peer.id for peer in [*crowd[30:], observer]}


def test_a_drain_in_the_middle_of_a_mass_leave_leaves_no_timer(server: Harness) -> None:
    crowd = [server.join("room") for _ in range(CROWD)]
    reset_together(crowd[:40])
    server.drain()
    server.run()
    server.advance(10)
    assert not server.open_connections
    assert not server.clock.getDelayedCalls()
