"""The events of the log, their form as JSON, and how many are written of a kind that may come in floods."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure

from signaling.core.messages import decode
from signaling.errors import ErrorCode, Rejected
from signaling.log import events
from signaling.log.events import FIELDS, Events
from signaling.log.json_format import format_json

DOCS = Path(__file__).parents[2] / "docs"
PEER = "01JD0000000000000000000000"


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """All events from here on."""
    caught: list[Any] = []
    globalLogPublisher.addObserver(caught.append)
    yield caught
    globalLogPublisher.removeObserver(caught.append)


def as_json(event: Any) -> dict[str, Any]:
    line = format_json(event)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def test_a_join_is_one_object_on_one_line(logged: list[Any]) -> None:
    Events(LogLevel.info, Clock().seconds).joined(PEER, 'a "topic"\nof two lines', "192.0.2.1:5")
    (event,) = logged
    line = as_json(event)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "event": "joined",
        "peer": PEER,
        "topic": 'a "topic"\nof two lines',
        "address": "192.0.2.1:5",
    }


def test_a_leave_has_its_duration_and_reason(logged: list[Any]) -> None:
    Events(LogLevel.info, lambda: 72.5).left(PEER, "room", "closed by the peer with 1000", 60.0)
    line = as_json(logged[0])
    assert line["event"] == "left"
    assert line["reason"] == "closed by the peer with 1000"
    assert line["duration"] == 12.5


def test_events_of_other_libraries_keep_their_text_and_traceback(logged: list[Any]) -> None:
    Logger(namespace="other").info("some {thing}", thing="text")
    Logger(namespace="other").failure("broken", Failure(RuntimeError("why")))
    text, failure = map(as_json, logged)
    assert (text["event"], text["source"], text["message"]) == ("log", "other", "some text")
    assert "RuntimeError: why" in failure["traceback"]


def test_events_below_the_level_are_not_logged(logged: list[Any]) -> None:
    log = Events(LogLevel.warn, Clock().seconds)
    log.joined(PEER, "room", None)
    log.left(PEER, "room", "no close frame", 0.0)
    log.message(PEER, Rejected(ErrorCode.DROPPED, "full"))
    log.refused("192.0.2.1", 400, "why")
    assert logged == []


def test_messages_are_logged_without_their_payload(logged: list[Any]) -> None:
    log = Events(LogLevel.debug, Clock().seconds)
    log.message(PEER, decode(b'{"type":"offer","to":"b","payload":"secret","msgId":"m"}'))
    log.message(PEER, Rejected(ErrorCode.DROPPED, "full"))
    relayed, error = map(as_json, logged)
    assert (relayed["event"], relayed["to"], relayed["size"]) == ("relayed", "b", 8)
    assert (error["event"], error["code"]) == ("error_sent", "dropped")
    assert "secret" not in "".join(map(format_json, logged)) + "".join(filter(None, map(formatEvent, logged)))


def test_a_flood_of_refused_requests_is_logged_at_a_bounded_rate(logged: list[Any]) -> None:
    clock = Clock()
    log = Events(LogLevel.info, clock.seconds)
    for _ in range(100_000):
        log.refused("192.0.2.1", 404, "not found")
        clock.advance(0.0001)
    assert 100 < len(logged) < 400
    clock.advance(60)
    del logged[:]
    log.refused("192.0.2.1", 404, "not found")
    summary, refusal = map(as_json, logged)
    assert summary["event"] == "refusals_suppressed"
    assert summary["count"] > 90
    assert (refusal["status"], refusal["reason"]) == (404, "not found")


def test_errors_of_the_store_are_logged_once_a_second(logged: list[Any]) -> None:
    clock = Clock()
    log = Events(LogLevel.info, clock.seconds)
    for _ in range(1000):
        log.backplane_error("redis://host:6379/0", "OOM", "join: OOM, its memory is full (maxmemory)")
        clock.advance(0.004)
    lines = [as_json(event) for event in logged]
    assert [line["count"] for line in lines] == [1, 250, 250, 250]
    assert {(line["url"], line["code"]) for line in lines} == {("redis://host:6379/0", "OOM")}


def test_failures_of_a_portal_are_logged_once_a_second(logged: list[Any]) -> None:
    clock = Clock()
    log = Events(LogLevel.info, clock.seconds)
    for _ in range(1000):
        log.login_failed("KeyError at portal.py:7")
        clock.advance(0.004)
    assert [as_json(event)["count"] for event in logged] == [1, 250, 250, 250]


def test_evictions_are_logged_once_a_second_and_counted_for_each_reason(logged: list[Any]) -> None:
    clock = Clock()
    log = Events(LogLevel.info, clock.seconds)
    for reason in ["of one address"] * 37 + ["full"] * 3:
        log.connection_evicted(reason)
    clock.advance(2)
    for reason in ("of one address", "full"):
        log.connection_evicted(reason)
    found = [(event["reason"], event["count"]) for event in map(as_json, logged)]
    assert found == [("of one address", 1), ("full", 1), ("of one address", 37), ("full", 3)]


def test_the_documents_list_every_event_and_every_field() -> None:
    page = (DOCS / "log.md").read_text()
    names = set(re.findall(r'event="(\w+)"', inspect.getsource(events)))
    names |= set(re.findall(r'self\._peer\(\s*"(\w+)"', inspect.getsource(events)))
    rows = re.findall(r"^\| `(\w+)` \| (?:debug|info|warn|error|critical) \|(.*)$", page, re.MULTILINE)
    assert {name for name, _ in rows} == names
    assert {field for _, row in rows for field in re.findall(r"`(\w+)`", row)} == set(FIELDS)
