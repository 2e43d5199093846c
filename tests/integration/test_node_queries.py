"""Queries that all nodes answer: which of them are missing, and what comes late, twice or from a stranger."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations
from typing import Any

import msgspec
import pytest

from signaling import SignalingFactory
from signaling.backplane.messages import NodeAnswer
from signaling.backplane.store import Keys
from signaling.core.interfaces import Answers
from tests.integration.harness import Harness

pytestmark = pytest.mark.cluster


def answer_with(factory: SignalingFactory, answer: Callable[[bytes], bytes]) -> None:
    """Let a node answer all queries at once, by a function."""
    factory.local.answer_query = lambda query, on_answer: on_answer(answer(query))


def _answer_by(node: int, query: bytes) -> bytes:
    return b"%d answers %b" % (node, query)


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness(nodes=3)
    for number, factory in enumerate(harness.factories):
        answer_with(factory, partial(_answer_by, number))
    harness.advance(1)
    yield harness
    harness.close()


def name(harness: Harness, node: int) -> str:
    """Return the name of a node."""
    backplane: Any = harness.factories[node].backplane
    found: str = backplane.node
    return found


def names(harness: Harness, *nodes: int) -> list[str]:
    return sorted(name(harness, node) for node in nodes)


class Asked:
    """A query, and its answers."""

    def __init__(self, harness: Harness, query: bytes = b"this", node: int = 0) -> None:
        self.came: list[Answers] = []
        harness.factories[node].backplane.ask_nodes(query, self.came.append)

    @property
    def answers(self) -> dict[str, bytes]:
        [answers] = self.came
        return dict(answers.answers)

    @property
    def missing(self) -> list[str]:
        [answers] = self.came
        return list(answers.missing)


def ask(harness: Harness, query: bytes = b"this") -> Asked:
    """Ask the first node, and wait until the answers are there."""
    asked = Asked(harness, query)
    harness.run()
    return asked


def publish(harness: Harness, node: int, *messages: Any) -> None:
    """Put messages on a node's channel, as a stranger does who may write to the store."""
    channel = Keys("signaling:").channel(name(harness, node).encode())
    for message in messages:
        data = message if isinstance(message, bytes) else msgspec.msgpack.encode(message)
        harness.engines[node].publish(channel, data, lambda listeners: None)
    harness.run()


def hold(harness: Harness, node: int) -> Callable[[], None]:
    """Let a node read nothing of its channel until what is returned is called."""
    backplane: Any = harness.factories[node].backplane
    held: list[bytes] = []
    backplane.received = held.append

    def release() -> None:
        del backplane.received
        for data in held:
            backplane.received(data)
        harness.run()

    return release


def test_all_nodes_answer(harness: Harness) -> None:
    asked = ask(harness)
    assert asked.answers == {name(harness, node): b"%d answers this" % node for node in range(3)}
    assert asked.missing == []


def test_a_single_server_answers_for_itself() -> None:
    harness = Harness()
    answer_with(harness.factory, lambda query: b"I answer " + query)
    assert Asked(harness).came == [Answers({"": b"I answer this"}, [])]


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 30_000_000])
def test_an_answer_arrives_whole(harness: Harness, size: int) -> None:
    answer = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    answer_with(harness.factories[1], lambda query: answer)
    assert ask(harness).answers[name(harness, 1)] == answer


def test_a_relay_does_not_wait_for_an_answer_that_is_long(harness: Harness) -> None:
    target, sender = harness.join("room"), harness.join("room")
    target.heard()
    answer_with(harness.factories[1], lambda query: bytes(10_000_000))
    asked = Asked(harness)
    while not harness.engines[1].waiting:
        harness.run_once()
    # The node has begun to send its answer.
    sender.client.send_text(json.dumps({"type": "offer", "to": target.id, "payload": 1}).encode())
    sender.flush()
    while not target.texts:
        harness.run_once()
    assert not asked.came
    harness.run()
    assert len(asked.answers) == 3


# Nodes that do not answer


def test_a_node_that_stands_still_or_is_too_old_for_queries_is_missing_after_2_s(harness: Harness) -> None:
    harness.engines[2].dropping = float("inf")
    asked = ask(harness)
    harness.advance(1.9)
    assert not asked.came
    harness.advance(0.2)
    assert asked.missing == names(harness, 2)
    assert sorted(asked.answers) == names(harness, 0, 1)


