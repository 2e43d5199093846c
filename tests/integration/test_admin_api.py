"""The admin API of one process, request by request."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher

from signaling.admin.site import AdminFactory
from signaling.admin.tokens import AdminTokens
from signaling.core.interfaces import Answers
from signaling.core.peer import Peer
from tests import issuer
from tests.harness.memory_transport import MemoryTransport
from tests.integration.access import enter
from tests.integration.harness import Connection, Harness, response, upgrade
from tests.issuer import token

TOKEN = "one-token-0123456789"
NEXT_TOKEN = "next-token-0123456789"


class AdminPort:
    """The admin port of a harness's server, and an operator."""

    def __init__(self, harness: Harness, tokens: AdminTokens | None = None, asker: Any = None) -> None:
        self.harness = harness
        self.factory = AdminFactory(harness.factory, asker or harness.factory.asker, tokens)
        self.factory.doStart()

    def connect(self) -> Connection:
        """Open a connection."""
        transport = MemoryTransport("192.0.2.99", 50_000 + len(self.harness.connections))
        transport.protocol = self.factory.buildProtocol(transport.getPeer())
        connection = Connection(self.harness, transport)
        self.harness.connections.append(connection)
        transport.protocol.makeConnection(transport)
        return connection

    def send(self, data: bytes) -> tuple[int, dict[str, str], Any]:
        """Send bytes; returns the status, the headers and the decoded body of the answer."""
        connection = self.connect()
        connection.send(data)
        status, headers, body = response(connection.received)
        return status, headers, json.loads(body) if body else None

    def request(self, method: str, target: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Make a request; a body is JSON unless it is bytes."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        if body is not None:
            headers = {"Content_Type": "application/json", "Content_Length": str(len(content)), **headers}
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        return self.send(f"{method} {target} HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode() + content)

    def get(self, target: str) -> Any:
        """Return the answer to a GET that succeeds."""
        status, _, answer = self.request("GET", target)
        assert status == 200, answer
        return answer


@contextmanager
def log_lines() -> Iterator[list[dict[str, Any]]]:
    """Collect the events of the log."""
    lines: list[dict[str, Any]] = []
    globalLogPublisher.addObserver(lines.append)
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(lines.append)


@pytest.fixture
def port() -> AdminPort:
    return AdminPort(Harness(notices=True))


# The token


@pytest.fixture
def guarded() -> AdminPort:
    return AdminPort(Harness(notices=True), AdminTokens(f"# of this week\n{TOKEN}\n\n{NEXT_TOKEN}\n".encode()))


@pytest.mark.parametrize("text", [TOKEN, NEXT_TOKEN])
def test_each_token_of_the_file_is_accepted(guarded: AdminPort, text: str) -> None:
    assert guarded.request("GET", "/v1/topics", Authorization=f"bearer {text}")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}{NEXT_TOKEN}"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": f"Bearer {TOKEN}\r\nAuthorization: Bearer {TOKEN}"},
        {"Authorization": "Bearer # of this week"},
        {"Origin": "http://a"},
    ],
)
@pytest.mark.parametrize("target", ["/v1/topics", "/v1/openapi.json", "/nowhere", "*"])
def test_no_path_answers_without_a_right_token(guarded: AdminPort, headers: dict[str, str], target: str) -> None:
    status, answered, answer = guarded.request("OPTIONS" if target == "*" else "GET", target, **headers)
    assert status == 401
    assert answered["www-authenticate"] == 'bearer realm="signaling admin"'
    assert answered["connection"] == "close"
    assert not [name for name in answered if name.startswith("access-control")]
    assert "--admin-token-file" in answer["reason"]


