"""Relays that are open while their sender or their target resumes on another node: each has one end, and in order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from signaling import IceServers, Turn
from tests.integration.harness import Harness
from tests.integration.resuming_clients import Client

pytestmark = pytest.mark.cluster

WINDOW = 30.0
# A dead node's peers are announced within this time.
BURIED = 15.0


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness(nodes=3, resume_window_seconds=WINDOW)
    # Every node knows the topic, and asks no other node about it.
    for node in range(3):
        Client(harness, node)
    yield harness
    harness.close()


def dropped(*numbers: int) -> list[tuple[str, int]]:
    return [("dropped", number) for number in numbers]


# The sender moves


@pytest.mark.parametrize("nodes", [[1], [1, 2], [1, 0], [1, 2, 1]])
@pytest.mark.parametrize("target_node", [0, 2])
def test_a_sender_that_moved_gets_the_error_of_its_dropped_relay(
    harness: Harness, nodes: list[int], target_node: int
) -> None:
    sender, target = Client(harness, 0), Client(harness, target_node)
    target.lose()
    sender.offer(target, 1, 2)
    for node in nodes:
        sender.move(node)
    harness.advance(WINDOW)
    assert sender.errors() == dropped(1, 2)
    assert sum(factory.backplane.forwarding for factory in harness.factories) == 0


@pytest.mark.parametrize("target_node", [0, 2])
def test_a_sender_that_moved_gets_no_error_for_a_delivered_relay(harness: Harness, target_node: int) -> None:
    sender, target = Client(harness, 0), Client(harness, target_node)
    target.lose()
    sender.offer(target, 1, 2)
    sender.move(1)
    assert [message["msgId"] for message in target.resume(target_node)[2:]] == ["1", "2"]
    harness.advance(2 * WINDOW)
    assert sender.errors() == []
    assert sum(factory.backplane.forwarding for factory in harness.factories) == 0


def test_a_sender_that_moved_gets_an_error_when_the_target_s_node_dies(harness: Harness) -> None:
    sender, target = Client(harness, 0), Client(harness, 2)
    harness.engines[2].step = lambda: False  # type: ignore[method-assign]
    sender.offer(target, 1, 2, 3)
    sender.move(1)
    harness.advance(BURIED)
    assert sender.errors() == dropped(1, 2, 3)


def test_a_sender_that_moved_gets_an_error_when_its_old_node_dies(harness: Harness) -> None:
    sender, target = Client(harness, 0), Client(harness, 0)
    target.lose()
    sender.offer(target, 1, 2, 3)
    sender.move(1)
    harness.engines[0].lose_connection()
    harness.advance(BURIED)
    assert sender.errors() == dropped(1, 2, 3)


def test_a_relay_that_ends_while_its_sender_moves_is_answered(harness: Harness) -> None:
    sender, target = Client(harness, 0), Client(harness, 0)
    target.lose()
    sender.offer(target, 1)
    harness.advance(WINDOW - 1)
    sender.lose()
    harness.engines[1].holds_replies = True
    assert sender.resume(1) == []
    harness.advance(2)
    harness.engines[1].release()
    harness.run()
    assert sender.errors() == dropped(1)


def test_a_relay_that_ends_while_its_sender_moves_in_vain_is_answered(harness: Harness) -> None:
    sender, target = Client(harness, 0), Client(harness, 0)
    target.lose()
    sender.offer(target, 1)
    harness.advance(WINDOW - 1)
    sender.lose()
    token, seen = sender.token, sender.seen
    harness.engines[1].refused = {"move"}
    assert "resumed" not in sender.resume(1)[0]
    harness.advance(6)
    sender.token, sender.seen = token, seen
    messages = sender.resume(0)
    assert messages[0]["resumed"]
    assert [message["msgId"] for message in messages if message.get("code") == "dropped"] == ["1"]


@pytest.mark.parametrize("target_node", [1, 2])
def test_what_is_sent_after_a_move_does_not_overtake_what_was_sent_before(harness: Harness, target_node: int) -> None:
    sender, target = Client(harness, 0), Client(harness, target_node)
    harness.engines[0].holds_replies = True
    sender.offer(target, *range(30))
    sender.move(1)
    sender.offer(target, *range(30, 35))
    harness.engines[0].release()
    harness.run()
    assert target.offers() == list(range(35))


# The target moves


def test_what_is_sent_while_a_target_moves_there_and_back_arrives_in_order(harness: Harness) -> None:
    sender, target = Client(harness, 0), Client(harness, 1)
    harness.engines[0].holds_replies = True
    sender.offer(target, *range(10))
    target.move(2)
    sender.offer(target, 10)
    target.move(1)
    harness.engines[0].release()
    sender.offer(target, 11)
    harness.run()
    received = target.offers(whole=True)
    assert received == sorted(received)
    assert sorted([*received, *(number for _, number in sender.errors(whole=True))]) == list(range(12))


@pytest.mark.parametrize("sender_node", [0, 1, 2])
@pytest.mark.parametrize("moves_too", [False, True])
def test_relays_that_wait_for_a_target_that_disconnects_again_are_dropped(
    harness: Harness, sender_node: int, moves_too: bool
) -> None:
    sender, target = Client(harness, sender_node), Client(harness, 0)
    target.lose()
    sender.offer(target, 1, 2)
    harness.engines[1].holds_replies = True
    assert target.resume(1) == []
    target.connection.reset()
    harness.engines[1].release()
    harness.run()
    if moves_too:
        sender.move((sender_node + 1) % 3)
    assert sender.errors() == []
    harness.advance(WINDOW)
    assert sender.errors() == dropped(1, 2)
    assert harness.relays_queued == harness.relays_written == 0


def test_a_session_is_resumed_though_the_store_is_late(harness: Harness) -> None:
    sender, target = Client(harness, 0), Client(harness, 0)
    target.lose()
    sender.offer(target, *range(10))
    harness.engines[1].holds_replies = True
    assert target.resume(1) == []
    harness.advance(2.4)
    harness.engines[1].release()
    harness.run()
    assert target.offers() == list(range(10))
    harness.advance(WINDOW)
    assert sender.errors() == []


@pytest.mark.parametrize("sender_node", [0, 2])
@pytest.mark.parametrize("seconds", [4.0, 5.5])
def test_waiting_relays_are_dropped_if_the_store_is_too_late(
    harness: Harness, sender_node: int, seconds: float
) -> None:
    sender, target = Client(harness, sender_node), Client(harness, 0)
    target.lose()
    sender.offer(target, *range(10))
    former = target.id
    harness.engines[1].holds_replies = True
    assert target.resume(1) == []
    harness.advance(seconds)
    assert target.offers() == []
    assert target.id != former
    harness.engines[1].release()
    harness.advance(WINDOW)
    assert sender.errors() == dropped(*range(10))


def test_a_session_beyond_the_new_node_s_high_water_mark_is_resumed() -> None:
    marks = [{"high_water_messages": 64}, {"high_water_messages": 1}, {}]
    harness = Harness(nodes=3, resume_window_seconds=WINDOW, of_nodes=marks)
    sender, target = Client(harness, 0), Client(harness, 0)
    target.lose()
    sender.offer(target, *range(30))
    messages = target.resume(1)
    assert messages[0].get("resumed")
    assert [message["msgId"] for message in messages if message["type"] == "offer"] == [str(n) for n in range(30)]
    assert sender.errors() == []
    harness.close()


def test_what_waits_for_a_peer_that_its_new_node_cannot_take_is_dropped() -> None:
    bounds = [{}, {"max_peers_per_topic": 1}, {}]
    harness = Harness(nodes=3, resume_window_seconds=WINDOW, of_nodes=bounds)
    Client(harness, 1)
    sender, target = Client(harness, 2), Client(harness, 0)
    target.lose()
    sender.offer(target, *range(10))
    target.resume(1)
    harness.advance(5)
    assert sender.errors() == dropped(*range(10))
    harness.close()


def test_what_waits_for_a_peer_is_dropped_when_the_node_dies_that_has_it_by_now(harness: Harness) -> None:
    sender, target = Client(harness, 0), Client(harness, 0)
    target.lose()
    sender.offer(target, 1, 2)
    harness.engines[1].holds_replies = True
    assert target.resume(1) == []
    harness.engines[1].lose_connection()
    harness.advance(BURIED)
    assert sender.errors() == dropped(1, 2)


# Whatever happens


nodes = st.integers(0, 2)
steps = st.one_of(
    st.just(("relay", 1)),
    st.just(("relay", 5)),
    st.tuples(st.sampled_from(["sender", "target"]), nodes),
    st.tuples(st.just("late"), nodes),
    st.just(("away", 0)),
    st.just(("wait", 1)),
)


@pytest.mark.unmeasured
@given(steps=st.lists(steps, min_size=5, max_size=40), at=st.tuples(nodes, nodes), returns=st.booleans())
def test_each_relay_has_one_outcome_and_they_arrive_in_order(
    steps: list[tuple[str, int]], at: tuple[int, int], returns: bool
) -> None:
    harness = Harness(nodes=3, resume_window_seconds=WINDOW, high_water_messages=4)
    sender, target = (Client(harness, node) for node in at)
    ids = sender.id, target.id
    sent = 0
    for what, number in [*steps, ("wait", 1), ("sender", 0), ("target" if returns else "away", 0), ("wait", 1)]:
        client = sender if what == "sender" else target
        if what == "relay" and sender.is_welcome:
            sender.offer(target, *range(sent, sent + number))
            sent += number
        elif what == "late":
            harness.engines[number].holds_replies = True
        elif what == "wait":
            for engine in harness.engines:
                engine.release()
            harness.advance(number)
        elif what != "relay":
            client.lose()
        if what in {"sender", "target"}:
            client.resume(number)
        sender.read()
    harness.advance(WINDOW if not returns else 0)
    received, failed = target.offers(whole=True), [number for _, number in sender.errors(whole=True)]
    # A client that comes to a second node while the first one still asks for it may lose its session.
    assume((sender.id, target.id) == ids)
    assert received == sorted(received)
    assert len({*received, *failed}) == len([*received, *failed])
    assert harness.relays_written + len(failed) == sent
    assert not returns or len(received) == harness.relays_written
    assert harness.relays_queued == sum(factory.backplane.forwarding for factory in harness.factories) == 0
    harness.close()


# What comes of the client


@pytest.mark.parametrize("sender_node", [0, 1])
def test_a_node_that_missed_two_moves_learns_what_became_of_the_relays_that_waited(
    harness: Harness, sender_node: int
) -> None:
    sender, target = Client(harness, sender_node), Client(harness, 0)
    target.lose()
    sender.offer(target, 1, 2)
    harness.run()
    target.connection = harness.knock(f"/ws/room?resume={target.token}&seen={target.seen}", node=1)
    while target.connection.step():
        pass
    while not harness.engines[0].waiting:
        for engine in harness.engines:
            engine.step()
    # The old node has sent the session, and learns nothing before the second move.
    harness.engines[0].dropping = float("inf")
    harness.run()
    assert target.offers() == [1, 2]
    target.move(2)
    harness.engines[0].dropping = 0
    harness.advance(WINDOW)
    assert sender.errors() == []
    assert sum(factory.backplane.forwarding for factory in harness.factories) == 0


def test_a_client_that_counts_what_was_never_written_does_not_hide_it(harness: Harness) -> None:
    sender, target = Client(harness, 0), Client(harness, 0)
    target.lose()
    sender.offer(target, 1, 2)
    target.seen += 2
    assert [message["type"] for message in target.resume(0)] == ["welcome", "peer-list"]
    assert sender.errors() == dropped(1, 2)
    target.lose()
    sender.offer(target, 3)
    target.seen += 1
    assert [message["type"] for message in target.resume(1)] == ["welcome", "peer-list"]
    assert sender.errors() == dropped(3)


@pytest.mark.parametrize("node", [0, 1])
def test_a_resumed_client_ends_with_the_latest_ice_servers(node: int) -> None:
    def servers(clock: Clock) -> IceServers:
        return IceServers(turn=Turn(("turn:turn.example.com",), b"s", 20), wall_clock=clock.seconds)

    harness = Harness(nodes=2, resume_window_seconds=WINDOW, ice_servers=servers)
    sender, target = Client(harness, 0), Client(harness, 0)
    target.read()
    target.connection.go_silent()
    sender.offer(target, 1)
    harness.advance(11)
    assert any("ice-servers" in text for text in target.connection.transport.texts_written())
    sender.offer(target, 2)
    target.connection.reset()
    messages = target.resume(node)
    assert [message["type"] for message in messages] == ["welcome", "peer-list", "offer", "offer"]
    sender.offer(target, 3)
    target.lose()
    assert target.resume(1 - node)[0]["resumed"]
    harness.close()


def test_a_peer_that_moved_has_been_there_since_it_first_joined() -> None:
    harness = Harness(nodes=2, resume_window_seconds=WINDOW)
    ada = Client(harness, 0)
    harness.advance(5)
    ada.lose()
    harness.advance(2)
    ada.resume(1)
    harness.advance(3)
    [peer] = harness.factories[1].topics.find("room") or ()
    assert (peer.id, harness.clock.seconds() - peer.joined_at) == (ada.id, pytest.approx(10, abs=0.1))
