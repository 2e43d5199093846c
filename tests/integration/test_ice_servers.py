"""ICE servers in the welcome, and their renewal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from signaling import IceServers, IceSource, Turn
from signaling.ice_source.request import FetchFailed
from signaling.metrics.collector import ReactorLag, SignalingCollector
from tests.integration.harness import Harness

URI = "turn:turn.example.com"
TTL_SECONDS = 600


def harness_with_turn(**limits: float) -> Harness:
    return Harness(
        ice_servers=lambda clock: IceServers(turn=Turn((URI,), b"s", TTL_SECONDS), wall_clock=clock.seconds), **limits
    )


def test_each_peer_receives_its_own_credential() -> None:
    harness = harness_with_turn()
    welcomes = [json.loads(harness.peer("/ws/room").texts[0]) for _ in range(2)]
    for welcome in welcomes:
        (server,) = welcome["iceServers"]
        assert server["username"] == f"{TTL_SECONDS}:{welcome['selfId']}"
    assert welcomes[0]["iceServers"] != welcomes[1]["iceServers"]


def test_a_credential_is_renewed_at_half_of_its_lifetime_repeatedly() -> None:
    harness = harness_with_turn()
    peer = harness.join("room")
    for half in (1, 2, 3):
        harness.advance(TTL_SECONDS / 2 - 1)
        assert peer.heard() == []
        harness.advance(1)
        (renewal,) = peer.heard()
        assert renewal["type"] == "ice-servers"
        (server,) = renewal["iceServers"]
        assert server["username"] == f"{TTL_SECONDS // 2 * half + TTL_SECONDS}:{peer.id}"


@pytest.mark.parametrize("seconds", [-3600.0, 3600.0], ids=["back", "forward"])
def test_credentials_are_renewed_within_seconds_after_the_wall_clock_is_set(seconds: float) -> None:
    ahead = [0.0]

    def servers(clock: Clock) -> IceServers:
        return IceServers(turn=Turn((URI,), b"s", TTL_SECONDS), wall_clock=lambda: clock.seconds() + ahead[0])

    harness = Harness(ice_servers=servers, wall_ahead=lambda: ahead[0])
    peers = [harness.join("room") for _ in range(40)]
    for peer in peers:
        peer.heard()
    ahead[0] = seconds
    harness.advance(11)
    for peer in peers:
        (renewal,) = peer.heard()
        expires = int(renewal["iceServers"][0]["username"].partition(":")[0])
        assert expires == int(seconds + harness.clock.seconds() - 1) + TTL_SECONDS
    harness.advance(100)
    assert [message for peer in peers for message in peer.heard()] == []


def test_a_peer_that_left_receives_no_renewal_and_leaves_no_timer() -> None:
    harness = harness_with_turn()
    harness.join("room").leave()
    harness.advance(6)
    assert [call for call in harness.clock.getDelayedCalls() if call.active()] == []


def test_a_resumed_peer_receives_a_new_credential() -> None:
    harness = harness_with_turn(resume_window_seconds=30)
    peer = harness.peer("/ws/room")
    welcome = json.loads(peer.texts[0])
    harness.advance(100)
    peer.reset()
    harness.advance(10)
    again = harness.peer(f"/ws/room?resume={welcome['resume']['token']}&seen=2").heard()
    assert again[0]["resumed"]
    assert again[0]["iceServers"][0]["username"] == f"{110 + TTL_SECONDS}:{welcome['selfId']}"


def test_servers_without_a_credential_are_never_renewed() -> None:
    harness = Harness(ice_servers=lambda clock: IceServers([{"urls": "stun:stun.example.com"}]))
    peer = harness.peer("/ws/room")
    assert peer.heard()[0]["iceServers"] == [{"urls": "stun:stun.example.com"}]
    harness.advance(100_000, step=10)
    assert peer.heard() == []


# Those of a provider


class Provider:
    """Answers with one STUN server, whose name says how often it was asked; or fails."""

    def __init__(self) -> None:
        self.asked = 0
        self.fails = False

    def fetch(self, request: Any) -> Deferred[bytes]:
        self.asked += 1
        if self.fails:
            return fail(FetchFailed("it answered 503"))
        return succeed(json.dumps([{"urls": f"stun:{self.asked}.example.com"}]).encode())


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def make(provider: Provider) -> Callable[..., Harness]:
    """Make a server that asks the provider."""

    def source(clock: Clock) -> IceSource:
        return IceSource("https://example.com", ttl_seconds=TTL_SECONDS, reactor=clock, fetcher=provider)

    return lambda **more: Harness(ice_source=source, **more)


def hosts(servers: list[Any]) -> list[str]:
    return [uri.partition(":")[2] for server in servers for uri in server["urls"]]


def test_a_provider_is_asked_before_the_first_client_comes(make: Callable[..., Harness]) -> None:
    welcome = make().peer("/ws/room").heard()[0]
    assert hosts(welcome["iceServers"]) == ["1.example.com"]


def test_peers_are_sent_the_providers_new_servers(make: Callable[..., Harness]) -> None:
    harness = make()
    peers = [harness.join("room") for _ in range(40)]
    for peer in peers:
        peer.heard()
    harness.advance(TTL_SECONDS / 2)
    for peer in peers:
        [message] = peer.heard()
        assert message["type"] == "ice-servers"
        assert hosts(message["iceServers"]) == ["2.example.com"]
    assert hosts(harness.peer("/ws/room").heard()[0]["iceServers"]) == ["2.example.com"]


def test_peers_keep_what_they_have_while_the_provider_fails_and_are_sent_nothing(
    make: Callable[..., Harness], provider: Provider
) -> None:
    provider.fails = True
    harness = make()
    peer = harness.peer("/ws/room")
    assert "iceServers" not in peer.heard()[0]
    harness.advance(TTL_SECONDS)
    assert peer.heard() == []
    provider.fails = False
    harness.advance(61)
    [message] = peer.heard()
    assert message["type"] == "ice-servers"
    provider.fails = True
    harness.advance(3 * TTL_SECONDS, step=1)
    assert peer.heard() == []
    assert harness.peer("/ws/room").heard()[0]["iceServers"] == message["iceServers"]


def test_a_providers_servers_stand_beside_those_with_a_credential_for_each_peer(make: Callable[..., Harness]) -> None:
    fixed = [{"urls": ["stun:fixed"]}]
    harness = make(ice_servers=lambda clock: IceServers(fixed, Turn((URI,), b"s", TTL_SECONDS), clock.seconds))
    peer = harness.peer("/ws/room")
    assert hosts(peer.heard()[0]["iceServers"]) == ["fixed", "turn.example.com", "1.example.com"]
    harness.advance(TTL_SECONDS / 2)
    assert hosts(peer.heard()[-1]["iceServers"]) == ["fixed", "turn.example.com", "2.example.com"]


def test_a_peer_that_resumes_has_the_latest_servers_and_is_not_sent_older_ones(make: Callable[..., Harness]) -> None:
    harness = make(resume_window_seconds=TTL_SECONDS)
    peer = harness.peer("/ws/room")
    token = peer.heard()[0]["resume"]["token"]
    peer.reset()
    harness.advance(TTL_SECONDS / 2)
    welcome, *rest = harness.peer(f"/ws/room?resume={token}&seen=2").heard()
    assert welcome["resumed"]
    assert hosts(welcome["iceServers"]) == ["2.example.com"]
    assert [message["type"] for message in rest] == ["peer-list"]


def test_a_provider_is_asked_no_more_after_a_drain(make: Callable[..., Harness], provider: Provider) -> None:
    harness = make(shutdown_timeout_seconds=1)
    harness.join("room")
    harness.drain()
    harness.advance(3)
    assert harness.clock.getDelayedCalls() == []
    assert provider.asked == 1


def test_a_failing_provider_does_not_make_the_server_unready(make: Callable[..., Harness], provider: Provider) -> None:
    provider.fails = True
    assert make().request("GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")[0] == 200


def test_the_metric_shows_the_age_of_the_providers_servers(make: Callable[..., Harness], provider: Provider) -> None:
    harness = make()
    provider.fails = True
    harness.advance(2 * TTL_SECONDS, step=1)
    collector = SignalingCollector(harness.factory, ReactorLag(harness.clock))
    [age] = [metric for metric in collector.collect() if metric.name == "signaling_ice_source_age_seconds"]
    assert age.samples[0].value == pytest.approx(2 * TTL_SECONDS, abs=1)
