"""The HTTP side of a port of our own."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable

import pytest

from tests.integration.harness import Harness, response, upgrade

pytestmark = pytest.mark.unmeasured

MakeHarness = Callable[..., Harness]


def get(path: str, method: str = "GET", **headers: str) -> str:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.1\r\nHost: server\r\n{lines}\r\n"


@pytest.fixture
def port() -> Harness:
    return Harness()


def test_healthz_says_ok(port: Harness) -> None:
    assert port.request(get("/healthz"))[::2] == (200, "ok")


def test_healthz_answers_head_without_a_body(port: Harness) -> None:
    status, headers, body = port.request(get("/healthz", "HEAD"))
    assert (status, headers["content-length"], body) == (200, "2", "")


@pytest.mark.parametrize("path", ["/", "/nope", "/healthz/", "/healthz/x", "/ws", "/ws/", "/ws/a/b", "/WS/a", "/wsx/a"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_unknown_paths_are_404(port: Harness, path: str, method: str) -> None:
    assert port.request(get(path, method))[0] == 404
    if method == "GET":
        assert port.request(upgrade(path))[0] == 404


def below_a_path(**arguments: bool) -> Harness:
    return Harness(path_prefix="/signal/v1", **arguments)


def test_below_a_path_peers_meet_however_they_encode_it() -> None:
    harness = below_a_path()
    first = harness.peer("/signal/v1/ws/room")
    second = harness.peer("/%73ignal/v1/%77s/%72oom?metadata=%7B%7D")
    assert [message["type"] for message in second.heard()] == ["welcome", "peer-list"]
    assert [message["type"] for message in first.heard()] == ["welcome", "peer-list", "peer-joined"]
    assert harness.request(get("/signal/v1/ws/room?check"))[0] == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/signal/v1/healthz", "/signal/v1/readyz"])
def test_a_balancer_finds_health_and_readiness_at_the_root_and_below_the_path(path: str) -> None:
    assert below_a_path().request(get(path))[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/signal",
        "/signal/",
        "/signal/v1",
        "/signal/v1/",
        "/signal/ws/room",
        "/signal/v1/ws/a/b",
        "/signal%2Fv1/ws/room",
        "/signal/v1%2Fws/room",
        "/signal/v1//ws/room",
        "/SIGNAL/v1/ws/room",
        "/signal/v1/metrics",
        "/signaling.js",
        "/healthz/x",
    ],
)
def test_what_is_beside_the_path_is_404_and_says_where_topics_are(path: str) -> None:
    harness = below_a_path(serve_client=True)
    status, _, body = harness.request(get(path))
    assert (status, "/signal/v1/ws/{topic}" in body) == (404, True)
    assert harness.request(upgrade(path))[0] == 404


@pytest.mark.parametrize("path", ["/ws/room", "/ws/"])
def test_a_topic_at_the_root_is_404_if_there_is_a_path(path: str) -> None:
    for request_text in (get(path), upgrade(path), get(f"{path}?check")):
        status, _, body = below_a_path().request(request_text)
        assert (status, "/signal/v1/ws/{topic}" in body) == (404, True)


def test_below_a_path_the_demo_is_found_with_and_without_its_slash() -> None:
    harness = below_a_path(demo=True)
    status, headers, page = harness.request(get("/signal/v1/"))
    assert status == 200
    for name in re.findall(r'(?:src|href)="([^"#]+)"', page):
        # Each page of the demo is relative to it, and so it is found below any path.
        assert harness.request(get(f"/signal/v1/{name}"))[0] == 200
    status, headers, _ = harness.request(get("/signal/v1?name=Ada&x=//y"))
    assert (status, headers["location"]) == (307, "v1/?name=ada&x=//y")
    assert (
        harness.request(get("/"))[0] == harness.request(get("/signal"))[0] == harness.request(get("/demo.js"))[0] == 404
    )


@pytest.mark.parametrize("request_text", [get("/ws/room"), upgrade("/ws/room", Sec_WebSocket_Version="12")])
def test_426_names_upgrade_in_connection_and_ends_it(server: Harness, request_text: str) -> None:
    status, headers, body = server.request(request_text)
    assert (status, headers["upgrade"], headers["connection"]) == (426, "websocket", "upgrade, close")
    assert body


REFUSED_UPGRADES = [
    (400, upgrade("/ws/room", Sec_WebSocket_Key="short")),
    (400, upgrade("/ws/%zz")),
    (400, upgrade("/ws/room?metadata=1")),
    (400, upgrade("/ws/room").replace("HTTP/1.1", "HTTP/1.0")),
    (400, upgrade("/ws/room", Content_Length="1") + "x"),
    (404, upgrade("/ws/a/b")),
    (405, upgrade("/ws/room").replace("GET", "POST")),
    (426, upgrade("/ws/room", Sec_WebSocket_Version="12")),
    (403, upgrade("/ws/room", Origin="https://foreign.example")),
    (429, upgrade("/ws/room")),
]


@pytest.mark.parametrize(("status", "request_text"), REFUSED_UPGRADES)
def test_a_refused_upgrade_is_the_last_request_of_its_connection(
    make_server: MakeHarness, status: int, request_text: str
) -> None:
    server = make_server(max_connections_per_address=1, allow_origins=["https://own.example"])
    if status == 429:
        server.join("room")
    connection = server.connect()
    connection.send((request_text + get("/ws/room", "OPTIONS")).encode())
    answered, headers, _ = response(connection.received)
    assert answered == status
    assert "close" in headers["connection"]
    assert connection.ended
    connection.send(get("/ws/room", "OPTIONS").encode())
    assert connection.received.count(b"HTTP/1.1 ") + connection.received.count(b"HTTP/1.0 ") == 1


def test_an_upgrade_of_what_is_no_topic_is_answered_and_the_last_request(port: Harness) -> None:
    for method, path, status in (("GET", "/healthz", 200), ("GET", "/nope", 404), ("OPTIONS", "*", 200)):
        connection = port.connect()
        connection.send((upgrade(path).replace("GET", method) + get("/healthz")).encode())
        assert response(connection.received)[0] == status
        assert connection.received.count(b"HTTP/1.1 ") == 1
        assert connection.ended


@pytest.mark.parametrize("origin", ["http://server", "HTTPS://server:8081", "http://[::1]:8081"])
def test_a_target_in_absolute_form_is_taken(port: Harness, origin: str) -> None:
    peer = port.join("room")
    assert f'"peers":[{{"id":"{peer.id}"' in port.request(upgrade(f"{origin}/ws/room"))[2]
    assert port.request(get(f"{origin}/healthz"))[::2] == (200, "ok")
    assert port.request(get(origin))[0] == 404
    assert port.request(get(f"{origin}/ws/room"))[0] == 426


def test_options_of_the_whole_server_are_answered(port: Harness) -> None:
    status, headers, body = port.request(get("*", "OPTIONS"))
    assert (status, body) == (200, "")
    assert "server" not in headers


@pytest.mark.parametrize("request_text", [upgrade("/ws/été"), get("/ws/été"), upgrade('/ws/a?metadata={"n":"é"}')])
def test_a_path_that_is_not_ascii_is_told_to_percent_encode(port: Harness, request_text: str) -> None:
    for data in (request_text.encode(), request_text.encode("latin-1")):
        status, _, body = port.request(data)
        assert status == 400
        assert "percent-encode the topic" in body


@pytest.mark.parametrize("request_text", [get("/healthz"), upgrade("/ws/room")])
def test_lines_that_end_with_lf_alone_are_answered_at_once(port: Harness, request_text: str) -> None:
    for text in (request_text.replace("\r\n", "\n"), request_text.replace("\r\n\r\n", "\n\n")):
        connection = port.connect()
        for byte in text.encode():
            connection.send(bytes([byte]))
        status, _, body = response(connection.received)
        assert (status, body) == (400, "a line ends with CR LF, not with LF alone\n")
        assert connection.ended


def test_a_header_that_goes_on_in_the_next_line_is_refused(port: Harness) -> None:
    connection = port.connect()
    connection.send((get("/healthz") + "GET /healthz HTTP/1.1\r\nX: a\r\n b\r\n\r\n").encode())
    first, second = connection.received.split(b"HTTP/1.1 ")[1:]
    assert (first[:3], second[:3]) == (b"200", b"400")
    assert connection.ended


def test_more_than_100_headers_are_refused(port: Harness) -> None:
    assert port.request(upgrade("/ws/room", **{f"X-{n}": "y" for n in range(95)}))[0] == 101
    status, _, body = port.request(upgrade("/ws/room", **{f"X-{n}": "y" for n in range(96)}))
    assert (status, body) == (431, "at most 100 headers\n")


def test_more_than_100_parameters_are_refused(server: Harness) -> None:
    assert server.request(upgrade("/ws/room?" + "&".join(f"a{n}" for n in range(100))))[0] == 101
    status, _, body = server.request(upgrade("/ws/room?" + "&".join(f"a{n}" for n in range(101))))
    assert (status, body) == (400, "the query: at most 100 parameters\n")


@pytest.mark.parametrize("protocols", ["signaling", "other, signaling", "signaling,other"])
def test_an_open_server_answers_its_subprotocol_where_it_is_offered(server: Harness, protocols: str) -> None:
    peer = server.peer("/ws/room", {"Sec-WebSocket-Protocol": ", ".join(protocols.replace(" ", "").split(","))})
    assert peer.client.subprotocol == "signaling"
    assert "sec-websocket-protocol" not in server.request(upgrade("/ws/room"))[1]
    assert "sec-websocket-protocol" not in server.request(upgrade("/ws/room", Sec_WebSocket_Protocol="other"))[1]


@pytest.mark.parametrize("path", ["/healthz", "/ws/room", "/ws/room?x=1", "/nope", "/ws/%ff"])
def test_every_answer_lets_the_requests_origin_read_it(port: Harness, path: str) -> None:
    assert port.request(get(path))[1]["access-control-allow-origin"] == "*"
    headers = port.request(get(path, Origin="https://example.org"))[1]
    assert headers["access-control-allow-origin"] == "https://example.org"
    assert headers["vary"] == "origin"


@pytest.mark.parametrize("path", ["/healthz", "/ws/room"])
def test_options_answers_the_preflight(port: Harness, path: str) -> None:
    status, headers, _ = port.request(get(path, "OPTIONS", Origin="https://example.org"))
    assert status == 204
    assert headers["access-control-allow-methods"] == "get, options"
    assert headers["access-control-allow-headers"] == "content-type"
    assert headers["access-control-allow-origin"] == "https://example.org"


ASKS_PRIVATE = {"Access-Control-Request-Private-Network": "true"}


@pytest.mark.parametrize("path", ["/ws/room", "/ws/room?check"])
@pytest.mark.parametrize(
    ("listed", "origin", "answer"),
    [
        (["https://example.org", "*"], "https://example.org", "true"),
        (["http://localhost:*"], "http://localhost:3000", "true"),
        ([], "https://example.org", None),
        (["*"], "https://example.org", None),
        (["null"], "null", None),
        (["https://example.org"], "https://foreign.example", None),
    ],
)
def test_a_server_in_a_private_network_lets_named_origins_in(
    make_server: MakeHarness, path: str, listed: list[str], origin: str, answer: str | None
) -> None:
    harness = make_server(allow_origins=listed)
    headers = harness.request(get(path, "OPTIONS", Origin=origin, **ASKS_PRIVATE))[1]
    assert headers.get("access-control-allow-private-network") == answer


@pytest.mark.parametrize("asked", [{}, {"Access-Control-Request-Private-Network": "false"}])
def test_a_preflight_that_does_not_ask_for_a_private_network_is_granted_none(asked: dict[str, str]) -> None:
    harness = Harness(allow_origins=["https://example.org"])
    headers = harness.request(get("/ws/room", "OPTIONS", Origin="https://example.org", **asked))[1]
    assert "access-control-allow-private-network" not in headers


def test_a_get_is_granted_no_private_network() -> None:
    harness = Harness(allow_origins=["https://example.org"])
    headers = harness.request(get("/ws/room", Origin="https://example.org", **ASKS_PRIVATE))[1]
    assert "access-control-allow-private-network" not in headers


@pytest.mark.parametrize("path", ["/healthz", "/ws/room"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "BREW"])
def test_other_methods_are_405_and_name_the_right_ones(port: Harness, path: str, method: str) -> None:
    status, headers, _ = port.request(get(path, method))
    assert (status, headers["allow"]) == (405, "get, head, options")


def test_a_connection_answers_several_requests(port: Harness) -> None:
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
def test_headers_beyond_16_kib_are_refused(port: Harness, request_text: str) -> None:
    status, headers, body = port.request(request_text)
    assert (status, body) == (431, TOO_LONG)
    assert headers["access-control-allow-origin"] == "*"
    assert not port.topics


def test_headers_of_a_later_request_are_bounded_too(port: Harness) -> None:
    for request_text in (get("/healthz", X="x" * 17_000), get("/healthz", **{f"X-{n}": "y" * 1000 for n in range(20)})):
        connection = port.connect()
        connection.send(get("/healthz").encode())
        first = len(connection.received)
        connection.send(request_text.encode())
        assert response(connection.received[first:])[0] in (400, 431)
        assert connection.ended


@pytest.mark.parametrize("path", ["/healthz", "/ws/room"])
@pytest.mark.parametrize("length", ["16385", "9" * 5000])
def test_an_announced_body_beyond_16_kib_is_refused(port: Harness, path: str, length: str) -> None:
    connection = port.connect()
    connection.send(get(path, "POST", **{"Content-Length": length}).encode())
    status, headers, body = response(connection.received)
    assert (status, body) == (413, "the body: at most 16384 bytes\n")
    assert headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("coding", ["chunked", "identity", "gzip, chunked"])
def test_a_body_of_unknown_length_is_refused_unread(port: Harness, coding: str) -> None:
    connection = port.connect()
    connection.send(get("/healthz", "POST", **{"Transfer-Encoding": coding}).encode())
    connection.send(b"0\r\n\r\n" + get("/healthz").encode())
    assert connection.received.count(b"HTTP/1.1 ") == 1
    status, _, body = response(connection.received)
    assert (status, body) == (411, "a body needs a Content-Length, and no Transfer-Encoding\n")
    assert connection.ended


def test_a_body_within_bounds_is_read_and_ignored(port: Harness) -> None:
    body = "x" * 16_384
    assert port.request(get("/healthz", **{"Content-Length": str(len(body))}) + body)[0] == 200


@pytest.mark.parametrize(
    "request_text",
    [
        "GET\r\n\r\n",
        "GET /healthz HTTP/9.9.9 x\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nno colon\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\nx",
        "GET /healthz HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        "\x00\x01\x02\r\n\r\n",
    ],
)
def test_nonsense_is_400(port: Harness, request_text: str) -> None:
    status, headers, body = port.request(request_text)
    assert status == 400
    assert headers["access-control-allow-origin"] == "*"
    assert body


def test_a_silent_connection_is_closed(port: Harness) -> None:
    connection = port.connect()
    port.advance(10)
    assert connection.lost


def test_a_trickling_handshake_is_cut_10_seconds_after_its_first_byte(port: Harness) -> None:
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


def test_a_later_request_that_trickles_is_cut_too(port: Harness) -> None:
    connection = port.connect()
    connection.send(get("/healthz").encode())
    for byte in get("/healthz").encode()[:20]:
        connection.send(bytes([byte]))
        port.advance(0.5)
    assert connection.lost


def test_a_body_that_trickles_is_cut_too(port: Harness) -> None:
    connection = port.connect()
    connection.send(get("/healthz", "POST", **{"Content-Length": "1000"}).encode())
    for _ in range(20):
        connection.send(b"x")
        port.advance(0.5)
    assert connection.lost


def test_a_drain_closes_web_connections(port: Harness) -> None:
    idle, silent = port.connect(), port.connect()
    idle.send(get("/healthz").encode())
    port.drain()
    port.run()
    assert idle.lost
    assert silent.lost


def test_upgrade_over_http_1_0_is_refused(port: Harness) -> None:
    assert port.request(upgrade("/ws/room").replace("HTTP/1.1", "HTTP/1.0"))[0] == 400


def test_no_version_of_the_software_is_told(port: Harness) -> None:
    assert "server" not in port.request(get("/healthz"))[1]
    assert "server" not in port.request(upgrade("/ws/room"))[1]


def test_a_client_that_pipelines_and_reads_nothing_gets_few_answers_and_an_end(port: Harness) -> None:
    connection = port.connect()
    connection.stall()
    for _ in range(20):
        connection.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 300)
    assert len(connection.transport.dataBuffer) < 16_384
    port.advance(5)
    assert connection.lost


def test_an_answer_that_nobody_reads_ends_with_the_close_timeout(port: Harness) -> None:
    connection = port.connect()
    connection.stall()
    connection.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    port.advance(4.75)
    assert not connection.lost
    port.advance(0.25)
    assert connection.lost
    assert not port.open_connections


def test_one_request_is_refused_once(port: Harness) -> None:
    head = b"POST /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    port.connect().send(head + b"ffff\r\n" + b"x" * 65_535 + b"\r\nzz\r\n")
    assert port.counters.requests_refused == {411: 1}


def test_the_demo_may_load_nothing_but_its_own() -> None:
    harness = Harness(demo=True)
    status, headers, body = harness.request("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
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
        ("/sealing.js", "text/javascript"),
    ],
)
def test_the_demo_s_files_are_served_and_asked_for_again_only_when_they_changed(path: str, kind: str) -> None:
    harness = Harness(demo=True)
    status, headers, body = harness.request(f"GET {path}?topic=a HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (status, headers["content-type"]) == (200, f"{kind}; charset=utf-8")
    assert len(body.encode()) == int(headers["content-length"]) > 0
    again, _, nothing = harness.request(f"GET {path} HTTP/1.1\r\nHost: a\r\nIf-None-Match: {headers['etag']}\r\n\r\n")
    assert (again, nothing) == (304, "")
    head, _, nothing = harness.request(f"HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (head, nothing) == (200, "")


@pytest.mark.parametrize("path", ["/", "/demo.js", "/demo-text.js", "/demo.css", "/signaling.js"])
def test_a_file_is_compressed_for_those_who_read_gzip(path: str) -> None:
    harness = Harness(demo=True)
    connection = harness.connect()
    connection.send(get(path, **{"Accept-Encoding": "gzip, deflate, br"}).encode())
    head, _, compressed = connection.received.partition(b"\r\n\r\n")
    _, headers, _ = response(head + b"\r\n\r\n")
    assert (headers["content-encoding"], headers["vary"]) == ("gzip", "accept-encoding")
    assert int(headers["content-length"]) == len(compressed)
    _, plain_headers, plain = harness.request(get(path))
    assert gzip.decompress(compressed).decode() == plain
    assert 2 * len(compressed) < len(plain)
    assert plain_headers["vary"] == "accept-encoding"
    # Each encoding has a tag of its own, which is not the other one's.
    tags = (headers["etag"], plain_headers["etag"])
    for accepts, own, other in (("gzip", *tags), ("identity", *reversed(tags))):
        for tag, status in ((own, 304), (f'"x", {own}', 304), (other, 200)):
            asked = {"Accept-Encoding": accepts, "If-None-Match": tag}
            answered, headers, _ = harness.request(get(path, "HEAD", **asked))
            assert (answered, headers["etag"], headers["vary"]) == (status, own, "accept-encoding")


@pytest.mark.parametrize(
    ("accepts", "encoding"),
    [
        ("gzip", "gzip"),
        ("GZIP;q=0.5", "gzip"),
        ("br;q=1.0, gzip ; q=0.001", "gzip"),
        ("*", "gzip"),
        ("*;q=0, gzip", "gzip"),
        ("gzip;q=0, *", None),
        ("gzip;q=0.000", None),
        ("*;q=0", None),
        ("identity, br", None),
        ("gzip;q=much", None),
        ("gzip;q=-1;" + "q=1;" * 500, None),
        ("," * 4000, None),
        ("", None),
    ],
)
def test_only_those_who_accept_gzip_get_it(accepts: str, encoding: str | None) -> None:
    _, headers, _ = Harness(demo=True).request(get("/demo.js", "HEAD", **{"Accept-Encoding": accepts}))
    assert headers.get("content-encoding") == encoding


def test_a_file_for_some_origins_only_varies_by_both() -> None:
    harness = Harness(demo=True, allow_origins=["https://page.example"])
    _, headers, _ = harness.request(get("/signaling.js", Origin="https://page.example"))
    assert headers["vary"] == "origin, accept-encoding"


def test_a_file_that_compression_makes_no_shorter_is_served_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gzip.compress", lambda body, **options: body)
    _, headers, _ = Harness(demo=True).request(get("/favicon.svg", **{"Accept-Encoding": "gzip"}))
    assert "content-encoding" not in headers


def test_the_client_is_served_alone_where_that_was_asked_for() -> None:
    harness = Harness(serve_client=True)
    for path in ("/signaling.js", "/sealing.js"):
        assert harness.request(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200
    assert harness.request("GET / HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 404


def test_no_file_is_served_by_default() -> None:
    harness = Harness()
    for path in ("/", "/signaling.js", "/sealing.js", "/demo.js", "/demo.css", "/index.html", "/favicon.svg"):
        assert harness.request(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 404


@pytest.mark.parametrize(
    ("path", "options", "named"),
    [
        ("/", {}, "--demo"),
        ("/", {"serve_client": True}, "--demo"),
        ("/signaling.js", {}, "--serve-client"),
        ("/nope", {}, "/ws/{topic}"),
    ],
)
def test_a_browser_that_finds_no_file_is_told_which_option_serves_it(
    path: str, options: dict[str, bool], named: str
) -> None:
    status, _, body = Harness(**options).request(get(path))
    assert (status, body.endswith(f"{named}\n")) == (404, True), body


def test_answers_that_nobody_takes_wait_unmade() -> None:
    port = Harness(demo=True)
    connection = port.connect()
    connection.stall()
    page = len(port.request(get("/demo.js"))[2])
    connection.send(get("/demo.js").encode() * 32)
    assert len(connection.transport.dataBuffer) < 65_536 + 2 * page
    assert not connection.transport.reading
    connection.resume()
    assert connection.received.count(b"HTTP/1.1 200 ") == 32
    assert connection.received.count(b"\r\nConnection: close\r\n") == 1
    port.advance(5)
    assert connection.lost


def test_a_client_that_takes_no_answer_is_ended() -> None:
    port = Harness(demo=True)
    connection = port.connect()
    connection.stall()
    connection.send(get("/demo.js").encode() * 32)
    port.advance(10 + 5)
    assert connection.lost
    assert not port.clock.getDelayedCalls()


def test_requests_sent_together_take_turns(port: Harness) -> None:
    greedy = [port.connect() for _ in range(20)]
    other = port.connect()
    for connection in greedy:
        connection.send_together(get("/healthz").encode() * 32)
    port.run_once()
    other.send_together(get("/healthz").encode())
    port.run_once()
    port.run_once()
    assert other.received.endswith(b"ok")
    assert sum(connection.received.count(b"HTTP/1.1 ") for connection in greedy) < 60
    port.run()
    assert [connection.received.count(b"HTTP/1.1 200 ") for connection in greedy] == [32] * 20


def test_a_request_that_comes_late_behind_others_is_answered(port: Harness) -> None:
    connection = port.connect()
    connection.send_together(
        get("/healthz").encode() * 3 + get("/healthz")[:10].encode(), get("/healthz")[10:].encode()
    )
    port.run()
    assert connection.received.count(b"HTTP/1.1 200 ") == 4


def test_an_upgrade_behind_other_requests_opens_a_connection(port: Harness) -> None:
    connection = port.connect()
    connection.send((get("/healthz") * 3 + upgrade("/ws/room")).encode())
    assert connection.received.count(b"HTTP/1.1 200 ") == 3
    assert b"HTTP/1.1 101 " in connection.received
    assert port.topics == {"room": 1}


@pytest.mark.parametrize("path", ["/", "/signaling.js", "/demo.js", "/demo.css"])
def test_a_client_that_asks_for_files_and_reads_nothing_has_few_of_them_waiting(path: str) -> None:
    harness = Harness(demo=True)
    connection = harness.connect()
    connection.stall()
    connection.send(get(path).encode() * 32)
    # What the transport takes before it pushes back, and the answer that makes it.
    assert len(connection.transport.dataBuffer) < 2 * 65_536
    harness.advance(16)
    assert connection.lost
