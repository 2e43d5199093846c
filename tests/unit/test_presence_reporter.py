"""When an observer is told that a peer left which may be at another node."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from signaling.core.presence import Origin, PresenceReporter
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
        assert self.observer.story == [("joined", "room", "ada")]
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


def test_a_peer_that_is_lost_on_its_way_has_joined_before() -> None:
    observer = RecordingObserver()
    origin = Origin("origin", 2.0, "subject")
    reporter = PresenceReporter(
        observer, lambda: "node", lambda topic: (), lambda session: origin, lambda: 5.0, lambda: 0.0, _fail
    )
    reporter.peer_lost_on_its_way("room", "ada", None, b"session")
    assert [event.id for event in observer.events] == ["ada.origin.joined", "ada.origin.left"]
