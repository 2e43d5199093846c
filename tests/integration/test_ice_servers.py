"""ICE servers in the welcome, and their renewal."""

from __future__ import annotations

import json

import pytest
from twisted.internet.task import Clock

from signaling import IceServers, Turn
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
