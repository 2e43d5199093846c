"""Which worker a request goes to: that the listener reads the topic that the worker will, and always sends it there."""

from __future__ import annotations

from collections import Counter
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signaling.errors import Refused
from signaling.limits import Limits
from signaling.web.join_parsing import check_join
from signaling.workers.topic_router import NO_TOPIC, TopicRouter, share

LIMITS = Limits()
ROUTER = TopicRouter(8, LIMITS)
topics = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
segments = st.binary(min_size=1, max_size=40).map(
    lambda data: bytes(byte for byte in data if byte not in b" \t\n\r\v\f?/") or b"a"
)


def request(path: bytes) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n"


def encoded(topic: str, which: list[bool]) -> bytes:
    """Percent-encode a topic, and of the bytes that need no encoding those that ``which`` says."""
    parts = []
    for number, byte in enumerate(topic.encode()):
        plain = quote_from_bytes(bytes([byte]), safe="").encode()
        parts.append(b"%%%02x" % byte if which[number % len(which)] else plain)
    return b"".join(parts)


@given(topics, st.lists(st.booleans(), min_size=1))
def test_however_a_topic_is_encoded_it_goes_to_one_worker(topic: str, which: list[bool]) -> None:
    assert ROUTER.route(request(b"/ws/" + encoded(topic, which))) == ROUTER.owner(topic)


@given(segments)
def test_the_listener_reads_the_topic_that_the_worker_reads(segment: bytes) -> None:
    try:
        expected = ROUTER.owner(check_join(segment, b"", LIMITS).topic)
    except Refused:
        expected = NO_TOPIC
    assert ROUTER.route(request(b"/ws/" + segment)) == expected
    assert ROUTER.route(request(b"/ws/" + segment + b"?metadata=%7B%7D")) == expected
    assert ROUTER.route(request(b"http://server/ws/" + segment)) == expected


@given(st.sampled_from([b"/ws/room", b"/ws/a%2Fb?x=1", b"/healthz", b"/ws/a/b", b"/%77s/a"]), st.data())
def test_more_bytes_never_change_a_decision(path: bytes, data: st.DataObject) -> None:
    whole = request(path)
    cut = data.draw(st.integers(0, len(whole)))
    early = ROUTER.route(whole[:cut])
    assert early in (None, ROUTER.route(whole))


@given(st.binary(max_size=200))
def test_any_line_that_ended_is_decided(garbage: bytes) -> None:
    assert ROUTER.route(garbage + b"x\n") is not None


@pytest.mark.parametrize(
    "path",
    [
        b"/healthz",
        b"/",
        b"/ws",
        b"/ws/",
        b"/ws/?a",
        b"/ws/a/b",
        b"/ws//a",
        b"//ws/a",
        b"/wss/a",
        b"http:///ws/a",
        b"http://a/b/ws/a",
        b"http://a/",
        b"*",
    ],
)
def test_what_names_no_topic_goes_nowhere(path: bytes) -> None:
    assert ROUTER.route(request(path)) == NO_TOPIC


PREFIXED = TopicRouter(8, LIMITS, "/signal/v1")


@pytest.mark.parametrize(
    "path",
    [
        b"/signal/v1/ws/room",
        b"/signal/v1/ws/%72oom?x=/signal/v1/ws/other",
        b"/%73ignal/v%31/%77s/room",
        b"http://server/signal/v1/ws/room",
    ],
)
def test_below_a_path_a_topic_has_the_same_worker(path: bytes) -> None:
    assert PREFIXED.route(request(path)) == PREFIXED.owner("room")


@pytest.mark.parametrize(
    "path",
    [
        b"/ws/room",
        b"/signal/ws/room",
        b"/signal/v1/ws",
        b"/signal/v1/ws/",
        b"/signal/v1/ws/a/b",
        b"/signal/v1//ws/room",
        b"/signal%2Fv1/ws/room",
        b"/signal%2Fv1/ws/x/room",
        b"/x/signal/v1/ws/room",
        b"/Signal/v1/ws/room",
        b"/healthz",
    ],
)
def test_other_paths_beside_it_name_no_topic(path: bytes) -> None:
    assert PREFIXED.route(request(path)) == NO_TOPIC


