"""A worker's events look the same after they were forwarded to the listener."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, eventAsText, formatEvent

from signaling.log.events import Events
from signaling.log.forwarding import LogForwarder, decode, encode, publish
from signaling.log.json_format import format_json


def logged(write: Callable[[Logger], None], namespace: str = "elsewhere") -> dict[str, Any]:
    caught: list[Any] = []
    write(Logger(namespace=namespace, observer=caught.append))  # type: ignore[arg-type]
    event: dict[str, Any] = caught[0]
    return event


def forwarded(event: dict[str, Any]) -> dict[str, Any]:
    (arrived,) = decode(encode(event))
    return arrived


def joined(log: Logger) -> None:
    log.info("{peer} joined {topic!r}", event="joined", peer="01", topic='a\n"ä"', address=None)


def test_our_events_are_the_same_as_text_and_as_json() -> None:
    event = logged(joined, "signaling")
    arrived = forwarded(event)
    assert formatEvent(arrived) == formatEvent(event)
    assert format_json(arrived) == format_json(event)
    assert arrived["log_level"] is LogLevel.info


def test_events_of_other_libraries_have_the_same_text() -> None:
    event = logged(lambda log: log.warn("{thing} {thing.real!r} and {other}", thing=5, other=object()))
    arrived = forwarded(event)
    assert formatEvent(arrived) == formatEvent(event)
    assert (arrived["log_level"], arrived["log_namespace"]) == (LogLevel.warn, "elsewhere")


def fail(log: Logger) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        log.failure("an error")


def test_a_traceback_is_forwarded() -> None:
    event = logged(fail)
    arrived = forwarded(event)
    assert eventAsText(arrived) == eventAsText(event)
    assert "ValueError: broken" in format_json(arrived)


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("value", [Unprintable(), "x" * 100_000, {1: {2: Unprintable()}}])
def test_a_field_that_cannot_be_encoded_loses_no_event(value: object) -> None:
    arrived = forwarded(logged(lambda log: log.info("before {value!r}", value=value)))
    assert len(formatEvent(arrived)) < 10_000
    assert arrived["log_level"] is LogLevel.info


def lost(count: int) -> None:
    raise AssertionError(f"{count} lines were lost")


def test_a_batch_is_sent_in_the_next_pass_and_in_order() -> None:
    clock, sent = Clock(), []
    log = LogForwarder(lambda call: clock.callLater(0, call), lambda batch: not sent.append(batch), lost, 1000)
    for number in range(3):
        log(logged(lambda log, number=number: log.info("{number}", number=number)))  # type: ignore[misc]
    assert not sent
    clock.advance(0)
    (batch,) = sent
    assert [formatEvent(event) for event in decode(batch)] == ["0", "1", "2"]


def test_a_batch_is_at_most_max_bytes_long() -> None:
    clock, sent = Clock(), []
    log = LogForwarder(lambda call: clock.callLater(0, call), lambda batch: not sent.append(batch), lost, 1000)
    for _ in range(20):
        log(logged(joined, "signaling"))
    clock.advance(0)
    assert sum(len(list(decode(batch))) for batch in sent) == 20
    assert max(map(len, sent)) <= 1000


def test_lost_lines_are_counted() -> None:
    clock, connected, reported = Clock(), [False], []
    log = LogForwarder(lambda call: clock.callLater(0, call), lambda batch: connected[0], reported.append, 100_000)
    for _ in range(2):
        log(logged(joined, "signaling"))
        clock.advance(0)
        assert not reported
    connected[0] = True
    log(logged(joined, "signaling"))
    clock.advance(0)
    assert reported == [2]


def test_published_events_carry_the_number_of_their_worker() -> None:
    caught: list[Any] = []
    publish(encode(logged(joined, "signaling")), 3, caught.append)
    assert '"worker": 3' in format_json(caught[0])


def test_every_event_of_a_server_can_be_forwarded(monkeypatch: pytest.MonkeyPatch) -> None:
    caught: list[Any] = []
    monkeypatch.setattr("signaling.log.events.globalLogPublisher", caught.append)
    events = Events(LogLevel.debug, Clock().seconds)
    events.refused("192.0.2.1:5", 404, "not found")
    events.left("01JD0000000000000000000000", "room", "closed by the peer", since=0.0)
    events.max_connections_lowered(5, 6)
    events.worker_died(1, "signal SIGKILL", 0.5)
    for event in caught:
        assert formatEvent(forwarded(event)) == formatEvent(event)
        assert format_json(forwarded(event)) == format_json(event)
