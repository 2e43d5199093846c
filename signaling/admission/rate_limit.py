"""Token buckets: so many a second, and so many at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")


class TokenBucket:
    """Holds up to ``burst`` tokens, fills by ``rate`` tokens a second, and can be owed more than it held.

    Args:
        rate: more than 0.
        burst: from 1 up.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at = 0.0

    def left(self, now: float) -> float:
        """Return how many tokens there are.

        Args:
            now: seconds. A clock that was set back fills nothing, and takes nothing away.
        """
        return min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)

    def take(self, now: float, tokens: float = 1) -> float:
        """Take tokens; returns how many are left, less than 0 if some are owed."""
        self._tokens, self._at = self.left(now) - tokens, now
        # Time is a float: a token that is due now may seem to be a billionth short.
        return round(self._tokens, 6)


class TokenBuckets(Generic[K]):
    """A bucket for each key; full ones take no memory.

    Args:
        rate: tokens a second for each key.
        burst: tokens at once for each key.
        seconds: tells the time.
    """

    def __init__(self, rate: float, burst: int, seconds: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._seconds = seconds
        self._buckets: dict[K, TokenBucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: K) -> float:
        """Take a token of ``key``.

        Returns:
            0, or how many seconds to wait for the next one where there was none.
        """
        now = self._seconds()
        self._forget_full(now)
        bucket = self._buckets.pop(key, None) or TokenBucket(self._rate, self._burst)
        # Back at the end: the one that was used longest ago stands first.
        self._buckets[key] = bucket
        missing = round(1 - bucket.left(now), 6)
        if missing > 0:
            return missing / self._rate
        bucket.take(now)
        return 0.0

    def _forget_full(self, now: float) -> None:
        while self._buckets:
            key = next(iter(self._buckets))
            if self._buckets[key].left(now) < self._burst:
                return
            del self._buckets[key]
