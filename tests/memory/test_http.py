"""The HTTP side of a port of our own."""

from __future__ import annotations

import pytest

from tests.memory.world import World, response, upgrade


def get(path: str, method: str = "GET", **headers: str) -> str:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.1\r\nHost: server\r\n{lines}\r\n"


@pytest.fixture
def port() -> World:
    return World()


def test_healthz_says_ok(port: World) -> None:
    assert port.request(get("/healthz"))[::2] == (200, "ok")


def test_healthz_answers_head_without_a_body(port: World) -> None:
    status, headers, body = port.request(get("/healthz", "HEAD"))
    assert (status, headers["content-length"], body) == (200, "2", "")


@pytest.mark.parametrize("path", ["/", "/nope", "/healthz/", "/healthz/x", "/ws", "/ws/", "/ws/a/b", "/WS/a", "/wsx/a"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_unknown_paths_are_404(port: World, path: str, method: str) -> None:
    assert port.request(get(path, method))[0] == 404
    if method == "GET":
        assert port.request(upgrade(path))[0] == 404


def test_a_plain_get_of_a_topic_is_426(port: World) -> None:
    status, headers, body = port.request(get("/ws/room"))
    assert (status, headers["upgrade"]) == (426, "websocket")
    assert "WebSocket client" in body


@pytest.mark.parametrize("path", ["/healthz", "/ws/room", "/ws/room?x=1", "/nope", "/ws/%ff"])
def test_every_answer_lets_the_requests_origin_read_it(port: World, path: str) -> None:
    assert port.request(get(path))[1]["access-control-allow-origin"] == "*"
    headers = port.request(get(path, Origin="https://example.org"))[1]
    assert headers["access-control-allow-origin"] == "https://example.org"
    assert headers["vary"] == "origin"


@pytest.mark.parametrize("path", ["/healthz", "/ws/room"])
def test_options_answers_the_preflight(port: World, path: str) -> None:
    status, headers, _ = port.request(get(path, "OPTIONS", Origin="https://example.org"))
    assert status == 204
    assert headers["access-control-allow-methods"] == "get, options"
    assert headers["access-control-allow-headers"] == "content-type"
    assert headers["access-control-allow-origin"] == "https://example.org"


@pytest.mark.parametrize("path", ["/healthz", "/ws/room"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "BREW"])
def test_other_methods_are_405_and_name_the_right_ones(port: World, path: str, method: str) -> None:
    status, headers, _ = port.request(get(path, method))
    assert (status, headers["allow"]) == (405, "get, head, options")


def test_a_connection_answers_several_requests(port: World) -> None:
    connection = port.connect()
    connection.send((get("/healthz") + get("/nope") + get("/healthz")).encode())
    assert connection.received.count(b"HTTP/1.1 200 OK") == 2
    assert not connection.lost


TOO_LONG = "the request line and the headers: at most 16384 bytes\n"


@pytest.mark.parametrize(
    "request_text",
    [
        get("/healthz", X="x" * 16_384),
        get("/" + "x" * 20_000),
        get("/ws/" + "x" * 20_000),
        "x" * 20_000,
        upgrade("/ws/room", **{f"X-{n}": "y" * 1000 for n in range(20)}),
    ],
)
def test_headers_beyond_16_kib_are_refused(port: World, request_text: str) -> None:
    status, headers, body = port.request(request_text)
    assert (status, body) == (431, TOO_LONG)
    assert headers["access-control-allow-origin"] == "*"
    assert not port.topics


def test_headers_of_a_later_request_are_bounded_too(port: World) -> None:
    for request_text in (get("/healthz", X="x" * 17_000), get("/healthz", **{f"X-{n}": "y" * 1000 for n in range(20)})):
        connection = port.connect()
        connection.send(get("/healthz").encode())
        first = len(connection.received)
        connection.send(request_text.encode())
        assert response(connection.received[first:])[0] in (400, 431)
        assert connection.ended


@pytest.mark.parametrize("path", ["/healthz", "/ws/room"])
def test_an_announced_body_beyond_16_kib_is_refused(port: World, path: str) -> None:
    connection = port.connect()
    connection.send(get(path, "POST", **{"Content-Length": "16385"}).encode())
    status, headers, body = response(connection.received)
    assert (status, body) == (413, "the body: at most 16384 bytes\n")
    assert headers["access-control-allow-origin"] == "*"


def test_a_body_of_unknown_length_beyond_16_kib_is_refused(port: World) -> None:
    connection = port.connect()
    connection.send(get("/healthz", "POST", **{"Transfer-Encoding": "chunked"}).encode())
    chunk = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
    connection.send(chunk * 5 + b"0\r\n\r\n" + get("/healthz").encode())
    assert connection.received.count(b"HTTP/1.1 ") == 1
    assert response(connection.received)[0] == 413


def test_a_body_within_bounds_is_read_and_ignored(port: World) -> None:
    body = "x" * 16_384
    assert port.request(get("/healthz", **{"Content-Length": str(len(body))}) + body)[0] == 200


@pytest.mark.parametrize(
    "request_text",
    [
        "GET\r\n\r\n",
        "GET /healthz HTTP/9.9.9 x\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nno colon\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        f"GET /healthz HTTP/1.1\r\nContent-Length: {'1' * 5000}\r\n\r\n",
        "\x00\x01\x02\r\n\r\n",
    ],
)
def test_nonsense_is_400(port: World, request_text: str) -> None:
    status, headers, body = port.request(request_text)
    assert status == 400
    assert headers["access-control-allow-origin"] == "*"
    assert body


def test_a_silent_connection_is_closed(port: World) -> None:
    connection = port.connect()
    port.advance(10)
    assert connection.lost


def test_a_trickling_handshake_is_cut_10_seconds_after_its_first_byte(port: World) -> None:
    connection = port.connect()
    port.advance(8)
    request = upgrade("/ws/room").encode()
    for n in range(19):
        connection.send(request[n : n + 1])
        port.advance(0.5)
        assert not connection.lost
    connection.send(request[19:20])
    port.advance(0.5)
    assert connection.lost


def test_a_later_request_that_trickles_is_cut_too(port: World) -> None:
    connection = port.connect()
    connection.send(get("/healthz").encode())
    for byte in get("/healthz").encode()[:20]:
        connection.send(bytes([byte]))
        port.advance(0.5)
    assert connection.lost


def test_a_body_that_trickles_is_cut_too(port: World) -> None:
    connection = port.connect()
    connection.send(get("/healthz", "POST", **{"Content-Length": "1000"}).encode())
    for _ in range(20):
        connection.send(b"x")
        port.advance(0.5)
    assert connection.lost


def test_a_drain_closes_web_connections(port: World) -> None:
    idle, silent = port.connect(), port.connect()
    idle.send(get("/healthz").encode())
    port.drain()
    port.run()
    assert idle.lost
    assert silent.lost


def test_upgrade_over_http_1_0_is_refused(port: World) -> None:
    assert port.request(upgrade("/ws/room").replace("HTTP/1.1", "HTTP/1.0"))[0] == 400


def test_no_version_of_the_software_is_told(port: World) -> None:
    assert "server" not in port.request(get("/healthz"))[1]
    assert "server" not in port.request(upgrade("/ws/room"))[1]


def test_a_client_that_pipelines_and_reads_nothing_gets_few_answers_and_an_end(port: World) -> None:
    connection = port.connect()
    connection.stall()
    for _ in range(20):
        connection.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 300)
    assert len(connection.transport.dataBuffer) < 16_384
    port.advance(5)
    assert connection.lost


def test_an_answer_that_nobody_reads_ends_with_the_close_timeout(port: World) -> None:
    connection = port.connect()
    connection.stall()
    connection.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    port.advance(4.75)
    assert not connection.lost
    port.advance(0.25)
    assert connection.lost
    assert not port.open_connections


def test_one_request_is_refused_once(port: World) -> None:
    head = b"POST /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    port.connect().send(head + b"ffff\r\n" + b"x" * 65_535 + b"\r\nzz\r\n")
    assert port.counters.requests_refused == {413: 1}


def test_the_demo_may_load_nothing_but_its_own() -> None:
    world = World(demo=True)
    status, headers, body = world.request("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert status == 200
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";") if part.strip())
    assert policy["default-src"] == "'none'"
    assert set(policy.values()) == {"'none'", "'self'"}
    assert "<script>" not in body
    assert " style=" not in body


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/demo.js", "text/javascript"),
        ("/demo-text.js", "text/javascript"),
        ("/demo.css", "text/css"),
        ("/signaling.js", "text/javascript"),
    ],
)
def test_the_demo_s_files_are_served_and_asked_for_again_only_when_they_changed(path: str, kind: str) -> None:
    world = World(demo=True)
    status, headers, body = world.request(f"GET {path}?topic=a HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (status, headers["content-type"]) == (200, f"{kind}; charset=utf-8")
    assert len(body.encode()) == int(headers["content-length"]) > 0
    again, _, nothing = world.request(f"GET {path} HTTP/1.1\r\nHost: a\r\nIf-None-Match: {headers['etag']}\r\n\r\n")
    assert (again, nothing) == (304, "")
    head, _, nothing = world.request(f"HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (head, nothing) == (200, "")


def test_the_client_is_served_alone_where_that_was_asked_for() -> None:
    world = World(serve_client=True)
    assert world.request("GET /signaling.js HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200
    assert world.request("GET / HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 404


def test_no_file_is_served_by_default() -> None:
    world = World()
    for path in ("/", "/signaling.js", "/demo.js", "/demo.css", "/index.html", "/favicon.svg"):
        assert world.request(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 404
