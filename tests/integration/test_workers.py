"""The workers of a listener: started, restarted, drained and asked for their metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.logger import globalLogPublisher

from signaling import Limits
from tests.integration.workers_harness import WorkersHarness, killed


@pytest.fixture
def harness() -> Iterator[WorkersHarness]:
    harness = WorkersHarness()
    harness.all_ready()
    yield harness
    harness.end()


@pytest.fixture
def logged() -> Iterator[list[dict[str, Any]]]:
    caught: list[Any] = []
    globalLogPublisher.addObserver(caught.append)
    yield caught
    globalLogPublisher.removeObserver(caught.append)


def of(logged: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [each for each in logged if each.get("event") == event]


def unready(harness: WorkersHarness) -> list[str]:
    return [reason for reasons in harness.listener.unready_reasons.values() for reason in reasons]


def test_a_server_is_ready_if_all_workers_are() -> None:
    harness = WorkersHarness()
    assert unready(harness) == ["worker 0 is starting", "worker 1 is starting"]
    harness.processes[1].say(b"R")
    harness.reactor.run()
    assert unready(harness) == ["worker 0 is starting"]
    harness.processes[0].say(b"R")
    harness.reactor.run()
    assert unready(harness) == []
    harness.end()


def test_a_server_that_stops_gives_no_other_reason(harness: WorkersHarness) -> None:
    harness.listener.shutdown.become_unready()
    assert unready(harness) == ["the server is stopping"]


def test_a_worker_that_dies_is_restarted_at_once(harness: WorkersHarness, logged: list[dict[str, Any]]) -> None:
    harness.processes[1].end_with(number=killed())
    assert unready(harness) == ["worker 1 is starting"]
    harness.advance(0.25)
    assert len(harness.processes) == 3
    harness.processes[2].say(b"R")
    harness.reactor.run()
    assert unready(harness) == []
    (died,) = of(logged, "worker_died")
    assert (died["worker"], died["reason"], died["seconds"]) == (1, "signal SIGKILL", 0)


def test_a_worker_that_dies_early_again_and_again_is_restarted_after_growing_pauses(
    logged: list[dict[str, Any]],
) -> None:
    harness = WorkersHarness(count=1)
    for _ in range(9):
        harness.processes[-1].end_with(status=1)
        count = len(harness.processes)
        while len(harness.processes) == count:
            harness.advance(0.25)
    pauses = [died["seconds"] for died in of(logged, "worker_died")]
    assert pauses == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert of(logged, "worker_died")[0]["reason"] == "exit status 1"
    harness.advance(10)
    harness.processes[-1].end_with(status=1)
    assert of(logged, "worker_died")[-1]["seconds"] == 0
    harness.end()


def test_a_worker_that_cannot_be_started_is_tried_again(harness: WorkersHarness, logged: list[dict[str, Any]]) -> None:
    harness.reactor.broken = True
    harness.processes[0].end_with(status=1)
    harness.advance(2)
    harness.reactor.broken = False
    harness.advance(2)
    harness.processes[-1].say(b"R")
    harness.reactor.run()
    assert unready(harness) == []
    reason = "it cannot be started: [Errno 11] Resource temporarily unavailable"
    assert of(logged, "worker_died")[-1]["reason"] == reason


def test_a_worker_that_hangs_is_not_ready_and_is_killed_in_the_end(
    harness: WorkersHarness, logged: list[dict[str, Any]]
) -> None:
    for _ in range(40):
        harness.processes[0].say(b"B[]")
        harness.reactor.run()
        harness.advance(1)
        if not harness.processes[1].killed:
            seen = unready(harness)
    assert seen == ["worker 1 does not answer"]
    assert not harness.processes[0].killed
    assert harness.processes[1].killed
    assert of(logged, "worker_killed")[-1]["reason"] == "it did not answer for 30 s"


def test_a_worker_that_answers_again_is_ready_again(harness: WorkersHarness) -> None:
    for _ in range(6):
        harness.advance(1)
    assert len(unready(harness)) == 2
    for process in harness.processes:
        process.say(b"B[]")
    harness.reactor.run()
    assert unready(harness) == []


def test_a_reason_that_several_workers_report_is_listed_once(harness: WorkersHarness) -> None:
    for process in harness.processes:
        process.say(b'B["the backplane is out of reach"]')
    harness.reactor.run()
    assert harness.listener.unready_reasons["backplane"] == ["the backplane is out of reach"]


def test_a_drain_drains_all_workers_and_waits_for_them(harness: WorkersHarness) -> None:
    done: list[None] = []
    harness.listener.shutdown.drain().addCallback(done.append)
    assert [process.received() for process in harness.processes] == [[b"D"], [b"D"]]
    harness.processes[0].end_with()
    assert not done
    harness.processes[1].end_with()
    assert done == [None]
    harness.advance(60)
    assert len(harness.processes) == 2


def test_a_worker_that_does_not_end_is_killed(harness: WorkersHarness, logged: list[dict[str, Any]]) -> None:
    harness.listener.shutdown.drain()
    harness.processes[0].end_with()
    harness.advance(5.75)
    assert not harness.processes[1].killed
    harness.advance(0.5)
    assert harness.processes[1].killed
    assert [event["worker"] for event in of(logged, "worker_killed")] == [1]


def test_a_worker_that_is_not_ready_is_killed_by_a_drain() -> None:
    harness = WorkersHarness(count=1)
    harness.listener.shutdown.drain()
    assert harness.processes[0].killed
    harness.end()


def test_a_drain_prevents_a_restart(harness: WorkersHarness) -> None:
    harness.processes[0].end_with(status=1)
    done: list[None] = []
    harness.listener.shutdown.drain().addCallback(done.append)
    harness.processes[1].end_with()
    assert done == [None]
    harness.advance(60)
    assert len(harness.processes) == 2


def test_an_abort_makes_workers_abort(harness: WorkersHarness) -> None:
    harness.listener.shutdown.drain()
    harness.listener.shutdown.abort()
    assert [process.received() for process in harness.processes] == [[b"D", b"A"], [b"D", b"A"]]
    harness.advance(2)
    assert all(process.killed for process in harness.processes)


def test_a_worker_that_closes_its_channel_is_killed(harness: WorkersHarness) -> None:
    harness.processes[0].end.close()
    harness.reactor.run()
    harness.advance(5)
    assert harness.processes[0].killed


def test_the_log_of_a_worker_is_published_by_the_listener(
    harness: WorkersHarness, logged: list[dict[str, Any]]
) -> None:
    line = {"log_namespace": "signaling", "log_level": "info", "log_format": "{peer}", "event": "joined", "peer": "x"}
    harness.processes[1].say(b"L" + json.dumps(line).encode() + b"\n")
    harness.reactor.run()
    (joined,) = of(logged, "joined")
    assert (joined["peer"], joined["worker"], joined["log_level"].name) == ("x", 1, "info")


def test_what_a_worker_prints_is_logged_by_the_listener(harness: WorkersHarness, logged: list[dict[str, Any]]) -> None:
    worker = harness.listener.supervisor[1]
    worker.errReceived(b"Traceback\n  some")
    worker.errReceived(b"where\nlast words")
    harness.processes[1].end_with(status=1)
    assert [event["line"] for event in of(logged, "worker_output")] == ["Traceback", "  somewhere", "last words"]


def test_metrics_are_requested_once_for_all_who_wait(harness: WorkersHarness) -> None:
    answers: list[Any] = []
    harness.listener.supervisor.request_metrics().addCallback(answers.append)
    harness.listener.supervisor.request_metrics().addCallback(answers.append)
    assert [process.received() for process in harness.processes] == [[b"?"], [b"?"]]
    for process in harness.processes:
        process.say(b'M["metrics"]')
    harness.reactor.run()
    assert answers == [[["metrics"], ["metrics"]]] * 2


def test_a_worker_that_does_not_answer_is_left_out_of_the_metrics(harness: WorkersHarness) -> None:
    answers: list[Any] = []
    harness.listener.supervisor.request_metrics().addCallback(answers.append)
    harness.processes[0].say(b"M[]")
    harness.advance(1.75)
    assert not answers
    harness.advance(0.25)
    assert answers == [[[], None]]


def test_a_worker_that_dies_meanwhile_is_left_out_of_the_metrics(harness: WorkersHarness) -> None:
    answers: list[Any] = []
    harness.listener.supervisor.request_metrics().addCallback(answers.append)
    harness.processes[0].say(b"M[]")
    harness.reactor.run()
    harness.processes[1].end_with(status=1)
    assert answers == [[[], None]]
    harness.listener.supervisor.request_metrics().addCallback(answers.append)
    harness.processes[0].say(b"M[]")
    harness.reactor.run()
    assert answers[1:] == [[[], None]]


class Reload:
    """A reload that the listener has begun; every worker was asked to prepare it."""

    def __init__(self, harness: WorkersHarness) -> None:
        self.reasons: list[list[str]] = []
        self.harness = harness
        harness.listener.supervisor.prepare_reload("abc").addCallback(self.reasons.append)
        self.numbers: list[int] = []
        for process in harness.processes:
            for message in process.received():
                assert message[:1] == b"P"
                number, fingerprint = json.loads(message[1:])
                assert fingerprint == "abc"
                self.numbers.append(number)

    def answer(self, worker: int, reason: str | None = None) -> None:
        self.harness.processes[worker].say(b"P" + json.dumps([self.numbers[worker], reason]).encode())
        self.harness.reactor.run()


def test_a_reload_is_prepared_once_all_workers_have_read_it(harness: WorkersHarness) -> None:
    reload = Reload(harness)
    reload.answer(0)
    assert reload.reasons == []
    reload.answer(1)
    assert reload.reasons == [[]]
    harness.listener.supervisor.apply_reload(b"")
    assert [process.received() for process in harness.processes] == [[b"U"], [b"U"]]


def test_a_worker_that_cannot_reload_is_named_with_its_reason(harness: WorkersHarness) -> None:
    reload = Reload(harness)
    reload.answer(0)
    reload.answer(1, "no such file")
    assert reload.reasons == [["worker 1: no such file"]]


def test_a_worker_that_does_not_answer_refuses_a_reload_and_its_late_answer_counts_for_no_other(
    harness: WorkersHarness,
) -> None:
    early = Reload(harness)
    early.answer(0)
    harness.advance(5)
    assert early.reasons == [["worker 1: it does not answer; send SIGHUP again"]]
    late = Reload(harness)
    late.answer(0)
    early.answer(1)
    assert late.reasons == []
    late.answer(1)
    assert late.reasons == [[]]


def test_a_worker_that_dies_meanwhile_or_is_not_there_refuses_a_reload(harness: WorkersHarness) -> None:
    reload = Reload(harness)
    reload.answer(0)
    harness.processes[1].end_with(status=1)
    assert reload.reasons == [["worker 1: it has ended; send SIGHUP again"]]
    harness.reactor.run()
    harness.processes[2].end_with(status=1)
    asked = harness.listener.supervisor[1].prepare_reload("abc")
    assert asked.result == "worker 1 is being restarted; send SIGHUP again"


def test_a_worker_that_dies_after_its_answer_refuses_a_reload_as_its_successor_has_not_read_it(
    harness: WorkersHarness,
) -> None:
    reload = Reload(harness)
    reload.answer(0)
    harness.processes[0].end_with(status=1)
    harness.reactor.run()
    reload.answer(1)
    assert reload.reasons == [["worker 0: it has ended; send SIGHUP again"]]


def test_a_worker_that_starts_may_answer_when_it_is_ready() -> None:
    harness = WorkersHarness(count=1)
    reload = Reload(harness)
    harness.all_ready()
    reload.answer(0)
    assert reload.reasons == [[]]
    harness.end()


def test_the_time_that_workers_have_to_drain_can_change(harness: WorkersHarness) -> None:
    harness.listener.change(limits=Limits(drain_spread_seconds=20, shutdown_timeout_seconds=10))
    harness.listener.shutdown.drain()
    harness.advance(34)
    assert not harness.processes[0].killed
    harness.advance(2)
    assert harness.processes[0].killed


def test_workers_do_not_inherit_what_systemd_gave_to_the_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("TURN_SECRET", "s")
    harness = WorkersHarness(count=1)
    environment = harness.processes[0].environment
    assert not {"LISTEN_FDS", "NOTIFY_SOCKET"} & environment.keys()
    assert environment["TURN_SECRET"] == "s"
    harness.end()
