"""How a burst of log lines is spread over the passes of the reactor."""

from __future__ import annotations

from functools import partial

import pytest

from signaling.log import paced_log
from signaling.log.paced_log import PacedLog
from tests.harness.memory_transport import PassingClock


def test_a_burst_of_lines_is_spread_over_passes_and_keeps_its_order() -> None:
    clock = PassingClock()
    lines, written = PacedLog(clock), list[int]()
    for number in range(200):
        lines.write(partial(written.append, number))
    longest, before = 0, len(written)
    assert before < 100
    while clock.getDelayedCalls():
        clock.advance(0)
        longest, before = max(longest, len(written) - before), len(written)
    assert longest < 20
    assert written == list(range(200))


def test_flush_writes_all_queued_lines() -> None:
    clock = PassingClock()
    lines, written = PacedLog(clock), list[int]()
    for number in range(200):
        lines.write(partial(written.append, number))
    lines.flush()
    assert written == list(range(200))
    assert not clock.getDelayedCalls()


def test_the_queue_of_lines_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paced_log, "_MAX_QUEUED_LINES", 100)
    clock = PassingClock()
    lines, written, given = PacedLog(clock), list[int](), 0
    for _ in range(50):
        for _ in range(50):
            lines.write(partial(written.append, given))
            given += 1
        assert given - len(written) <= 100
        clock.advance(0)
    lines.flush()
    assert sorted(written) == list(range(given))
