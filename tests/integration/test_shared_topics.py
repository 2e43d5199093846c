"""A server that shares the topics with others: what is not its own it never takes, whichever way a request comes."""

from __future__ import annotations

import pytest

from tests.integration.harness import Harness, response, upgrade


@pytest.fixture
def harness() -> Harness:
    harness = Harness()
    harness.factory.owns = lambda topic: topic == "mine"  # type: ignore[method-assign]
    harness.factory.site.most_requests = 1
    return harness


def test_its_own_topics_live_here(harness: Harness) -> None:
    first, second = harness.join("mine"), harness.join("mine")
    assert [peer["id"] for peer in second.peers] == [first.id]


@pytest.mark.parametrize("in_front", ["", "\r\n"], ids=["plain", "by-twisted-web"])
def test_anothers_topic_is_misdirected(harness: Harness, in_front: str) -> None:
    status, headers, body = harness.request(in_front + upgrade("/ws/theirs", Origin="https://example.com"))
    assert status == 421
    assert "another process" in body
    assert headers["access-control-allow-origin"] == "https://example.com"
    assert len(harness.factory.topics) == 0


def test_what_is_wrong_besides_is_said_first(harness: Harness) -> None:
    assert harness.request(upgrade("/ws/theirs", Upgrade=None))[0] == 426
    assert harness.request(upgrade("/ws/theirs?metadata=1"))[0] == 400


def test_a_connection_carries_one_request(harness: Harness) -> None:
    client = harness.connect()
    client.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    status, headers, _ = response(client.received)
    assert (status, headers["connection"]) == (200, "close")
    assert client.ended


def test_a_request_behind_another_is_not_read(harness: Harness) -> None:
    client = harness.connect()
    client.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" + upgrade("/ws/mine").encode())
    assert client.received.count(b"HTTP/1.1") == 1
    assert len(harness.factory.topics) == 0
