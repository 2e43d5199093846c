"""Metadata that is replaced on one node and known on all: lost replies and events, a store that is away, hand-offs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from signaling.backplane.cluster import Cluster
from signaling.backplane.store import Keys
from tests.integration.harness import Harness
from tests.integration.resuming_clients import Resumable

pytestmark = pytest.mark.cluster

KEYS = Keys("signaling:")
# A dead node's peers are announced within this time.
EVICTED = 15.0


@pytest.fixture
def harness() -> Iterator[Harness]:
    """Three nodes where metadata may be replaced, and sessions resumed."""
    harness = Harness(nodes=3, resume_window_seconds=30, metadata_updates=True)
    yield harness
    harness.close()


class Member(Resumable):
    """A peer on a node, and what it was told of the metadata of others."""

    def __init__(self, harness: Harness, node: int, query: str = "") -> None:
        super().__init__()
        self._harness = harness
        self.views: dict[str, Any] = {}
        self.connect(node, query)

    def connect(self, node: int, query: str = "") -> list[str]:
        """Connect; returns the types of what comes at once."""
        self.peer = self._harness.knock(f"/ws/room{query}", node=node)
        self._harness.run()
        return self.read()

    def resume(self, node: int) -> list[str]:
        """Lose the connection, and resume on a node."""
        self.read()
        self.peer.reset()
        return self.connect(node, f"?resume={self.token}&seen={self.seen}")

    def say(self, metadata: Any) -> None:
        """Send an update; it reaches its node, and nothing else happens."""
        message = {"type": "metadata", "metadata": metadata, "msgId": "m"}
        self.peer.client.send_text(json.dumps(message).encode())
        self.peer.flush()
        while self.peer.step():
            pass

    def update(self, metadata: Any) -> None:
        """Send an update, and let everything happen."""
        self.say(metadata)
        self._harness.run()

    def read(self) -> list[str]:
        """Return the types of the messages received since the last time."""
        messages = self.peer.heard()
        self.count(messages)
        for message in messages:
            if message["type"] == "peer-list":
                self.views = {entry["id"]: entry.get("metadata") for entry in message["peers"]}
            elif message["type"] in ("peer-joined", "peer-updated"):
                self.views[message["peerId"]] = message.get("metadata")
            elif message["type"] == "peer-left":
                del self.views[message["peerId"]]
        return [message.get("code", message["type"]) for message in messages]

    def view(self, of: Member) -> Any:
        """Return the metadata of another peer, as this one knows it."""
        self.read()
        return self.views.get(of.id, "unknown")


@pytest.fixture
def members(harness: Harness) -> list[Member]:
    """A peer on each node."""
    members = [Member(harness, node, "?metadata={}") for node in range(3)]
    for member in members:
        member.read()
    return members


def backplane(harness: Harness, node: int) -> Cluster:
    found = harness.factories[node].backplane
    assert isinstance(found, Cluster)
    return found


def run(harness: Harness, script: str, node: int, *arguments: bytes) -> None:
    """Run a script in the name of a node, as a call does that comes late, from a connection that broke."""
    own = backplane(harness, node).node.encode()
    keys = [*KEYS.topic(b"room"), KEYS.index(own)]
    harness.engines[0].call(script, keys, [KEYS.prefix, b"room", own, *arguments], lambda reply: None)
    harness.run()


def test_a_node_applies_an_update_when_the_store_has_taken_it(harness: Harness, members: list[Member]) -> None:
    ada, bob, _ = members
    neighbour = Member(harness, 0)
    harness.engines[0].holds_replies = True
    ada.update({"n": 1})
    assert bob.view(ada) == {"n": 1}
    assert ada.view(ada) == "unknown"
    assert neighbour.view(ada) == {}
    harness.engines[0].release()
    harness.run()
    assert ada.view(ada) == neighbour.view(ada) == {"n": 1}


def test_each_member_is_told_once(harness: Harness, members: list[Member]) -> None:
    for number in range(3):
        members[number].update({"n": number})
    harness.advance(5)
    for member in members:
        assert member.read() == ["peer-updated"] * 3


def test_no_topic_is_compared_after_updates(harness: Harness, members: list[Member]) -> None:
    for number in range(4):
        members[0].update({"n": number})
    harness.advance(5)
    calls = [engine.calls for engine in harness.engines]
    harness.advance(5)
    # Each heartbeat, and no comparison of a topic.
    assert [engine.calls - before for engine, before in zip(harness.engines, calls, strict=True)] == [5, 5, 5]


def test_the_bound_on_a_list_counts_over_all_nodes() -> None:
    harness = Harness(nodes=2, metadata_updates=True, resume_window_seconds=30, max_peer_list_bytes=200)
    ada, bob = Member(harness, 0, "?metadata={}"), Member(harness, 1, "?metadata={}")
    ada.read()
    # 200 less two ids and the metadata of one.
    room = 200 - 2 * 36 - 2 * 12 - 2 - len('{"a": ""}')
    ada.update({"a": "x" * (room + 1)})
    assert ada.read() == ["topic_full"]
    assert bob.view(ada) == {}
    ada.update({"a": "x" * room})
    assert ada.read() == ["peer-updated"]
    bob.update({"a": 1})
    assert bob.read() == ["peer-updated", "topic_full"]
    ada.update({})
    bob.update({"a": "x" * room})
    harness.advance(5)
    assert ada.view(bob) == {"a": "x" * room}
    harness.close()


# The store is away, and what is lost on the way to it and back


def without_the_store(harness: Harness, ada: Member) -> None:
    harness.engines[0].lose_connection()
    ada.update({"n": 1})


def lost_before_it_arrived(harness: Harness, ada: Member) -> None:
    ada.say({"n": 1})
    assert harness.engines[0].waiting
    harness.engines[0].lose_connection()
    harness.run()


def reply_lost(harness: Harness, ada: Member) -> None:
    harness.engines[0].holds_replies = True
    ada.update({"n": 1})
    harness.engines[0].lose_connection()
    harness.run()


def reply_lost_and_another_sent(harness: Harness, ada: Member) -> None:
    harness.engines[0].holds_replies = True
    ada.update({"n": 0})
    harness.engines[0].lose_connection()
    ada.update({"n": 1})


@pytest.mark.parametrize("fails", [without_the_store, lost_before_it_arrived, reply_lost, reply_lost_and_another_sent])
def test_an_update_is_applied_without_the_store_and_told_when_it_is_back(
    harness: Harness, members: list[Member], fails: Callable[[Harness, Member], None]
) -> None:
    ada, bob, eve = members
    neighbour = Member(harness, 0)
    fails(harness, ada)
    assert ada.view(ada) == neighbour.view(ada) == {"n": 1}
    harness.engines[0].holds_replies = False
    harness.engines[0].reconnect()
    harness.advance(5)
    assert bob.view(ada) == eve.view(ada) == {"n": 1}
    assert bob.read() == []
    assert Member(harness, 2).view(ada) == {"n": 1}


def test_a_store_that_falls_silent_delays_an_update_for_some_seconds(harness: Harness, members: list[Member]) -> None:
    ada, bob, _ = members
    harness.engines[0].holds_replies = True
    ada.update({"n": 1})
    ada.update({"n": 2})
    harness.advance(2)
    assert ada.view(ada) == "unknown"
    harness.advance(3)
    assert ada.read() == ["peer-updated", "peer-updated"]
    ada.update({"n": 3})
    assert ada.view(ada) == {"n": 3}
    harness.engines[0].release()
    harness.advance(5)
    assert ada.read() == []
    assert ada.view(ada) == bob.view(ada) == {"n": 3}


def test_a_store_that_refuses_the_script_is_corrected(harness: Harness, members: list[Member]) -> None:
    ada, bob, _ = members
    harness.engines[0].refused = {"update"}
    ada.update({"n": 1})
    harness.advance(2)
    assert harness.engines[0].refusals == 1
    assert ada.view(ada) == bob.view(ada) == {"n": 1}


def test_a_node_that_was_away_is_told_what_changed_meanwhile(harness: Harness, members: list[Member]) -> None:
    ada, bob, eve = members
    harness.engines[1].lose_connection()
    ada.update({"n": 1})
    eve.update({"n": 2})
    assert bob.view(ada) == bob.view(eve) == {}
    harness.engines[1].reconnect()
    harness.advance(5)
    assert (bob.view(ada), bob.view(eve)) == ({"n": 1}, {"n": 2})


def test_an_event_that_was_lost_silently_is_recovered_within_seconds(harness: Harness, members: list[Member]) -> None:
    ada, bob, _ = members
    harness.engines[1].dropping = 1
    ada.update({"n": 1})
    assert bob.view(ada) == {}
    harness.advance(3)
    assert bob.view(ada) == {"n": 1}
    assert harness.engines[1].connects == 1


@pytest.mark.parametrize("with_events", [True, False])
def test_a_late_call_from_a_connection_that_broke_is_corrected(
    harness: Harness, members: list[Member], with_events: bool
) -> None:
    ada, bob, _ = members
    ada.update({"n": 2})
    if not with_events:
        harness.engines[0].dropping = 1
    run(harness, "update", 0, ada.id.encode(), b'{"n": 1}', b"9999")
    assert bob.view(ada) == {"n": 1}
    harness.advance(4)
    assert bob.view(ada) == {"n": 2}
    assert ada.read() == ["peer-updated"]


def test_a_topic_is_compared_while_an_update_has_no_reply(harness: Harness, members: list[Member]) -> None:
    ada, bob, _ = members
    harness.engines[0].holds_replies = True
    ada.update({"n": 1})
    backplane(harness, 0).resync("room")
    harness.run()
    assert bob.view(ada) == {"n": 1}
    harness.engines[0].release()
    harness.advance(2)
    assert ada.view(ada) == bob.view(ada) == Member(harness, 2).view(ada) == {"n": 1}
    assert bob.read() == ["peer-joined"]


def test_a_comparison_that_leaves_out_a_peer_is_repeated_if_its_update_fails() -> None:
    harness = Harness(nodes=2, metadata_updates=True, resume_window_seconds=30, max_peer_list_bytes=200)
    ada, bob = Member(harness, 0, "?metadata={}"), Member(harness, 1)
    harness.engines[0].refused = {"update", "sync"}
    ada.update({"n": 1})
    harness.engines[0].refused = set()
    harness.engines[0].holds_replies = True
    ada.update({"a": "x" * 120})
    # The topic is compared again, while that update has no reply.
    harness.advance(1)
    harness.engines[0].release()
    harness.advance(2)
    assert ada.read()[-1] == "topic_full"
    assert bob.view(ada) == {"n": 1}
    harness.close()


def test_the_peers_of_an_evicted_node_come_back_with_what_they_have(harness: Harness, members: list[Member]) -> None:
    ada, bob, _ = members
    ada.update({"n": 1})
    harness.engines[0].lose_connection()
    ada.update({"n": 2})
    harness.advance(EVICTED)
    assert bob.view(ada) == "unknown"
    harness.engines[0].reconnect()
    harness.advance(5)
    assert bob.view(ada) == {"n": 2}
    assert ada.view(ada) == {"n": 2}


# Hand-offs


def test_a_peer_keeps_its_metadata_when_it_moves(harness: Harness, members: list[Member]) -> None:
    ada, bob, eve = members
    ada.update({"n": 1})
    assert bob.view(ada) == {"n": 1}
    assert ada.resume(1) == ["welcome", "peer-list"]
    harness.advance(5)
    assert bob.read() == eve.read()[1:] == []
    assert Member(harness, 0).view(ada) == Member(harness, 2).view(ada) == {"n": 1}
    ada.update({"n": 2})
    assert bob.view(ada) == eve.view(ada) == {"n": 2}


def test_a_session_is_handed_off_when_its_updates_are_decided(harness: Harness, members: list[Member]) -> None:
    ada, bob, eve = members
    ada.read()
    harness.engines[0].holds_replies = True
    ada.update({"n": 1})
    ada.peer.reset()
    ada.connect(1, f"?resume={ada.token}&seen={ada.seen}")
    assert ada.read() == []
    harness.engines[0].release()
    harness.run()
    assert ada.read() == ["welcome", "peer-list"]
    harness.advance(5)
    assert bob.view(ada) == eve.view(ada) == Member(harness, 1).view(ada) == {"n": 1}


def test_what_the_store_did_not_learn_goes_with_the_session(harness: Harness, members: list[Member]) -> None:
    ada, bob, eve = members
    harness.engines[0].refused = {"update", "sync"}
    ada.update({"n": 1})
    assert bob.view(ada) == {}
    assert ada.resume(1)[:2] == ["welcome", "peer-list"]
    assert bob.view(ada) == {"n": 1}
    harness.advance(3)
    assert eve.view(ada) == {"n": 1}
    assert Member(harness, 2).view(ada) == {"n": 1}


def test_a_node_that_missed_a_move_and_the_updates_behind_it_finds_both(
    harness: Harness, members: list[Member]
) -> None:
    ada, _, _ = members
    neighbour = Member(harness, 0)
    ada.read()
    ada.peer.reset()
    ada.peer = harness.knock(f"/ws/room?resume={ada.token}&seen={ada.seen}", node=1)
    while ada.peer.step():
        pass
    # The request for the session arrives, and nothing of what follows.
    harness.engines[1].step()
    harness.engines[0].step()
    harness.engines[0].dropping = 2
    harness.run()
    assert ada.read() == ["welcome", "peer-list"]
    ada.update({"n": 1})
    assert harness.engines[0].dropping == 0
    assert neighbour.view(ada) == {}
    harness.advance(3)
    assert neighbour.view(ada) == {"n": 1}
