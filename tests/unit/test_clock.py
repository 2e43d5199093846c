"""Time, as the server asks for it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest
from twisted.internet.task import Clock

from signaling.timing.clock import SteadyClock, use_monotonic_timers
from tests.harness.wall_clock import WallClock

# Two timers, and a wall clock that is set back once they wait, and then forward by more.
TIMERS = """
import sys, time
from importlib import import_module
from signaling import use_monotonic_timers

import_module("twisted.internet." + sys.argv[1]).install()
from twisted.internet import reactor
from tests.harness.wall_clock import WallClock
from pathlib import Path

use_monotonic_timers(reactor)
wall = WallClock(Path(sys.argv[2]))
reactor.callLater(1800, print, "late")
reactor.callLater(0.1, wall.step, -3600)
reactor.callLater(0.2, print, "soon")
reactor.callLater(0.3, wall.step, 7200)
reactor.callLater(0.4, print, "later")
reactor.callLater(0.5, reactor.stop)
reactor.run()
"""
REACTORS = ["epollreactor", "pollreactor", "selectreactor", "asyncioreactor"]


def test_a_steady_clock_does_not_notice_that_somebody_sets_the_wall_clock() -> None:
    steady = SteadyClock(Clock())
    before = steady.seconds()
    with patch("time.time", return_value=0.0):
        assert 0 <= steady.seconds() - before < 60


def test_a_steady_clock_has_the_reactor_s_timers() -> None:
    reactor, called = Clock(), []
    SteadyClock(reactor).callLater(5, called.append, time.monotonic)
    reactor.advance(5)
    assert len(called) == 1


@pytest.mark.unmeasured
@pytest.mark.parametrize("reactor", REACTORS)
def test_monotonic_timers_do_not_notice_that_somebody_sets_the_wall_clock(reactor: str, tmp_path: Path) -> None:
    wall = WallClock(tmp_path)
    command = [sys.executable, "-c", TIMERS, reactor, str(tmp_path)]
    ran = subprocess.run(
        command,
        env=wall.environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("soon\nlater\n", "")


def test_a_reactor_with_a_time_of_its_own_keeps_it() -> None:
    reactor = Clock()
    reactor.advance(5)
    use_monotonic_timers(reactor)
    assert reactor.seconds() == 5
