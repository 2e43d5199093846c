"""An ordinary upgrade is recognised as a whole; it, and what is almost one, is read as by a model of RFC 9112."""

from __future__ import annotations

import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signaling.errors import Refused
from signaling.websocket.handshake import check_upgrade
from signaling.websocket.ordinary_upgrade import MAX_HEADERS
from signaling.websocket.request_head import Head, origin_form, take_head

SHORT = """\
GET /ws/topic HTTP/1.1
Host: 127.0.0.1
Upgrade: websocket
Connection: Upgrade
Sec-WebSocket-Version: 13
Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="""
CHROMIUM = """\
GET /ws/topic?metadata=%7B%7D HTTP/1.1
Host: signaling.example.org
Connection: Upgrade
Pragma: no-cache
Cache-Control: no-cache
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36
Upgrade: websocket
Origin: https://app.example.org
Sec-WebSocket-Version: 13
Accept-Encoding: gzip, deflate, br, zstd
Accept-Language: en-US,en;q=0.9
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==
Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"""
FIREFOX = """\
GET /ws/t%C3%B6pic HTTP/1.1
Host: signaling.example.org
User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0
Accept: */*
Accept-Language: en-US,en;q=0.5
Accept-Encoding: gzip, deflate, br, zstd
Sec-WebSocket-Version: 13
Origin: https://app.example.org
Sec-WebSocket-Protocol: signaling, signaling.bearer.abc
Sec-WebSocket-Extensions: permessage-deflate
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==
Connection: keep-alive, Upgrade
Cookie: a=b
Sec-Fetch-Dest: empty
Sec-Fetch-Mode: websocket
Sec-Fetch-Site: same-site
Pragma: no-cache
Cache-Control: no-cache
Upgrade: websocket"""
PROXY = """\
GET /ws/topic HTTP/1.1
upgrade: websocket
connection: upgrade
host: signaling
x-forwarded-for: 203.0.113.9, 198.51.100.7
x-forwarded-proto: https
sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==
sec-websocket-version: 13"""
ORDINARY = [request.replace("\n", "\r\n").encode() for request in (SHORT, CHROMIUM, FIREFOX, PROXY)]
ASKED_FOR = [
    b"host", b"upgrade", b"connection", b"sec-websocket-version", b"sec-websocket-key", b"sec-websocket-protocol",
    b"origin", b"x-forwarded-for", b"authorization", b"content-length", b"transfer-encoding", b"cookie", b"absent",
]  # fmt: skip
LINES = [
    b"Host: other", b"host:", b"Hos: a", b"Hosts: a", b"Host : a",
    b"Upgrade: h2c", b"Upgrade: websocket2", b"Upgrade: h2c, websocket", b"UPGRADE:WebSocket\t",
    b"Connection: close", b"Connection: keep-alive,upgrade", b"Connection:  Upgrade , close",
    b"Sec-WebSocket-Version: 8", b"Sec-WebSocket-Version:13 ",
    b"Sec-WebSocket-Key: c2hvcnQ=", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQA=",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j==", b"sec-websocket-key:dGhlIHNhbXBsZSBub25jZR==",
    b"Sec-WebSocket-Protocol: signaling ", b"Origin:", b"Origin: null", b"X-Forwarded-For: \t \xe9",
    b"Content-Length: 0", b"Content-Length: 7", b"Transfer-Encoding: chunked", b"Authorization: Bearer abc",
    b" folded", b"\tfolded", b"", b"no colon", b": a", b"a:\x7f", b"a: \r", b"a: \n", b"GET / HTTP/1.1",
]  # fmt: skip
REQUEST_LINES = [
    b"GET /ws/%2 HTTP/1.1", b"GET /%zz?a HTTP/1.1", b"GET /a?%zz? HTTP/1.1", b"GET http://a/ws/b HTTP/1.1",
    b"GET /ws/a HTTP/1.0", b"HEAD /ws/a HTTP/1.1", b"GET /ws/\xe9 HTTP/1.1", b"GET /?\xe9 HTTP/1.1",
    b"GET /ws/a  HTTP/1.1", b"OPTIONS * HTTP/1.1", b"GET / HTTP/1.1\r", b"\r\nGET / HTTP/1.1", b"GET  HTTP/1.1",
    b"get / HTTP/1.1", b"G\x00T / HTTP/1.1",
]  # fmt: skip
BYTES = [bytes([byte]) for byte in b'\x00\t\n\r !"%(/09:;=?@AZ[\\]az{}\x7f\x80\xff']