def test_a_flood_of_wrong_tokens_writes_one_line_a_second_without_them(guarded: AdminPort) -> None:
    with log_lines() as lines:
        for _ in range(5):
            guarded.request("GET", "/v1/topics", Authorization="Bearer wrong-0123456789")
        guarded.harness.advance(1)
        guarded.request("GET", "/v1/topics", Authorization="Bearer wrong-0123456789")
    refused = [line for line in lines if line.get("event") == "admin_refused"]
    assert [line["count"] for line in refused] == [1, 5]
    assert refused[0]["address"].startswith("192.0.2.99:")
    assert "0123456789" not in repr(lines)
    assert guarded.harness.counters.admin_requests == {("unauthorized", 401): 6}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no token"),
        (b"# nothing\n", "no token"),
        (b"x" * 15, "at least 16"),
        (b"a b" * 10, "at least 16"),
        (b"x" * 65_537, "65536"),
        (f"{TOKEN}\n\nshort".encode(), "line 3"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_without_a_quote_of_it(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as raised:
        AdminTokens(data)
    assert "short" not in str(raised.value)


# Looking


def test_topics_are_listed_in_pages(port: AdminPort) -> None:
    for name in ("call-2", "call-1", "zoo", "call-1"):
        port.harness.join(name)
    one, two, zoo = {"name": "call-1", "peers": 2}, {"name": "call-2", "peers": 1}, {"name": "zoo", "peers": 1}
    assert port.get("/v1/topics") == {"topics": [one, two, zoo]}
    assert port.get("/v1/topics?limit=2") == {"topics": [one, two], "after": "call-2"}
    assert port.get("/v1/topics?limit=2&after=call-2") == {"topics": [zoo]}
    assert port.get("/v1/topics?prefix=call-&after=call-1") == {"topics": [two]}
    assert port.get("/v1/topics?prefix=nothing") == {"topics": []}


def test_the_peers_of_a_topic_are_listed_with_all_that_is_known(port: AdminPort) -> None:
    ada = port.harness.join("a/b ü", {"n": 1e3, "name": "Ada"})
    port.harness.advance(2)
    bob = port.harness.join("a/b ü")
    answer = port.get("/v1/topics/a%2Fb%20%C3%BC")
    assert answer["name"] == "a/b ü"
    first, second = answer["peers"]
    assert first == {
        "id": ada.id,
        "metadata": {"n": 1000.0, "name": "Ada"},
        "seconds": 2.0,
        "address": "192.0.2.1:40000",
    }
    assert second == {"id": bob.id, "seconds": 0.0, "address": "192.0.2.1:40001"}


def test_metadata_is_shown_as_it_was_given(port: AdminPort) -> None:
    port.harness.peer("/ws/room?metadata=%7B%22a%22:1e400,%20%22b%22:1.0,%22a%22:%22%5Cud800%22%7D")
    connection = port.connect()
    connection.send(b"GET /v1/topics/room HTTP/1.1\r\nHost: a\r\n\r\n")
    assert rb'"metadata":{"a":1e400, "b":1.0,"a":"\ud800"},' in connection.received


def test_a_resumed_peer_keeps_its_seconds_and_shows_its_new_address() -> None:
    port = AdminPort(Harness(notices=True, resume_window_seconds=30))
    ada = port.harness.peer("/ws/room")
    welcome = ada.heard()[0]
    port.harness.advance(3)
    ada.reset()
    assert port.get("/v1/topics/room")["peers"][0]["detached"] is True
    port.harness.host = "192.0.2.50"
    port.harness.peer(f"/ws/room?resume={welcome['resume']['token']}&seen=2")
    [peer] = port.get("/v1/topics/room")["peers"]
    assert (peer["seconds"], peer["address"].partition(":")[0]) == (3.0, "192.0.2.50")
    assert "detached" not in peer


@pytest.mark.parametrize(("detail", "shown"), [("network", {"address": "192.0.2.0/24"}), ("off", {})])
def test_the_address_of_a_peer_is_shown_as_in_the_log(detail: str, shown: dict[str, str]) -> None:
    harness = Harness(notices=True, log_addresses=detail)
    ada = harness.join("room")
    assert AdminPort(harness).get("/v1/topics/room")["peers"] == [{"id": ada.id, "seconds": 0.0, **shown}]


def test_nothing_stays_recorded_of_peers_that_left(port: AdminPort) -> None:
    peers = [port.harness.join("room") for _ in range(3)]
    ids = {peer.id for peer in peers}

    def kept() -> set[str]:
        gc.collect()
        return {each.id for each in gc.get_objects() if isinstance(each, Peer)} & ids

    assert kept() == ids
    peers[0].leave()
    peers[1].reset()
    port.request("DELETE", f"/v1/topics/room/peers/{peers[2].id}")
    assert kept() == set()


def test_a_head_request_has_the_headers_of_a_get(port: AdminPort) -> None:
    status, headers, body = port.request("HEAD", "/v1/topics")
    assert (status, headers["content-length"], body) == (200, str(len('{"topics":[]}\n')), None)


def test_clients_are_told_that_there_are_notices(port: AdminPort) -> None:
    welcome = port.harness.peer("/ws/room").heard()[0]
    assert welcome["features"] == ["notices"]


# Stepping in


def test_a_peer_is_removed(port: AdminPort) -> None:
    ada, bob = port.harness.join("a/b"), port.harness.join("a/b")
    with log_lines() as lines:
        answer = port.request("DELETE", f"/v1/topics/a%2Fb/peers/{bob.id}?reason=Be+kind%21")
    assert answer[::2] == (200, {"removed": 1})
    assert (bob.closed, bob.close_reason) == (4403, "Be kind!")
    assert ada.heard()[-1] == {"type": "peer-left", "peerId": bob.id}
    [line] = [line for line in lines if line.get("event") == "peer_removed"]
    assert (line["topic"], line["peer"], line["address"].partition(":")[0]) == ("a/b", bob.id, "192.0.2.99")
    assert "kind" not in repr(lines)
    assert port.request("DELETE", f"/v1/topics/a%2Fb/peers/{bob.id}")[::2] == (
        404,
        {"reason": "there is no such peer"},
    )


def test_a_topic_is_closed(port: AdminPort) -> None:
    peers = [port.harness.join("room") for _ in range(3)]
    with log_lines() as lines:
        answer = port.request("DELETE", "/v1/topics/room?reason=Bye")
    assert answer[::2] == (200, {"removed": 3})
    assert {(peer.closed, peer.close_reason) for peer in peers} == {(4404, "Bye")}
    assert "Bye" not in repr(lines)
    assert [line["peers"] for line in lines if line.get("event") == "topic_closed"] == [3]
    assert port.request("DELETE", "/v1/topics/room")[::2] == (404, {"reason": "there is no such topic"})


def test_a_notice_is_sent_as_it_was_written(port: AdminPort) -> None:
    ada, bob = port.harness.join("room"), port.harness.join("room")
    ada.heard()
    with log_lines() as lines:
        answer = port.request("POST", "/v1/topics/room/notices", b'{"data": {"n": 1e400, "s": "\\ud800"} }')
    assert answer[::2] == (200, {"received": 2})
    assert ada.texts == bob.texts == [r'{"type":"notice","data":{"n": 1e400, "s": "\ud800"}}']
    assert "1e400" not in repr(lines)
    assert port.request("POST", "/v1/topics/room/notices", {"to": bob.id, "data": None})[2] == {"received": 1}
    assert (len(ada.texts), len(bob.texts)) == (1, 2)


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("GET", "/v1/topics/other", None),
        ("DELETE", "/v1/topics/other", None),
        ("DELETE", "/v1/topics/other/peers/x", None),
        ("DELETE", "/v1/topics/room/peers/x", None),
        ("POST", "/v1/topics/other/notices", {"data": 1}),
        ("POST", "/v1/topics/room/notices", {"to": "x", "data": 1}),
        ("GET", "/", None),
        ("GET", "/v1/", None),
        ("GET", "/v1/topics/", None),
        ("GET", "/v1/topics/a/b", None),
        ("DELETE", "/v1/topics/room/peers/", None),
        ("GET", "/metrics", None),
        ("GET", "/ws/room", None),
        ("OPTIONS", "*", None),
    ],
)
def test_what_is_not_there_is_answered_404(port: AdminPort, method: str, target: str, body: Any) -> None:
    port.harness.join("room")
    status, headers, answer = port.request(method, target, body)
    assert status == 404
    assert answer["reason"]
    assert headers["content-type"] == "application/json"


