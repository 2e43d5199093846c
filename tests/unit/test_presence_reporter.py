"""When an observer is told that a peer left which may be at another node."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from signaling.core.presence_reporter import Origin, PresenceReporter
from signaling.errors import LeaveReason
from tests.harness.observer import RecordingObserver


class Person(NamedTuple):
    id: str = "ada"
    metadata: bytes | None = None


class Node:
    """A node whose peer, of another node, left: it does not know whether it moved once more."""

    def __init__(self) -> None:
        self.observer = RecordingObserver()
        self.reporter = PresenceReporter(
            self.observer, lambda: "node", lambda topic: (), lambda session: None, lambda: 5.0, lambda: 0.0, _fail
        )
        self.reporter.moved_here("room", Person(), Origin("origin", 2.0, "subject"))
        [again] = self.observer.events
        assert (again.id, again.subject) == ("ada.origin.joined", "subject")
        self.observer.events.clear()
        self.reporter.left("room", Person(), LeaveReason.SHUTDOWN, may_be_elsewhere=True)

    @property
    def has_told(self) -> bool:
        return self.observer.story == [("left", "room", "ada")]


def _fail(error: BaseException) -> None:
    raise error


@pytest.fixture
def node() -> Node:
    node = Node()
    assert not node.observer.events
    return node


def test_a_peer_that_the_store_removed_has_left(node: Node) -> None:
    node.reporter.leave_decided("room", "ada", has_left=True)
    assert node.has_told
    [event] = node.observer.events
    assert (event.id, event.joined) == ("ada.origin.left", "ada.origin.joined")
    assert (event.duration, event.subject, event.reason) == (2.0, "subject", LeaveReason.SHUTDOWN)


def test_a_peer_that_another_node_has_has_not_left(node: Node) -> None:
    node.reporter.leave_decided("room", "ada", has_left=False)
    node.reporter.synced("room", ())
    assert not node.observer.events


@pytest.mark.parametrize(("members", "has_left"), [((), True), (("ada",), False)])
def test_without_an_answer_the_topic_s_members_decide(node: Node, members: tuple[str, ...], has_left: bool) -> None:
    node.reporter.leave_decided("room", "ada", has_left=None)
    assert not node.observer.events
    node.reporter.synced("room", members)
    assert node.has_told is has_left


def test_a_comparison_from_before_the_answer_decides_nothing(node: Node) -> None:
    node.reporter.synced("room", ("ada",))
    node.reporter.leave_decided("room", "ada", has_left=True)
    assert node.has_told


def test_nothing_is_kept_of_a_peer_that_moved_to_another_node() -> None:
    node = Node()
    node.reporter.joined("another", Person(), None, opens=True)
    node.reporter.moved_away("another", "ada")
    assert node.reporter.origin("another", "ada") is None
    node.reporter.joined("another", Person("bob"), None, opens=True)
    # As long as it has peers in a topic, a node counts on.
    assert [event.number for event in node.observer.events] == [1, 2, 1, 2]


def test_a_peer_that_is_lost_on_its_way_joins_before_it_leaves() -> None:
    observer, origin = RecordingObserver(), Origin("origin", 2.0, "subject")
    reporter = PresenceReporter(
        observer, lambda: "node", lambda topic: (), lambda session: origin, lambda: 5.0, lambda: 0.0, _fail
    )
    reporter.peer_lost_on_its_way("room", "ada", None, b"session")
    assert observer.story == [("joined", "room", "ada"), ("left", "room", "ada")]
    assert {event.number for event in observer.events} == {1, 2}
    assert reporter.origin("room", "ada") is None


@pytest.mark.parametrize("is_answered", [True, False])
@pytest.mark.parametrize("has_left", [True, False])
def test_a_peer_that_a_third_node_may_have_taken_has_left_if_the_store_says_so(
    *, is_answered: bool, has_left: bool
) -> None:
    observer, origin = RecordingObserver(), Origin("origin", 2.0, "subject")
    reporter = PresenceReporter(
        observer, lambda: "node", lambda topic: (), lambda session: origin, lambda: 5.0, lambda: 0.0, _fail
    )
    reporter.peer_lost_on_its_way("room", "ada", None, b"session", may_be_elsewhere=True)
    assert observer.story == []
    if is_answered:
        reporter.leave_decided("room", "ada", has_left)
    else:
        reporter.leave_decided("room", "ada", None)
        reporter.synced("room", () if has_left else ("ada",))
    assert observer.story == ([("joined", "room", "ada"), ("left", "room", "ada")] if has_left else [])
