"""When the tokens of open connections expire, and how long the check of a new one may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from signaling.core.grants import Grant
from signaling.timing.clock import Clock
from signaling.timing.timeouts import Timeouts
from signaling.timing.wall_clock_timers import WallClockTimers

# JavaScript counts no further.
_MOST_SECONDS = 2**53 - 1


class TokenConnection(Protocol):
    """A connection whose client joined with a token."""

    def expire(self) -> None:
        """The token has expired."""

    def token_timed_out(self) -> None:
        """The check of a new token takes too long."""


class TokenTimers:
    """The timers of the tokens of one server.

    Args:
        clock: runs the timers.
        wall_clock: returns the seconds since 1970, which tokens expire by.
        check_seconds: how long the check of a new token may take.

    Attributes:
        expiries: when tokens expire.
        checks: the timeouts of the checks of new tokens.
    """

    def __init__(self, clock: Clock, wall_clock: Callable[[], float], check_seconds: float) -> None:
        self._wall_clock = wall_clock
        self.expiries: WallClockTimers[TokenConnection] = WallClockTimers(clock, wall_clock, _expire)
        self.checks: Timeouts[TokenConnection] = Timeouts(clock, check_seconds, _time_out)

    def expires_in(self, grant: Grant | None) -> int | None:
        """Return the whole seconds until a grant expires; None if it never does, or if there is none."""
        if grant is None or grant.expires is None:
            return None
        return int(min(max(grant.expires - self._wall_clock(), 0.0), _MOST_SECONDS))

    def clear(self, connection: TokenConnection) -> None:
        """Forget a connection that is lost."""
        self.expiries.clear(connection)
        self.checks.clear(connection)

    def cancel_if_idle(self) -> None:
        """Cancel the timers if nothing is pending."""
        self.expiries.cancel_if_idle()
        self.checks.cancel_if_idle()


def _expire(connection: TokenConnection) -> None:
    connection.expire()


def _time_out(connection: TokenConnection) -> None:
    connection.token_timed_out()
