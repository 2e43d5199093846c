"""Token buckets: a rate per second, and a burst."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")


class TokenBucket:
    """A token bucket that may go below zero.

    Args:
        rate: tokens added per second, more than 0.
        burst: the most tokens it holds, at least 1.

    Attributes:
        rate: tokens added per second; ``change_rate`` changes it.
    """

    __slots__ = ("_at", "_burst", "_tokens", "rate")

    def __init__(self, rate: float, burst: int) -> None:
        self.rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at = 0.0

    def available(self, now: float) -> float:
        """Return the number of tokens.

        Args:
            now: seconds; if the clock went back, nothing is added or removed.
        """
        return min(self._burst, self._tokens + max(0.0, now - self._at) * self.rate)

    def change_rate(self, rate: float, now: float) -> None:
        """Add tokens at another rate from now on."""
        self._tokens, self._at, self.rate = self.available(now), now, rate

    def take(self, now: float, tokens: float = 1) -> float:
        """Take tokens; returns how many remain, less than 0 if there were not enough."""
        self._tokens, self._at = self.available(now) - tokens, now
        # Rounding errors of times must not make a token that is due appear incomplete.
        return round(self._tokens, 6)


class TokenBuckets(Generic[K]):
    """A token bucket for each key; full buckets take no memory.

    Args:
        rate: tokens added per second to each bucket.
        burst: the most tokens that a bucket holds.
        seconds: a monotonic clock.
    """

    def __init__(self, rate: float, burst: int, seconds: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._seconds = seconds
        self._buckets: dict[K, TokenBucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: K) -> float:
        """Take a token from the bucket of ``key``.

        Returns:
            0, or the seconds until the next token if the bucket is empty.
        """
        now = self._seconds()
        self._forget_full(now)
        bucket = self._buckets.pop(key, None) or TokenBucket(self._rate, self._burst)
        # Move it to the end: the least recently used bucket stands first.
        self._buckets[key] = bucket
        missing = round(1 - bucket.available(now), 6)
        if missing > 0:
            return missing / self._rate
        bucket.take(now)
        return 0.0

    def wait(self, key: K) -> float:
        """Return what ``take`` would, and take nothing."""
        bucket = self._buckets.get(key)
        missing = round(1 - bucket.available(self._seconds()), 6) if bucket is not None else 0
        return max(0.0, missing / self._rate)

    def _forget_full(self, now: float) -> None:
        while self._buckets:
            key = next(iter(self._buckets))
            if self._buckets[key].available(now) < self._burst:
                return
            del self._buckets[key]