def test_no_websocket_is_opened_on_the_admin_port(port: AdminPort) -> None:
    status, _, answer = port.send(upgrade("/ws/room").encode())
    assert status == 404
    assert "admin port" in answer["reason"]


@pytest.mark.parametrize(
    ("method", "target", "names"),
    [
        ("GET", "/v1/topics?limit=0", "limit"),
        ("GET", "/v1/topics?limit=1001", "limit"),
        ("GET", "/v1/topics?limit=1.0", "limit"),
        ("GET", "/v1/topics?limit=%D9%A3", "limit"),
        ("GET", f"/v1/topics?limit={'9' * 5000}", "limit"),
        ("GET", "/v1/topics?limit=1&limit=2", "limit"),
        ("GET", "/v1/topics?after=%ff", "after"),
        ("GET", "/v1/topics?prefix=%2", "prefix"),
        ("GET", "/v1/topics?prefx=a", "prefix, after, limit"),
        ("GET", "/v1/topics?" + "&" * 200, "query"),
        ("GET", "/v1/topics/room?limit=1", "no parameters"),
        ("GET", "/v1/topics/%ff", "topic"),
        ("DELETE", "/v1/topics/room?reason=" + "x" * 124, "reason"),
        ("DELETE", "/v1/topics/room?block=5", "reason"),
        ("DELETE", "/v1/topics/room/peers/x?reason=" + "%C3%A4" * 62, "reason"),
        ("DELETE", "/v1/topics/room/peers/%ff", "peer"),
        ("DELETE", "/v1/topics/room/peers/x?block=0", "block"),
        ("DELETE", "/v1/topics/room/peers/x?block=-1", "block"),
        ("DELETE", "/v1/topics/room/peers/x?block=2678401", "block"),
        ("DELETE", "/v1/topics/room/peers/x?block=inf", "block"),
        # Nobody has a token here.
        ("DELETE", "/v1/topics/room/peers/x?block=60", "--auth"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(port: AdminPort, method: str, target: str, names: str) -> None:
    ada = port.harness.join("room")
    status, _, answer = port.request(method, target)
    assert status == 400
    assert names in answer["reason"]
    assert ada.closed is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"data":1',
        b'{"data":1}}',
        b'{"data":1,"extra":2}',
        b'{"data":"\xff"}',
        b'{"data":1,"to":null}',
        b'{"data":1,"to":1}',
        b'{"data":%b}' % (b"[" * 65 + b"]" * 65),
        b'{"data":%b}' % (b"[" * 8000),
        b'{"data":%b}' % (b"1" * 101),
    ],
)
def test_a_body_that_is_no_notice_is_answered_400(port: AdminPort, body: bytes) -> None:
    ada = port.harness.join("room")
    status, _, answer = port.request("POST", "/v1/topics/room/notices", body)
    assert status == 400
    assert any(name in answer["reason"] for name in ("data", "to"))
    assert ada.heard() == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_a_body_of_another_type_is_answered_415(port: AdminPort, kind: str) -> None:
    assert port.request("POST", "/v1/topics/room/notices", {"data": 1}, Content_Type=kind)[0] == 415
    assert port.send(b"POST /v1/topics/room/notices HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")[0] == 415


def test_a_content_type_may_have_parameters(port: AdminPort) -> None:
    kind = "Application/JSON; charset=utf-8"
    port.harness.join("room")
    assert port.request("POST", "/v1/topics/room/notices", {"data": 1}, Content_Type=kind)[0] == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("Content-Length: 65537\r\n", 413),
        ("Content-Length: 99999999999999999999\r\n", 413),
        ("Transfer-Encoding: chunked\r\n", 411),
        ("Content-Length: x\r\n", 400),
        ("Content-Length: 1\r\nContent-Length: 1\r\n", 400),
        (f"A: {'x' * 20_000}\r\n", 431),
        ("A\r\n", 400),
    ],
)
def test_a_request_that_cannot_be_read_is_answered_in_json(port: AdminPort, head: str, status: int) -> None:
    request = f"POST /v1/topics/room/notices HTTP/1.1\r\nHost: a\r\n{head}\r\n"
    answered, headers, answer = port.send(request.encode())
    assert answered == status
    assert answer["reason"]
    assert headers["content-type"] == "application/json"
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("POST", "/v1/topics", "get, head"),
        ("OPTIONS", "/v1/topics/room", "get, delete, head"),
        ("GET", "/v1/topics/room/peers/x", "delete"),
        ("GET", "/v1/topics/room/notices", "post"),
        ("PATCH", "/v1/openapi.json", "get, head"),
        ("BREW", "/v1/topics", "get, head"),
    ],
)
def test_another_method_is_answered_405(port: AdminPort, method: str, target: str, allowed: str) -> None:
    status, headers, answer = port.request(method, target)
    assert (status, headers["allow"]) == (405, allowed)
    assert answer["reason"]


