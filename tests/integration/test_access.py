"""Who may join which topic, and what for: every kind of token, by every way in and every way to present it."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred

from signaling import Grant, GrantRealm
from tests import issuer
from tests.integration.access import NOW, OpaqueChecker, Session, Slow, enter
from tests.integration.harness import Connection, Harness, Peer, response, upgrade
from tests.issuer import token

pytestmark = pytest.mark.unmeasured

MakeHarness = Callable[..., Harness]
TRANSPORTS = ["header", "query", "subprotocol"]


def presented(transport: str, text: str, topic: str = "room", **more: str) -> str:
    """Write a request that presents a token."""
    if transport == "header":
        return upgrade(f"/ws/{topic}", Authorization=f"Bearer {text}", **more)
    if transport == "query":
        return upgrade(f"/ws/{topic}?token={text}", **more)
    return upgrade(f"/ws/{topic}", Sec_WebSocket_Protocol=f"signaling, signaling.bearer.{text}", **more)


def tampered(part: int) -> str:
    """Return a good token with one bit of one part turned."""
    parts = token(sub="Ada").split(".")
    at = len(parts[part]) // 2
    parts[part] = parts[part][:at] + ("A" if parts[part][at] != "A" else "B") + parts[part][at + 1 :]
    return ".".join(parts)


def forged(header: dict[str, Any], key: bytes = b"") -> str:
    """Return a token of anybody's making, signed by HMAC where there is a key."""
    claims = {"exp": NOW + 3600, "signaling": {"prefixes": [""]}}
    text = f"{issuer.segment(header)}.{issuer.segment(claims)}"
    return f"{text}.{issuer.segment(hmac.digest(key, text.encode(), hashlib.sha256)) if key else ''}"


GOOD = [(algorithm, lambda algorithm=algorithm: token(algorithm=algorithm)) for algorithm in issuer.ALGORITHMS]
BAD: list[tuple[str, Callable[[], str], str]] = [
    ("expired", lambda: token(exp=NOW - 60), "the token has expired"),
    ("not yet valid", lambda: token(nbf=NOW + 600), "the token is not valid yet"),
    ("minted in the future", lambda: token(iat=NOW + 600), "the token is not valid yet"),
    ("without an end", lambda: token(exp=None), "the token has no exp"),
    ("end that is no number", lambda: token(exp="soon"), "the token: exp has to be a number of seconds"),
    ("endless", lambda: token(exp=float("inf")), "the token: exp has to be a number of seconds"),
    ("subject that is no text", lambda: token(sub="Ada\ud800"), "the token: sub has to be a string, in Unicode"),
    ("tampered header", lambda: tampered(0), "the token"),
    ("tampered claims", lambda: tampered(1), "the token's signature is wrong"),
    ("tampered signature", lambda: tampered(2), "the token's signature is wrong"),
    ("signed with another key of the same id", lambda: token(number=1), "the token's signature is wrong"),
    ("id of another key", lambda: token(kid="RS256"), "the token's algorithm (alg) is not the one of its key"),
    ("unknown key", lambda: token(kid="2019"), "the token's key (kid) is not known, or it names none"),
    ("no key named", lambda: token(kid=None), "the token's key (kid) is not known, or it names none"),
    ("alg none", lambda: forged({"alg": "none", "kid": "EdDSA"}), "the token's algorithm (alg) is not the one"),
    ("alg None", lambda: forged({"alg": "nOnE", "kid": "HS256"}), "the token's algorithm (alg) is not the one"),
    ("alg missing", lambda: forged({"kid": "HS256"}), "the token's algorithm (alg) is not the one"),
    *(
        (
            f"public key of {algorithm} as an HMAC secret",
            lambda algorithm=algorithm: forged({"alg": "HS256", "kid": algorithm}, issuer.public_pem(algorithm)),
            "the token's algorithm (alg) is not the one of its key",
        )
        for algorithm in ("RS256", "ES256", "EdDSA")
    ),
    ("HS512", lambda: forged({"alg": "HS512", "kid": "HS256"}, issuer.material("HS256")), "the token's algorithm"),
    ("critical extension", lambda: token(headers={"crit": ["x"], "x": 1}), "the token is not a JSON Web Token that"),
    ("audience", lambda: token(aud="elsewhere"), "the token is for another audience"),
    ("own claim that is no object", lambda: token(["room"]), "the token: its claim signaling has to be an object"),
    ("misspelt claim", lambda: token({"topics": ["room"], "sends": False}), "the token: its claim signaling has a key"),
    ("garbage", lambda: "garbage", "the token is not a JSON Web Token that this server accepts"),
    ("deep garbage", lambda: f"{issuer.segment(b'[' * 6000)}.e30.", "the token is not a JSON Web Token that"),
]
TOPICS = [
    ({"topics": ["room"]}, "room", True),
    ({"topics": ["room"]}, "Room", False),
    ({"topics": ["room"]}, "room2", False),
    ({"topics": ["a/b", "é"]}, "a%2Fb", True),
    ({"topics": ["a/b", "é"]}, "%C3%A9", True),
    ({"topics": ["*"]}, "room", False),
    ({"prefixes": ["team-"]}, "team-a", True),
    ({"prefixes": ["team-"]}, "team-", True),
    ({"prefixes": ["team-"]}, "teal", False),
    ({"prefixes": ["x"], "topics": ["room"]}, "room", True),
    ({"prefixes": [""]}, "anything", True),
    ({"topics": []}, "room", False),
    ({}, "room", False),
]