@pytest.mark.parametrize("request_head", ORDINARY)
def test_an_upgrade_of_a_browser_or_a_proxy_is_ordinary(request_head: bytes) -> None:
    taken = take_head(request_head + b"\r\n\r\nbehind", 0, len(request_head))
    assert taken is not None
    assert taken[0].key is not None
    assert taken[1] == b"behind"


@pytest.mark.parametrize("request_head", ORDINARY)
@pytest.mark.unmeasured
def test_one_line_more_or_less_or_another_one_is_read_as_by_the_model(request_head: bytes) -> None:
    first, *lines = request_head.split(b"\r\n")
    changed = [[line, *lines] for line in REQUEST_LINES]
    for at, line in enumerate(lines):
        before, after = [first, *lines[:at]], lines[at + 1 :]
        changed += [[*before, *after], [*before, line, line, *after], [*before, line.swapcase(), *after]]
        changed += [[*before, other, *after] for other in LINES]
    changed += [[first, *lines, other] for other in LINES]
    changed += [[first, *lines, *[b"a: b"] * (count - len(lines))] for count in (MAX_HEADERS, MAX_HEADERS + 1)]
    for case in changed:
        check_against_model(b"\r\n".join(case))


@pytest.mark.unmeasured
def test_one_byte_more_or_less_or_another_one_is_read_as_by_the_model() -> None:
    short = ORDINARY[0]
    for at in range(len(short)):
        for changed in (b"", *BYTES):
            check_against_model(short[:at] + changed + short[at + 1 :])
            check_against_model(short[:at] + changed + short[at:])


@st.composite
def almost_ordinary(draw: st.DrawFn) -> bytes:
    """Remove, repeat, move, replace and add lines of an ordinary upgrade, and change bytes; mostly little of it."""
    first, *lines = draw(st.sampled_from(ORDINARY)).split(b"\r\n")
    for _ in range(draw(st.integers(0, 3))):
        at, to = draw(st.integers(0, len(lines))), draw(st.integers(0, len(lines)))
        change = draw(st.sampled_from(["remove", "add", "replace", "repeat", "move", "case", "many"]))
        if change in ("remove", "replace", "move"):
            moved = lines[at : at + 1]
            del lines[at : at + 1]
            if change == "move":
                lines[to:to] = moved
        if change in ("add", "replace"):
            lines.insert(at, draw(st.sampled_from(LINES)))
        if change == "repeat":
            lines[to:to] = lines[at : at + 1]
        if change == "case":
            lines[at : at + 1] = [line.swapcase() for line in lines[at : at + 1]]
        if change == "many":
            lines[at:at] = [b"a: b"] * draw(st.integers(MAX_HEADERS - len(lines) - 2, MAX_HEADERS - len(lines) + 2))
    if draw(st.integers(0, 4)) == 0:
        first = draw(st.sampled_from(REQUEST_LINES))
    head = b"\r\n".join([first, *lines])
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at, length = draw(st.integers(0, len(head))), draw(st.integers(0, 2))
        head = head[:at] + draw(st.binary(max_size=2)) + head[at + length :]
    return head


@given(almost_ordinary(), st.sampled_from([-1, 0, 1000]))
def test_what_is_almost_an_ordinary_upgrade_is_read_as_by_the_model(text: bytes, room: int) -> None:
    check_against_model(text, room)


