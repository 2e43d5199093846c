"""How the bounds on connections follow the limit on open files."""

from __future__ import annotations

import pytest

from signaling import Limits
from signaling.admission import open_files
from signaling.admission.client_address import Client
from signaling.admission.connection_limits import ConnectionLimits
from signaling.errors import Refused


def connection_limits(file_limit: int, **limits: int) -> ConnectionLimits:
    return ConnectionLimits(Limits(**limits), file_limit, lambda: 0.0)


@pytest.mark.parametrize("file_limit", [64, 256, 1024, 20_000, 1_048_576])
def test_connections_never_take_the_process_s_own_descriptors(file_limit: int) -> None:
    bounds = connection_limits(file_limit)
    assert bounds.most >= 1
    assert bounds.spare >= 8
    assert bounds.most + bounds.spare + open_files.own_files(file_limit) == file_limit
    assert 1 <= bounds.accepts_per_pass <= open_files.own_files(file_limit) // 4


def test_the_usual_limit_leaves_room_for_most() -> None:
    assert (connection_limits(1024).most, connection_limits(1024).spare) == (832, 128)


def test_more_than_the_limit_allows_is_not_promised() -> None:
    bounds = connection_limits(1024, max_connections=1000)
    assert (bounds.most, bounds.shortfall) == (832, 168)
    assert connection_limits(1024, max_connections=800).shortfall == 0


def test_select_knows_no_more_than_1024() -> None:
    class SelectReactor:
        pass

    assert open_files.file_limit(SelectReactor()) <= 1024


ADA, BOB = Client("192.0.2.1", "192.0.2.1"), Client("192.0.2.2", "192.0.2.2")


def test_a_released_slot_is_free_for_another_client() -> None:
    bounds = connection_limits(1024, max_connections=1)
    slot = bounds.admit(ADA)
    with pytest.raises(Refused, match="the server is full") as full:
        bounds.admit(BOB)
    assert full.value.status == 503
    slot.release()
    bounds.admit(BOB)


def test_a_slot_is_released_once() -> None:
    bounds = connection_limits(1024, max_connections=2, max_connections_per_address=1)
    slot = bounds.admit(ADA)
    bounds.admit(BOB)
    slot.release()
    slot.release()
    bounds.admit(ADA)
    with pytest.raises(Refused):
        bounds.admit(Client("192.0.2.3", "192.0.2.3"))


def test_a_transferred_slot_needs_no_further_room() -> None:
    bounds = connection_limits(1024, max_connections=1, max_connections_per_address=1)
    first = bounds.admit(ADA)
    second = first.transfer(ADA).transfer(BOB)
    first.release()
    with pytest.raises(Refused):
        bounds.admit(ADA)
    second.release()
    bounds.admit(ADA)


def test_a_slot_is_still_held_if_the_other_connection_is_refused() -> None:
    bounds = connection_limits(1024, max_connections=3, max_connections_per_address=1)
    slot = bounds.admit(ADA)
    bounds.admit(BOB)
    with pytest.raises(Refused, match=r"192\.0\.2\.2") as refused:
        slot.transfer(BOB)
    assert refused.value.status == 429
    with pytest.raises(Refused):
        bounds.admit(ADA)
    slot.release()
    bounds.admit(ADA)


def test_a_released_slot_cannot_be_transferred() -> None:
    slot = connection_limits(1024).admit(ADA)
    slot.release()
    with pytest.raises(RuntimeError):
        slot.transfer(ADA)