@pytest.fixture
def server(make_server: MakeHarness, tmp_path: Path) -> Harness:
    """One server that takes tokens of the issuer; these are checked before other nodes are asked."""
    return make_server(portal=issuer.portal(tmp_path))


@pytest.fixture
def harness(make_harness: MakeHarness, tmp_path: Path) -> Harness:
    """A server that takes tokens of the issuer."""
    return make_harness(portal=issuer.portal(tmp_path))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("make", [make for _, make in GOOD], ids=[name for name, _ in GOOD])
def test_a_good_token_opens_the_connection(harness: Harness, transport: str, make: Callable[[], str]) -> None:
    status, headers, body = harness.request(presented(transport, make()))
    assert status == 101
    assert headers.get("sec-websocket-protocol") == ("signaling" if transport == "subprotocol" else None)
    assert "welcome" in body


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("make", "reason"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_a_bad_token_is_refused_with_401(
    server: Harness, logged: list[str], transport: str, make: Callable[[], str], reason: str
) -> None:
    text = make()
    status, headers, body = server.request(presented(transport, text))
    assert (status, body.startswith(reason)) == (401, True), body
    assert headers["www-authenticate"] == 'bearer realm="signaling", error="invalid_token"'
    assert headers["access-control-allow-origin"] == "*"
    log = "\n".join(logged)
    assert body.strip() in log
    assert text not in log
    assert len(server.topics) == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("own", "topic", "allowed"), TOPICS)
def test_a_token_opens_its_topics_only(
    server: Harness, transport: str, own: dict[str, Any], topic: str, allowed: bool
) -> None:
    status, headers, body = server.request(presented(transport, token(own), topic))
    assert status == (101 if allowed else 403)
    if not allowed:
        assert body == "the token does not cover this topic\n"
        assert headers["www-authenticate"] == 'bearer realm="signaling", error="insufficient_scope"'


def test_no_token_is_401_without_an_error(harness: Harness) -> None:
    status, headers, body = harness.request(upgrade("/ws/room"))
    assert (status, body) == (401, "a token is needed\n")
    assert headers["www-authenticate"] == 'bearer realm="signaling"'


def test_another_scheme_is_no_token(harness: Harness) -> None:
    assert harness.request(upgrade("/ws/room", Authorization="Basic YTpi"))[0] == 401
    assert harness.request(upgrade(f"/ws/room?token={token()}", Authorization="Basic YTpi"))[0] == 101


@pytest.mark.parametrize(
    "request_text",
    [
        lambda text: upgrade(f"/ws/room?token={text}", Authorization=f"Bearer {text}"),
        lambda text: upgrade(f"/ws/room?token={text}", Sec_WebSocket_Protocol=f"signaling, signaling.bearer.{text}"),
        lambda text: upgrade(f"/ws/room?token={text}&token={text}"),
        lambda text: upgrade("/ws/room", Authorization=f"Bearer {text}\r\nAuthorization: Bearer {text}"),
        lambda text: upgrade("/ws/room", Authorization="Bearer"),
        lambda text: upgrade("/ws/room", Authorization=f"Bearer {text} x"),
        lambda text: upgrade("/ws/room?token="),
        lambda text: upgrade("/ws/room?token=a%20b"),
        lambda text: upgrade("/ws/room", Sec_WebSocket_Protocol=f"signaling.bearer.{text}"),
        lambda text: upgrade("/ws/room", Sec_WebSocket_Protocol="signaling, signaling.bearer."),
        lambda text: upgrade(
            "/ws/room", Sec_WebSocket_Protocol=f"signaling, signaling.bearer.{text}, signaling.bearer.{text}"
        ),
    ],
)
def test_what_presents_no_token_or_more_than_one_is_400(harness: Harness, request_text: Callable[[str], str]) -> None:
    text = token()
    status, _, body = harness.request(request_text(text))
    assert status == 400
    assert text not in body


