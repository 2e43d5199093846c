"""When to connect again after a loss, so that clients that come back do not overload the server."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from signaling.client.errors import Refused
from signaling.errors import CloseCode

STABLE_SECONDS = 5.0
_LONGEST_RETRY_AFTER_SECONDS = 3_600.0
_LONGEST_REASON = 500
_GOING_AWAY = (CloseCode.GOING_AWAY, CloseCode.SERVICE_RESTART)
# The close codes that refuse this peer, and what they mean if the server gives no reason.
_ENDINGS: dict[int, str] = {
    CloseCode.TOKEN_EXPIRED: "the token has expired",
    CloseCode.PEER_REMOVED: "an operator removed this peer from the topic",
    CloseCode.TOPIC_CLOSED: "an operator closed the topic",
}
# The only 4xx statuses for which the same request may succeed later.
_TEMPORARY = (408, 425, 429)


@dataclass(frozen=True)
class Loss:
    """How a connection ended, or why there was none.

    Args:
        reason: for a person.
        code: the WebSocket close code; None without a close frame.
        retry_after_seconds: the ``Retry-After`` of the answer; 0 without one.
        at_once: whether the next attempt need not wait, because it is not the same: it has a new token,
            or other metadata.
    """

    reason: str
    code: int | None = None
    retry_after_seconds: float = 0.0
    at_once: bool = False


def refusal(status: int, phrase: str, body: bytes | bytearray | None, headers: Mapping[str, str]) -> Loss:
    """Return the loss that an HTTP answer other than 101 means.

    Args:
        phrase: the reason phrase, used if there is no body.
        body: the server's reason.
        headers: its headers; names in lower case, unless the mapping ignores case.

    Raises:
        Refused: if the same request would be refused again.
    """
    reason = one_line((body or b"").decode("utf-8", "replace")) or one_line(phrase)
    if 400 <= status < 500 and status not in _TEMPORARY:
        raise Refused(status, reason)
    wanted = headers.get("retry-after", "")[:10]
    seconds = float(wanted) if wanted.isascii() and wanted.isdigit() else 0.0
    return Loss(f"HTTP {status}: {reason}", retry_after_seconds=min(seconds, _LONGEST_RETRY_AFTER_SECONDS))


def closing(code: int | None, reason: str) -> Loss:
    """Return the loss that the end of a connection means.

    Args:
        code: the close code; None if there was no close frame.
        reason: that of the close frame.

    Raises:
        Refused: if the token has expired, or an operator removed this peer or closed its topic.
    """
    reason = one_line(reason)
    if code in _ENDINGS:
        raise Refused(code, reason or _ENDINGS[code])
    cause = f"{code}: {reason}" if reason else f"{code or 'no close frame'}"
    return Loss(f"the connection was lost ({cause})", code)


def one_line(text: str) -> str:
    """Return a server's text as one short line of printable characters, for a log."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text[:_LONGEST_REASON])
    return " ".join(printable.split())


def type_and_line(error: BaseException) -> str:
    """Return an error's type and where it was raised, for a log that must not have its text."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({PurePath(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{where}"


class Backoff:
    """The times between attempts to connect: they double, less a random part of up to a half.

    Args:
        first_seconds: about the first time.
        most_seconds: the longest, except for a server's ``Retry-After``.
        clock: returns monotonic seconds.
        chance: returns a random number from 0 to 1.
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
        self._was_at_once = False

    def opened(self) -> None:
        """Note that a connection is open; if it lasts, the times start again at the first."""
        self._opened_at = self._clock()

    def delay(self, loss: Loss) -> float:
        """Return the seconds to wait after ``loss``."""
        if self._opened_at is not None and self._clock() - self._opened_at >= STABLE_SECONDS:
            self._attempts = 0
            self._was_at_once = False
        self._opened_at = None
        # Once in a row: a server may end every connection because of its token.
        if loss.at_once and not self._was_at_once:
            self._was_at_once = True
            return 0.0
        span = min(self._most, self._first * 2.0**self._attempts)
        if span < self._most:
            self._attempts += 1
        if loss.retry_after_seconds:
            return loss.retry_after_seconds + span * self._chance()
        if loss.code in _GOING_AWAY:
            # A server that stops closes all connections at once: spread the reconnects.
            return self._chance() * min(self._most, max(span, 4 * self._first))
        if loss.code == CloseCode.POLICY_VIOLATION:
            span = self._most
        elif loss.code == CloseCode.TRY_AGAIN_LATER:
            span = max(span, self._most / 4)
        return span * (1 - self._chance() / 2)
