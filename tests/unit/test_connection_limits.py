"""How the bounds on connections follow the limit on open files."""

from __future__ import annotations

import pytest

from signaling import Limits
from signaling.admission import file_limits
from signaling.admission.connection_limits import Admission


def admission(file_limit: int, **limits: int) -> Admission:
    return Admission(Limits(**limits), file_limit, lambda: 0.0)


@pytest.mark.parametrize("file_limit", [64, 256, 1024, 20_000, 1_048_576])
def test_connections_never_take_the_process_s_own_descriptors(file_limit: int) -> None:
    bounds = admission(file_limit)
    assert bounds.most >= 1
    assert bounds.spare >= 8
    assert bounds.most + bounds.spare + file_limits.own_files(file_limit) == file_limit
    assert 1 <= bounds.accepts_per_pass <= file_limits.own_files(file_limit) // 4


def test_the_usual_limit_leaves_room_for_most() -> None:
    assert (admission(1024).most, admission(1024).spare) == (832, 128)


def test_more_than_the_limit_allows_is_not_promised() -> None:
    bounds = admission(1024, max_connections=1000)
    assert (bounds.most, bounds.shortfall) == (832, 168)
    assert admission(1024, max_connections=800).shortfall == 0


def test_select_knows_no_more_than_1024() -> None:
    class SelectReactor:
        pass

    assert file_limits.file_limit(SelectReactor()) <= 1024
