"""When to connect again after a loss, so that a server is not overrun by those who come back."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from signaling.client.errors import Refused

STABLE_SECONDS = 5.0
_LONGEST_RETRY_AFTER_SECONDS = 3_600.0
_LONGEST_REASON = 500
_GOING_AWAY = (1001, 1012)
_POLICY_VIOLATION = 1008
_TRY_AGAIN_LATER = 1013
_TOKEN_EXPIRED = 4401
# Of the statuses 4xx, these alone speak of the moment and not of the request.
_OF_THE_MOMENT = (408, 425, 429)


@dataclass(frozen=True)
class Loss:
    """How a connection ended, or why there was none.

    Args:
        reason: for a person.
        code: the WebSocket close code, where there was a close frame.
        retry_after_seconds: what the server asked for.
    """

    reason: str
    code: int | None = None
    retry_after_seconds: float = 0.0


def refusal(status: int, phrase: str, body: bytes | bytearray | None, headers: Mapping[str, str]) -> Loss:
    """Judge an HTTP answer that was not 101.

    Args:
        phrase: the reason phrase, which is told if there is no body.
        body: in which the server says what would be right.
        headers: its headers; the names in lower case, or in a mapping that does not care.

    Raises:
        Refused: where the same request would be refused again.
    """
    reason = _one_line((body or b"").decode("utf-8", "replace")) or _one_line(phrase)
    if 400 <= status < 500 and status not in _OF_THE_MOMENT:
        raise Refused(status, reason)
    wanted = headers.get("retry-after", "")[:10]
    seconds = float(wanted) if wanted.isascii() and wanted.isdigit() else 0.0
    return Loss(f"HTTP {status}: {reason}", retry_after_seconds=min(seconds, _LONGEST_RETRY_AFTER_SECONDS))


def closing(code: int | None, reason: str) -> Loss:
    """Judge the end of a connection.

    Args:
        code: the close code; None if there was no close frame.
        reason: that of the close frame.

    Raises:
        Refused: if the access token has expired; the next connection would carry the same one.
    """
    reason = _one_line(reason)
    if code == _TOKEN_EXPIRED:
        raise Refused(code, reason or "the token has expired")
    told = f"{code}: {reason}" if reason else f"{code or 'no close frame'}"
    return Loss(f"the connection was lost ({told})", code)


def _one_line(text: str) -> str:
    """Make a server's words fit for a log: one line of printable characters, and not a long one."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text[:_LONGEST_REASON])
    return " ".join(printable.split())


class Backoff:
    """The times between attempts to connect: doubling, less a random part of up to a half.

    Args:
        first_seconds: about the first time.
        most_seconds: the longest, but for what a server asks for by ``Retry-After``.
        clock: tells seconds that only rise.
        chance: a random number from 0 to 1.
    """

    def __init__(
        self,
        first_seconds: float = 0.5,
        most_seconds: float = 30.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._first = first_seconds
        self._most = most_seconds
        self._clock = clock
        self._chance = chance
        self._attempts = 0
        self._opened_at: float | None = None

    def opened(self) -> None:
        """Notice that a connection is good; only one that lasts starts the doubling anew."""
        self._opened_at = self._clock()

    def delay(self, loss: Loss) -> float:
        """Return the seconds to wait after ``loss``."""
        if self._opened_at is not None and self._clock() - self._opened_at >= STABLE_SECONDS:
            self._attempts = 0
        self._opened_at = None
        span = min(self._most, self._first * 2.0**self._attempts)
        if span < self._most:
            self._attempts += 1
        if loss.retry_after_seconds:
            return loss.retry_after_seconds + span * self._chance()
        if loss.code in _GOING_AWAY:
            # A server that stops closes everybody at once; who comes back spreads over a while.
            return self._chance() * min(self._most, max(span, 4 * self._first))
        if loss.code == _POLICY_VIOLATION:
            span = self._most
        elif loss.code == _TRY_AGAIN_LATER:
            span = max(span, self._most / 4)
        return span * (1 - self._chance() / 2)
