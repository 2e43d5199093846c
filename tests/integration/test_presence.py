"""What an observer of one server is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from signaling.core.presence import PeerJoined, PeerLeft
from signaling.errors import LeaveReason
from tests.harness.observer import RecordingObserver
from tests.integration.harness import Harness
from tests.integration.test_resuming import ResumingClient

WINDOW = 30.0


class Observed:
    """A server and its observer."""

    def __init__(self, make: Callable[..., Harness], observer: RecordingObserver | None = None, **limits: Any) -> None:
        self.observer = observer or RecordingObserver()
        self.harness = make(observe=lambda: self.observer, **limits)


@pytest.fixture
def observed(make_server: Callable[..., Harness]) -> Iterator[Observed]:
    return Observed(make_server)


def test_an_observer_is_told_of_topics_and_peers_in_order(observed: Observed) -> None:
    ada, bob = observed.harness.join("room"), observed.harness.join("room")
    ada.leave()
    bob.leave()
    assert observed.observer.story == [
        ("opened", "room"),
        ("joined", "room", ada.id),
        ("joined", "room", bob.id),
        ("left", "room", ada.id),
        ("left", "room", bob.id),
        ("closed", "room"),
    ]
    assert [event.number for event in observed.observer.events] == [1, 2, 3, 4, 5, 6]


def test_a_topic_that_is_opened_again_counts_from_one(observed: Observed) -> None:
    observed.harness.join("room").leave()
    observed.harness.join("room")
    assert [event.number for event in observed.observer.events] == [1, 2, 3, 4, 1, 2]
    assert len({event.id for event in observed.observer.events}) == 6


def test_events_of_a_peer_have_its_metadata_and_times(observed: Observed) -> None:
    harness = observed.harness
    ada = harness.join("room", {"name": "Ada"})
    harness.advance(12)
    ada.leave()
    [joined] = [event for event in observed.observer.events if isinstance(event, PeerJoined)]
    [left] = [event for event in observed.observer.events if isinstance(event, PeerLeft)]
    assert joined.metadata == left.metadata == {"name": "Ada"}
    assert left.time - joined.time == pytest.approx(12)
    assert left.duration == pytest.approx(12)
    assert left.reason is LeaveReason.CLOSED
    assert left.joined == joined.id
    assert joined.node is joined.subject is None


def test_a_peer_whose_connection_is_lost_has_left_for_that_reason(observed: Observed) -> None:
    observed.harness.join("room").reset()
    assert observed.observer.events[-2].reason is LeaveReason.CONNECTION_LOST


def test_a_client_that_is_rejected_is_not_told(make_server: Callable[..., Harness]) -> None:
    observed = Observed(make_server, max_peers_per_topic=1)
    observed.harness.join("room")
    observed.harness.peer("/ws/room")
    assert [kind for kind, *_ in observed.observer.story] == ["opened", "joined"]


def test_a_peer_that_resumes_has_neither_left_nor_joined(make_server: Callable[..., Harness]) -> None:
    observed = Observed(make_server, resume_window_seconds=WINDOW)
    client = ResumingClient(observed.harness)
    client.lose_connection()
    observed.harness.advance(WINDOW / 2)
    client.resume()
    assert observed.observer.story == [("opened", "room"), ("joined", "room", client.id)]


def test_a_detached_peer_leaves_at_the_end_of_its_window(make_server: Callable[..., Harness]) -> None:
    observed = Observed(make_server, resume_window_seconds=WINDOW)
    client = ResumingClient(observed.harness)
    client.lose_connection()
    observed.harness.advance(WINDOW - 1)
    assert observed.observer.story[-1] == ("joined", "room", client.id)
    observed.harness.advance(2)
    assert observed.observer.story[-2:] == [("left", "room", client.id), ("closed", "room")]
    assert observed.observer.events[-2].reason is LeaveReason.RESUME_TIMEOUT


def test_an_observer_that_raises_costs_nobody_anything(make_server: Callable[..., Harness], logged: list[str]) -> None:
    def fail(event: Any) -> None:
        raise ValueError("secret metadata")

    observed = Observed(make_server, RecordingObserver(fail))
    ada, bob = observed.harness.join("room"), observed.harness.join("room")
    bob.offer(ada)
    assert ada.heard()[-1]["type"] == "offer"
    lines = [line for line in logged if "an observer failed" in line]
    assert len(lines) == 1
    assert "ValueError at" in lines[0]
    assert not any("secret metadata" in line for line in logged)


def test_a_drain_tells_that_all_have_left_and_waits_for_the_observer(make_server: Callable[..., Harness]) -> None:
    end: Deferred[None] = Deferred()
    observed = Observed(make_server, RecordingObserver(end=end), resume_window_seconds=WINDOW)
    harness = observed.harness
    ada, bob = ResumingClient(harness), ResumingClient(harness)
    bob.lose_connection()
    drained = harness.drain()
    harness.run()
    assert sorted(observed.observer.story[-3:-1]) == sorted([("left", "room", ada.id), ("left", "room", bob.id)])
    assert {event.reason for event in observed.observer.events[-3:-1]} == {LeaveReason.SHUTDOWN}
    assert (observed.observer.stops, drained.called) == (1, False)
    end.callback(None)
    harness.run()
    assert drained.called


def test_a_drain_does_not_wait_for_ever(make_server: Callable[..., Harness]) -> None:
    observed = Observed(make_server, RecordingObserver(end=Deferred()))
    drained = observed.harness.drain()
    observed.harness.advance(10)
    assert drained.called
