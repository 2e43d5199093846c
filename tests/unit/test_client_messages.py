"""What clients read of messages that other peers, or a hostile server, made as bad as they could."""

from __future__ import annotations

import gc
import json
import math
import time
from typing import Any

import pytest

from signaling.client.messages import (
    MAX_DEPTH,
    Answer,
    AnyMessage,
    Error,
    IceCandidate,
    IceServers,
    Notice,
    Offer,
    Peer,
    PeerJoined,
    PeerLeft,
    PeerList,
    PeerUpdated,
    Resume,
    Token,
    Welcome,
    decode,
)


def nested(levels: int) -> str:
    """Write as many arrays in each other."""
    return "[" * levels + "]" * levels


DEEP = '{"a":' + nested(2_030) + "}"
HUGE = '{"a":' + "9" * 4_400 + "}"
UNREADABLE = {"nested deeply": DEEP, "more digits than Python reads": HUGE}


@pytest.mark.parametrize("metadata", UNREADABLE.values(), ids=UNREADABLE)
def test_metadata_that_python_cannot_hold_hides_no_peer(metadata: str) -> None:
    peers = f'[{{"id":"a"}},{{"id":"b","metadata":{metadata}}},{{"id":"c","metadata":{{"n":1}}}}]'
    listed = decode(f'{{"type":"peer-list","peers":{peers}}}')
    assert isinstance(listed, PeerList)
    assert [peer.id for peer in listed.peers] == ["a", "b", "c"]
    assert (listed.peers[0].metadata, listed.peers[2].metadata) == (None, {"n": 1})
    joined = decode(f'{{"type":"peer-joined","peerId":"b","metadata":{metadata}}}')
    assert isinstance(joined, PeerJoined)
    assert joined.peer_id == "b"


@pytest.mark.parametrize("kind", [Offer, Answer, IceCandidate])
@pytest.mark.parametrize("payload", UNREADABLE.values(), ids=UNREADABLE)
def test_a_payload_that_python_cannot_hold_arrives_without_that_part(kind: type, payload: str) -> None:
    name = {Offer: "offer", Answer: "answer", IceCandidate: "ice-candidate"}[kind]
    text = f'{{"type":"{name}","from":"a","payload":{{"sdp":"v=0 []{{","x":{payload}}},"msgId":"7"}}'
    relayed = decode(text)
    assert isinstance(relayed, kind)
    assert (relayed.sender, relayed.payload["sdp"], relayed.msg_id) == ("a", "v=0 []{", "7")


def test_a_number_of_too_many_digits_reads_as_infinity() -> None:
    for digits, value in (("9" * 4_400, math.inf), ("-" + "9" * 4_400, -math.inf), ("1e400", math.inf)):
        assert decode(f'{{"type":"offer","from":"a","payload":{digits}}}') == Offer("a", value)


@pytest.mark.parametrize(
    "value",
    # Python 3.13 reads thousands of levels.
    [
        nested(100_000),
        '{"":' * 100_000 + "1" + "}" * 100_000,
        '[1,{"b":' * 50_000 + nested(3) + ',"c":"]"}]' * 50_000,
    ],
    ids=["lists", "objects", "both"],
)
def test_what_is_nested_too_deeply_reads_as_none_and_the_rest_as_it_was(value: str) -> None:
    relayed = decode(f'{{"type":"offer","from":"a","payload":[0,{value},"[[",{value},2]}}')
    assert isinstance(relayed, Offer)
    zero, first, text, second, two = relayed.payload
    assert (zero, text, two) == (0, "[[", 2)
    assert first == second
    assert MAX_DEPTH - 3 <= depth(first) <= MAX_DEPTH


def depth(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, inside), default=0) if isinstance(value, dict | list) else 0


