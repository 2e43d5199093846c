"""The states of a worker, as its listener sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from twisted.logger import LogLevel

from signaling.log.events import Events
from signaling.workers.supervisor import TRANSITIONS, Worker, WorkerSettings, WorkerState
from tests.integration.workers_harness import WatchingClock


class ObservedWorker(Worker):
    """Keeps every change of its state."""

    def __init__(self, *arguments: Any) -> None:
        self.changes: list[tuple[WorkerState, WorkerState]] = []
        super().__init__(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "state" and hasattr(self, "state"):
            self.changes.append((self.state, value))
        super().__setattr__(name, value)


class OneWorker:
    """A worker whose process the test plays."""

    def __init__(self) -> None:
        self.reactor = WatchingClock()
        events = Events(LogLevel.critical, self.reactor.seconds)
        self.worker = ObservedWorker(self.reactor, WorkerSettings(1, [], 1.0), 0, events)

    @property
    def _has_process(self) -> bool:
        return self.worker.pid is not None

    def say(self, message: bytes) -> None:
        if self._has_process:
            self.reactor.processes[-1].say(message)
            self.reactor.run()

    def start(self) -> None:
        # The factory of the listener starts it once, and again after a drain.
        if self.worker.state is WorkerState.STOPPED:
            self.worker.start()

    def die(self) -> None:
        if self._has_process:
            self.reactor.processes[-1].end_with(status=1)

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.reactor.advance(1)

    def close(self) -> None:
        self.worker.stop()
        for process in self.reactor.processes:
            process.close()
        self.reactor.run()


EVENTS: dict[str, Callable[[OneWorker], object]] = {
    "start": OneWorker.start,
    "it is ready": lambda one: one.say(b"R"),
    "a heartbeat": lambda one: one.say(b"B[]"),
    "no heartbeat for 5 s": lambda one: one.wait(5),
    "no heartbeat for 30 s": lambda one: one.wait(30),
    "it dies": OneWorker.die,
    "stop": lambda one: one.worker.stop(),
    "abort": lambda one: one.worker.abort(),
}


class Walk(NamedTuple):
    """Where events led."""

    state: WorkerState
    changes: list[tuple[WorkerState, WorkerState]]
    unready_reason: str | None


def walk(events: tuple[str, ...]) -> Walk:
    one = OneWorker()
    for event in events:
        EVENTS[event](one)
    result = Walk(one.worker.state, list(one.worker.changes), one.worker.unready_reason)
    one.close()
    return result


def paths() -> Iterator[tuple[str, ...]]:
    """List a path to each state, with every event behind it."""
    known: dict[WorkerState, tuple[str, ...]] = {WorkerState.STOPPED: ()}
    waiting = [WorkerState.STOPPED]
    while waiting:
        start = known[waiting.pop(0)]
        for event in EVENTS:
            path = (*start, event)
            yield path
            state = walk(path).state
            if state not in known:
                known[state] = path
                waiting.append(state)


def test_every_transition_of_the_table_happens_and_no_other() -> None:
    observed = {change for path in paths() for change in walk(path).changes}
    assert observed == {(before, after) for before, targets in TRANSITIONS.items() for after in targets}


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        (("start",), "worker 0 is starting"),
        (("start", "it is ready"), None),
        (("start", "it is ready", "no heartbeat for 5 s"), "worker 0 does not answer"),
        (("start", "it is ready", "no heartbeat for 5 s", "a heartbeat"), None),
        (("start", "it is ready", "it dies"), "worker 0 is starting"),
        (("start", "it is ready", "stop"), "worker 0 is stopping"),
    ],
)
def test_a_state_says_why_a_worker_is_not_ready(events: tuple[str, ...], reason: str | None) -> None:
    assert walk(events).unready_reason == reason
