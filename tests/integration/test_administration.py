"""Removing peers, closing topics, sending notices and listing, by an application or an operator."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred

from signaling.core.admin_queries import (
    CloseTopic,
    DescribeTopic,
    ListTopics,
    Merged,
    Query,
    TopicPage,
    TopicSize,
    encode,
    merge,
)
from signaling.core.interfaces import Answers
from signaling.errors import LeaveReason
from tests.integration.harness import Harness

pytestmark = pytest.mark.unmeasured

REASON = "Bitte später wiederkommen"


def result(deferred: Deferred[Any]) -> Any:
    found: list[Any] = []
    deferred.addBoth(found.append)
    [value] = found
    return value


def ask(harness: Harness, query: Query) -> Any:
    found: list[bytes] = []
    harness.factory.administration.answer(encode(query), found.append)
    harness.run()
    [answer] = found
    return merge(query, Answers({"": answer})).answer


@pytest.mark.parametrize("site", [False, pytest.param(True, marks=pytest.mark.site)])
def test_a_removed_peer_gets_the_reason_and_leaves_at_once(site: bool) -> None:
    harness = Harness(site)
    ada, bob = harness.join("room"), harness.join("room")
    ada.heard()
    ada.stall()
    removed = harness.factory.kick("room", ada.id, REASON)
    harness.run()
    assert result(removed) == 1
    assert bob.heard() == [{"type": "peer-left", "peerId": ada.id}]
    ada.resume()
    assert (ada.closed, ada.close_reason) == (4403, REASON)
    assert harness.counters.leaves == {LeaveReason.REMOVED: 1}
    assert ada.heard() == []


@pytest.mark.parametrize(("topic", "peer"), [("room", "nobody"), ("other", "nobody")])
def test_who_is_not_there_cannot_be_removed(topic: str, peer: str) -> None:
    harness = Harness()
    harness.join("room")
    assert result(harness.factory.kick(topic, peer)) == 0


def test_a_removed_peer_cannot_resume() -> None:
    harness = Harness(resume_window_seconds=30)
    ada = harness.peer("/ws/room")
    welcome, _ = ada.heard()
    harness.factory.kick("room", welcome["selfId"])
    harness.run()
    assert ada.closed == 4403
    again = harness.peer(f"/ws/room?resume={welcome['resume']['token']}&seen=2")
    assert again.heard()[0]["selfId"] != welcome["selfId"]


def test_a_detached_peer_that_is_removed_loses_its_session() -> None:
    harness = Harness(resume_window_seconds=30)
    ada, bob = harness.peer("/ws/room"), harness.join("room")
    welcome = ada.heard()[0]
    ada.reset()
    assert bob.heard() == []
    assert result(harness.factory.kick("room", welcome["selfId"])) == 1
    harness.run()
    assert bob.heard() == [{"type": "peer-left", "peerId": welcome["selfId"]}]
    again = harness.peer(f"/ws/room?resume={welcome['resume']['token']}&seen=2")
    assert again.heard()[0]["selfId"] != welcome["selfId"]
    assert harness.counters.leaves == {LeaveReason.REMOVED: 1}


@pytest.mark.parametrize("site", [False, pytest.param(True, marks=pytest.mark.site)])
def test_all_peers_of_a_closed_topic_leave_and_others_stay(site: bool) -> None:
    harness = Harness(site, resume_window_seconds=30)
    peers = [harness.join("room") for _ in range(100)]
    detached, other = peers[0], harness.join("other")
    detached.reset()
    closed = harness.factory.close_topic("room", REASON)
    # In slices: the first has closed some, not all.
    assert 0 < harness.topics["room"] < 100
    harness.run()
    assert result(closed) == 100
    assert {(peer.closed, peer.close_reason) for peer in peers[1:]} == {(4404, REASON)}
    assert harness.topics == {"other": 1}
    assert other.closed is None
    assert harness.counters.leaves == {LeaveReason.TOPIC_CLOSED: 100}
    harness.join("room")


def test_a_session_of_a_topic_that_is_being_closed_cannot_be_resumed() -> None:
    harness = Harness(resume_window_seconds=30)
    for _ in range(100):
        harness.join("room")
    last = harness.peer("/ws/room")
    welcome = last.heard()[0]
    harness.factory.close_topic("room")
    again = harness.peer(f"/ws/room?resume={welcome['resume']['token']}&seen=2")
    assert again.heard()[0]["selfId"] != welcome["selfId"]


@pytest.mark.parametrize("only", [False, True])
def test_a_notice_reaches_all_or_one(only: bool) -> None:
    harness = Harness()
    ada, bob = harness.join("room"), harness.join("room")
    ada.heard()
    got = harness.factory.notify("room", {"text": "ten minutes left"}, ada.id if only else None)
    harness.run()
    notice = {"type": "notice", "data": {"text": "ten minutes left"}}
    assert result(got) == (1 if only else 2)
    assert (ada.heard(), bob.heard()) == ([notice], [] if only else [notice])


def test_a_notice_waits_like_a_relay_up_to_the_high_water_mark() -> None:
    harness = Harness(high_water_messages=2, buffer_bytes=100)
    ada = harness.join("room")
    ada.stall()
    counts = [result(harness.factory.notify("room", "x" * 200)) for _ in range(4)]
    # The first fills the transport; two are queued; the last is refused.
    assert counts == [1, 1, 1, 0]
    ada.resume()
    assert len(ada.heard()) == 3
    assert harness.counters.notices_received == 3
    assert (harness.relays_queued, harness.relays_written) == (0, 0)


def test_a_notice_is_kept_for_a_detached_peer() -> None:
    harness = Harness(resume_window_seconds=30)
    ada = harness.peer("/ws/room")
    welcome = ada.heard()[0]
    ada.reset()
    assert result(harness.factory.notify("room", 1)) == 1
    again = harness.peer(f"/ws/room?resume={welcome['resume']['token']}&seen=2")
    assert [message["type"] for message in again.heard()] == ["welcome", "peer-list", "notice"]


def test_a_resumed_peer_is_not_sent_a_notice_again_that_it_has_seen() -> None:
    harness = Harness(resume_window_seconds=30)
    ada = harness.peer("/ws/room")
    welcome = ada.heard()[0]
    harness.factory.notify("room", 1)
    harness.run()
    ada.reset()
    again = harness.peer(f"/ws/room?resume={welcome['resume']['token']}&seen=3")
    assert [message["type"] for message in again.heard()] == ["welcome", "peer-list"]


@pytest.mark.parametrize("data", [float("nan"), "x" * 65_536, 10**101])
def test_a_notice_that_a_client_could_not_read_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match=r"\d|Out of range"):
        Harness().factory.notify("room", data)


def test_a_reason_that_does_not_fit_is_refused() -> None:
    factory = Harness().factory
    with pytest.raises(ValueError, match="123"):
        factory.kick("room", "peer", "x" * 124)
    with pytest.raises(ValueError, match="123"):
        factory.close_topic("room", "ä" * 62)


def test_pages_of_topics_have_all_names_in_order() -> None:
    harness = Harness()
    names = [f"{number:03}" for number in range(25)]
    for name in reversed(names):
        harness.join(name)
    harness.join("024")
    after, found, pages = "", [], 0
    while True:
        page = ask(harness, ListTopics(after=after, limit=10))
        found += [(topic.name, topic.peers) for topic in page.topics]
        pages += 1
        if page.after is None:
            break
        after = page.after
    assert found == [(name, 2 if name == "024" else 1) for name in names]
    assert pages == 3


def test_a_page_has_the_topics_of_its_prefix() -> None:
    harness = Harness()
    for name in ("call-1", "call-2", "calm", "zoo"):
        harness.join(name)
    page = ask(harness, ListTopics(prefix="call-"))
    assert [topic.name for topic in page.topics] == ["call-1", "call-2"]
    assert page.after is None


def test_the_peers_of_a_topic_are_described_in_joining_order() -> None:
    harness = Harness(resume_window_seconds=30)
    ada = harness.join("room", {"name": "Ada"})
    harness.advance(5)
    bob = harness.join("room")
    ada.reset()
    harness.advance(2)
    description = ask(harness, DescribeTopic("room"))
    assert [(p.id, p.metadata, p.seconds, p.detached) for p in description.peers] == [
        (ada.id, b'{"name": "Ada"}', 7.0, True),
        (bob.id, None, 2.0, False),
    ]
    assert ask(harness, DescribeTopic("other")).peers == []


@pytest.mark.parametrize("notices", [False, True])
def test_an_address_is_recorded_only_if_that_is_asked_for(notices: bool) -> None:
    harness = Harness(notices=notices)
    harness.join("room")
    [entry] = ask(harness, DescribeTopic("room")).peers
    assert (entry.address is not None) is notices


def test_without_a_portal_nobody_can_be_blocked() -> None:
    harness = Harness()
    harness.join("room")
    with pytest.raises(ValueError, match="portal"):
        harness.factory.kick("room", "peer", block_seconds=60)


def test_an_error_in_a_later_slice_leaves_nobody_waiting() -> None:
    harness = Harness()
    for _ in range(40):
        harness.join("room")
    found: list[bytes] = []
    harness.factory.administration.answer(encode(CloseTopic("room")), found.append)
    assert found == []
    peers = list(harness.factory.topics.find("room") or ())
    peers[-1].attach(BrokenConnection())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="planted"):
        harness.run()
    assert found == [b""]


class BrokenConnection:
    blocked = False

    def offer(self, frame: bytes, receipt: Any = None) -> bool:
        return True

    def offer_at_once(self, frames: bytes) -> bool:
        return True

    def remove_peer(self, code: int, reason: str, ending: LeaveReason) -> None:
        raise RuntimeError("planted")


def test_pages_of_several_nodes_become_one() -> None:
    query = ListTopics(limit=2)
    one = encode_answer(TopicPage([TopicSize("a", 1), TopicSize("c", 1)], "c"))
    two = encode_answer(TopicPage([TopicSize("a", 2), TopicSize("b", 4)], "b"))
    merged = merge(query, Answers({"one": one, "two": two, "old": b""}, ["gone"]))
    assert merged == Merged(TopicPage([TopicSize("a", 3), TopicSize("b", 4)], "b"), ["gone", "old"])


def test_a_topic_that_the_shortest_page_does_not_reach_is_left_to_the_next() -> None:
    query = ListTopics(limit=3)
    one = encode_answer(TopicPage([TopicSize("a", 1), TopicSize("b", 1), TopicSize("c", 1)], "c"))
    two = encode_answer(TopicPage([TopicSize("d", 1)], None))
    assert merge(query, Answers({"one": one, "two": two})).answer.after == "c"


encode_answer = msgspec.msgpack.encode
