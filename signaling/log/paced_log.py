"""Writes the log lines of a burst over several passes of the reactor."""

from __future__ import annotations

from collections.abc import Callable

from signaling.admission.rate_limit import TokenBucket
from signaling.timing.clock import Clock
from signaling.timing.fair_scheduler import FairScheduler

# Writing one line costs more CPU than closing one connection.
_LINES_PER_PASS = 16
_LINE_BURST = 64
_LINES_PER_SECOND = 1000.0
# A queued line holds about 500 bytes, and the subject of its peer.
_MAX_QUEUED_LINES = 10_000


class PacedLog:
    """Spreads a burst of log lines over several passes of the reactor, in order.

    Thousands of peers may leave in one pass. Up to a rate, lines are written immediately; beyond it they are queued and
    written a few in each pass. If the queue is full, lines are written immediately again.

    Args:
        clock: schedules the passes.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._burst = TokenBucket(_LINES_PER_SECOND, _LINE_BURST)
        self._queue: FairScheduler[Callable[[], None]] = FairScheduler(clock, _LINES_PER_PASS, lambda write: write())

    def write(self, line: Callable[[], None]) -> None:
        """Write a line now, or queue it.

        Args:
            line: called without arguments to write the line.
        """
        now = self._clock.seconds()
        if len(self._queue) >= _MAX_QUEUED_LINES:
            # A flood must not make the server's memory grow.
            line()
        elif self._queue or self._burst.available(now) < 1:
            self._queue.add(line)
        else:
            self._burst.take(now)
            line()

    def flush(self) -> None:
        """Write all queued lines."""
        self._queue.finish()
