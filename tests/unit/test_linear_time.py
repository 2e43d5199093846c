"""Whatever a client sends, twice as much of it takes at most three times the time: nothing grows by the square.

Times are compared, never judged: what takes no longer than a few ordinary requests or messages is not looked at twice,
for there the length hardly counts. Noise only adds to a measurement, so the least of several is taken, and a case is a
breach only if none of many says otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from benchmarks.worst_case import GROUPS, PRINTABLE, Case, ordinary

_AT_MOST = 3
_FEW = 6
_ATTEMPTS = 12
_COMPARISONS = 3


# Coverage would measure itself.
pytestmark = pytest.mark.unmeasured

# Letters and digits are read alike: these stand for their kinds.
_ALIKE = {repr(byte) for byte in PRINTABLE if byte.isalnum()} - {repr(byte) for byte in (b"0", b"a", b"z", b"Z")}


@pytest.fixture(autouse=True)
def untraced() -> Iterator[None]:
    """Keep the time that a tracer takes for each line, as that of coverage, out of what is measured."""
    tracer = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracer)


@pytest.mark.parametrize("group", GROUPS)
def test_twice_the_bytes_take_at_most_three_times_the_time(group: str) -> None:
    usual = ordinary(group)
    floor = _FEW * min(usual.cost(usual.size) for _ in range(20))
    cases = [case for case in GROUPS[group]() if case.what not in _ALIKE]
    # Noise can last longer than one comparison, but seldom longer than three that each begin anew.
    assert not [str(case) for case in cases if all(grows_too_fast(case, floor) for _ in range(_COMPARISONS))]


def grows_too_fast(case: Case, floor_seconds: float) -> bool:
    whole, half = case.cost(case.size), float("inf")
    for _ in range(_ATTEMPTS):
        if whole <= floor_seconds:
            return False
        half = min(half, case.cost(case.size // 2), case.cost(case.size // 2))
        if whole <= _AT_MOST * half:
            return False
        whole = min(whole, case.cost(case.size))
    return True


@pytest.mark.parametrize(("power", "breach"), [(0, False), (1, False), (2, True)])
def test_what_grows_by_the_square_is_found(power: int, breach: bool) -> None:
    case = _Grows("a place", "bytes", "port", 100, lambda size: [b""] * size**power)
    assert grows_too_fast(case, 0) == breach


class _Grows(Case):
    """A case whose cost is the number of its pieces."""

    def cost(self, size: int) -> float:
        return float(len(self.pieces(size)))