def test_the_longest_topic_below_the_longest_path_has_a_worker_however_both_are_encoded() -> None:
    router, topic = TopicRouter(8, LIMITS, "/" + "p" * 199), "a" * LIMITS.max_topic_bytes
    path = b"/" + b"%70" * 199 + b"/%77%73/" + b"%61" * len(topic)
    line = b"GET " + path + b" HTTP/1.1\r\n"
    assert router.route(line) == router.owner(topic)
    assert router.route(line[:-12]) is None


@pytest.mark.parametrize("segment", [b"%", b"%zz", b"%ff", b"a" * 257])
def test_a_topic_that_is_none_goes_nowhere(segment: bytes) -> None:
    assert ROUTER.route(request(b"/ws/" + segment)) == NO_TOPIC


def test_the_longest_topic_goes_to_its_worker_however_it_is_encoded() -> None:
    topic = "a" * LIMITS.max_topic_bytes
    assert ROUTER.route(request(b"/ws/" + b"%61" * LIMITS.max_topic_bytes)) == ROUTER.owner(topic)


@pytest.mark.parametrize(
    "line",
    [
        b"\r\nGET /ws/a HTTP/1.1\r\n",
        b"GET /%77s/a HTTP/1.1\r\n",
        b"GET /ws/a?\t\r\n",
        b"GET http://server/ws/a HTTP/1.1\r\n",
        b"GET HTTPS://[::1]:8081/ws/%61?x HTTP/1.1\r\n",
    ],
)
def test_lines_that_a_worker_takes_are_taken_too(line: bytes) -> None:
    assert ROUTER.route(line) == ROUTER.owner("a")


@pytest.mark.parametrize(
    "line", [b"GET  /ws/a HTTP/1.1\n", b"GET\t/ws/a\tHTTP/1.1\n", b"GET /ws/a\r\n", b"\nGET /ws/a \n"]
)
def test_lines_that_nobody_takes_go_nowhere(line: bytes) -> None:
    assert ROUTER.route(line) == NO_TOPIC


@pytest.mark.parametrize("method", [b"POST", b"OPTIONS", b"HEAD", b"get"])
def test_other_methods_open_no_connection(method: bytes) -> None:
    assert ROUTER.route(method + b" /ws/a HTTP/1.1\r\n") == NO_TOPIC


@pytest.mark.parametrize("data", [b"", b"\r\n", b"G", b"GET /ws/a", b"GET /ws/" + b"a" * 700])
def test_an_unfinished_path_waits(data: bytes) -> None:
    assert ROUTER.route(data) is None


def test_a_path_longer_than_any_topic_waits_no_longer() -> None:
    assert ROUTER.route(b"GET /ws/" + b"a" * 1500) == NO_TOPIC
    assert TopicRouter(2, Limits(max_header_bytes=100)).route(b"GET /ws/" + b"a" * 100) == NO_TOPIC


def test_a_topic_has_the_same_worker_in_every_process() -> None:
    assert [ROUTER.owner(topic) for topic in ("room", "a", "ä", "a/b")] == [4, 7, 1, 0]


def test_topics_spread_evenly() -> None:
    counted = Counter(TopicRouter(4, LIMITS).owner(f"room-{number}") for number in range(4000))
    assert all(900 < counted[worker] < 1100 for worker in range(4))


@pytest.mark.parametrize(("total", "shares"), [(10, [4, 3, 3]), (9, [3, 3, 3]), (1, [1, 1, 1])])
def test_shares_of_a_bound(total: int, shares: list[int]) -> None:
    assert [share(total, 3, number) for number in range(3)] == shares