# Blocks


@pytest.fixture
def authorized(tmp_path: Path) -> AdminPort:
    """The admin port of a server that checks tokens."""
    return AdminPort(Harness(notices=True, portal=issuer.portal(tmp_path), resume_window_seconds=30))


def peers_of(port: AdminPort, topic: str = "room") -> list[Any]:
    peers: list[Any] = port.get(f"/v1/topics/{topic}")["peers"]
    return peers


def test_the_owner_of_a_token_is_shown(authorized: AdminPort) -> None:
    enter(authorized.harness, token(sub="Ada"))
    assert peers_of(authorized)[0]["subject"] == "Ada"


def test_a_blocked_owner_stays_out_for_as_long_as_it_was_said(authorized: AdminPort) -> None:
    harness = authorized.harness
    first, second, bob = (enter(harness, token(sub=name)) for name in ("Ada", "Ada", "Bob"))
    welcome = first.heard()[0]
    answer = authorized.request("DELETE", f"/v1/topics/room/peers/{welcome['selfId']}?block=60&reason=Enough")
    assert answer[::2] == (200, {"removed": 2, "blocked": {"subject": "Ada", "seconds": 60}})
    assert (first.closed, second.closed, bob.closed) == (4403, 4403, None)
    harness.advance(20.5)
    refused = harness.peer("/ws/room", {"Authorization": f"Bearer {token(sub='Ada')}"})
    assert response(refused.received)[0] == 403
    assert "may not join this topic for 40 s more" in response(refused.received)[2]
    check = f"GET /ws/room?check&token={token(sub='Ada')} HTTP/1.1\r\nHost: a\r\n\r\n"
    status, _, body = harness.request(check)
    assert (status, json.loads(body)["reason"]) == (
        403,
        "the owner of this token may not join this topic for 40 s more",
    )
    assert enter(harness, token(sub="Bob")).heard()[0]["type"] == "welcome"
    assert enter(harness, token(sub="Ada", iss="another issuer")).heard()[0]["type"] == "welcome"
    assert enter(harness, token({"topics": ["other"]}, sub="Ada"), topic="other").heard()[0]["type"] == "welcome"
    harness.advance(40)
    assert enter(harness, token(sub="Ada")).heard()[0]["type"] == "welcome"


