"""Moments of the wall clock, one for each of many items."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from signaling.timing.wall_clock_timers import WallClockTimers
from tests.harness.memory_transport import PassingClock


class Wall:
    """A wall clock beside a clock that waits."""

    def __init__(self) -> None:
        self.clock = PassingClock()
        self.ahead = 1000.0
        self.expired: list[tuple[object, float]] = []
        self.expiries: WallClockTimers[object] = WallClockTimers(self.clock, self.now, self.expire)

    def now(self) -> float:
        return self.ahead + self.clock.seconds()

    def expire(self, item: object) -> None:
        self.expired.append((item, self.now()))

    def timers(self) -> int:
        return len(self.clock.getDelayedCalls())


def test_each_expires_at_its_own_moment() -> None:
    wall = Wall()
    for item, at in (("late", 1030.0), ("soon", 1010.0), ("between", 1020.0)):
        wall.expiries.set(item, at)
    wall.clock.pump([1.0] * 40)
    assert wall.expired == [("soon", 1010.0), ("between", 1020.0), ("late", 1030.0)]
    assert wall.timers() == 0


def test_what_is_past_expires_in_the_next_pass_and_not_at_once() -> None:
    wall = Wall()
    wall.expiries.set("x", 1.0)
    assert wall.expired == []
    wall.clock.advance(0)
    assert wall.expired == [("x", 1000.0)]


def test_one_timer_for_all() -> None:
    wall = Wall()
    for number in range(100):
        wall.expiries.set(number, 2000.0 - number)
    assert wall.timers() == 1


def test_a_crowd_that_expires_together_does_so_in_several_passes() -> None:
    wall = Wall()
    for number in range(40):
        wall.expiries.set(number, 1001.0)
    wall.clock.advance(1)
    assert 0 < len(wall.expired) < 40
    while wall.timers():
        wall.clock.advance(0)
    assert sorted(item for item, _ in wall.expired) == list(range(40))


def test_a_thousand_years_are_waited_for_in_pieces() -> None:
    wall = Wall()
    wall.expiries.set("x", 1e12)
    [call] = wall.clock.getDelayedCalls()
    assert call.getTime() <= 60


def test_a_wall_clock_that_is_set_forward_is_noticed_within_a_minute() -> None:
    wall = Wall()
    wall.expiries.set("x", 5000.0)
    wall.ahead += 4000
    wall.clock.pump([1.0] * 60)
    assert [item for item, _ in wall.expired] == ["x"]


def test_rest_leaves_no_timer_where_nobody_is_set() -> None:
    wall = Wall()
    wall.expiries.set("x", 2000.0)
    wall.expiries.cancel_if_idle()
    assert wall.timers() == 1
    wall.expiries.clear("x")
    wall.expiries.cancel_if_idle()
    assert wall.timers() == 0


def test_those_who_come_and_go_leave_nothing_behind() -> None:
    wall = Wall()
    probe: list[int] = []

    class Item:
        def __del__(self) -> None:
            probe.append(1)

    for _ in range(1000):
        item = Item()
        wall.expiries.set(item, 1e9)
        wall.expiries.clear(item)
        del item
    assert len(probe) > 900


@given(
    st.lists(st.tuples(st.sampled_from(["set", "clear", "wait"]), st.integers(0, 9), st.integers(0, 9)), max_size=40)
)
def test_exactly_what_stays_set_expires_and_never_too_early(steps: list[tuple[str, int, int]]) -> None:
    wall = Wall()
    due: dict[int, float] = {}
    expected = []
    for step, item, amount in steps:
        if step == "set" and item not in due:
            due[item] = wall.now() + amount
            wall.expiries.set(item, due[item])
        elif step == "clear":
            due.pop(item, None)
            wall.expiries.clear(item)
        else:
            wall.clock.pump([0.0, *[1.0] * amount, 0.0])
            over = sorted((at, item) for item, at in due.items() if at <= wall.now())
            expected += [item for _, item in over]
            for _, item_over in over:
                del due[item_over]
    assert sorted(expected) == sorted(item for item, _ in wall.expired)