def test_a_node_that_is_gone_is_missing_at_once(harness: Harness) -> None:
    harness.engines[2].disconnect()
    assert ask(harness).missing == names(harness, 2)


@pytest.mark.parametrize("node", [0, 2])
def test_a_node_that_takes_too_long_for_its_answer_is_missing(harness: Harness, node: int) -> None:
    late: list[Callable[[bytes], None]] = []
    harness.factories[node].local.answer_query = lambda query, on_answer: late.append(on_answer)
    asked = ask(harness)
    harness.advance(2)
    assert asked.missing == names(harness, node)
    late[0](b"late")
    harness.run()
    assert len(asked.came) == 1


def test_an_answer_that_comes_late_is_ignored(harness: Harness) -> None:
    release = hold(harness, 2)
    asked = ask(harness)
    harness.advance(2)
    assert asked.missing == names(harness, 2)
    again = ask(harness, b"that")
    release()
    assert again.answers[name(harness, 2)] == b"2 answers that"
    assert len(asked.came) == 1


def test_a_node_whose_store_is_out_of_reach_answers_alone_and_names_all_others(harness: Harness) -> None:
    harness.engines[0].lose_connection()
    asked = Asked(harness)
    assert asked.answers == {name(harness, 0): b"0 answers this"}
    assert asked.missing == sorted(["backplane", *names(harness, 1, 2)])


def test_a_connection_that_is_lost_while_nodes_are_asked_ends_the_query(harness: Harness) -> None:
    asked = Asked(harness)
    harness.engines[0].lose_connection()
    assert asked.missing == sorted(["backplane", *names(harness, 1, 2)])


def test_a_store_that_does_not_reply_ends_the_query_after_2_s(harness: Harness) -> None:
    harness.engines[0].holds_replies = True
    asked = ask(harness)
    harness.advance(2)
    assert asked.missing == ["backplane"]
    assert sorted(asked.answers) == names(harness, 0, 1, 2)


def test_an_evicted_node_is_not_asked_and_is_asked_again_under_its_new_name(harness: Harness) -> None:
    before = name(harness, 2)
    harness.engines[2].lose_connection()
    harness.advance(11)
    asked = ask(harness)
    assert (sorted(asked.answers), asked.missing) == (names(harness, 0, 1), [])
    harness.engines[2].reconnect()
    harness.advance(5)
    asked = ask(harness)
    assert name(harness, 2) != before
    assert (sorted(asked.answers), asked.missing) == (names(harness, 0, 1, 2), [])


def test_a_node_that_drains_answers_until_it_is_gone(harness: Harness) -> None:
    peers = [harness.join("room") for _ in range(3)]
    peers[2].stall()
    harness.factories[2].shutdown.drain()
    assert (sorted(ask(harness).answers), len(harness.factories[2].connections)) == (names(harness, 0, 1, 2), 1)
    peers[2].resume()
    # Until its next heartbeat, the first node does not know that the other one is gone in peace.
    assert ask(harness).missing == names(harness, 2)
    harness.advance(1)
    asked = ask(harness)
    assert (sorted(asked.answers), asked.missing) == (names(harness, 0, 1), [])


def test_a_store_that_lost_its_data_forgets_no_node(harness: Harness) -> None:
    keys = Keys("signaling:")
    for node in (name(harness, 1).encode(), name(harness, 2).encode()):
        harness.engines[0].call("deregister", [keys.nodes, keys.index(node)], [node, keys.prefix], lambda reply: None)
    assert ask(harness).missing == names(harness, 1, 2)
    harness.advance(1)
    assert sorted(ask(harness).answers) == names(harness, 0, 1, 2)


def test_a_node_that_stops_waits_for_no_answers(harness: Harness) -> None:
    harness.engines[1].dropping = float("inf")
    asked = Asked(harness)
    harness.factories[0].shutdown.drain()
    harness.run()
    assert name(harness, 1) in asked.missing


def test_a_node_that_has_stopped_answers_for_itself(harness: Harness) -> None:
    harness.factories[0].shutdown.drain()
    harness.advance(10)
    asked = Asked(harness)
    assert asked.answers == {name(harness, 0): b"0 answers this"}
    assert "backplane" in asked.missing


