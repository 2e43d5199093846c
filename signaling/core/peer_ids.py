"""Peer ids: ULIDs that strictly increase in the order of joining, also if the wall clock steps back."""

from __future__ import annotations

import time
from collections.abc import Callable

from ulid import ULID, ULIDGenerator

ID_CHARACTERS = 26
# A ULID has 48 bits for its milliseconds; a time in the upper half is an error.
_MAX_MS = 1 << 47


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class PeerIds:
    """Generates the ids of one server's peers.

    Args:
        clock_ms: milliseconds since the Unix epoch.
    """

    def __init__(self, clock_ms: Callable[[], int] = _wall_clock_ms) -> None:
        self._clock_ms = clock_ms
        self._latest_ms = 0
        self._ulids = ULIDGenerator(clock=self._monotonic_ms)

    def next(self) -> str:
        """Return a new id: 26 characters of Crockford's base 32, greater than all before."""
        try:
            return str(self._ulids.generate())
        except ValueError:
            # The 80 random bits of this millisecond overflowed: use the next millisecond.
            self._latest_ms += 1
            return str(self._ulids.generate())

    def advance_past(self, peer_id: str) -> None:
        """Make all further ids greater than an id of another node.

        Raises:
            ValueError: it is not a ULID, or its time is out of range.
        """
        milliseconds = ULID.from_str(peer_id).milliseconds
        if milliseconds >= _MAX_MS:
            raise ValueError(f"{peer_id} has a time that is out of range")
        self._latest_ms = max(self._latest_ms, milliseconds + 1)

    def _monotonic_ms(self) -> int:
        self._latest_ms = max(self._latest_ms, self._clock_ms())
        return self._latest_ms
