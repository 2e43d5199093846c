"""The ids of peers: unique, and in the order of joining."""

from __future__ import annotations

import re

from signaling.core.peer_ids import PeerIds


def test_ids_increase_within_one_millisecond() -> None:
    ids = PeerIds(lambda: 1_700_000_000_000)
    made = [ids.next() for _ in range(1000)]
    assert made == sorted(set(made))
    assert all(re.fullmatch("[0-9A-HJKMNP-TV-Z]{26}", peer_id) for peer_id in made)


def test_ids_increase_when_the_clock_steps_back() -> None:
    times = iter([2_000, 1_000, 1_500, 2_000, 2_001])
    ids = PeerIds(lambda: next(times))
    made = [ids.next() for _ in range(5)]
    assert made == sorted(set(made))
