"""Who is let in, who is not, and what they are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory
from websockets.frames import Frame, Opcode

from signaling.limits import FRAMES_PER_TOKEN
from tests.harness.memory_transport import MemoryTransport
from tests.integration.harness import Connection, Harness, Peer, upgrade

MakeHarness = Callable[..., Harness]


def status(harness: Harness, **headers: str | None) -> int:
    return harness.request(upgrade("/ws/room", **headers))[0]


# Connections in all


def test_a_full_server_answers_503_and_says_when_to_come_back(make_server: MakeHarness) -> None:
    harness = make_server(max_connections=2)
    first = harness.join("room")
    harness.join("elsewhere")
    code, headers, body = harness.request(upgrade("/ws/room", Origin="https://example.com"))
    assert (code, headers["retry-after"]) == (503, "10")
    assert headers["access-control-allow-origin"] == "https://example.com"
    assert body == "the server is full: it takes 2 connections\n"
    first.leave()
    assert status(harness) == 101


def test_a_refused_client_is_no_peer_and_is_counted(make_server: MakeHarness) -> None:
    harness = make_server(max_connections=1)
    observer = harness.join("room")
    for _ in range(3):
        harness.request(upgrade("/ws/room"))
    assert observer.heard() == []
    assert harness.counters.requests_refused == {503: 3}


def test_every_end_of_a_connection_makes_room(make_harness: MakeHarness) -> None:
    harness = make_harness(max_connections=1)
    harness.join("room").leave()
    harness.join("room").reset()
    silent = harness.join("room")
    silent.go_silent()
    harness.advance(35)
    assert silent.lost
    violator = harness.join("room")
    violator.send(b"\x81\x01x")
    violator.hang_up()
    assert status(harness) == 101


def test_connections_that_are_no_peers_make_room_oldest_first() -> None:
    harness = Harness(max_connections=2, spare_connections=3)
    peers = [harness.join("room"), harness.join("room")]
    silent = [harness.connect() for _ in range(3)]
    half = harness.connect()
    half.send(b"GET / HTTP/1.1\r\n")
    harness.run()
    assert [connection.lost for connection in silent] == [True, False, False]
    assert harness.request("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 200
    assert [connection.lost for connection in silent] == [True, True, False]
    assert not any(peer.lost for peer in peers)
    assert harness.counters.connections_evicted == 2


def test_while_there_is_room_nobody_is_cut_for_it() -> None:
    harness = Harness(max_connections=10, spare_connections=3)
    silent = [harness.connect() for _ in range(13)]
    assert not any(connection.lost for connection in silent)
    harness.connect()
    harness.run()
    assert [connection.lost for connection in silent].count(True) == 1


def test_http_connections_that_were_answered_make_room_too() -> None:
    harness = Harness(max_connections=2, spare_connections=3)
    answered = [harness.connect() for _ in range(5)]
    for connection in answered:
        connection.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.received.endswith(b"ok")
    assert [harness.join("room").closed for _ in range(2)] == [None, None]
    assert [connection.lost for connection in answered] == [True, True, False, False, False]


# Connections of one address


def test_an_address_makes_room_for_itself_alone() -> None:
    harness = Harness(max_connections_per_address=2)
    peer = harness.join("room")
    harness.host = "192.0.2.9"
    slow = harness.connect()
    slow.send(upgrade("/ws/room").encode()[:50])
    harness.host = "192.0.2.1"
    requests = [b"", b"GET / HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"]
    connections = [harness.connect() for _ in range(20)]
    for number, connection in enumerate(connections):
        connection.send(requests[number % 3])
    assert [connection.lost for connection in connections] == [True] * 18 + [False] * 2
    assert harness.counters.connections_evicted == 18
    slow.send(upgrade("/ws/room").encode()[50:])
    assert slow.received.startswith(b"HTTP/1.1 101 ")
    assert (peer.lost, slow.lost) == (False, False)
    assert status(harness) == 101


def test_a_proxys_connections_are_not_one_clients() -> None:
    harness = Harness(max_connections_per_address=2, trusted_proxies=["192.0.2.1"])
    connections = [harness.connect() for _ in range(20)]
    assert not any(connection.lost for connection in connections)


def test_connections_behind_the_proxy_protocol_are_not_one_clients() -> None:
    harness = Harness(max_connections_per_address=2)
    wrapping: Any = HAProxyWrappingFactory(harness.factories[0])
    connections = []
    for number in range(20):
        transport = MemoryTransport("192.0.2.1", 40_000 + number)
        transport.protocol = wrapping.buildProtocol(transport.getPeer())
        connections.append(Connection(harness, transport))
        transport.protocol.makeConnection(transport)
    assert not any(connection.transport.aborted for connection in connections)


def test_without_a_bound_on_addresses_none_makes_room_for_itself() -> None:
    harness = Harness()
    assert not any(connection.lost for connection in [harness.connect() for _ in range(20)])


def test_an_address_has_a_bound_of_its_own(make_server: MakeHarness) -> None:
    harness = make_server(max_connections_per_address=2)
    first = harness.join("room")
    harness.join("room")
    code, headers, body = harness.request(upgrade("/ws/room"))
    assert (code, headers["retry-after"]) == (429, "10")
    assert body == "at most 2 connections from one address (192.0.2.1)\n"
    harness.host = "192.0.2.9"
    assert status(harness) == 101
    harness.host = "192.0.2.1"
    first.leave()
    assert status(harness) == 101


def test_an_ipv6_network_of_64_bits_counts_as_one_address(make_server: MakeHarness) -> None:
    harness = make_server(max_connections_per_address=1)
    harness.host = "2001:db8:0:1::1"
    harness.join("room")
    harness.host = "2001:db8:0:1:ffff::2"
    code, _, body = harness.request(upgrade("/ws/room"))
    assert (code, body) == (429, "at most 1 connections from one address (2001:db8:0:1::/64)\n")
    harness.host = "2001:db8:0:2::1"
    assert status(harness) == 101


def test_an_ipv4_client_of_an_ipv6_socket_is_an_ipv4_client(make_server: MakeHarness) -> None:
    harness = make_server(max_connections_per_address=1)
    harness.host = "::ffff:192.0.2.1"
    harness.join("room")
    harness.host = "::ffff:192.0.2.2"
    assert status(harness) == 101
    harness.host = "192.0.2.1"
    assert status(harness) == 429


def test_new_connections_of_one_address_have_a_rate(make_server: MakeHarness) -> None:
    harness = make_server(max_connections_per_address_per_second=0.5, connection_burst=3)
    assert [status(harness) for _ in range(4)] == [101, 101, 101, 429]
    code, headers, body = harness.request(upgrade("/ws/room"))
    assert (code, headers["retry-after"]) == (429, "2")
    assert body == "at most 0.5 new connections a second from one address (192.0.2.1)\n"
    harness.host = "192.0.2.9"
    assert status(harness) == 101
    harness.host = "192.0.2.1"
    harness.advance(2)
    assert [status(harness) for _ in range(2)] == [101, 429]


# Behind a proxy


def test_a_trusted_proxy_says_who_its_client_is(make_server: MakeHarness) -> None:
    harness = make_server(max_connections_per_address=1, trusted_proxies=["192.0.2.0/24"])
    assert status(harness, X_Forwarded_For="203.0.113.1") == 101
    assert status(harness, X_Forwarded_For="203.0.113.2") == 101
    assert status(harness, X_Forwarded_For="203.0.113.1") == 429


def test_what_a_client_claims_in_front_of_the_proxy_does_not_count(make_server: MakeHarness) -> None:
    harness = make_server(max_connections_per_address=1, trusted_proxies=["192.0.2.1"])
    assert status(harness, X_Forwarded_For="198.51.100.1, 203.0.113.1") == 101
    assert status(harness, X_Forwarded_For="198.51.100.2, 203.0.113.1") == 429


@pytest.mark.parametrize("way", ["X-Forwarded-For", "Forwarded"])
def test_only_the_header_that_the_operator_names_says_who_a_client_is(make_server: MakeHarness, way: str) -> None:
    harness = make_server(max_connections_per_address=1, trusted_proxies=["192.0.2.1"], proxy_header=way.lower())
    headers = {"X_Forwarded_For": "{}", "Forwarded": "for={};proto=https"}
    read = headers.pop(way.replace("-", "_"))
    (forged,) = headers
    for number, expected in ((1, 101), (2, 101), (1, 429), (2, 429)):
        claim = headers[forged].format(f"198.51.100.{number + expected}")
        named = read.format(f"203.0.113.{number}")
        assert status(harness, **{way.replace("-", "_"): named, forged: claim}) == expected


@pytest.mark.parametrize(
    ("target", "headers", "reason"),
    [
        ("/ws/room", {"Origin": "https://evil.example"}, "403 the origin https://evil.example"),
        ("/ws/room?metadata=x", {}, "400 "),
        ("/ws/a/b", {}, "404 "),
        ("/ws/room", {"Sec_WebSocket_Version": "12"}, "426 "),
    ],
)
def test_a_request_that_is_refused_at_once_is_logged_with_the_client_of_a_proxy(
    make_server: MakeHarness, logged: list[str], target: str, headers: dict[str, str], reason: str
) -> None:
    harness = make_server(trusted_proxies=["192.0.2.1"], allow_origins=["https://example.com"])
    logged.clear()
    harness.request(upgrade(target, X_Forwarded_For="203.0.113.7", **headers))
    [line] = logged
    assert line.startswith(f"refused a request from 203.0.113.7: {reason}")


def test_a_forwarded_address_from_an_untrusted_proxy_is_ignored(make_server: MakeHarness) -> None:
    harness = make_server(max_connections_per_address=1, trusted_proxies=["10.0.0.0/8"])
    assert status(harness, X_Forwarded_For="203.0.113.1") == 101
    assert status(harness, X_Forwarded_For="203.0.113.2") == 429


# Origins


def test_a_foreign_origin_is_refused_before_the_upgrade(make_harness: MakeHarness) -> None:
    harness = make_harness(allow_origins=["https://example.com", "https://*.example.org"])
    code, headers, body = harness.request(upgrade("/ws/room", Origin="https://evil.example"))
    assert code == 403
    assert "access-control-allow-origin" not in headers
    assert body == "the origin https://evil.example is not on the server's list (--allow-origin)\n"
    assert len(harness.topics) == 0
    assert harness.counters.requests_refused == {403: 1}
    assert status(harness, Origin="https://example.com") == 101
    assert status(harness, Origin="https://a.example.org") == 101
    assert status(harness) == 101


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [("https://example.com", "https://example.com"), ("https://evil.example", None), (None, None)],
)
@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_cors_follows_the_same_list(method: str, origin: str | None, allowed: str | None) -> None:
    harness = Harness(allow_origins=["https://example.com"])
    line = f"Origin: {origin}\r\n" if origin else ""
    code, headers, _ = harness.request(f"{method} /healthz HTTP/1.1\r\nHost: x\r\n{line}\r\n")
    assert code in (200, 204)
    assert headers.get("access-control-allow-origin") == allowed
    assert headers["vary"] == "origin"


# Peers in a topic


def test_a_full_topic_says_so_and_closes(make_harness: MakeHarness) -> None:
    harness = make_harness(max_peers_per_topic=2)
    first, second = harness.join("room"), harness.join("room")
    first.heard()
    third = harness.peer("/ws/room")
    assert [(m["type"], m["code"]) for m in third.heard()] == [("error", "topic_full")]
    assert third.closed == 1013
    assert third.close_reason == "the topic has 2 peers, which is the most"
    assert (first.heard(), second.heard()) == ([], [])
    assert harness.join("elsewhere").peers == []
    second.leave()
    assert [peer["id"] for peer in harness.join("room").peers] == [first.id]


def test_a_topic_is_full_when_its_peer_list_is_long(make_harness: MakeHarness) -> None:
    harness = make_harness(max_peer_list_bytes=5000)
    metadata = {"text": "x" * 2000}
    first, second = harness.join("room", metadata), harness.join("room", metadata)
    assert harness.peer(f"/ws/room?metadata={quote(json.dumps({'text': 'x' * 1000}))}").closed == 1013
    assert len(harness.join("room").peers) == 2
    first.leave()
    second.leave()
    assert len(harness.join("room", metadata).peers) == 1


# Messages of one connection


def say(peer: Peer, count: int) -> list[str]:
    """Send relays to itself; returns what each was answered."""
    peer.say_many([{"type": "offer", "to": peer.id, "msgId": str(n)} for n in range(count)])
    return [message.get("code", message["type"]) for message in peer.heard()]


def test_messages_over_the_rate_are_answered_rate_limited(make_harness: MakeHarness) -> None:
    harness = make_harness(max_messages_per_second=2.0, message_burst=5)
    peer = harness.join("room")
    assert say(peer, 7) == ["offer"] * 5 + ["rate_limited"] * 2
    assert peer.closed is None
    harness.advance(2.5)
    assert say(peer, 4) == ["offer"] * 3 + ["rate_limited"]


def test_what_is_rate_limited_names_its_message(make_harness: MakeHarness) -> None:
    harness = make_harness(max_messages_per_second=1.0, message_burst=1)
    peer = harness.join("room")
    peer.offer(peer, "a")
    peer.heard()
    peer.say({"type": "nonsense", "msgId": "b"})
    [answer] = peer.heard()
    assert (answer["code"], answer["msgId"]) == ("rate_limited", "b")
    assert answer["message"] == "at most 1 messages a second; this one was not delivered"
    harness.advance(1)
    peer.say_frame(Frame(Opcode.BINARY, b"x"))
    assert [answer["code"] for answer in peer.heard()] == ["rate_limited"]
    assert harness.counters.errors_sent == {"rate_limited": 2}


def test_who_keeps_on_regardless_is_closed(make_harness: MakeHarness) -> None:
    harness = make_harness(max_messages_per_second=1.0, message_burst=5)
    peer, observer = harness.join("room"), harness.join("room")
    peer.heard()
    assert say(peer, 20) == ["offer"] * 5 + ["rate_limited"] * 6
    assert peer.closed == 1008
    assert peer.close_reason == "at most 1 messages a second"
    assert [event["type"] for event in observer.heard()] == ["peer-left"]


def test_each_connection_has_a_rate_of_its_own(make_harness: MakeHarness) -> None:
    harness = make_harness(max_messages_per_second=1.0, message_burst=2)
    one, other = harness.join("room"), harness.join("room")
    one.heard()
    assert say(one, 3)[-1] == "rate_limited"
    assert say(other, 2) == ["offer", "offer"]


@pytest.mark.parametrize("start", [0.0, 0.1, 12_345.678, 123_456.7])
@pytest.mark.parametrize("rate", [1.0, 3.0, 10.0, 50.0])
def test_who_keeps_to_the_rate_is_never_refused(make_harness: MakeHarness, start: float, rate: float) -> None:
    harness = make_harness(max_messages_per_second=rate, message_burst=1)
    harness.clock.rightNow = start
    peer = harness.join("room")
    for _ in range(20):
        assert say(peer, 1) == ["offer"]
        harness.clock.advance(1 / rate)


@pytest.mark.parametrize(
    "frames",
    [
        [Frame(Opcode.PING, b"x")],
        [Frame(Opcode.PONG, b"x")],
        [Frame(Opcode.TEXT, b"", fin=False), *[Frame(Opcode.CONT, b"", fin=False)] * 999],
    ],
    ids=["pings", "pongs", "fragments"],
)
def test_frames_that_are_no_messages_count_against_the_rate(make_harness: MakeHarness, frames: list[Frame]) -> None:
    harness = make_harness(max_messages_per_second=1.0, message_burst=5)
    peer, observer = harness.join("room"), harness.join("room")
    # As many as there are tokens for, and as many owed.
    peer.say_frame(*(frames * 160)[: 2 * 5 * FRAMES_PER_TOKEN])
    assert peer.closed is None
    peer.say_frame(frames[-1])
    assert (peer.closed, peer.close_reason) == (1008, "at most 1 messages a second")
    assert [event["type"] for event in observer.heard()] == ["peer-left"]


def test_pings_without_end_take_the_tokens_of_messages(make_harness: MakeHarness) -> None:
    harness = make_harness(max_messages_per_second=1.0, message_burst=5)
    peer = harness.join("room")
    peer.say_frame(*[Frame(Opcode.PING, b"")] * (5 * FRAMES_PER_TOKEN))
    assert len(peer.pongs) == 5 * FRAMES_PER_TOKEN
    assert say(peer, 1) == ["rate_limited"]


def test_a_message_in_fragments_is_little_more_than_one(make_harness: MakeHarness) -> None:
    harness = make_harness(max_messages_per_second=1.0, message_burst=20)
    peer = harness.join("room")
    text = json.dumps({"type": "offer", "to": peer.id}).encode()
    pieces = [text[at : at + 8] for at in range(0, len(text), 8)]
    first, *rest = pieces
    frames = [
        Frame(Opcode.TEXT, first, fin=False),
        *(Frame(Opcode.CONT, piece, fin=piece is rest[-1]) for piece in rest),
    ]
    for _ in range(10):
        peer.say_frame(*frames)
    assert [message["type"] for message in peer.heard()] == ["offer"] * 10
    assert len(frames) <= FRAMES_PER_TOKEN


def test_pongs_that_were_asked_for_cost_nothing(make_harness: MakeHarness) -> None:
    harness = make_harness(
        max_messages_per_second=0.001, message_burst=1, ping_interval_seconds=1, resume_window_seconds=5
    )
    peer, sender = harness.join("room"), harness.join("room")
    harness.advance(100)
    assert peer.pings >= 99
    assert say(peer, 1) == ["peer-joined", "offer"]
    assert sender.closed is None
