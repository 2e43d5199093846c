"""The life of workers, as their listener leads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.logger import globalLogPublisher

from tests.integration.workers_harness import WorkersHarness, killed


@pytest.fixture
def shop() -> Iterator[WorkersHarness]:
    shop = WorkersHarness()
    shop.all_ready()
    yield shop
    shop.end()


@pytest.fixture
def logged() -> Iterator[list[dict[str, Any]]]:
    caught: list[Any] = []
    globalLogPublisher.addObserver(caught.append)
    yield caught
    globalLogPublisher.removeObserver(caught.append)


def of(logged: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [each for each in logged if each.get("event") == event]


def unready(shop: WorkersHarness) -> list[str]:
    return [reason for reasons in shop.dispatcher.unready_reasons.values() for reason in reasons]


def test_a_server_is_ready_when_all_workers_are() -> None:
    shop = WorkersHarness()
    assert unready(shop) == ["worker 0 is starting", "worker 1 is starting"]
    shop.processes[1].say(b"R")
    shop.reactor.run()
    assert unready(shop) == ["worker 0 is starting"]
    shop.processes[0].say(b"R")
    shop.reactor.run()
    assert unready(shop) == []
    shop.end()


def test_a_server_that_stops_says_that_alone(shop: WorkersHarness) -> None:
    shop.dispatcher.shutdown.become_unready()
    assert unready(shop) == ["the server is stopping"]


def test_a_worker_that_dies_is_started_again_at_once(shop: WorkersHarness, logged: list[dict[str, Any]]) -> None:
    shop.processes[1].end_with(number=killed())
    assert unready(shop) == ["worker 1 is starting"]
    shop.advance(0.25)
    assert len(shop.processes) == 3
    shop.processes[2].say(b"R")
    shop.reactor.run()
    assert unready(shop) == []
    (died,) = of(logged, "worker_died")
    assert (died["worker"], died["reason"], died["seconds"]) == (1, "signal SIGKILL", 0)


def test_one_that_dies_young_again_and_again_is_started_more_and_more_rarely(logged: list[dict[str, Any]]) -> None:
    shop = WorkersHarness(count=1)
    for _ in range(9):
        shop.processes[-1].end_with(status=1)
        count = len(shop.processes)
        while len(shop.processes) == count:
            shop.advance(0.25)
    pauses = [died["seconds"] for died in of(logged, "worker_died")]
    assert pauses == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert of(logged, "worker_died")[0]["reason"] == "exit status 1"
    shop.advance(10)
    shop.processes[-1].end_with(status=1)
    assert of(logged, "worker_died")[-1]["seconds"] == 0
    shop.end()


def test_one_that_cannot_be_started_is_tried_again(shop: WorkersHarness, logged: list[dict[str, Any]]) -> None:
    shop.reactor.broken = True
    shop.processes[0].end_with(status=1)
    shop.advance(2)
    shop.reactor.broken = False
    shop.advance(2)
    shop.processes[-1].say(b"R")
    shop.reactor.run()
    assert unready(shop) == []
    reason = "it cannot be started: [Errno 11] Resource temporarily unavailable"
    assert of(logged, "worker_died")[-1]["reason"] == reason


def test_one_that_hangs_is_not_ready_and_in_the_end_it_is_killed(
    shop: WorkersHarness, logged: list[dict[str, Any]]
) -> None:
    for _ in range(40):
        shop.processes[0].say(b"T[]")
        shop.reactor.run()
        shop.advance(1)
        if not shop.processes[1].killed:
            seen = unready(shop)
    assert seen == ["worker 1 does not answer"]
    assert not shop.processes[0].killed
    assert shop.processes[1].killed
    assert of(logged, "worker_killed")[-1]["reason"] == "it did not answer for 30 s"


def test_one_that_answers_again_is_ready_again(shop: WorkersHarness) -> None:
    for _ in range(6):
        shop.advance(1)
    assert len(unready(shop)) == 2
    for process in shop.processes:
        process.say(b"T[]")
    shop.reactor.run()
    assert unready(shop) == []


def test_what_workers_are_troubled_by_is_told_once(shop: WorkersHarness) -> None:
    for process in shop.processes:
        process.say(b'T["the backplane is out of reach"]')
    shop.reactor.run()
    assert shop.dispatcher.unready_reasons["backplane"] == ["the backplane is out of reach"]


def test_the_drain_tells_all_and_waits_for_them(shop: WorkersHarness) -> None:
    done: list[None] = []
    shop.dispatcher.shutdown.drain().addCallback(done.append)
    assert [process.heard() for process in shop.processes] == [[b"D"], [b"D"]]
    shop.processes[0].end_with()
    assert not done
    shop.processes[1].end_with()
    assert done == [None]
    shop.advance(60)
    assert len(shop.processes) == 2


def test_one_that_does_not_end_is_killed(shop: WorkersHarness, logged: list[dict[str, Any]]) -> None:
    shop.dispatcher.shutdown.drain()
    shop.processes[0].end_with()
    shop.advance(5.75)
    assert not shop.processes[1].killed
    shop.advance(0.5)
    assert shop.processes[1].killed
    assert [event["worker"] for event in of(logged, "worker_killed")] == [1]


def test_one_that_is_not_ready_has_nobody_to_tell() -> None:
    shop = WorkersHarness(count=1)
    shop.dispatcher.shutdown.drain()
    assert shop.processes[0].killed
    shop.end()


def test_one_that_is_about_to_be_started_is_not(shop: WorkersHarness) -> None:
    shop.processes[0].end_with(status=1)
    done: list[None] = []
    shop.dispatcher.shutdown.drain().addCallback(done.append)
    shop.processes[1].end_with()
    assert done == [None]
    shop.advance(60)
    assert len(shop.processes) == 2


def test_a_second_signal_hurries_them(shop: WorkersHarness) -> None:
    shop.dispatcher.shutdown.drain()
    shop.dispatcher.shutdown.abort()
    assert [process.heard() for process in shop.processes] == [[b"D", b"H"], [b"D", b"H"]]
    shop.advance(2)
    assert all(process.killed for process in shop.processes)


def test_one_that_closes_its_channel_is_ended(shop: WorkersHarness) -> None:
    shop.processes[0].end.close()
    shop.reactor.run()
    shop.advance(2)
    assert shop.processes[0].killed


def test_what_a_worker_logs_is_logged_here(shop: WorkersHarness, logged: list[dict[str, Any]]) -> None:
    line = {"log_namespace": "signaling", "log_level": "info", "log_format": "{peer}", "event": "joined", "peer": "x"}
    shop.processes[1].say(b"L" + json.dumps(line).encode() + b"\n")
    shop.reactor.run()
    (joined,) = of(logged, "joined")
    assert (joined["peer"], joined["worker"], joined["log_level"].name) == ("x", 1, "info")


def test_what_a_worker_writes_past_its_log_is_logged_here(shop: WorkersHarness, logged: list[dict[str, Any]]) -> None:
    worker = shop.dispatcher.workers[1]
    worker.errReceived(b"Traceback\n  some")
    worker.errReceived(b"where\nlast words")
    shop.processes[1].end_with(status=1)
    assert [event["line"] for event in of(logged, "worker_output")] == ["Traceback", "  somewhere", "last words"]


def test_numbers_are_asked_once_for_all_who_wait(shop: WorkersHarness) -> None:
    answers: list[Any] = []
    shop.dispatcher.workers.ask().addCallback(answers.append)
    shop.dispatcher.workers.ask().addCallback(answers.append)
    assert [process.heard() for process in shop.processes] == [[b"?"], [b"?"]]
    for process in shop.processes:
        process.say(b'N["numbers"]')
    shop.reactor.run()
    assert answers == [[["numbers"], ["numbers"]]] * 2


def test_one_that_does_not_answer_is_left_out(shop: WorkersHarness) -> None:
    answers: list[Any] = []
    shop.dispatcher.workers.ask().addCallback(answers.append)
    shop.processes[0].say(b"N[]")
    shop.advance(1.75)
    assert not answers
    shop.advance(0.25)
    assert answers == [[[], None]]


def test_one_that_dies_over_the_question_is_left_out(shop: WorkersHarness) -> None:
    answers: list[Any] = []
    shop.dispatcher.workers.ask().addCallback(answers.append)
    shop.processes[0].say(b"N[]")
    shop.reactor.run()
    shop.processes[1].end_with(status=1)
    assert answers == [[[], None]]
    shop.dispatcher.workers.ask().addCallback(answers.append)
    shop.processes[0].say(b"N[]")
    shop.reactor.run()
    assert answers[1:] == [[[], None]]


def test_workers_are_not_told_of_what_systemd_gave_to_the_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("TURN_SECRET", "s")
    shop = WorkersHarness(count=1)
    environment = shop.processes[0].environment
    assert not {"LISTEN_FDS", "NOTIFY_SOCKET"} & environment.keys()
    assert environment["TURN_SECRET"] == "s"
    shop.end()