def test_the_order_of_checks(make_server: MakeHarness, tmp_path: Path) -> None:
    harness = make_server(
        portal=issuer.portal(tmp_path), allow_origins=["https://a.example"], max_connections_per_address=1
    )
    foreign = "https://b.example"
    enter(harness, token())
    expired = token(exp=NOW - 60)
    asked = {
        400: presented("query", expired, "%zz", Origin=foreign),
        404: upgrade("/ws/a/b", Origin=foreign, Authorization=f"Bearer {expired}"),
        426: presented("header", expired, Origin=foreign, Upgrade=None),
        401: presented("header", expired),
        429: presented("header", token()),
    }
    assert {status: harness.request(text)[0] for status, text in asked.items()} == {status: status for status in asked}
    assert harness.request(presented("header", expired, Origin=foreign))[2].startswith("the origin")
    assert harness.request(presented("header", token({})))[0] == 403


def test_a_subprotocol_is_answered_beside_a_token_of_another_way(harness: Harness) -> None:
    text = upgrade("/ws/room", Authorization=f"Bearer {token()}", Sec_WebSocket_Protocol="chat, signaling")
    assert harness.request(text)[1]["sec-websocket-protocol"] == "signaling"
    text = upgrade("/ws/room", Authorization=f"Bearer {token()}", Sec_WebSocket_Protocol="chat")
    assert "sec-websocket-protocol" not in harness.request(text)[1]


def test_a_strict_client_takes_the_chosen_subprotocol(harness: Harness) -> None:
    peer = harness.peer("/ws/room", {"Sec-WebSocket-Protocol": f"signaling, signaling.bearer.{token()}"})
    assert [message["type"] for message in peer.heard()] == ["welcome", "peer-list"]
    assert peer.client.subprotocol == "signaling"


def test_without_a_portal_the_wire_knows_nothing_of_tokens(make_harness: MakeHarness) -> None:
    harness = make_harness()
    plain = harness.connect()
    plain.send(upgrade("/ws/room").encode())
    for transport in TRANSPORTS:
        connection = harness.connect()
        connection.send(presented(transport, "garbage", "other-" + transport).encode())
        assert head_without_subprotocol(connection) == head_without_subprotocol(plain)


def head_without_subprotocol(connection: Connection) -> bytes:
    head = connection.received.partition(b"\r\n\r\n")[0]
    return head.removesuffix(b"\r\nSec-WebSocket-Protocol: signaling")