SERVERS = [{"urls": "stun:example.com"}]
# What a server says, with a wrong type somewhere; and what of it is read.
MISTYPED: list[tuple[dict[str, Any], AnyMessage | None]] = [
    ({"type": "welcome", "selfId": 1}, None),
    ({"type": "welcome", "selfId": None}, None),
    ({"type": "welcome", "selfId": "a", "iceServers": None}, Welcome("a")),
    ({"type": "welcome", "selfId": "a", "iceServers": [7, *SERVERS, "x"]}, Welcome("a", SERVERS)),
    ({"type": "welcome", "selfId": "a", "resume": {"token": 1, "window": 2}}, Welcome("a")),
    ({"type": "welcome", "selfId": "a", "resume": {"token": "t", "window": "2"}}, Welcome("a")),
    (
        {"type": "welcome", "selfId": "a", "resume": {"token": "t", "window": 2}, "resumed": 1},
        Welcome("a", resume=Resume("t", 2)),
    ),
    ({"type": "peer-list"}, PeerList([])),
    ({"type": "peer-list", "peers": None}, PeerList([])),
    ({"type": "peer-list", "peers": {"a": 1}}, PeerList([])),
    ({"type": "peer-list", "peers": [1, None, {}, {"id": 2}, ["a"], {"id": "a"}]}, PeerList([Peer("a")])),
    (
        {"type": "peer-list", "peers": [{"id": "a", "metadata": wrong} for wrong in (1, "", [], 0)]},
        PeerList([Peer("a")] * 4),
    ),
    ({"type": "peer-joined", "peerId": 1}, None),
    ({"type": "peer-joined", "peerId": "a", "metadata": "x"}, PeerJoined("a")),
    ({"type": "peer-updated", "peerId": "a", "metadata": {"n": 1}}, PeerUpdated("a", {"n": 1})),
    ({"type": "peer-updated", "peerId": "a", "metadata": "x"}, PeerUpdated("a")),
    ({"type": "peer-updated", "peerId": None}, None),
    ({"type": "peer-left"}, None),
    ({"type": "peer-left", "peerId": "a", "more": 1}, PeerLeft("a")),
    ({"type": "offer", "from": 1, "payload": 1}, None),
    ({"type": "offer", "from": "a", "msgId": 7}, Offer("a")),
    ({"type": "answer", "from": "a", "msgId": {}, "payload": [None]}, Answer("a", [None])),
    ({"type": "ice-candidate", "from": "a", "msgId": None}, IceCandidate("a")),
    ({"type": "ice-servers", "iceServers": "x"}, IceServers([])),
    ({"type": "welcome", "selfId": "a", "expiresIn": 5}, Welcome("a", expires_in=5)),
    *[({"type": "welcome", "selfId": "a", "expiresIn": wrong}, Welcome("a")) for wrong in ("5", None, True, [5])],
    ({"type": "welcome", "selfId": "a", "features": ["b", "c"]}, Welcome("a", features=frozenset("bc"))),
    ({"type": "welcome", "selfId": "a", "features": [1, None, "b", ["c"]]}, Welcome("a", features=frozenset("b"))),
    *[({"type": "welcome", "selfId": "a", "features": wrong}, Welcome("a")) for wrong in ("5", None, True, {"b": 1})],
    ({"type": "notice", "data": {"text": [1]}, "from": 5}, Notice({"text": [1]})),
    ({"type": "notice"}, Notice()),
    ({"type": "token", "expiresIn": 5, "msgId": "7"}, Token(5, "7")),
    ({"type": "token", "expiresIn": "5", "msgId": 7}, Token()),
    ({"type": "error", "code": 1}, None),
    ({"type": "error", "code": "dropped", "message": None, "msgId": 1}, Error("dropped", "")),
    ({"type": "error", "code": "dropped", "msgId": "~1"}, Error("dropped", "", "~1")),
    ({"type": ["offer"], "from": "a"}, None),
    ({"type": "new", "from": "a"}, None),
    ({"from": "a"}, None),
]


@pytest.mark.parametrize(("said", "read"), MISTYPED, ids=[json.dumps(said)[:60] for said, _ in MISTYPED])
def test_a_wrong_type_costs_no_more_than_itself(said: dict[str, Any], read: AnyMessage | None) -> None:
    assert decode(json.dumps(said)) == read
    assert decode(json.dumps(said).encode()) == read


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '"offer"', "[" * 100_000, '{"a":' * 100_000, "]" * 10, b"\xff"])
def test_what_is_no_message_is_none(text: str | bytes) -> None:
    assert decode(text) is None


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_has_not_make_no_message(constant: str) -> None:
    assert decode(f'{{"type":"offer","from":"a","payload":{constant}}}') is None
    assert decode(f'{{"type":"token","expiresIn":{constant}}}') is None


REPEATED = ["[", "]", "{", '{"":', "[],", "{},", "[[],", '"', '\\"', '"\\', "\\", "9", "9,", "-", '"":0,', '"\\ud800",']
FRAMES = {
    "payload": '{"type":"offer","from":"a","payload":%s,"msgId":"~1"}',
    "string": '{"type":"offer","from":"a","payload":"%s"}',
    "metadata": '{"type":"peer-list","peers":[{"id":"a","metadata":{"a":[%s]}},{"id":"\\ud800"}]}',
}


@pytest.mark.unmeasured
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("pattern", REPEATED)
def test_reading_takes_time_that_is_linear_in_the_message(pattern: str, frame: str) -> None:
    short, long = (frame % (pattern * (size // len(pattern))) for size in (64_000, 256_000))
    # Four times the text: quadratic would be sixteen times the time.
    assert min(cpu(long) for _ in range(3)) < 10 * min(cpu(short) for _ in range(3)) + 0.005


def cpu(text: str) -> float:
    # A collection looks at all objects of the test run.
    gc.disable()
    started = time.process_time()
    decode(text)
    spent = time.process_time() - started
    gc.enable()
    return spent
