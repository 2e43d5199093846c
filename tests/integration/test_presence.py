"""What observers are told: of one server, and of the nodes of a cluster."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from zope.interface.verify import verifyObject

from signaling import IPresenceObserver, LeaveReason, PeerJoined, PeerLeft
from tests import issuer
from tests.harness.observer import RecordingObserver
from tests.integration.harness import Harness
from tests.integration.resuming_clients import Client, ResumingClient

WINDOW = 30.0
# A lost node is evicted within this time.
EVICTED = 15.0


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


def test_an_update_of_metadata_is_told(make_server: Callable[..., Harness]) -> None:
    observed = Observed(make_server, metadata_updates=True)
    ada = observed.harness.join("room", {"name": "Ada"})
    ada.say({"type": "metadata", "metadata": {"name": "Ada L."}})
    ada.leave()
    assert [kind for kind, *_ in observed.observer.story] == ["opened", "joined", "updated", "left", "closed"]
    _, joined, updated, left, _ = observed.observer.events
    assert updated.metadata == left.metadata == {"name": "Ada L."}
    assert updated.joined == joined.id
    assert updated.number == 3


def test_events_of_a_peer_have_the_subject_of_its_token(make_server: Callable[..., Harness], tmp_path: Path) -> None:
    observed = Observed(make_server, portal=issuer.portal(tmp_path))
    observed.harness.peer("/ws/room", {"Authorization": f"Bearer {issuer.token(sub='ada')}"}).leave()
    _, joined, left, _ = observed.observer.events
    assert joined.subject == left.subject == "ada"


def test_peers_that_are_removed_leave_for_that_reason(make_server: Callable[..., Harness]) -> None:
    observed = Observed(make_server)
    harness = observed.harness
    ada = harness.join("room")
    harness.join("room")
    harness.factory.kick("room", ada.id)
    harness.run()
    harness.factory.close_topic("room")
    harness.run()
    assert [kind for kind, *_ in observed.observer.story[3:]] == ["left", "left", "closed"]
    reasons = [event.reason for event in observed.observer.events if isinstance(event, PeerLeft)]
    assert reasons == [LeaveReason.REMOVED, LeaveReason.TOPIC_CLOSED]


def test_the_example_of_the_documents_knows_who_is_there(make_server: Callable[..., Harness]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "embedding.md").read_text()
    [example] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "IPresenceObserver" in block]
    names: dict[str, Any] = {}
    exec(example.partition("factory =")[0], names)
    rooms = names["Rooms"]()
    verifyObject(IPresenceObserver, rooms)
    harness = make_server(observe=lambda: rooms)
    ada, bob = harness.join("room", {"name": "Ada"}), harness.join("room")
    assert rooms.peers == {"room": {ada.id: {"name": "Ada"}, bob.id: None}}
    ada.leave()
    bob.leave()
    assert rooms.peers == {}


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


def test_an_abort_ends_the_wait_for_the_observer(make_server: Callable[..., Harness], logged: list[str]) -> None:
    observed = Observed(make_server, RecordingObserver(end=Deferred()))
    drained = observed.harness.drain()
    observed.harness.run()
    observed.harness.factory.shutdown.abort()
    observed.harness.run()
    assert drained.called
    assert not any("an observer failed" in line for line in logged)


def _stall(harness: Harness) -> None:
    """Join with a peer that reads nothing, not even a close frame."""
    sender, reader = harness.join("room"), harness.join("room")
    reader.stall()
    for _ in range(3):
        sender.offer(reader, payload="x" * 60_000)


def test_after_an_abort_of_the_connections_the_observer_is_not_waited_for(make_server: Callable[..., Harness]) -> None:
    observed = Observed(make_server, RecordingObserver(end=Deferred()))
    _stall(observed.harness)
    drained = observed.harness.drain()
    observed.harness.run()
    assert observed.observer.stops == 0
    observed.harness.factory.shutdown.abort()
    observed.harness.run()
    assert (observed.observer.stops, drained.called) == (1, True)


def test_after_the_shutdown_timeout_the_observer_still_has_its_time(make_server: Callable[..., Harness]) -> None:
    observed = Observed(make_server, RecordingObserver(end=Deferred()), shutdown_timeout_seconds=3)
    _stall(observed.harness)
    drained = observed.harness.drain()
    observed.harness.advance(2.5)
    assert observed.observer.stops == 0
    observed.harness.advance(0.5)
    assert (observed.observer.stops, drained.called) == (1, False)


# A cluster


class ObservedCluster:
    """A cluster of three nodes, each with an observer, and one that is told everything."""

    def __init__(self, **limits: Any) -> None:
        self.all = RecordingObserver()
        self.observers: list[RecordingObserver] = []
        self.harness = Harness(nodes=3, observe=self._observe, **limits)

    def _observe(self) -> RecordingObserver:
        self.observers.append(RecordingObserver(self.all.take))
        return self.observers[-1]

    def told(self, node: int) -> list[tuple[str, ...]]:
        """Return what the observer of a node was told."""
        return self.observers[node].story


@pytest.fixture
def cluster() -> Iterator[ObservedCluster]:
    cluster = ObservedCluster(resume_window_seconds=WINDOW)
    yield cluster
    cluster.harness.close()


@pytest.mark.cluster
def test_each_event_is_told_once_by_the_node_that_has_the_peer(cluster: ObservedCluster) -> None:
    ada, bob = Client(cluster.harness, 0), Client(cluster.harness, 1)
    ada.connection.leave()
    bob.connection.leave()
    assert cluster.told(0) == [("opened", "room"), ("joined", "room", ada.id), ("left", "room", ada.id)]
    assert cluster.told(1) == [("joined", "room", bob.id), ("left", "room", bob.id), ("closed", "room")]
    assert [event.number for event in cluster.observers[1].events] == [1, 2, 3]
    assert [event.node for event in cluster.observers[0].events] == [cluster.harness.factories[0].backplane.node] * 3
    assert len({event.id for event in cluster.all.events}) == 6


@pytest.mark.cluster
def test_a_peer_that_moves_has_not_left_and_its_new_node_tells_its_join_again(cluster: ObservedCluster) -> None:
    ada = Client(cluster.harness, 0)
    cluster.harness.advance(10)
    ada.move(1)
    cluster.harness.advance(10)
    assert cluster.told(0) == [("opened", "room"), ("joined", "room", ada.id)]
    ada.connection.leave()
    # What its old node told may be lost with that node.
    assert cluster.told(1) == [("joined", "room", ada.id), ("left", "room", ada.id), ("closed", "room")]
    again, left, _ = cluster.observers[1].events
    assert again.id == left.joined == cluster.observers[0].events[1].id
    assert left.duration == pytest.approx(20, abs=1)


@pytest.mark.cluster
def test_a_peer_that_comes_from_a_node_without_an_observer_joins_before_it_leaves() -> None:
    observer = RecordingObserver()
    observers = iter([None, observer])
    harness = Harness(nodes=2, observe=lambda: next(observers), resume_window_seconds=WINDOW)
    ada = Client(harness, 0)
    ada.move(1)
    ada.connection.leave()
    assert observer.story == [("joined", "room", ada.id), ("left", "room", ada.id), ("closed", "room")]
    harness.close()


@pytest.mark.cluster
def test_the_node_that_evicts_another_tells_that_its_peers_have_left(cluster: ObservedCluster) -> None:
    lost, bob = Client(cluster.harness, 0), Client(cluster.harness, 1)
    before = cluster.observers[0].events[1]
    cluster.harness.engines[0].lose_connection()
    cluster.harness.advance(EVICTED)
    after = [event for event in cluster.all.events if isinstance(event, PeerJoined | PeerLeft)][2:]
    assert [(type(event), event.peer) for event in after] == [(PeerJoined, lost.id), (PeerLeft, lost.id)]
    again, left = after
    assert (again.id, left.joined) == (before.id, before.id)
    assert left.reason is LeaveReason.NODE_LOST
    assert again.node != cluster.harness.factories[0].backplane.node
    bob.connection.leave()
    assert cluster.all.story[-1] == ("closed", "room")


@pytest.mark.cluster
def test_a_node_that_comes_back_tells_again_that_its_peers_joined(cluster: ObservedCluster) -> None:
    ada = Client(cluster.harness, 0)
    Client(cluster.harness, 1)
    cluster.harness.engines[0].lose_connection()
    cluster.harness.advance(EVICTED)
    cluster.harness.engines[0].reconnect()
    cluster.harness.advance(3)
    kinds = [kind for kind, _, *peers in cluster.all.story if peers == [ada.id]]
    assert kinds == ["joined", "joined", "left", "joined"]
    ids = [event.id for event in cluster.all.events if isinstance(event, PeerJoined) and event.peer == ada.id]
    assert ids[0] == ids[1] != ids[2]
    ada.connection.leave()
    assert cluster.observers[0].events[-1].joined == ids[2]


@pytest.mark.cluster
def test_nodes_without_the_store_tell_what_they_know(cluster: ObservedCluster) -> None:
    cluster.harness.engines[2].lose_connection()
    cluster.harness.advance(3)
    ada = Client(cluster.harness, 2)
    ada.connection.leave()
    assert cluster.told(2) == [
        ("opened", "room"),
        ("joined", "room", ada.id),
        ("left", "room", ada.id),
        ("closed", "room"),
    ]


@pytest.mark.cluster
def test_a_drain_of_a_node_tells_of_closed_topics_before_it_ends(cluster: ObservedCluster) -> None:
    ada = Client(cluster.harness, 0)
    cluster.harness.drain()
    cluster.harness.advance(3)
    assert cluster.told(0)[-2:] == [("left", "room", ada.id), ("closed", "room")]
    assert [observer.stops for observer in cluster.observers] == [1, 1, 1]
