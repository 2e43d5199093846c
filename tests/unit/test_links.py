"""Relays between two nodes, and what became of each."""

from __future__ import annotations

import pytest

from signaling.backplane.links import Incoming, Outgoing
from signaling.backplane.messages import Ask, Outcomes, Relay, Relays
from signaling.errors import ErrorCode

RELAY = ("room", "to", "from", b"frame")


class Relayed:
    """Keeps what became of a relay."""

    def __init__(self) -> None:
        self.outcome: ErrorCode | str | None = None

    def delivered(self) -> None:
        self.outcome = "delivered"

    def failed(self, code: ErrorCode) -> None:
        self.outcome = code


@pytest.fixture
def link() -> Outgoing:
    return Outgoing("origin", lambda message, done: done(1))


def send(link: Outgoing) -> Relayed | None:
    relayed = Relayed()
    if not link.send(RELAY, relayed, 0.0):
        return None
    link.flush("here", 0)
    return relayed


def outcomes(
    delivered: list[tuple[int, int]] | None = None,
    failed: list[tuple[int, str]] | None = None,
    held: list[int] | None = None,
) -> Outcomes:
    return Outcomes("origin", "there", delivered or [], failed or [], held or [])


def test_a_run_of_more_than_was_ever_sent_ends_what_was(link: Outgoing) -> None:
    first, second = send(link), send(link)
    link.hear(outcomes([(-5, 2**62)]), 0.0)
    assert first is not None
    assert second is not None
    assert (first.outcome, second.outcome, len(link)) == ("delivered", "delivered", 0)


def test_a_code_that_only_another_version_knows_is_dropped(link: Outgoing) -> None:
    relayed = send(link)
    link.hear(outcomes(failed=[(1, "too_early")]), 0.0)
    assert relayed is not None
    assert relayed.outcome is ErrorCode.DROPPED


def test_what_waits_for_its_target_takes_no_room_from_others(link: Outgoing) -> None:
    held = [send(link) for _ in range(1024)]
    assert send(link) is None
    link.hear(outcomes(held=[1, 1, 2]), 0.0)
    assert [send(link) is None for _ in range(3)] == [False, False, True]
    link.hear(outcomes([(1, 3)]), 0.0)
    assert [relayed.outcome for relayed in held[:4] if relayed] == ["delivered"] * 3 + [None]
    assert [send(link) is None for _ in range(2)] == [False, True]


def test_outcomes_that_the_origin_asks_no_more_about_are_forgotten() -> None:
    incoming = Incoming("origin", "there")
    for number in range(1, 6):
        incoming.receive(Relays("origin", "here", 1, 0, [Relay(number, *RELAY)]))
        if number != 2:
            incoming.settle(number, None, 0.0)
    told = incoming.asked(Ask("origin", "here", 4, [2, 4]), 0.0)
    assert (told.delivered, told.held) == ([(4, 4)], [2])
    told = incoming.asked(Ask("origin", "here", 5, [1, 2, 3, 4, 5]), 0.0)
    assert (told.delivered, told.failed, told.held) == ([(4, 5)], [(1, "dropped"), (3, "dropped")], [2])
