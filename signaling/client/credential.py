"""Which token a client presents, what a refusal of it means, and when to replace it on an open connection; no I/O.

An adapter asks the function for a token, limits the time for that, and owns the timers. The text of a token never
reaches an exception or a log, and neither does that of the function's own exceptions, which may quote one.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from signaling.client.backoff import Loss, type_and_line
from signaling.client.errors import Refused
from signaling.errors import CloseCode

TokenSource = str | Callable[[], str | Awaitable[str]]
"""A token, or a function that returns one. It is called before every attempt to connect, and for every renewal."""

TOKEN_SECONDS = 15.0
"""How long the function may take."""
SHORTEST_RENEWAL_SECONDS = 1.0
"""The function is called at most so often on one connection, whatever the server says about expiry."""
LONGEST_RENEWAL_SECONDS = 2_147_483.0
"""Timers of some event loops take no longer time; about 25 days."""
RENEWAL_SHARE = 0.8
"""The share of a token's time after which the function is asked for the next one."""
PAUSE_SHARE = 0.25
"""The share of the time that is left after which it is asked again, if that failed."""

_UNAUTHORIZED = 401
_FORBIDDEN = 403
# A new token may help.
_OF_THE_TOKEN = (_UNAUTHORIZED, _FORBIDDEN, CloseCode.TOKEN_EXPIRED)
_B64TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


class NoToken(Exception):
    """The function returned no token; the text says why, for a person."""


def timed_out() -> NoToken:
    """Return the error for a function that has not answered in time."""
    return NoToken(f"the token function has not answered within {TOKEN_SECONDS:.0f} s")


def raised(error: BaseException) -> NoToken:
    """Return the error for a function that raised: it names the type and the line, and not the text."""
    return NoToken(f"the token function raised {type_and_line(error)}")


def checked(answer: object) -> str:
    """Return what the function returned.

    Raises:
        NoToken: if it is no token.
    """
    if not isinstance(answer, str):
        raise NoToken(f"the token function returned {type(answer).__name__}, not a token")
    if not _B64TOKEN.fullmatch(answer):
        raise NoToken("the token function returned text that is empty or has characters that no token has")
    return answer


class Credential:
    """What a client presents: nothing, one token, or each time a new one of a function.

    Args:
        source: None for a client without a token, or with one in its URL.

    Raises:
        TypeError: if it is neither a string nor callable.
        ValueError: if it has characters that no token has.
    """

    def __init__(self, source: TokenSource | None) -> None:
        if isinstance(source, str):
            if not _B64TOKEN.fullmatch(source):
                raise ValueError("token= is empty or has characters that no token has")
        elif source is not None and not callable(source):
            raise TypeError(f"token= takes a string or a function, not {type(source).__name__}")
        self.source = source
        self._asks_anew = False

    def refused(self, refused: Refused) -> Loss:
        """Return the loss with which to go on after a refusal, because the function has to be asked anew.

        Raises:
            Refused: the same, if the next request would be refused as well.
        """
        if refused.status not in _OF_THE_TOKEN or not callable(self.source) or self._asks_anew:
            raise refused
        self._asks_anew = True
        return Loss(str(refused), at_once=True)

    def accepted(self) -> None:
        """Note that the server accepted the token: a later refusal is not of this one."""
        self._asks_anew = False


@dataclass(frozen=True)
class Step:
    """The next step of a renewal.

    Args:
        seconds: until the function is to be asked; None if the token expires before that, so the server will end the
            connection.
        problem: why there is no new token yet; empty if nothing failed.
    """

    seconds: float | None
    problem: str = ""

    @property
    def warning(self) -> str:
        """The problem and what follows from it, for a log; empty if nothing failed."""
        then = "the connection ends with it" if self.seconds is None else f"asking again in {self.seconds:.1f} s"
        return f"the token expires soon, and there is no new one: {self.problem}; {then}" if self.problem else ""


class Renewal:
    """When to replace the token of the open connection: after four fifths of its time.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._expires_at: float | None = None
        self._step: Step | None = None

    def step(self) -> Step | None:
        """Return and forget what to do next; None if that has not changed."""
        step, self._step = self._step, None
        return step

    def expires_in(self, seconds: float | None) -> None:
        """Note how long the token is still valid; None means that it never expires."""
        self.end()
        if seconds is not None:
            # In this order NaN is 0.
            seconds = min(max(0.0, seconds), LONGEST_RENEWAL_SECONDS)
            self._expires_at = self._clock() + seconds
            self._step = Step(max(RENEWAL_SHARE * seconds, SHORTEST_RENEWAL_SECONDS))

    def failed(self, problem: str) -> None:
        """Ask again while there is time."""
        if self._expires_at is not None:
            left = self._expires_at - self._clock()
            pause = max(PAUSE_SHARE * left, SHORTEST_RENEWAL_SECONDS)
            self._step = Step(pause if pause < left else None, problem)

    def end(self) -> None:
        """Forget the connection."""
        self._expires_at = self._step = None
