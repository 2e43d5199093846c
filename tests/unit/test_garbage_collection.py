"""What a process that ``twistd`` runs asks of Python's garbage collector."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator

import pytest

from signaling.app.garbage_collection import tune_garbage_collector


class Cycle:
    """As an error makes one: it holds its traceback, whose frame holds the error."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def tuned() -> Iterator[None]:
    before = gc.get_threshold()
    tune_garbage_collector()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def full_collections() -> int:
    count: int = gc.get_stats()[2]["collections"]
    return count


def test_what_is_there_at_the_start_is_left_out_of_collections() -> None:
    assert gc.get_freeze_count() > 10_000
    assert len(gc.get_objects(generation=2)) < 100


def test_thousands_of_connections_cause_no_full_collection() -> None:
    before = full_collections()
    kept = [[number] for number in range(300_000)]
    assert full_collections() == before
    assert len(kept) == 300_000


def test_cycles_are_found_while_they_are_young() -> None:
    before, alive = full_collections(), weakref.WeakSet[Cycle]()
    most = 0
    for _ in range(20_000):
        alive.add(Cycle())
        most = max(most, len(alive))
    assert most < 2 * gc.get_threshold()[0]
    assert full_collections() == before


@pytest.mark.unmeasured
def test_cycles_that_grew_old_are_found_in_the_end() -> None:
    old = [[Cycle()] for _ in range(100_000)]
    cycles = weakref.WeakSet(each[0] for each in old[:100])
    gc.collect(1)
    old.clear()
    if sys.version_info < (3, 14):
        # Later releases may look for old ones in every collection, some at a time.
        gc.collect(1)
        assert len(cycles) == 100
    kept: list[object] = []
    for _ in range(1_500 * gc.get_threshold()[0]):
        kept.append([])
        if not cycles:
            break
    assert not cycles
