"""Reading the head of a request: what is well-formed, and what is refused with which words."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signaling.errors import Refused
from signaling.websocket.ordinary_upgrade import MAX_HEADERS
from signaling.websocket.request_head import Head, origin_form, take_head

LONGEST = 16_384
# Well beyond any limit on headers: only by its square would this take longer than the process may.
HOSTILE = """
from signaling.errors import Refused
from signaling.websocket.request_head import take_head
for value in (b" " * 4_000_000, b"x \\t" * 1_000_000):
    try:
        take_head(b"GET /ws/a HTTP/1.1\\r\\nHost: a\\r\\na:" + value + b"\\x01\\r\\n\\r\\n", 0, 5_000_000)
    except Refused:
        continue
    raise AssertionError
"""


def head(lines: str) -> Head:
    taken = take_head(lines.encode("latin-1") + b"\r\n\r\n", 0, LONGEST)
    assert taken is not None
    return taken[0]


def refusal(data: bytes, searched: int = 0) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        take_head(data, searched, LONGEST)
    return caught.value.status, caught.value.reason


def test_space_around_a_value_is_no_part_of_it() -> None:
    read = head("GET /ws/a HTTP/1.1\r\nHost: \t a b \t\r\nX:")
    assert (read.target, read.values(b"host"), read.values(b"x")) == (b"/ws/a", [b"a b"], [b""])
    assert read.values(b"y") == ()


def test_a_header_line_that_almost_matches_is_given_up_in_linear_time() -> None:
    subprocess.run([sys.executable, "-c", HOSTILE], check=True, timeout=60)


def test_one_empty_line_in_front_of_a_request_is_passed_over() -> None:
    assert head("\r\nGET /ws/a HTTP/1.1").target == b"/ws/a"
    assert refusal(b"\r\n\r\nGET /ws/a HTTP/1.1\r\n\r\n")[0] == 400


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://example.org/ws/a", b"/ws/a"),
        (b"HTTPS://example.org:8081/ws/a?metadata=%7B%7D", b"/ws/a?metadata=%7B%7D"),
        (b"http://[::1]:8081/ws/a", b"/ws/a"),
        (b"http://example.org", b"/"),
        (b"http://example.org?x", b"/?x"),
        (b"/http://example.org/ws/a", b"/http://example.org/ws/a"),
    ],
)
def test_a_target_in_absolute_form_is_its_path(target: bytes, path: bytes) -> None:
    assert origin_form(target) == path


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("GET /ws/é HTTP/1.1", "percent-encode the topic"),
        ("GET ws/a HTTP/1.1", "the request's target is a path"),
        ("GET * HTTP/1.1", "the request's target is a path"),
        ("GET http:///ws/a HTTP/1.1", "the request's target is a path"),
        ("GET ftp://a/ws/a HTTP/1.1", "the request's target is a path"),
        ("GET /ws/% HTTP/1.1", "two hexadecimal digits"),
        ("GET /ws/a HTTP/2.0", "METHOD /path HTTP/1.1"),
        ("GET /ws/a", "METHOD /path HTTP/1.1"),
        ("GET  /ws/a HTTP/1.1", "METHOD /path HTTP/1.1"),
        ("G(T /ws/a HTTP/1.1", "METHOD /path HTTP/1.1"),
        ("GET /ws/a HTTP/1.1\r\nHost: a\x01b", "a header line is not well-formed"),
        ("GET /ws/a HTTP/1.1\r\nHost: a\rb", "a header line is not well-formed"),
        ("GET /ws/a HTTP/1.1\r\nHost : a", "a header line is not well-formed"),
        ("GET /ws/a HTTP/1.1\r\n: a", "a header line is not well-formed"),
        ("GET /ws/a HTTP/1.1\r\nno colon", "a header line is not well-formed"),
        ("GET /ws/a HTTP/1.1\r\nHost: a\r\n b", "a header goes on in the next line"),
        ("GET /ws/a HTTP/1.1\r\nHost: a\r\n\tb", "a header goes on in the next line"),
    ],
)
def test_a_malformed_head_is_refused_with_what_would_be_right(lines: str, reason: str) -> None:
    status, said = refusal(lines.encode("latin-1") + b"\r\n\r\n")
    assert status == 400
    assert reason in said


@pytest.mark.parametrize("data", [b"\n", b"GET /ws/a HTTP/1.1\n", b"GET /ws/a HTTP/1.1\r\nHost: a\n", b"x\r\n\n"])
def test_a_line_feed_alone_is_refused_at_once(data: bytes) -> None:
    assert refusal(data) == (400, "a line ends with CR LF, not with LF alone")
    assert refusal(data, len(data) - 1) == refusal(data)


def test_more_headers_than_anybody_needs_are_refused() -> None:
    assert head("GET / HTTP/1.1" + "\r\na: b" * MAX_HEADERS).values(b"a") == [b"b"] * MAX_HEADERS
    assert refusal(b"GET / HTTP/1.1" + b"\r\na: b" * (MAX_HEADERS + 1) + b"\r\n\r\n")[0] == 431


pieces = st.sampled_from(
    ["GET /ws/a HTTP/1.1", "Host: a", "\r\n", "\r", "\n", "\r\n\r\n", " ", "a", ":", "é", "\r\n b"]
)


@given(st.lists(pieces).map("".join), st.data())
def test_where_a_request_is_cut_makes_no_difference(text: str, drawn: st.DataObject) -> None:
    """What comes in two reads is taken or refused as what comes in one, unless it is refused before it is all there."""
    data = text.encode()
    cut = drawn.draw(st.integers(0, len(data)))
    first = outcome(data[:cut], 0)
    whole = outcome(data, 0)
    if first is None:
        assert outcome(data, cut) == whole
    elif isinstance(first, tuple):
        head, rest = first
        assert whole == (head, rest + data[cut:])
    else:
        assert isinstance(whole, str)


def outcome(data: bytes, searched: int) -> tuple[Parts, bytes] | str | None:
    try:
        taken = take_head(data, searched, LONGEST)
    except Refused as refused:
        return re.sub("at most .*", "", refused.reason)
    return (parts(taken[0]), taken[1]) if taken is not None else None


Parts = tuple[bytes, bytes, bytes, dict[bytes, list[bytes]]]


def parts(head: Head) -> Parts:
    return head.method, head.target, head.version, head.headers
