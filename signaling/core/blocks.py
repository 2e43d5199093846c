"""Which owners of tokens are kept out of which topics, and for how long.

Blocks are in memory only: a restart ends them all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from signaling.core.grants import Grant

MAX_BLOCKS = 10_000
"""How many blocks there may be; one takes about 150 bytes, however long its topic and subject are."""


class Blocks:
    """The blocks of one server.

    Args:
        seconds: returns the time.

    Attributes:
        displaced: how many blocks ended early, because there were too many.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.displaced = 0
        self._seconds = seconds
        self._ends: dict[bytes, float] = {}

    def __len__(self) -> int:
        """Return how many there are; some of them may be over."""
        return len(self._ends)

    def add(self, topic: str, subject: str, issuer: str | None, seconds: float) -> None:
        """Block a subject; this replaces an earlier block. If there are too many, the one that ends first is removed.

        Args:
            seconds: how long.
        """
        now = self._seconds()
        key = _key(topic, subject, issuer)
        self._ends.pop(key, None)
        if len(self._ends) >= MAX_BLOCKS:
            self._ends = {key: end for key, end in self._ends.items() if end > now}
        if len(self._ends) >= MAX_BLOCKS:
            del self._ends[min(self._ends, key=self._ends.__getitem__)]
            self.displaced += 1
        self._ends[key] = now + seconds

    def seconds_left(self, topic: str, grant: Grant) -> float:
        """Return for how much longer a grant's subject is blocked; 0.0 if it is not."""
        if grant.subject is None or not self._ends:
            return 0.0
        key = _key(topic, grant.subject, grant.issuer)
        end = self._ends.get(key)
        if end is None:
            return 0.0
        left = end - self._seconds()
        if left <= 0:
            del self._ends[key]
            return 0.0
        return left


def _key(topic: str, subject: str, issuer: str | None) -> bytes:
    return hashlib.sha256(json.dumps([topic, subject, issuer]).encode()).digest()
