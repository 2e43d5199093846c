"""Peer ids: ULIDs that strictly increase in joining order.

The ULID specification keeps the order within one millisecond; a wall clock that steps back is ours to hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ulid import ULID, ULIDGenerator

ID_CHARACTERS = 26
# A ULID has 48 bits for its milliseconds; clocks are wrong by less than this half of them.
_LAST_MS = 1 << 47


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class PeerIds:
    """Makes the ids of one server's peers.

    Args:
        clock_ms: milliseconds since the Unix epoch.
    """

    def __init__(self, clock_ms: Callable[[], int] = _wall_clock_ms) -> None:
        self._clock_ms = clock_ms
        self._latest_ms = 0
        self._ulids = ULIDGenerator(clock=self._never_back)

    def next(self) -> str:
        """Make an id: 26 characters of Crockford's base 32, greater than every one before."""
        try:
            return str(self._ulids.generate())
        except ValueError:
            # All 80 random bits of this millisecond were ones; the next millisecond has fresh ones.
            self._latest_ms += 1
            return str(self._ulids.generate())

    def follow(self, peer_id: str) -> None:
        """Make every id from now on greater than one that was made elsewhere.

        Raises:
            ValueError: where it is no ULID, or no greater one could be made for long.
        """
        milliseconds = ULID.from_str(peer_id).milliseconds
        if milliseconds >= _LAST_MS:
            raise ValueError(f"{peer_id} is of the end of all time")
        self._latest_ms = max(self._latest_ms, milliseconds + 1)

    def _never_back(self) -> int:
        self._latest_ms = max(self._latest_ms, self._clock_ms())
        return self._latest_ms
