"""Queries about many topics and peers go in slices; ``pytest -s`` prints what a slice takes."""

from __future__ import annotations

import time
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from signaling.core.admin_queries import CloseTopic, ListTopics, Merged, Query, SendNotice, encode, merge
from signaling.core.interfaces import Answers
from tests.integration.harness import Harness

# Coverage would measure itself.
pytestmark = pytest.mark.unmeasured

MANY = 100_000


class Filled:
    """A server with topics of one member each, and a way to ask it pass by pass."""

    def __init__(self, names: list[str]) -> None:
        self.harness = Harness()
        self.members: dict[str, Any] = {}
        for name in names:
            self.join(name)

    def join(self, name: str) -> None:
        """Make a topic of that name."""
        member: Any = SimpleNamespace(id=f"{len(self.members)}", listed_bytes=1)
        self.members[name] = self.harness.factory.topics.join(name, member), member

    def leave(self, name: str) -> None:
        """Delete the topic."""
        self.harness.factory.topics.leave(*self.members.pop(name))

    def ask(self, query: Query, between: Any = lambda: None) -> tuple[Merged, list[float]]:
        """Ask, with something between the slices; returns the answer, and how many seconds of CPU each slice took."""
        found: list[bytes] = []
        before = time.thread_time()
        self.harness.factory.administration.answer(encode(query), found.append)
        slices = [time.thread_time() - before]
        while not found:
            between()
            before = time.thread_time()
            self.harness.clock.advance(0)
            slices.append(time.thread_time() - before)
        return merge(query, Answers({"": found[0]})), slices


def report(what: str, slices: list[float]) -> None:
    print(f"{what}: {len(slices)} slices, {1000 * sum(slices):.1f} ms, the longest {1000 * max(slices):.1f} ms")


def test_a_page_of_many_topics_is_made_in_slices() -> None:
    names = [f"{number:06}" for number in range(MANY)]
    Random(1).shuffle(names)
    filled = Filled(names)
    merged, slices = filled.ask(ListTopics(after="050000", limit=1000))
    report("a page of 1,000 out of 100,000 topics", slices)
    assert [topic.name for topic in merged.answer.topics] == [f"{number:06}" for number in range(50_001, 51_001)]
    assert len(slices) == MANY // 5_000


def test_no_topic_is_missing_that_was_there_throughout() -> None:
    random = Random(2)
    stable = [f"{random.randrange(10**9)}-stable" for _ in range(10_000)]
    filled = Filled([*stable, *(f"{random.randrange(10**9)}" for _ in range(2_000))])
    churning = [name for name in filled.members if not name.endswith("-stable")]

    def churn() -> None:
        for _ in range(200):
            filled.leave(churning.pop(random.randrange(len(churning))))
            churning.append(f"{random.randrange(10**9)}")
            filled.join(churning[-1])

    found: list[str] = []
    after = ""
    while True:
        page = filled.ask(ListTopics(after=after, limit=300), churn)[0].answer
        found += [topic.name for topic in page.topics]
        if page.after is None:
            break
        after = page.after
        churn()
    assert [name for name in found if name.endswith("-stable")] == sorted(set(stable))
    assert found == sorted(set(found))


def test_a_notice_to_many_peers_and_their_removal_go_in_slices() -> None:
    filled = Filled([])
    for _ in range(300):
        filled.harness.knock("/ws/room")
    filled.harness.run()
    merged, slices = filled.ask(SendNotice("room", None, b"1"))
    report("a notice to 300 peers", slices)
    assert (merged.answer.received, len(slices)) == (300, 3)
    merged, slices = filled.ask(CloseTopic("room"))
    report("300 peers removed", slices)
    assert (merged.answer.peers, len(slices)) == (300, 10)
