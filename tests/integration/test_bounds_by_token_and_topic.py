"""Bounds that a token or a topic's name brings: the most peers of a topic, and the rate of messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from signaling.core.topic_rules import TopicRule, TopicRules
from tests import issuer
from tests.integration.access import enter
from tests.integration.harness import Harness, Peer
from tests.integration.test_admission import say
from tests.issuer import token

MakeHarness = Callable[..., Harness]
CALLS_OF_TWO = TopicRules([TopicRule("call-*", 2)])


@pytest.fixture
def make(make_harness: MakeHarness, tmp_path: Path) -> MakeHarness:
    """Make a harness that takes tokens of the issuer."""
    return lambda **more: make_harness(portal=issuer.portal(tmp_path), **more)


def bounded(**own: Any) -> str:
    """Mint a token with bounds, for every topic."""
    return token({"prefixes": [""], **own}, sub="Ada")


def refused(harness: Harness, text: str, topic: str = "room") -> Peer:
    """Join with a token for which the topic is full."""
    peer = harness.peer(f"/ws/{topic}", {"Authorization": f"Bearer {text}"})
    assert [(message["type"], message["code"]) for message in peer.heard()] == [("error", "topic_full")]
    assert peer.closed == 1013
    return peer


# The most peers


def test_a_token_joins_only_a_topic_with_fewer_peers(make: MakeHarness) -> None:
    harness = make()
    enter(harness, bounded())
    second = enter(harness, bounded(maxPeers=2))
    third = refused(harness, bounded(maxPeers=2))
    assert third.close_reason == "the topic has 2 peers or more, which is too many for the token"
    enter(harness, bounded())
    refused(harness, bounded(maxPeers=3))
    assert harness.topics == {"room": 3}
    second.leave()
    enter(harness, bounded(maxPeers=3))
    enter(harness, bounded(maxPeers=1), "elsewhere")


def test_a_token_does_not_raise_the_bound_of_the_server(make: MakeHarness) -> None:
    harness = make(max_peers_per_topic=1)
    enter(harness, bounded(maxPeers=5))
    assert refused(harness, bounded(maxPeers=5)).close_reason == "the topic has 1 peers, which is the most"


def test_topics_of_a_pattern_have_a_bound_of_their_own(make_harness: MakeHarness) -> None:
    harness = make_harness(topic_rules=CALLS_OF_TWO, max_peers_per_topic=3)
    for topic, most in (("call-1", 2), ("room", 3)):
        for _ in range(most):
            harness.join(topic)
        full = harness.peer(f"/ws/{topic}")
        assert (full.heard()[0]["code"], full.closed) == ("topic_full", 1013)
        assert full.close_reason == f"the topic has {most} peers, which is the most"


def test_a_pattern_may_raise_the_bound_and_a_token_lower_that(make: MakeHarness) -> None:
    harness = make(topic_rules=CALLS_OF_TWO, max_peers_per_topic=1)
    enter(harness, bounded(), "call-1")
    refused(harness, bounded(maxPeers=1), "call-1")
    enter(harness, bounded(maxPeers=2), "call-1")
    refused(harness, bounded(), "call-1")


def test_who_resumes_is_in_the_topic_already(make: MakeHarness) -> None:
    harness = make(topic_rules=CALLS_OF_TWO, max_peers_per_topic=1, resume_window_seconds=30)
    peers = [harness.peer("/ws/call-1", {"Authorization": f"Bearer {bounded()}"}) for _ in range(2)]
    welcome, peer_list = peers[1].heard()
    assert len(peer_list["peers"]) == 1
    peers[1].reset()
    # On the first peer's node, where there are several.
    query = f"?resume={welcome['resume']['token']}&seen=2"
    back = harness.knock(f"/ws/call-1{query}", {"Authorization": f"Bearer {bounded(maxPeers=1)}"}, node=0)
    harness.run()
    again = back.heard()[0]
    assert (again["selfId"], again["resumed"]) == (welcome["selfId"], True)
    refused(harness, bounded(), "call-1")


# The rate of messages


def test_a_token_bounds_the_rate_of_its_connection(make: MakeHarness) -> None:
    harness = make(message_burst=3)
    peer, other = enter(harness, bounded(messageRate=2)), enter(harness, bounded())
    peer.heard()
    other.heard()
    peer.say({"type": "nonsense", "msgId": "1"})
    peer.heard()
    assert say(peer, 3) == ["offer", "offer", "rate_limited"]
    harness.advance(1.5)
    assert say(peer, 3) == ["offer", "offer", "rate_limited"]
    peer.offer(peer, "9")
    assert peer.heard()[0]["message"] == "at most 2 messages a second; this one was not delivered"
    assert say(other, 20) == ["offer"] * 20


@pytest.mark.parametrize(("of_server", "of_token"), [(1.0, 5), (5.0, 1)])
def test_the_smaller_rate_of_server_and_token_counts(make: MakeHarness, of_server: float, of_token: float) -> None:
    harness = make(max_messages_per_second=of_server, message_burst=4)
    peer = enter(harness, bounded(messageRate=of_token))
    peer.heard()
    assert say(peer, 5) == ["offer"] * 4 + ["rate_limited"]
    harness.advance(2)
    assert say(peer, 2) == ["offer", "rate_limited"]


def test_who_keeps_on_regardless_of_its_token_is_closed(make: MakeHarness) -> None:
    harness = make(message_burst=2)
    peer = enter(harness, bounded(messageRate=0.5))
    peer.heard()
    assert say(peer, 9) == ["offer"] * 2 + ["rate_limited"] * 3
    assert (peer.closed, peer.close_reason) == (1008, "at most 0.5 messages a second")


def test_a_new_token_brings_its_own_rate_and_no_new_burst(make: MakeHarness) -> None:
    harness = make(message_burst=4)

    def renew(**own: Any) -> None:
        peer.say({"type": "token", "token": bounded(**own)})
        assert [message["type"] for message in peer.heard()] == ["token"]

    peer = enter(harness, bounded(messageRate=1))
    peer.heard()
    assert say(peer, 3) == ["offer"] * 3
    renew(messageRate=3)
    assert say(peer, 1) == ["rate_limited"]
    harness.advance(1)
    assert say(peer, 3) == ["offer"] * 2 + ["rate_limited"]
    harness.advance(2)
    renew()
    assert say(peer, 20) == ["offer"] * 20


def test_a_session_that_resumes_has_the_rate_of_its_new_token(make: MakeHarness) -> None:
    harness = make(message_burst=1, resume_window_seconds=30)
    peer = harness.peer("/ws/room", {"Authorization": f"Bearer {bounded(messageRate=1)}"})
    welcome = peer.heard()[0]
    peer.reset()
    query = f"?resume={welcome['resume']['token']}&seen=2"
    back = harness.peer(f"/ws/room{query}", {"Authorization": f"Bearer {bounded()}"})
    back.id = back.heard()[0]["selfId"]
    assert say(back, 5) == ["offer"] * 5
