"""Queries that the listener passes to its workers: which of them are asked, and which are named as missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from signaling.core.admin_queries import (
    BlockSubject,
    CloseTopic,
    DescribeTopic,
    ListTopics,
    Query,
    RemovePeer,
    SendNotice,
    encode,
)
from signaling.core.interfaces import Answers
from signaling.workers.ipc import ANSWER, QUERY, PartReceiver, PartSender, encode_answers
from tests.integration.workers_harness import FakeProcess, WorkersHarness, killed


class Listener:
    """A listener that asks its workers, whose processes the test plays."""

    def __init__(self, count: int = 2, *, are_nodes: bool = False) -> None:
        self.harness = WorkersHarness(count, are_nodes=are_nodes)
        self.harness.all_ready()
        self._asked: dict[FakeProcess, list[int]] = {}

    def ask(self, query: Query) -> list[Answers]:
        """Ask; returns where the answers will be."""
        came: list[Answers] = []
        self.harness.listener.asker.ask(encode(query)).addCallback(came.append)
        self.harness.reactor.run()
        return came

    def process(self, worker: int) -> FakeProcess:
        return next(p for p in reversed(self.harness.processes) if p.protocol.number == worker)

    def asked(self, worker: int) -> list[bytes]:
        """Return the queries that a worker got since the last time."""
        process, parts = self.process(worker), PartReceiver()
        found = []
        for message in process.received():
            if message[:1] == QUERY:
                whole = parts.receive(message[1:])
                if whole is not None:
                    self._asked.setdefault(process, []).append(whole[0])
                    found.append(whole[1])
        return found

    def answer(self, worker: int, answers: Answers, query: int = 0) -> None:
        """Let a worker answer one of the queries that it got."""
        process = self.process(worker)

        def send(message: bytes) -> bool:
            process.say(message)
            self.harness.reactor.run()
            return True

        PartSender(ANSWER, send).send(self._asked[process][query], encode_answers(answers))


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.harness.end()


@pytest.fixture
def cluster() -> Iterator[Listener]:
    cluster = Listener(3, are_nodes=True)
    yield cluster
    cluster.harness.end()


def of_one(answer: bytes) -> Answers:
    """Return what a worker answers that is no node."""
    return Answers({"": answer})


def test_all_workers_are_asked_which_topics_there_are(listener: Listener) -> None:
    query = ListTopics("a", "b", 7)
    came = listener.ask(query)
    assert [listener.asked(worker) for worker in range(2)] == [[encode(query)]] * 2
    listener.answer(1, of_one(b"one"))
    assert came == []
    listener.answer(0, of_one(b"zero"))
    assert came == [Answers({"worker 0": b"zero", "worker 1": b"one"}, [])]


@pytest.mark.parametrize(
    "make",
    [
        DescribeTopic,
        lambda topic: RemovePeer(topic, "p"),
        CloseTopic,
        lambda topic: SendNotice(topic, None, b"1" * 200_000),
        lambda topic: BlockSubject(topic, "s", 1.0),
    ],
)
def test_only_the_owner_of_a_topic_is_asked_about_it(make: Any) -> None:
    listener = Listener()
    for worker in range(2):
        query = make(listener.harness.topic_of(worker).decode())
        came = listener.ask(query)
        assert [listener.asked(0), listener.asked(1)] == [[encode(query)] * (worker == n) for n in range(2)]
        listener.answer(worker, of_one(b"done"))
        assert came == [Answers({f"worker {worker}": b"done"}, [])]
    listener.harness.end()


def test_an_answer_that_is_longer_than_a_message_arrives_whole(listener: Listener) -> None:
    topic = listener.harness.topic_of(1).decode()
    came = listener.ask(DescribeTopic(topic))
    listener.asked(1)
    listener.answer(1, of_one(b"x" * 1_000_000))
    assert came == [Answers({"worker 1": b"x" * 1_000_000}, [])]


def test_a_worker_that_does_not_answer_is_missing_after_2_s(listener: Listener) -> None:
    came = listener.ask(ListTopics())
    listener.asked(0)
    listener.answer(0, of_one(b"zero"))
    listener.harness.advance(1.75)
    assert came == []
    listener.harness.advance(0.25)
    assert came == [Answers({"worker 0": b"zero"}, ["worker 1"])]


def test_a_worker_that_answers_late_is_not_taken_for_another_query(listener: Listener) -> None:
    topic = listener.harness.topic_of(1).decode()
    first = listener.ask(DescribeTopic(topic))
    listener.harness.advance(2)
    second = listener.ask(DescribeTopic(topic))
    listener.asked(1)
    listener.answer(1, of_one(b"late"), query=0)
    assert (first, second) == ([Answers({}, ["worker 1"])], [])
    listener.answer(1, of_one(b"in time"), query=1)
    assert second == [Answers({"worker 1": b"in time"}, [])]


@pytest.mark.parametrize("half", [b"", b"N" + b"\x93\x01\xc2\xc4\x04half"])
def test_a_worker_that_dies_is_missing_at_once_and_its_successor_is_asked(listener: Listener, half: bytes) -> None:
    came = listener.ask(ListTopics())
    listener.asked(0)
    listener.answer(0, of_one(b"zero"))
    if half:
        listener.process(1).say(half)
        listener.harness.reactor.run()
    listener.process(1).end_with(number=killed())
    assert came == [Answers({"worker 0": b"zero"}, ["worker 1"])]
    listener.harness.advance(0.5)
    while_starting = listener.ask(DescribeTopic(listener.harness.topic_of(1).decode()))
    assert while_starting == [Answers({}, ["worker 1"])]
    listener.process(1).say(b"R")
    listener.harness.reactor.run()
    again = listener.ask(DescribeTopic(listener.harness.topic_of(1).decode()))
    listener.asked(1)
    listener.answer(1, of_one(b"one"))
    assert again == [Answers({"worker 1": b"one"}, [])]


def test_a_worker_that_drains_answers(listener: Listener) -> None:
    listener.harness.listener.shutdown.drain()
    came = listener.ask(DescribeTopic(listener.harness.topic_of(1).decode()))
    listener.asked(1)
    listener.answer(1, of_one(b"one"))
    assert came == [Answers({"worker 1": b"one"}, [])]


# Workers that are nodes


def test_one_worker_asks_all_nodes_of_its_cluster(cluster: Listener) -> None:
    came = cluster.ask(ListTopics())
    assert [len(cluster.asked(worker)) for worker in range(3)] == [1, 0, 0]
    answers = Answers({"node 1": b"1", "node 2": b"2"}, ["node 3"])
    cluster.answer(0, answers)
    assert came == [answers]


@pytest.mark.parametrize("trouble", ["dead", "without the store"])
def test_a_worker_that_reaches_the_other_nodes_is_asked_first(cluster: Listener, trouble: str) -> None:
    for worker in (0, 1):
        if trouble == "dead":
            cluster.process(worker).end_with(number=killed())
        else:
            cluster.process(worker).say(b'B["the backplane is out of reach"]')
            cluster.harness.reactor.run()
    cluster.ask(ListTopics())
    assert len(cluster.asked(2)) == 1


def test_a_worker_that_hangs_is_missing_after_3_s_and_no_other_is_asked(cluster: Listener) -> None:
    came = cluster.ask(CloseTopic("room"))
    cluster.harness.advance(2.75)
    assert came == []
    cluster.harness.advance(0.25)
    assert came == [Answers({}, ["worker 0"])]
    assert [cluster.asked(worker) for worker in (1, 2)] == [[], []]


def test_nobody_answers_if_no_worker_is_there(cluster: Listener) -> None:
    for worker in range(3):
        cluster.process(worker).end_with(number=killed())
    assert cluster.ask(ListTopics()) == [Answers({}, ["worker 0"])]