@pytest.mark.parametrize("claims", [{}, {"sub": ""}])
def test_a_peer_without_an_owner_is_not_removed_if_it_should_be_blocked(
    authorized: AdminPort, claims: dict[str, str]
) -> None:
    ada = enter(authorized.harness, token(**claims))
    peer = ada.heard()[0]["selfId"]
    status, _, answer = authorized.request("DELETE", f"/v1/topics/room/peers/{peer}?block=60")
    assert (status, ada.closed) == (400, None)
    assert answer["reason"].startswith("block: ")


# Processes that do not answer


class FixedAsker:
    """Answers every query with the same, or never."""

    def __init__(self, answers: Answers | None) -> None:
        self._answers = answers

    def ask(self, query: bytes) -> Deferred[Answers]:
        asked: Deferred[Answers] = Deferred()
        if self._answers is not None:
            asked.callback(self._answers)
        return asked


def test_what_may_be_at_a_process_that_does_not_answer_is_not_said_to_be_missing() -> None:
    port = AdminPort(Harness(), asker=FixedAsker(Answers({"one": b""}, ["two"])))
    assert port.get("/v1/topics") == {"topics": [], "missing": ["one", "two"]}
    status, headers, answer = port.request("GET", "/v1/topics/room")
    assert (status, answer["missing"], headers["retry-after"]) == (503, ["one", "two"], "1")


def test_requests_at_once_are_bounded() -> None:
    port = AdminPort(Harness(), asker=FixedAsker(None))
    waiting = [port.connect() for _ in range(16)]
    for connection in waiting:
        connection.send(b"GET /v1/topics HTTP/1.1\r\nHost: a\r\n\r\n")
    assert {connection.received for connection in waiting} == {b""}
    assert port.request("GET", "/v1/topics")[0] == 503
    assert port.request("GET", "/v1/openapi.json")[0] == 200


def test_a_client_that_does_not_wait_for_its_answer_harms_nothing(port: AdminPort) -> None:
    for number in range(40):
        port.harness.join(f"{number}")
    peers = [port.harness.join("room") for _ in range(100)]
    connection = port.connect()
    connection.send_together(b"DELETE /v1/topics/room HTTP/1.1\r\nHost: a\r\n\r\n")
    connection.step()
    connection.reset()
    assert {peer.closed for peer in peers} == {4404}
    assert port.get("/v1/topics/0")["name"] == "0"


def test_connections_are_bounded_and_the_oldest_gives_way(port: AdminPort) -> None:
    connections = [port.connect() for _ in range(34)]
    port.harness.run()
    assert [connection.lost for connection in connections] == [True] * 2 + [False] * 32


def test_a_connection_that_says_nothing_is_closed(port: AdminPort) -> None:
    connection = port.connect()
    port.harness.advance(11)
    assert connection.lost


def test_requests_are_counted_by_operation_and_status(port: AdminPort) -> None:
    port.get("/v1/topics")
    port.request("GET", "/v1/topics/room")
    port.request("GET", "/v1/topics?limit=0")
    port.send(b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n")
    assert port.harness.counters.admin_requests == {
        ("list_topics", 200): 1,
        ("describe_topic", 404): 1,
        ("unreadable", 400): 2,
    }
