"""Time, as the server asks for it."""

from __future__ import annotations

import time
from unittest.mock import patch

from twisted.internet.task import Clock

from signaling.clock import SteadyClock


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
