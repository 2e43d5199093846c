"""``GET /ws/{topic}?check``: what an upgrade would be answered, by every way in."""

from __future__ import annotations

import gc
import json
import weakref
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import Portal

from signaling import Grant, GrantRealm
from tests import issuer
from tests.integration.access import NOW, Realm, SlowChecker, enter
from tests.integration.harness import Harness, response, upgrade
from tests.issuer import token

MakeHarness = Callable[..., Harness]
OK = {"status": 200, "reason": "ok"}
FOREIGN, OWN = "https://foreign.example", "https://own.example"


def plain(target: str, *, method: str = "GET", **headers: str) -> str:
    """Write a request without an upgrade."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"{method} {target} HTTP/1.1\r\nHost: server\r\n{lines}\r\n"


def checked(harness: Harness, target: str = "/ws/room?check", **headers: str) -> dict[str, Any]:
    """Check, and compare what head and body of the answer say."""
    status, answered, body = harness.request(plain(target, **headers))
    answer: dict[str, Any] = json.loads(body)
    assert answer["status"] == status
    assert answered.get("retry-after") == (str(answer["retryAfter"]) if "retryAfter" in answer else None)
    assert (answered["content-type"], answered["cache-control"]) == ("application/json", "no-store")
    assert int(answered["content-length"]) == len(body)
    return answer


@pytest.fixture
def controlled(make_harness: MakeHarness, tmp_path: Path) -> Harness:
    """A server that takes tokens of the issuer."""
    return make_harness(portal=issuer.portal(tmp_path))


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


@pytest.mark.parametrize("query", ["check", "check=", "check=1", "x=1&check", "%63heck", "check&check"])
def test_a_client_that_could_join_is_answered_200(harness: Harness, query: str) -> None:
    assert checked(harness, f"/ws/room?{query}") == OK
    assert harness.topics == {}


def test_it_joins_nothing_and_takes_no_slot(make_harness: MakeHarness) -> None:
    harness = make_harness(max_connections=1)
    peer = harness.join("room")
    for _ in range(3):
        checked(harness)
    assert (peer.heard(), harness.topics) == ([], {"room": 1})
    peer.leave()
    for _ in range(6):
        assert checked(harness) == OK


def test_it_answers_what_the_upgrade_is_answered(make_server: MakeHarness, tmp_path: Path) -> None:
    harness = make_server(portal=issuer.portal(tmp_path), allow_origins=[OWN], max_connections_per_address=1)
    good, other = token(), token({"topics": ["other"]})
    enter(harness, good)
    for status, target, headers in (
        (400, f"/ws/{'x' * 257}?", bearer(good)),
        (400, "/ws/room?metadata=x&", bearer(good)),
        (400, f"/ws/room?token={good}&", bearer(good)),
        (400, "/ws/room?", {"Authorization": "Bearer a b"}),
        (403, "/ws/room?", {"Origin": FOREIGN, **bearer(good)}),
        (401, "/ws/room?", {}),
        (401, "/ws/room?", {"Origin": OWN, **bearer(token(exp=NOW - 60))}),
        (401, f"/ws/room?token={token(number=1)}&", {}),
        (403, "/ws/room?", bearer(other)),
        (429, "/ws/room?", bearer(good)),
    ):
        refused, upgraded, body = harness.request(upgrade(target.rstrip("&?"), **headers))
        before = dict(harness.counters.requests_refused)
        answer = checked(harness, f"{target}check", **headers)
        assert (answer["status"], answer["reason"]) == (refused, body.strip()), status
        assert refused == status
        assert harness.request(plain(f"{target}check", **headers))[1].get("www-authenticate") == upgraded.get(
            "www-authenticate"
        )
        assert dict(harness.counters.requests_refused) == before


def test_every_way_to_present_a_token_counts(controlled: Harness) -> None:
    good = token()
    assert checked(controlled, **bearer(good)) == OK
    assert checked(controlled, f"/ws/room?token={good}&check") == OK
    assert checked(controlled, Sec_WebSocket_Protocol=f"signaling, signaling.bearer.{good}") == OK
    assert controlled.topics == {}


def test_a_password_counts(make_server: MakeHarness) -> None:
    harness = make_server(portal=Portal(GrantRealm(), [InMemoryUsernamePasswordDatabaseDontUse(ada=b"north")]))
    for password, status in ((b"north", 200), (b"south", 401)):
        basic = b64encode(b"ada:" + password).decode()
        assert checked(harness, Authorization=f"Basic {basic}")["status"] == status


def test_with_an_upgrade_the_key_is_ignored(harness: Harness) -> None:
    assert harness.request(upgrade("/ws/room?check"))[0] == 101


@pytest.mark.parametrize("target", ["/ws/room", "/ws/room?checks", "/ws/room?x=check", "/ws/room?metadata=%7B%7D"])
def test_without_the_key_a_request_is_answered_as_ever(harness: Harness, target: str) -> None:
    status, _, body = harness.request(plain(target))
    assert (status, body.startswith("this is a WebSocket endpoint")) == (426, True)


def test_a_path_that_is_no_topic_is_404(harness: Harness) -> None:
    for path in ("/ws", "/ws/", "/ws/a/b"):
        assert checked(harness, f"{path}?check")["status"] == 404


def test_a_page_with_a_token_learns_that_a_path_is_no_topic(harness: Harness) -> None:
    asked = {"Access_Control_Request_Headers": "authorization", "Origin": FOREIGN}
    status, headers, _ = harness.request(plain("/ws/a/b?check", method="OPTIONS", **asked))
    assert (status, headers["access-control-allow-headers"]) == (204, "authorization")


def test_head_is_answered_without_a_body(make_server: MakeHarness) -> None:
    status, headers, body = make_server().request(plain("/ws/room?check", method="HEAD"))
    assert (status, body, headers["content-length"]) == (200, "", str(len(json.dumps(OK))))


def test_the_connection_stays_open_for_more_requests(make_server: MakeHarness) -> None:
    harness = make_server()
    connection = harness.connect()
    connection.send(plain("/ws/room?check").encode() * 2 + plain("/ws/a/b?check").encode())
    assert connection.received.count(b'{"status": 200, "reason": "ok"}') == 2
    assert connection.received.count(b"HTTP/1.1 404 Not Found") == 1
    assert not connection.ended


# Limits


def test_a_full_server_says_so(make_server: MakeHarness) -> None:
    harness = make_server(max_connections=1)
    harness.join("room")
    assert checked(harness) == {
        "status": 503,
        "reason": "the server is full: it takes 1 connections",
        "retryAfter": 10,
    }


def test_a_check_is_no_connection_of_its_addresss_rate(make_server: MakeHarness) -> None:
    harness = make_server(max_connections_per_address_per_second=0.1, connection_burst=1)
    for _ in range(5):
        assert checked(harness) == OK
    harness.join("room")
    for _ in range(5):
        assert checked(harness)["retryAfter"] == 10
    harness.advance(10)
    harness.join("room")


def test_a_client_behind_a_proxy_counts_by_its_own_address(make_server: MakeHarness) -> None:
    harness = make_server(max_connections_per_address=1, trusted_proxies=["192.0.2.0/24"])
    harness.peer("/ws/room", {"X-Forwarded-For": "203.0.113.1"})
    assert checked(harness, X_Forwarded_For="203.0.113.1")["status"] == 429
    assert checked(harness, X_Forwarded_For="203.0.113.2") == OK


def test_a_session_has_a_slot_already(make_server: MakeHarness) -> None:
    harness = make_server(max_connections=1, resume_window_seconds=60)
    peer = harness.peer("/ws/room")
    claim = f"resume={peer.heard()[0]['resume']['token']}&seen=2"
    peer.reset()
    assert checked(harness)["status"] == 503
    assert checked(harness, f"/ws/room?check&{claim}") == OK
    assert harness.peer(f"/ws/room?{claim}").heard()[0]["resumed"]
    assert checked(harness, f"/ws/room?check&{claim}")["status"] == 503


def test_a_session_that_moves_to_a_full_address_is_told_so(make_server: MakeHarness) -> None:
    harness = make_server(max_connections_per_address=1, resume_window_seconds=60)
    peer = harness.peer("/ws/room")
    claim = f"resume={peer.heard()[0]['resume']['token']}&seen=2"
    peer.reset()
    harness.host = "192.0.2.2"
    harness.join("room")
    assert checked(harness, f"/ws/room?check&{claim}")["status"] == 429
    harness.host = "192.0.2.3"
    assert checked(harness, f"/ws/room?check&{claim}") == OK
    assert harness.peer(f"/ws/room?{claim}").heard()[0]["resumed"]


def test_a_server_that_stops_says_so(make_server: MakeHarness, tmp_path: Path) -> None:
    harness = make_server(portal=issuer.portal(tmp_path), drain_spread_seconds=600.0)
    enter(harness, token())
    harness.drain()
    assert checked(harness)["status"] == 401
    assert checked(harness, **bearer(token())) == {
        "status": 503,
        "reason": "the server is stopping",
        "retryAfter": 1,
    }


# Pages


@pytest.mark.parametrize("allow", [[], [OWN]])
def test_a_page_of_any_origin_reads_the_answer_and_may_send_a_token(
    make_harness: MakeHarness, tmp_path: Path, allow: list[str]
) -> None:
    harness = make_harness(portal=issuer.portal(tmp_path), allow_origins=allow)
    for origin in (OWN, FOREIGN, "null"):
        status, headers, _ = harness.request(plain("/ws/room?check", Origin=origin, **bearer(token())))
        assert status == (403 if allow and origin != OWN else 200)
        assert (headers["access-control-allow-origin"], headers["vary"]) == (origin, "origin")
        asked = {"Access_Control_Request_Method": "GET", "Access_Control_Request_Headers": "authorization"}
        status, headers, _ = harness.request(plain("/ws/room?check", method="OPTIONS", Origin=origin, **asked))
        assert status == 204
        assert headers["access-control-allow-origin"] == origin
        assert headers["access-control-allow-headers"] == "authorization"
        assert headers["access-control-allow-methods"] == "get, options"
    assert harness.request(plain("/ws/room?check", **bearer(token())))[1]["access-control-allow-origin"] == "*"


def test_a_page_of_a_forbidden_origin_learns_nothing_else(make_harness: MakeHarness, tmp_path: Path) -> None:
    harness = make_harness(portal=issuer.portal(tmp_path), allow_origins=[OWN])
    answers = [checked(harness, Origin=FOREIGN, **more) for more in ({}, bearer(token()), bearer("wrong"))]
    reason = f"the origin {FOREIGN} is not on the server's list (--allow-origin)"
    assert answers == [{"status": 403, "reason": reason}] * 3
    status, headers, _ = harness.request(plain("/ws/room", method="OPTIONS", Origin=FOREIGN))
    assert (status, headers.get("access-control-allow-origin")) == (204, None)


def test_a_page_names_its_origin_to_its_own_server(make_harness: MakeHarness, tmp_path: Path) -> None:
    harness = make_harness(allow_origins=[OWN])
    assert checked(harness, f"/ws/room?check={quote(OWN, safe='')}") == OK
    assert checked(harness, f"/ws/room?check={quote(FOREIGN, safe='')}")["status"] == 403
    assert checked(harness, "/ws/room?check=1") == OK
    listed = make_harness(allow_origins=["file://", "http://localhost:*", "https://*.own.example:*"])
    for origin in ("file://", "http://localhost:5173", "https://a.own.example:8443"):
        assert checked(listed, f"/ws/room?check={quote(origin, safe='')}") == OK
    # The header of a browser counts more than what a page says.
    assert checked(harness, f"/ws/room?check={quote(OWN, safe='')}", Origin=FOREIGN)["status"] == 403


@pytest.mark.parametrize(
    ("target", "headers", "refused"),
    [("/ws/%zz?check", {}, 400), ("/ws/room?check", {"Authorization": "Bearer " + "x" * 20_000}, 431)],
)
def test_a_page_reads_why_a_request_is_not_well_formed(target: str, headers: dict[str, str], refused: int) -> None:
    harness = Harness(allow_origins=[OWN])
    status, answered, _ = harness.request(plain(target, Origin=OWN, **headers))
    assert (status, answered["access-control-allow-origin"]) == (refused, "*")


# Logs


def test_a_check_that_is_refused_is_counted_and_logged_with_the_client(
    make_server: MakeHarness, tmp_path: Path, logged: list[str]
) -> None:
    harness = make_server(portal=issuer.portal(tmp_path), trusted_proxies=["192.0.2.0/24"])
    logged.clear()
    good, expired = token(), token(exp=NOW - 60)
    for text in (good, expired, expired):
        checked(harness, f"/ws/room?check&token={text}", X_Forwarded_For="203.0.113.7")
    checked(harness, "/ws/room?check&metadata=x", X_Forwarded_For="203.0.113.8")
    assert harness.counters.checks_refused == {401: 2, 400: 1}
    assert harness.counters.requests_refused == {}
    lines = ["answered a check from 203.0.113.7: 401 the token has expired"] * 2
    assert logged[:2] == lines
    assert logged[2].startswith("answered a check from 203.0.113.8: 400 ")
    assert len(logged) == 3


def test_a_flood_of_checks_writes_no_more_lines_than_one_of_joins(
    make_server: MakeHarness, tmp_path: Path, logged: list[str]
) -> None:
    harness = make_server(portal=issuer.portal(tmp_path))
    logged.clear()
    for _ in range(60):
        checked(harness)
        harness.request(upgrade("/ws/room"))
    assert harness.counters.checks_refused == harness.counters.requests_refused == {401: 60}
    assert len(logged) == 100


def test_a_foreign_sites_log_shows_no_token(tmp_path: Path) -> None:
    harness = Harness(site=True, portal=issuer.portal(tmp_path))
    lines: list[str] = []
    harness.site.log = lambda request: lines.append(request.uri.decode())
    for text in (token(), "SECRET"):
        checked(harness, f"/ws/room?check&token={text}&resume=SECRET")
    checked(harness, "/ws/a/b?check&token=SECRET")
    assert lines == ["/ws/room?check&token=...&resume=..."] * 2 + ["/ws/a/b?check&token=..."]


# A portal that takes its time


class SlowCheck:
    """A check that waits for the portal."""

    def __init__(self, make_harness: MakeHarness, **limits: Any) -> None:
        self.checker, self.realm = SlowChecker(None), Realm()
        checkers: Any = [self.checker]
        self.harness = make_harness(portal=Portal(self.realm, checkers), **limits)
        self.connection = self.harness.connect()
        self.connection.send(plain("/ws/room?check", Authorization="Bearer opaque").encode())
        assert self.connection.received == b""
        [(_, self.answer)] = self.checker.asked


def test_a_check_waits_for_the_portal_and_logs_out_at_once(make_harness: MakeHarness) -> None:
    slow = SlowCheck(make_harness)
    slow.answer.callback(Grant(prefixes=("",)))
    slow.harness.run()
    assert json.loads(response(slow.connection.received)[2]) == OK
    assert slow.realm.inside == 0


def test_a_check_that_takes_too_long_is_503(make_server: MakeHarness) -> None:
    slow = SlowCheck(make_server, handshake_timeout_seconds=5)
    slow.harness.advance(5.5)
    assert json.loads(response(slow.connection.received)[2]) == {
        "status": 503,
        "reason": "the login took too long",
        "retryAfter": 1,
    }
    slow.answer.callback(Grant(prefixes=("",)))
    assert slow.realm.inside == 0


def test_a_check_that_takes_too_long_leaves_nothing_to_the_garbage_collector() -> None:
    slow = SlowCheck(Harness, handshake_timeout_seconds=5)
    answer = weakref.ref(slow.answer)
    del slow.answer
    slow.checker.asked.clear()
    gc.disable()
    try:
        slow.harness.advance(5.5)
        assert answer() is None
    finally:
        gc.enable()


def test_a_check_ends_with_its_connection(make_server: MakeHarness) -> None:
    slow = SlowCheck(make_server)
    slow.connection.reset()
    slow.answer.callback(Grant(prefixes=("",)))
    slow.harness.advance(20)
    assert slow.realm.inside == 0
    assert [call for call in slow.harness.clock.getDelayedCalls() if call.active()] == []


def test_a_logout_that_fails_is_500(make_server: MakeHarness, logged: list[str]) -> None:
    slow = SlowCheck(make_server)
    slow.realm.failing = 1
    slow.answer.callback(Grant(prefixes=("",)))
    slow.harness.run()
    status, _, body = response(slow.connection.received)
    assert (status, json.loads(body)["reason"]) == (500, "the check failed; the server's log says more")
    assert "a logout that fails" in "\n".join(logged)


def test_a_portal_that_fails_is_500(make_harness: MakeHarness, logged: list[str]) -> None:
    slow = SlowCheck(make_harness)
    slow.answer.errback(KeyError("opaque"))
    slow.harness.run()
    status, _, body = response(slow.connection.received)
    assert (status, json.loads(body)["reason"]) == (500, "the login failed; the server's log says more")
    assert "a login failed: KeyError" in "\n".join(logged)
    assert "opaque" not in "\n".join(logged)