def test_health_needs_no_token() -> None:
    harness = Harness(portal=Portal(GrantRealm(), []))
    assert harness.request("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 200


# What a grant says of an open connection


def test_who_may_only_receive_is_answered_forbidden_and_hears_everything(harness: Harness) -> None:
    listener, speaker = enter(harness, token({"topics": ["room"], "send": False})), enter(harness, token())
    listener.heard()
    speaker.offer(listener, "1")
    listener.offer(speaker, "2")
    listener.say("no json")
    relayed, refused, unread = listener.heard()[-3:]
    assert (relayed["type"], relayed["msgId"]) == ("offer", "1")
    assert refused == {
        "type": "error",
        "code": "forbidden",
        "message": "the token allows to receive only",
        "msgId": "2",
    }
    assert unread["code"] == "forbidden"
    assert [message["type"] for message in speaker.heard()] == ["welcome", "peer-list"]
    assert harness.counters.errors_sent["forbidden"] == 2


def test_the_rate_stands_in_front_of_forbidden(make_harness: MakeHarness, tmp_path: Path) -> None:
    harness = make_harness(portal=issuer.portal(tmp_path), max_messages_per_second=1, message_burst=1)
    listener = enter(harness, token({"topics": ["room"], "send": False}))
    listener.say_many([{}, {}])
    assert [message["code"] for message in listener.heard()[2:]] == ["forbidden", "rate_limited"]


def test_metadata_of_the_token_takes_the_place_of_the_clients(harness: Harness) -> None:
    observer = enter(harness, token())
    observer.heard()
    enter(
        harness,
        token({"topics": ["room"], "metadata": {"name": "Ada é"}}),
        query="?metadata=%7B%22name%22:%22Eve%22%7D",
    )
    enter(harness, token(), query="?metadata=%7B%22name%22:%22Bob%22%7D")
    assert [message["metadata"]["name"] for message in observer.heard()] == ["Ada é", "Bob"]


def test_of_metadata_that_a_token_replaces_the_instance_stays(harness: Harness) -> None:
    observer = enter(harness, token())
    observer.heard()
    query = f"?metadata={quote(json.dumps({'name': 'Eve', 'instance': 'Zm9vYmFy-_1'}))}"
    for metadata in ({"name": "Ada"}, {"name": "Ada", "instance": "the token's"}, {}):
        enter(harness, token({"topics": ["room"], "metadata": metadata}), query=query)
    assert [message["metadata"] for message in observer.heard()] == [
        {"name": "Ada", "instance": "Zm9vYmFy-_1"},
        {"name": "Ada", "instance": "the token's"},
        {"instance": "Zm9vYmFy-_1"},
    ]


def test_a_connection_ends_with_4401_when_its_token_does(harness: Harness) -> None:
    short, long = (enter(harness, token(exp=int(harness.start) + seconds)) for seconds in (100, 200))
    harness.advance(99)
    assert (short.closed, long.closed) == (None, None)
    harness.advance(2)
    assert (short.closed, short.close_reason, long.closed) == (4401, "the token has expired", None)
    assert long.heard()[-1] == {"type": "peer-left", "peerId": short.id}
    harness.advance(100)
    assert long.closed == 4401


def test_no_timer_is_left_when_everybody_is_gone(server: Harness) -> None:
    for _ in range(3):
        enter(server, token()).leave()
    server.advance(6)
    assert [call for call in server.clock.getDelayedCalls() if call.active()] == []


def test_a_wall_clock_that_is_set_back_ends_nothing_too_early(harness: Harness) -> None:
    peer = enter(harness, token(exp=int(harness.start) + 100))
    harness.start -= 3600
    harness.advance(200)
    assert peer.closed is None
    harness.start += 3600
    harness.advance(60)
    assert peer.closed == 4401


# Resuming


@pytest.fixture
def resuming(make_harness: MakeHarness, tmp_path: Path) -> Harness:
    """A server where sessions can be resumed."""
    return make_harness(portal=issuer.portal(tmp_path), resume_window_seconds=300)


def test_resuming_with_another_token_of_the_same_owner(resuming: Harness) -> None:
    session = Session(resuming, token(sub="Ada", exp=int(resuming.start) + 30))
    peer = session.resume(token({"prefixes": ["r"], "send": False}, sub="Ada", exp=int(resuming.start) + 100))
    assert peer.heard()[0]["resumed"]
    peer.say("x")
    assert peer.heard()[-1]["code"] == "forbidden"
    resuming.advance(99)
    assert peer.closed is None
    resuming.advance(2)
    assert peer.closed == 4401


def test_a_detached_peer_stays_although_its_token_expires(resuming: Harness) -> None:
    observer = enter(resuming, token(sub="Eve"))
    session = Session(resuming, token(sub="Ada", exp=int(resuming.start) + 100))
    observer.heard()
    resuming.advance(200)
    observer.offer(session.peer, "1")
    assert response(session.resume(token(sub="Ada", exp=NOW - 60)).received)[0] == 401
    back = session.resume(token(sub="Ada"))
    assert [message["type"] for message in back.heard()] == ["welcome", "peer-list", "offer"]
    assert observer.heard() == []


def test_a_detached_peer_leaves_at_the_end_of_its_window_whenever_its_token_expires(resuming: Harness) -> None:
    observer = enter(resuming, token())
    session = Session(resuming, token(exp=int(resuming.start) + 100))
    observer.heard()
    resuming.advance(299)
    assert observer.heard() == []
    resuming.advance(2)
    assert observer.heard() == [{"type": "peer-left", "peerId": session.peer.id}]


def test_a_peer_whose_token_expires_is_detached_and_the_others_notice_nothing(resuming: Harness) -> None:
    observer = enter(resuming, token(sub="Eve"))
    peer = enter(resuming, token(sub="Ada", exp=int(resuming.start) + 10))
    welcome, _ = peer.heard()
    observer.heard()
    resuming.advance(11)
    assert (peer.closed, peer.close_reason) == (4401, "the token has expired")
    observer.offer(peer, "1")
    back = resuming.peer(
        f"/ws/room?resume={welcome['resume']['token']}&seen=2", {"Authorization": f"Bearer {token(sub='Ada')}"}
    )
    renewed, _, offer = back.heard()
    assert (renewed["selfId"], renewed["resumed"], offer["msgId"]) == (peer.id, True, "1")
    assert observer.heard() == []


def test_a_client_resumes_before_it_has_answered_the_close_frame_of_its_expired_token(resuming: Harness) -> None:
    observer = enter(resuming, token(sub="Eve"))
    peer = enter(resuming, token(sub="Ada", exp=int(resuming.start) + 10))
    welcome, _ = peer.heard()
    observer.heard()
    peer.go_silent()
    peer.stall()
    observer.offer(peer, "1")
    resuming.advance(10)
    observer.offer(peer, "2")
    query = f"?resume={welcome['resume']['token']}&seen=2"
    back = enter(resuming, token(sub="Ada"), query=query)
    assert [message.get("msgId") for message in back.heard()] == [None, None, "1", "2"]
    assert observer.heard() == []


def test_what_waits_for_a_client_whose_token_expires_is_sent_when_it_comes_back(
    make_harness: MakeHarness, tmp_path: Path
) -> None:
    harness = make_harness(portal=issuer.portal(tmp_path), resume_window_seconds=300, buffer_bytes=0)
    observer = enter(harness, token(sub="Eve"))
    peer = enter(harness, token(sub="Ada", exp=int(harness.start) + 5))
    welcome, _ = peer.heard()
    observer.heard()
    peer.stall()
    for msg_id in ("1", "2", "3"):
        observer.offer(peer, msg_id)
    assert harness.relays_queued == 2
    harness.advance(6)
    assert harness.relays_queued == 2
    back = enter(harness, token(sub="Ada"), query=f"?resume={welcome['resume']['token']}&seen=2")
    assert [message.get("msgId") for message in back.heard()] == [None, None, "1", "2", "3"]
    assert observer.heard() == []
    assert (harness.relays_queued, harness.relays_written, harness.counters.relays_undelivered) == (0, 3, 0)


def test_a_client_that_said_goodbye_just_before_its_token_expired_has_left(resuming: Harness) -> None:
    observer = enter(resuming, token(sub="Eve"))
    peer = enter(resuming, token(sub="Ada", exp=int(resuming.start) + 10))
    observer.heard()
    peer.leave()
    resuming.advance(11)
    assert observer.heard() == [{"type": "peer-left", "peerId": peer.id}]


def test_a_peer_whose_token_expires_while_the_server_drains_leaves(resuming: Harness) -> None:
    peer = enter(resuming, token(sub="Ada", exp=int(resuming.start) + 10))
    resuming.drain()
    resuming.advance(11)
    assert resuming.topics == {}
    assert peer.closed == 1001


@pytest.mark.parametrize(("window", "expires"), [(100, 50), (100, 300)])
def test_no_timer_is_left_when_who_was_away_is_gone(
    make_server: MakeHarness, tmp_path: Path, window: int, expires: int
) -> None:
    harness = make_server(portal=issuer.portal(tmp_path), resume_window_seconds=window)
    Session(harness, token(exp=int(harness.start) + expires))
    harness.advance(101)
    assert [call for call in harness.clock.getDelayedCalls() if call.active()] == []


@pytest.mark.parametrize(
    ("make", "status"),
    [(lambda: None, 401), (lambda: token(exp=NOW - 60), 401), (lambda: token({"topics": ["other"]}), 403)],
)
def test_resuming_needs_a_good_token(resuming: Harness, make: Callable[[], str | None], status: int) -> None:
    # Minted once: a token without a subject resumes its own sessions only.
    good = token()
    session = Session(resuming, good)
    assert response(session.resume(make()).received)[0] == status
    assert session.resume(good).heard()[0]["resumed"]


@pytest.mark.parametrize(
    "other",
    [
        lambda: token(sub="Eve"),
        token,
        lambda: token({"topics": ["room"], "metadata": {"name": "Eve"}}, sub="Ada"),
        lambda: token(jti="Ada"),
    ],
)
def test_who_has_another_name_is_another_peer(resuming: Harness, other: Callable[[], str]) -> None:
    session = Session(resuming, token(sub="Ada"))
    welcome, *_ = session.resume(other()).heard()
    assert "resumed" not in welcome
    assert session.resume(token(sub="Ada")).heard()[0]["resumed"]


@pytest.mark.parametrize(
    ("own", "others"),
    [
        ({}, {"exp": NOW + 7200}),
        ({"sub": ""}, {"sub": "", "exp": NOW + 7200}),
        ({"jti": "1"}, {"jti": "2"}),
        ({"jti": "1"}, {}),
    ],
)
def test_a_token_without_a_subject_resumes_its_own_sessions_only(
    resuming: Harness, own: dict[str, Any], others: dict[str, Any]
) -> None:
    session = Session(resuming, token(**own))
    assert "resumed" not in session.resume(token(**others)).heard()[0]
    assert session.resume(token(**own)).heard()[0]["resumed"]


def test_a_token_that_was_minted_anew_with_its_id_resumes_the_session(resuming: Harness) -> None:
    session = Session(resuming, token(jti="1"))
    assert session.resume(token(jti="1", exp=NOW + 7200)).heard()[0]["resumed"]


@pytest.mark.parametrize("subject", ["\ud800", "\0", "a\nb\x1b[0m", "x" * 10_000, 7, ["Ada"]])
def test_no_subject_beside_a_claim_to_a_session_raises(resuming: Harness, logged: list[str], subject: Any) -> None:
    session = Session(resuming, token(sub="Ada"))
    status, _, body = response(session.resume(token(sub=subject)).received)
    expected = 101 if isinstance(subject, str) and subject != "\ud800" else 401
    assert (status, '"resumed"' in body) == (expected, False)
    assert "Traceback" not in "\n".join(logged)
    assert session.resume(token(sub="Ada")).heard()[0]["resumed"]


def test_a_portal_that_names_nobody_keeps_sessions_apart_by_token(make_harness: MakeHarness) -> None:
    harness = make_harness(portal=Portal(GrantRealm(), [OpaqueChecker()]), resume_window_seconds=300)  # type: ignore[list-item]
    session = Session(harness, "one")
    assert "resumed" not in session.resume("another").heard()[0]
    assert session.resume("one").heard()[0]["resumed"]


def test_names_that_are_no_text_keep_sessions_apart(make_harness: MakeHarness) -> None:
    names = {b"\xfe": b"1", b"\xff": b"2"}
    checker = InMemoryUsernamePasswordDatabaseDontUse()
    checker.users = dict(names)
    harness = make_harness(portal=Portal(GrantRealm(), [checker]), resume_window_seconds=300)

    def join(name: bytes, query: str = "") -> Peer:
        basic = b64encode(name + b":" + names[name]).decode()
        return harness.peer(f"/ws/room{query}", {"Authorization": f"Basic {basic}"})

    peer = join(b"\xfe")
    query = f"?resume={peer.heard()[0]['resume']['token']}&seen=2"
    peer.reset()
    assert "resumed" not in join(b"\xff", query).heard()[0]
    assert join(b"\xfe", query).heard()[0]["resumed"]


# A portal that takes its time


@pytest.fixture
def slow(make_harness: MakeHarness) -> Slow:
    """A server whose portal takes its time, with the default limits."""
    return Slow(make_harness)


def test_nothing_happens_until_the_portal_answers(slow: Slow) -> None:
    slow.harness.advance(5)
    assert slow.peer.received == b""
    slow.answer()
    assert [message["type"] for message in slow.peer.heard()] == ["welcome", "peer-list"]
    assert slow.realm.inside == 1
    slow.peer.leave()
    assert slow.realm.inside == 0


def test_what_came_meanwhile_is_read_afterwards(make_harness: MakeHarness) -> None:
    slow = Slow(make_harness)
    other = slow.harness.connect()
    frame = b"\x81\x82\0\0\0\0{}"
    other.send(upgrade("/ws/room", Authorization="Bearer opaque").encode() + frame)
    other.send(frame)
    other.send(frame)
    assert other.received == b""
    slow.checker.asked.pop(0)
    slow.answer()
    assert other.received.count(b"invalid_type") == 3


def test_a_refusal_may_come_late_too(slow: Slow) -> None:
    slow.answer(UnauthorizedLogin("opaque"))
    status, _, body = response(slow.peer.received)
    assert (status, body) == (401, "this name, password or token is not right\n")
    assert slow.peer.ended


@pytest.mark.parametrize("waited", [0, 6])
def test_a_portal_that_never_answers_ends_with_the_deadline(make_server: MakeHarness, waited: float) -> None:
    slow = Slow(make_server, handshake_timeout_seconds=5)
    slow.harness.advance(5.5)
    status, headers, body = response(slow.peer.received)
    assert (status, body, headers["retry-after"]) == (503, "the login took too long\n", "1")
    slow.harness.advance(waited)
    slow.checker.asked[0][1].callback(Grant())
    slow.harness.advance(6)
    assert slow.peer.lost
    assert slow.realm.inside == 0
    assert [call for call in slow.harness.clock.getDelayedCalls() if call.active()] == []


def test_who_asks_by_way_of_the_web_has_a_deadline_too() -> None:
    slow = Slow(lambda **limits: Harness(handshake_timeout_seconds=5, **limits))
    late = slow.harness.connect()
    late.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    late.send(upgrade("/ws/room", Authorization="Bearer opaque").encode())
    assert len(slow.checker.asked) == 2
    slow.harness.advance(5.5)
    assert b"503 Service Unavailable" in late.received


def test_logins_that_wait_make_room_for_newer_connections(make_server: MakeHarness) -> None:
    slow = Slow(make_server, max_connections=1, spare_connections=1)
    others = [slow.harness.peer("/ws/room", {"Authorization": "Bearer opaque"}) for _ in range(3)]
    assert [peer.lost for peer in (slow.peer, *others)] == [True, True, False, False]
    slow.checker.asked[-1][1].callback(Grant(prefixes=("",)))
    slow.harness.run()
    assert [message["type"] for message in others[-1].heard()] == ["welcome", "peer-list"]
    slow.checker.asked[0][1].callback(Grant(prefixes=("",)))
    slow.harness.run()
    assert len(slow.harness.topics) == 1


def test_another_request_meanwhile_is_not_read(slow: Slow) -> None:
    slow.peer.send(upgrade("/ws/other", Authorization="Bearer opaque").encode())
    assert not slow.peer.transport.reading
    assert len(slow.checker.asked) == 1
    slow.answer()
    assert slow.peer.closed == 1002


@pytest.mark.parametrize("end", ["reset", "drain"])
@pytest.mark.parametrize("too_late", [False, True], ids=["cancelled", "too late to cancel"])
def test_who_is_gone_before_the_answer_never_joins(make_harness: MakeHarness, end: str, too_late: bool) -> None:
    cancelled: list[Deferred[Any]] = []

    def cancel(answer: Deferred[Any]) -> None:
        cancelled.append(answer)
        if too_late:
            answer.callback(Grant(prefixes=("",)))

    slow = Slow(make_harness, cancel)
    if end == "reset":
        slow.peer.reset()
    else:
        slow.harness.drain()
        slow.harness.run()
    assert slow.peer.lost
    assert cancelled == [answer for _, answer in slow.checker.asked]
    assert len(slow.harness.topics) == 0
    assert slow.realm.inside == 0


def test_a_server_that_began_to_stop_meanwhile_refuses(make_harness: MakeHarness) -> None:
    slow = Slow(make_harness, drain_spread_seconds=600.0)
    slow.harness.drain()
    slow.answer()
    assert response(slow.peer.received)[0] == 503
    slow.harness.advance(6)
    assert slow.realm.inside == 0


def test_who_is_refused_after_the_login_is_logged_out(slow: Slow) -> None:
    slow.answer(Grant(topics=frozenset({"other"})))
    assert response(slow.peer.received)[0] == 403
    slow.harness.advance(6)
    assert slow.realm.inside == 0


@pytest.mark.parametrize("wrong", [KeyError("opaque"), "no grant"])
def test_a_portal_that_fails_is_500_and_its_text_stays_out_of_the_log(
    slow: Slow, logged: list[str], wrong: Any
) -> None:
    slow.answer(wrong)
    status, _, body = response(slow.peer.received)
    assert (status, body) == (500, "the login failed; the server's log says more\n")
    log = "\n".join(logged)
    assert "a login failed: " in log
    assert "opaque" not in log


def test_a_crowd_is_joined_in_turn(make_harness: MakeHarness, tmp_path: Path) -> None:
    harness = make_harness(portal=issuer.portal(tmp_path))
    everybody = [enter(harness, token()) for _ in range(40)]
    assert len({peer.id for peer in everybody}) == 40


# Names and passwords


def test_passwords_are_taken_where_the_portal_takes_them(make_harness: MakeHarness) -> None:
    harness = make_harness(portal=Portal(GrantRealm(), [InMemoryUsernamePasswordDatabaseDontUse(ada=b"north")]))

    def ask(text: str) -> tuple[int, dict[str, str], str]:
        return harness.request(upgrade("/ws/room", Authorization=f"Basic {b64encode(text.encode()).decode()}"))

    assert ask("ada:north")[0] == 101
    status, headers, body = ask("ada:south")
    assert (status, body) == (401, "this name, password or token is not right\n")
    assert headers["www-authenticate"] == 'basic realm="signaling", charset="utf-8"'
    assert ask("eve:north")[0] == 401
    assert ask("ada")[0] == 400
    assert harness.request(upgrade("/ws/room", Authorization="Basic ?"))[0] == 400
    assert harness.request(upgrade("/ws/room?token=x"))[0] == 401


@pytest.mark.parametrize(("equal", "status"), [(True, 101), (False, 401)])
def test_what_compares_passwords_takes_the_same_time_for_all(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch, equal: bool, status: int
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(presented: bytes, right: bytes) -> bool:
        compared.append((presented, right))
        return equal

    # What hmac.compare_digest says decides, and nothing else does.
    monkeypatch.setattr("signaling.auth.cred.compare_digest", compare)
    harness = make_harness(portal=Portal(GrantRealm(), [InMemoryUsernamePasswordDatabaseDontUse(ada=b"north")]))
    for password in (b"north", b"south", b""):
        basic = b64encode(b"ada:" + password).decode()
        assert harness.request(upgrade("/ws/room", Authorization=f"Basic {basic}"))[0] == status
    assert compared == [(b"north", b"north"), (b"south", b"north"), (b"", b"north")]


# Logs


@pytest.mark.parametrize(
    "target", ["/ws/room?x=1&token=SECRET&metadata=1", "/ws/a/b?resume=SECRET&seen=1", "/ws/%zz?%74oken=SECRET"]
)
def test_a_foreign_sites_log_does_not_show_what_a_query_keeps_secret(tmp_path: Path, target: str) -> None:
    harness = Harness(site=True, portal=issuer.portal(tmp_path))
    lines: list[str] = []
    harness.site.log = lambda request: lines.append(request.uri.decode())
    assert harness.request(upgrade(target))[0] in (400, 404)
    assert lines
    assert "SECRET" not in lines[0]


def test_a_good_token_is_not_logged(harness: Harness, logged: list[str]) -> None:
    text = token()
    for transport in TRANSPORTS:
        harness.request(presented(transport, text))
    assert logged
    assert text not in "\n".join(logged)
    assert not {part for part in text.split(".") if part in "\n".join(logged)}


# Keys


def test_new_keys_count_without_a_restart(make_harness: MakeHarness, tmp_path: Path) -> None:
    seconds = [0.0]
    keys = tmp_path / "keys.json"
    keys.write_bytes(issuer.key_set(issuer.jwk("EdDSA", "old")))
    from signaling.auth.jwt_checker import JwtChecker
    from signaling.auth.jwt_keys import KeyFile

    told: list[str] = []
    file = KeyFile(str(keys), None, told.append, told.append, lambda: seconds[0])
    harness = make_harness(portal=Portal(GrantRealm(), [JwtChecker(file)]))  # type: ignore[list-item]
    old, new = token(kid="old"), token(kid="new", number=1)
    keys.write_bytes(issuer.key_set(issuer.jwk("EdDSA", "new", 1)))
    assert harness.request(presented("header", new))[0] == 401
    seconds[0] = 1.0
    assert harness.request(presented("header", new))[0] == 101
    assert harness.request(presented("header", old))[0] == 401
    assert told == ["keys.json: read again; keys: 1"]


def test_a_token_that_the_server_would_not_take_is_still_well_formed() -> None:
    # The matrix would prove nothing with tokens that no library can read.
    for _, make, _ in BAD[:4]:
        assert jwt.decode(make(), options={"verify_signature": False})["signaling"] == {"topics": ["room"]}
