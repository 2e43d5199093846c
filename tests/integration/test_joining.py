"""Who hears what when peers join and leave."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable

import pytest

from signaling.core.joining import JoinAttempt
from tests.integration.harness import Harness, upgrade

pytestmark = pytest.mark.unmeasured

MakeHarness = Callable[..., Harness]


def test_welcome_with_a_ulid_comes_first(harness: Harness) -> None:
    peer = harness.peer("/ws/room")
    first, second = peer.heard()
    assert set(first) == {"type", "selfId"}
    assert re.fullmatch("[0-9A-HJKMNP-TV-Z]{26}", first["selfId"])
    assert second == {"type": "peer-list", "peers": []}


def test_ids_strictly_increase_in_joining_order(server: Harness) -> None:
    ids = [server.join("room" if n % 2 else "other").id for n in range(200)]
    assert ids == sorted(set(ids))


def test_ids_strictly_increase_within_a_topic_on_whatever_nodes(harness: Harness) -> None:
    ids = [harness.join("room").id for _ in range(50)]
    assert ids == sorted(set(ids))


def test_peer_list_is_in_joining_order_with_metadata_where_given(harness: Harness) -> None:
    first = harness.join("room", {"name": "Ada"})
    second = harness.join("room")
    third = harness.join("room")
    assert third.peers == [{"id": first.id, "metadata": {"name": "Ada"}}, {"id": second.id}]


def test_everyone_else_in_the_topic_hears_who_joined(harness: Harness) -> None:
    first, other = harness.join("room"), harness.join("elsewhere")
    second = harness.join("room", {"name": "Bob"})
    third = harness.join("room")
    assert first.heard() == [
        {"type": "peer-joined", "peerId": second.id, "metadata": {"name": "Bob"}},
        {"type": "peer-joined", "peerId": third.id},
    ]
    assert second.heard() == [{"type": "peer-joined", "peerId": third.id}]
    assert third.heard() == other.heard() == []


def test_metadata_is_passed_on_as_it_was_written(harness: Harness) -> None:
    first = harness.join("room")
    harness.peer("/ws/room?x=1&metadata=%7B%22z%22%3A1e400%2C%20%22a%22%3A%22%5Cud800%22%7D&y")
    [text] = first.texts
    assert text.endswith(',"metadata":{"z":1e400, "a":"\\ud800"}}')


def test_plus_in_metadata_is_a_space(harness: Harness) -> None:
    first = harness.join("room")
    harness.peer("/ws/room?metadata=%7B%22a%22:+1%7D")
    assert first.heard()[0]["metadata"] == {"a": 1}


@pytest.mark.parametrize("end", ["leave", "hang_up", "reset"])
def test_everyone_else_in_the_topic_hears_who_left(harness: Harness, end: str) -> None:
    first, second, other = harness.join("room"), harness.join("room"), harness.join("elsewhere")
    first.heard()
    getattr(second, end)()
    assert first.heard() == [{"type": "peer-left", "peerId": second.id}]
    assert other.heard() == []
    assert harness.join("room").peers == [{"id": first.id}]


def test_an_empty_topic_is_deleted_at_once(harness: Harness) -> None:
    peer = harness.join("room")
    assert "room" in harness.topics
    peer.leave()
    assert "room" not in harness.topics
    assert len(harness.topics) == 0


def test_a_slash_in_a_topic_is_percent_encoded(harness: Harness) -> None:
    first = harness.join("a/b")
    assert harness.peer("/ws/a%2Fb").heard()[1]["peers"] == [{"id": first.id}]


def test_topics_are_compared_byte_for_byte(harness: Harness) -> None:
    harness.join("é")
    assert harness.join("É").peers == []
    assert harness.join("e\u0301").peers == []
    assert len(harness.peer("/ws/%c3%a9").heard()[1]["peers"]) == 1


def test_a_topic_of_256_bytes_is_not_too_long(harness: Harness) -> None:
    assert harness.join("é" * 128).peers == []


@pytest.mark.parametrize(
    ("target", "status", "reason"),
    [
        ("/ws/" + "a" * 257, 400, "topic: at most 256 bytes, not 257"),
        ("/ws/%ff", 400, "topic: not UTF-8"),
        ("/ws/%zz", 400, "a % that is not followed by two hexadecimal digits"),
        ("/ws/a?metadata=%7B%7D%", 400, "metadata: a % that"),
        ("/ws/a?metadata=[1]", 400, "metadata: not a JSON object"),
        ("/ws/a?metadata=", 400, "metadata: not a JSON object"),
        ("/ws/a?metadata", 400, "metadata: not a JSON object"),
        ("/ws/a?metadata=nope", 400, "metadata: not a JSON object"),
        ("/ws/a?metadata=%7B%22a%22:NaN%7D", 400, "metadata: not a JSON object"),
        ("/ws/a?metadata=%7B%22a%22:%22%FF%22%7D", 400, "metadata: not a JSON object"),
        ("/ws/a?metadata=%7B%7D&metadata=%7B%7D", 400, "metadata: given more than once"),
        ("/ws/a?metadata=%7B%22a%22:%22" + "x" * 4089 + "%22%7D", 400, "metadata: at most 4096 bytes, not 4097"),
        ("/ws/", 404, "exactly one path segment"),
        ("/ws", 404, "exactly one path segment"),
        ("/ws/a/b", 404, "exactly one path segment"),
        ("/ws//", 404, "exactly one path segment"),
    ],
)
def test_what_names_no_topic_or_no_metadata_is_refused(harness: Harness, target: str, status: int, reason: str) -> None:
    answer = harness.request(upgrade(target))
    assert answer[0] == status
    assert reason in answer[2]
    assert answer[1]["access-control-allow-origin"] == "*"


def test_metadata_of_4096_bytes_is_not_too_long(harness: Harness) -> None:
    first = harness.join("room")
    harness.join("room", {"a": "x" * 4087})
    assert len(first.heard()[0]["metadata"]["a"]) == 4087


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({"Upgrade": None}, 426, "WebSocket endpoint"),
        ({"Upgrade": "h2c"}, 426, "WebSocket endpoint"),
        ({"Connection": "keep-alive"}, 400, "Connection"),
        ({"Host": None}, 400, "Host"),
        ({"Sec_WebSocket_Version": "12"}, 426, "Sec-WebSocket-Version"),
        ({"Sec_WebSocket_Version": None}, 426, "Sec-WebSocket-Version"),
        ({"Sec_WebSocket_Key": None}, 400, "Sec-WebSocket-Key"),
        ({"Sec_WebSocket_Key": "short=="}, 400, "Sec-WebSocket-Key"),
        ({"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ*="}, 400, "Sec-WebSocket-Key"),
        ({"Sec_WebSocket_Key": "a2tra2tra2tra2tra2tra2tra2tra2s="}, 400, "Sec-WebSocket-Key"),
        (
            {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="},
            400,
            "exactly one Sec-WebSocket-Key",
        ),
    ],
)
def test_a_wrong_handshake_is_told_what_would_be_right(
    harness: Harness, headers: dict[str, str | None], status: int, reason: str
) -> None:
    answer = harness.request(upgrade("/ws/room", **headers))
    assert answer[0] == status
    assert reason in answer[2]
    if status == 426:
        assert answer[1]["upgrade"] == "websocket"
    if "Sec_WebSocket_Version" in headers:
        assert answer[1]["sec-websocket-version"] == "13"


def test_a_refused_handshake_leaves_no_peer_behind(harness: Harness) -> None:
    harness.request(upgrade("/ws/room", Sec_WebSocket_Key=None))
    assert len(harness.topics) == 0


@pytest.mark.parametrize("origin", ["https://example.org", "null", "what ever"])
def test_any_origin_may_connect(harness: Harness, origin: str) -> None:
    answer = harness.request(upgrade("/ws/room", Origin=origin))
    assert answer[0] == 101
    assert answer[1]["sec-websocket-accept"].lower() == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".lower()


def test_header_names_and_tokens_match_in_any_case(harness: Harness) -> None:
    request = upgrade("/ws/room", Upgrade="WebSocket", Connection="keep-alive, UPGRADE")
    assert harness.request(request.replace("Sec-WebSocket", "SEC-websocket"))[0] == 101


def test_no_extension_and_no_subprotocol_is_negotiated(harness: Harness) -> None:
    answer = harness.request(
        upgrade("/ws/room", Sec_WebSocket_Extensions="permessage-deflate", Sec_WebSocket_Protocol="chat")
    )
    assert answer[0] == 101
    assert "sec-websocket-extensions" not in answer[1]
    assert "sec-websocket-protocol" not in answer[1]


def test_a_request_in_single_bytes_is_a_request(harness: Harness) -> None:
    connection = harness.connect()
    for byte in upgrade("/ws/room").encode():
        connection.send(bytes([byte]))
    assert connection.received.startswith(b"HTTP/1.1 101 ")


def test_frames_right_behind_the_request_are_not_lost(harness: Harness) -> None:
    connection = harness.connect()
    ping = bytes([0x89, 0x82, 0, 0, 0, 0]) + b"hi"
    connection.send(upgrade("/ws/room").encode() + ping)
    assert connection.received.endswith(bytes([0x8A, 2]) + b"hi")


def test_tcp_delays_nothing(harness: Harness) -> None:
    assert harness.join("room").transport.no_delay


def test_an_upgrade_after_another_request_on_one_connection(harness: Harness) -> None:
    connection = harness.connect()
    connection.send(b"OPTIONS /ws/room HTTP/1.1\r\nHost: server\r\n\r\n")
    assert connection.received.startswith(b"HTTP/1.1 204 ")
    connection.send(upgrade("/ws/room").encode())
    assert b'{"type":"peer-list","peers":[]}' in connection.received
    assert not connection.lost
    connection.hang_up()
    assert len(harness.topics) == 0
    assert not harness.open_connections


@pytest.mark.parametrize(
    ("headers", "body"), [({"Content_Length": "1"}, "x"), ({"Transfer_Encoding": "chunked"}, "0\r\n\r\n")]
)
def test_an_upgrade_with_a_body_is_refused(harness: Harness, headers: dict[str, str], body: str) -> None:
    status, _, text = harness.request(upgrade("/ws/room", **headers) + body)
    assert status == 400
    assert "no body" in text


def test_an_upgrade_may_announce_an_empty_body(harness: Harness) -> None:
    connection = harness.connect()
    connection.send(upgrade("/ws/room", Content_Length="0").encode() + b"\x89\x82\0\0\0\0hi")
    assert connection.received.startswith(b"HTTP/1.1 101 ")
    assert connection.received.endswith(b"\x8a\x02hi")


@pytest.mark.parametrize("limits", [{}, {"resume_window_seconds": 30}, {"max_peers_per_topic": 2}])
def test_nothing_holds_an_attempt_to_join_that_is_settled(make_harness: MakeHarness, limits: dict[str, float]) -> None:
    harness = make_harness(**limits)
    harness.join("room")
    harness.join("room").reset()
    rejected = harness.peer("/ws/room")
    rejected.leave()
    gc.collect()
    held = [attempt.state.value for attempt in gc.get_objects() if isinstance(attempt, JoinAttempt)]
    assert held == []
