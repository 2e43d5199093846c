"""What the replies of the store's scripts become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.logger import globalLogPublisher

from signaling.backplane.messages import Member
from signaling.backplane.store import (
    Alive,
    Departure,
    Evicted,
    Eviction,
    Gone,
    IdTooSmall,
    Keys,
    RemovedMember,
    Snapshot,
    Store,
    TopicFull,
)
from signaling.limits import Limits

NODE = "n" * 16
SNAPSHOT = [b"1.5", b"7", [b"peer", NODE.encode() + b"{}"]]
PARSED = Snapshot((1, 5, 7), {"peer": Member(NODE, b"{}")}, [])

CALLS: dict[str, Callable[[Store, Callable[[Any], None]], None]] = {
    "join": lambda store, done: store.join("room", "peer", None, 5, done),
    "leave": lambda store, done: store.leave("room", "peer", done),
    "sync": lambda store, done: store.sync("room", [("peer", b"+")], done),
    "move": lambda store, done: store.move("room", "peer", NODE, done),
    "heartbeat": lambda store, done: store.heartbeat(3, registers=True, done=done),
    "evict": lambda store, done: store.evict(NODE, b"3", done),
    "deregister": lambda store, done: store.deregister(done),
}


class FakeEngine:
    """Replies to every call with one reply."""

    def __init__(self, reply: Any) -> None:
        self._reply = reply
        self.script = ""

    def call(self, script: str, keys: Any, arguments: Any, done: Callable[[Any], None]) -> None:
        self.script = script
        done(self._reply)


def result(script: str, reply: Any) -> Any:
    engine: Any = FakeEngine(reply)
    results: list[Any] = []
    CALLS[script](Store(engine, Keys("p:"), Limits(), NODE), results.append)
    assert engine.script == script
    [only] = results
    return only


@pytest.mark.parametrize(
    ("script", "reply", "parsed"),
    [
        ("join", [b"joined", *SNAPSHOT], PARSED),
        ("join", [b"behind", b"01"], IdTooSmall("01")),
        ("join", [b"full", b"peers"], TopicFull.PEERS),
        ("join", [b"full", b"bytes"], TopicFull.BYTES),
        ("leave", [b"left", 1], Departure.CLOSED),
        ("leave", [b"left", 2], Departure.ELSEWHERE),
        ("sync", [b"synced", *SNAPSHOT, [b"other"]], PARSED._replace(removed=["other"])),
        ("move", [b"moved", *SNAPSHOT], PARSED),
        ("move", [b"gone"], Gone()),
        ("heartbeat", [b"alive", b"2", 99, [b"n", b"3"], [b"room"]], Alive(2, 99, {"n": b"3"}, ["room"])),
        ("heartbeat", [b"alive", b"", 99, [], []], Alive(0, 99, {}, [])),
        ("evict", [b"evicted", 5, []], Eviction(5, [])),
        (
            "evict",
            [b"evicted", 0, [b"room", b"p", NODE.encode() + b"{}", 1]],
            Eviction(0, [RemovedMember("room", "p", b"{}", True)]),
        ),
        ("evict", [b"alive"], None),
        ("deregister", [b"deregistered"], True),
    ],
)
def test_each_reply_is_a_value_with_names(script: str, reply: Any, parsed: Any) -> None:
    assert result(script, reply) == parsed


def test_a_node_that_was_evicted_learns_it_by_its_heartbeat_alone() -> None:
    assert isinstance(result("heartbeat", [b"evicted"]), Evicted)
    assert [result(script, [b"evicted"]) for script in ("join", "sync", "move")] == [None, None, None]


@pytest.mark.parametrize("script", CALLS)
def test_no_reply_is_none(script: str) -> None:
    assert result(script, None) is None


@pytest.mark.parametrize(
    ("script", "reply"),
    [
        ("join", [b"welcome"]),
        ("join", [b"full", b"moon"]),
        ("join", [b"synced", *SNAPSHOT]),
        ("join", []),
        ("sync", [b"synced", b"x", b"7", []]),
        ("sync", [b"synced", b"1.5", b"7", [b"peer"]]),
        ("heartbeat", [b"alive"]),
        ("evict", [b"evicted", b"many"]),
    ],
)
def test_a_reply_that_makes_no_sense_is_logged_and_none(script: str, reply: Any) -> None:
    logged: list[Any] = []
    globalLogPublisher.addObserver(logged.append)
    try:
        assert result(script, reply) is None
    finally:
        globalLogPublisher.removeObserver(logged.append)
    assert [event["script"] for event in logged if "script" in event] == [script]