Headers = dict[bytes, list[bytes]]
Read = tuple[bytes, bytes, bytes, Headers, bytes]
"""Method, target, version, headers, and what stands behind the head."""


def check_against_model(text: bytes, room: int = 0) -> None:
    data, longest = text + b"\r\n\r\nbehind", len(text) + room
    heads: list[Head] = []
    assert outcome(lambda: _take(data, longest, heads)) == outcome(lambda: _model(data, longest))
    for head in heads:
        headers = head.headers
        assert [list(head.values(name)) for name in ASKED_FOR] == [headers.get(name, []) for name in ASKED_FOR]
        if head.key is not None:
            assert head.may_upgrade
            assert head.key == check_upgrade(lambda name, headers=headers: headers.get(name, []))


def outcome(read: Callable[[], Read]) -> Read | tuple[int, str]:
    try:
        return read()
    except Refused as refused:
        return refused.status, refused.reason


def _take(data: bytes, longest: int, heads: list[Head]) -> Read:
    taken = take_head(data, 0, longest)
    assert taken is not None
    head, behind = taken
    heads.append(head)
    return head.method, head.target, head.version, head.headers, behind


# The model

TOKEN = frozenset(b"!#$%&'*+-.^_`|~" + string.digits.encode() + string.ascii_letters.encode())
HEXADECIMAL = frozenset(string.hexdigits.encode())


def _model(data: bytes, longest: int) -> Read:
    at = 0
    while data[at : at + 4] != b"\r\n\r\n":
        at += 1
    text, behind = data[:at], data[at + 4 :]
    if len(text) > longest:
        raise Refused(431, f"the request line and the headers: at most {longest} bytes")
    if any(byte == 0x0A and text[max(0, place - 1) : place] != b"\r" for place, byte in enumerate(text)):
        raise Refused(400, "a line ends with CR LF, not with LF alone")
    request_line, *lines = (text[2:] if text[:2] == b"\r\n" else text).split(b"\r\n")
    if len(lines) > MAX_HEADERS:
        raise Refused(431, "at most 100 headers")
    method, target, version = _model_of_request_line(request_line)
    headers: Headers = {}
    for line in lines:
        name, value = _model_of_header(line)
        headers.setdefault(name, []).append(value)
    return method, target, version, headers, behind


def _model_of_request_line(line: bytes) -> tuple[bytes, bytes, bytes]:
    words = line.split(b" ")
    method, target, version = [b"".join(words[:1]), b"".join(words[1:2]), b" ".join(words[2:])]
    if not method or not TOKEN.issuperset(method) or version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise Refused(400, "the request line is not well-formed HTTP/1.1: METHOD /path HTTP/1.1")
    if not target or not all(0x20 < byte < 0x7F for byte in target):
        raise Refused(400, "the path is not ASCII: percent-encode the topic in UTF-8, as encodeURIComponent does")
    target = origin_form(target)
    if target[:1] != b"/" and (method, target) != (b"OPTIONS", b"*"):
        raise Refused(400, "the request's target is a path: /ws/{topic}")
    _, *escapes = target.split(b"?")[0].split(b"%")
    if not all(len(escape) > 1 and HEXADECIMAL.issuperset(escape[:2]) for escape in escapes):
        raise Refused(400, "the path: a % that is not followed by two hexadecimal digits")
    return method, target, version


def _model_of_header(line: bytes) -> tuple[bytes, bytes]:
    if line[:1] in (b" ", b"\t"):
        raise Refused(400, "a header goes on in the next line (RFC 9112, section 5.2): write it on one")
    name, colon, value = line.partition(b":")
    legal = all(byte == 0x09 or (byte >= 0x20 and byte != 0x7F) for byte in value)
    if not (colon and name and TOKEN.issuperset(name) and legal):
        raise Refused(400, "a header line is not well-formed HTTP/1.1")
    while value and value[0] in b" \t":
        value = value[1:]
    while value and value[-1] in b" \t":
        value = value[:-1]
    return name.lower(), value