# Bounds, and strangers


def test_the_queries_that_wait_are_bounded_and_more_are_refused(harness: Harness) -> None:
    harness.engines[1].dropping = harness.engines[2].dropping = float("inf")
    waiting = [Asked(harness, b"%d" % number) for number in range(64)]
    refused = Asked(harness)
    assert (refused.answers, refused.missing) == ({}, names(harness, 0))
    harness.advance(2)
    assert all(asked.missing == names(harness, 1, 2) for asked in waiting)
    again = ask(harness)
    harness.advance(2)
    assert sorted(again.answers) == names(harness, 0)


def _answer(harness: Harness, number: int = 1, node: int = 1, part: int = 0, last: bool = True) -> NodeAnswer:
    return NodeAnswer(number, name(harness, node), part, last, b"forged")


@pytest.mark.parametrize(
    "forge",
    [
        lambda harness: [_answer(harness, number=7)],
        lambda harness: [NodeAnswer(1, "a stranger", 0, True, b"forged")],
        lambda harness: [NodeAnswer(1, f"{number}" * 99, 0, False, b"") for number in range(1000)],
        lambda harness: [_answer(harness, node=0)],
        lambda harness: [b"\x95\xa1q" + b"\xff" * 40, b"\x94\xa1n\x01", msgspec.msgpack.encode(["q", 1, 2, 3])],
    ],
    ids=["another number", "a node that is none", "a thousand nodes", "this node", "garbage"],
)
def test_what_a_stranger_answers_is_in_no_answer(harness: Harness, forge: Callable[[Harness], list[Any]]) -> None:
    release = hold(harness, 2)
    asked = ask(harness)
    publish(harness, 0, *forge(harness))
    release()
    assert asked.answers == {name(harness, node): b"%d answers this" % node for node in range(3)}


def test_parts_that_do_not_follow_each_other_are_no_answer(harness: Harness) -> None:
    harness.engines[1].dropping = float("inf")
    asked = ask(harness)
    for parts in permutations([(0, False), (2, True), (5, True)], 3):
        publish(harness, 0, *(_answer(harness, part=part, last=last) for part, last in parts))
    harness.advance(2)
    assert asked.missing == names(harness, 1)


def test_answers_take_a_bounded_amount_of_memory_and_the_rest_is_missing(harness: Harness) -> None:
    harness.engines[1].dropping = float("inf")
    answer_with(harness.factories[2], lambda query: bytes(40_000_000))
    asked = ask(harness)
    publish(harness, 0, *(NodeAnswer(1, name(harness, 1), part, False, bytes(1_000_000)) for part in range(30)))
    harness.advance(2)
    assert asked.missing == names(harness, 1)
    answer_with(harness.factories[2], lambda query: bytes(70_000_000))
    harness.engines[1].dropping = 0
    again = ask(harness)
    harness.advance(2)
    assert again.missing == names(harness, 2)
    # Nothing is counted any more.
    answer_with(harness.factories[2], lambda query: bytes(60_000_000))
    assert ask(harness).missing == []


def test_a_node_that_is_not_there_any_more_is_sent_one_part(harness: Harness) -> None:
    answer_with(harness.factories[1], lambda query: bytes(10_000_000))
    channels: list[bytes] = []
    engine: Any = harness.engines[1]
    publish_there = engine.publish

    def observed(channel: bytes, data: bytes, done: Any) -> None:
        if b"nobody" in channel:
            channels.append(channel)
        publish_there(channel, data, done)

    engine.publish = observed
    publish(harness, 1, ["q", "nobody", 1, b"this"])
    assert channels == [Keys("signaling:").channel(b"nobody")]


def test_a_flood_of_queries_is_carried_out_a_few_at_a_time(harness: Harness) -> None:
    begun: list[Callable[[bytes], None]] = []
    harness.factories[1].local.answer_query = lambda query, on_answer: begun.append(on_answer)
    publish(harness, 1, *(["q", "nobody", number, b"this"] for number in range(200)))
    assert len(begun) == 64
    for answered in begun[:64]:
        answered(b"done")
    publish(harness, 1, ["q", "nobody", 1, b"this"])
    assert len(begun) == 65
