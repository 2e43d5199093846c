"""Timeouts of one length on one timer."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from signaling.timing.timeouts import Timeouts


class Bench:
    def __init__(self, seconds: float = 10.0) -> None:
        self.clock = Clock()
        self.expired: list[str] = []
        self.deadlines: Timeouts[str] = Timeouts(self.clock, seconds, self.expired.append)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_an_item_expires_after_its_time_and_once(bench: Bench) -> None:
    bench.deadlines.set("a")
    bench.clock.advance(9.9)
    assert bench.expired == []
    bench.clock.advance(0.1)
    bench.clock.advance(100)
    assert bench.expired == ["a"]


def test_each_item_has_its_own_time(bench: Bench) -> None:
    bench.deadlines.set("a")
    bench.clock.advance(4)
    bench.deadlines.set("b")
    bench.clock.advance(6)
    assert bench.expired == ["a"]
    bench.clock.advance(4)
    assert bench.expired == ["a", "b"]


def test_setting_again_starts_again(bench: Bench) -> None:
    bench.deadlines.set("a")
    bench.deadlines.set("b")
    bench.clock.advance(5)
    bench.deadlines.set("a")
    bench.clock.advance(5)
    assert bench.expired == ["b"]
    bench.clock.advance(5)
    assert bench.expired == ["b", "a"]


def test_setting_once_does_not_prolong(bench: Bench) -> None:
    bench.deadlines.set_once("a")
    bench.clock.advance(5)
    bench.deadlines.set_once("a")
    bench.clock.advance(5)
    assert bench.expired == ["a"]


def test_a_cleared_item_does_not_expire(bench: Bench) -> None:
    bench.deadlines.set("a")
    bench.deadlines.set("b")
    bench.deadlines.clear("a")
    bench.deadlines.clear("unknown")
    bench.clock.advance(10)
    assert bench.expired == ["b"]


def test_any_number_of_items_take_one_timer_and_none_takes_none(bench: Bench) -> None:
    for n in range(100):
        bench.deadlines.set(str(n))
    assert len(bench.clock.getDelayedCalls()) == 1
    for n in range(100):
        bench.deadlines.clear(str(n))
    bench.deadlines.cancel_if_idle()
    assert bench.clock.getDelayedCalls() == []


def test_an_item_may_be_set_again_when_it_expires() -> None:
    clock = Clock()
    expired: list[float] = []

    def again(item: str) -> None:
        expired.append(clock.seconds())
        deadlines.set(item)

    deadlines: Timeouts[str] = Timeouts(clock, 2.0, again)
    deadlines.set("a")
    clock.pump([1.0] * 6)
    assert expired == [2.0, 4.0, 6.0]


def test_one_failing_callback_does_not_stop_the_others() -> None:
    clock = Clock()
    expired: list[str] = []

    def fail_first(item: str) -> None:
        expired.append(item)
        if item == "a":
            raise RuntimeError(item)

    deadlines: Timeouts[str] = Timeouts(clock, 2.0, fail_first)
    deadlines.set("a")
    deadlines.set("b")
    with pytest.raises(RuntimeError):
        clock.advance(2)
    clock.advance(0)
    assert expired == ["a", "b"]


def test_no_time_means_for_ever() -> None:
    bench = Bench(0)
    bench.deadlines.set("a")
    assert bench.clock.getDelayedCalls() == []


def test_an_item_that_is_set_anew_when_it_expires_delays_no_other() -> None:
    clock = Clock()
    expired: list[tuple[str, float]] = []

    def on_expired(item: str) -> None:
        expired.append((item, clock.seconds()))
        if item == "again" and len(expired) == 1:
            deadlines.set(item)

    deadlines: Timeouts[str] = Timeouts(clock, 10, on_expired)
    deadlines.set("again")
    clock.advance(1)
    deadlines.set("other")
    clock.pump([1] * 20)
    assert expired == [("again", 10), ("other", 11), ("again", 20)]


def test_a_longer_time_holds_for_timeouts_that_run_and_keeps_their_order(bench: Bench) -> None:
    bench.deadlines.set("a")
    bench.clock.advance(4)
    bench.deadlines.set("b")
    bench.deadlines.change(20)
    bench.clock.advance(15.9)
    assert bench.expired == []
    bench.clock.advance(0.1)
    assert bench.expired == ["a"]
    bench.clock.advance(4)
    assert bench.expired == ["a", "b"]


def test_a_shorter_time_ends_what_would_be_over_in_the_next_pass(bench: Bench) -> None:
    bench.deadlines.set("a")
    bench.clock.advance(4)
    bench.deadlines.set("b")
    bench.deadlines.change(3)
    assert bench.expired == []
    bench.clock.advance(0)
    assert bench.expired == ["a"]
    bench.clock.advance(3)
    assert bench.expired == ["a", "b"]
    assert bench.clock.getDelayedCalls() == []


def test_a_time_of_0_clears_what_runs_and_another_one_counts_from_then_on(bench: Bench) -> None:
    bench.deadlines.set("a")
    bench.deadlines.change(0)
    assert bench.clock.getDelayedCalls() == []
    bench.deadlines.set("b")
    bench.deadlines.change(5)
    bench.deadlines.set("c")
    bench.clock.advance(100)
    assert bench.expired == ["c"]
