"""Peer ids: ULIDs that strictly increase in the order of joining, also if the wall clock steps back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ulid import ULID
from ulid.base32 import ENCODE

ID_CHARACTERS = 26
# A ULID has 48 bits for its milliseconds; a time in the upper half is an error.
_MAX_MS = 1 << 47
_RANDOM_BYTES = 10
_RANDOM_BITS = 8 * _RANDOM_BYTES
# Two characters of Crockford's base 32, by ten bits.
_PAIRS = [one + other for one in ENCODE for other in ENCODE]
_SHIFTS = range(120, -1, -10)


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class PeerIds:
    """Generates the ids of one server's peers, in less than half of the time that the library takes.

    Args:
        clock_ms: milliseconds since the Unix epoch.
    """

    def __init__(self, clock_ms: Callable[[], int] = _wall_clock_ms) -> None:
        self._clock_ms = clock_ms
        # The latest id, as a number.
        self._latest = 0

    def next(self) -> str:
        """Return a new id: 26 characters of Crockford's base 32, greater than all before."""
        ms = self._clock_ms()
        if ms > self._latest >> _RANDOM_BITS:
            self._start(ms)
        else:
            self._latest += 1
        latest, pairs = self._latest, _PAIRS
        return "".join([pairs[latest >> shift & 1023] for shift in _SHIFTS])

    def advance_past(self, peer_id: str) -> None:
        """Make all further ids greater than an id of another node.

        Raises:
            ValueError: it is not a ULID, or its time is out of range.
        """
        ms = ULID.from_str(peer_id).milliseconds
        if ms >= _MAX_MS:
            raise ValueError(f"{peer_id} has a time that is out of range")
        if ms >= self._latest >> _RANDOM_BITS:
            self._start(ms + 1)

    def _start(self, ms: int) -> None:
        # Random in every millisecond: other nodes make ids as well.
        self._latest = ms << _RANDOM_BITS | int.from_bytes(os.urandom(_RANDOM_BYTES))
