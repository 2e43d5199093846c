"""Relays between two nodes, and their outcomes, without a network."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from signaling.backplane.messages import OutcomeQuery, Outcomes, RelayBatch, decode, encode, runs
from signaling.backplane.relay_link import IncomingLink, OutgoingLink
from signaling.errors import ErrorCode


class Sent:
    """A relay's sender, and the outcomes that it got."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []

    def delivered(self) -> None:
        self.outcomes.append("delivered")

    def failed(self, code: ErrorCode) -> None:
        self.outcomes.append(str(code))


class Link:
    """An origin, its link to a target, and what is on the way between the two."""

    def __init__(self) -> None:
        self.messages: list[RelayBatch | OutcomeQuery] = []
        self.replies: list[Callable[[int | None], None]] = []
        self.outgoing = OutgoingLink("origin", self._send)
        self.incoming = IncomingLink("origin", "target")

    def _send(self, message: RelayBatch | OutcomeQuery, done: Callable[[int | None], None]) -> None:
        self.messages.append(decode(encode(message)))
        self.replies.append(done)

    def send(self, count: int = 1, size: int = 10) -> list[Sent]:
        sent = [Sent() for _ in range(count)]
        for each in sent:
            assert self.outgoing.send(("room", "to", "from", b"x" * size), each, 0.0)
            self.outgoing.flush("origin's node", 99)
        return sent

    def arrive(self) -> list[int]:
        """Let the oldest message arrive, and report that to its sender; returns the numbers to deliver."""
        message = self.messages.pop(0)
        self.replies.pop(0)(1)
        return [relay.number for relay in self.incoming.receive(message)]

    def finish(self, *numbers: int, code: ErrorCode | None = None) -> None:
        for number in numbers:
            self.incoming.finish(number, code, 0.0)
        self.outgoing.apply_outcomes(self.incoming.take_report(), 0.0)


@pytest.fixture
def link() -> Link:
    return Link()


def test_what_is_sent_while_a_publication_is_under_way_goes_together_with_the_next(link: Link) -> None:
    link.send(5)
    assert link.arrive() == [1]
    assert link.arrive() == [2, 3, 4, 5]


def test_each_sender_gets_its_own_outcome_once(link: Link) -> None:
    sent = link.send(3)
    link.arrive(), link.arrive()
    link.finish(1, 3)
    link.finish(2, code=ErrorCode.TARGET_NOT_FOUND)
    link.finish(1, 2, 3)
    assert [each.outcomes for each in sent] == [["delivered"], ["target_not_found"], ["delivered"]]


def test_what_nobody_listened_to_is_dropped(link: Link) -> None:
    sent = link.send(2)
    link.replies.pop(0)(0)
    assert (sent[0].outcomes, sent[1].outcomes) == (["dropped"], [])


def test_what_was_lost_is_asked_about_and_then_refused_should_it_still_come(link: Link) -> None:
    sent = link.send()
    late = link.messages.pop()
    link.replies.pop()(None)
    link.outgoing.query("origin's node", 0.0)
    question = link.messages.pop()
    assert isinstance(question, OutcomeQuery)
    link.outgoing.apply_outcomes(link.incoming.answer(question, 0.0), 0.0)
    assert sent[0].outcomes == ["dropped"]
    assert link.incoming.receive(late) == []


def test_an_outcome_that_was_lost_is_reported_again_when_asked_for(link: Link) -> None:
    sent = link.send(2)
    link.arrive(), link.arrive()
    link.incoming.finish(1, None, 0.0)
    link.incoming.take_report()
    link.outgoing.query("origin's node", 0.0)
    link.outgoing.apply_outcomes(link.incoming.answer(link.messages.pop(), 0.0), 0.0)
    assert [each.outcomes for each in sent] == [["delivered"], []]


def test_recent_relays_are_not_asked_about(link: Link) -> None:
    link.send()
    link.outgoing.query("origin's node", -1.0)
    assert [type(message) for message in link.messages] == [RelayBatch]


def test_too_many_on_the_way_are_refused_and_those_that_wait_at_the_target_are_not_counted(link: Link) -> None:
    link.send(1024)
    assert not link.outgoing.send(("room", "to", "from", b""), Sent(), 0.0)
    link.arrive()
    link.incoming.hold(1)
    link.outgoing.apply_outcomes(link.incoming.take_report(), 0.0)
    assert link.outgoing.send(("room", "to", "from", b""), Sent(), 0.0)


def test_too_many_bytes_on_the_way_are_refused(link: Link) -> None:
    link.send(8, size=1 << 20)
    assert not link.outgoing.send(("room", "to", "from", b"x"), Sent(), 0.0)


def test_what_its_sender_gave_up_on_is_not_published_later(link: Link) -> None:
    _, waiting = link.send(2)
    link.replies.pop(0)(None)
    link.messages.clear()
    link.outgoing.give_up(0.0)
    link.outgoing.flush("origin's node", 99)
    assert waiting.outcomes == ["dropped"]
    assert link.messages == []


def test_large_relays_are_published_apart(link: Link) -> None:
    link.send(3, size=600_000)
    assert [link.arrive(), link.arrive(), link.arrive()] == [[1], [2], [3]]


def test_outcomes_of_what_was_never_sent_change_nothing(link: Link) -> None:
    [sent] = link.send()
    link.outgoing.apply_outcomes(Outcomes("origin", "target", [(-5, 10**15)], [(10**15, "dropped")], [10**15]), 0.0)
    assert sent.outcomes == ["delivered"]


def test_a_code_that_only_another_version_knows_is_dropped(link: Link) -> None:
    [sent] = link.send()
    link.outgoing.apply_outcomes(Outcomes("origin", "target", [], [(1, "too_early")], []), 0.0)
    assert sent.outcomes == ["dropped"]


def test_outcomes_that_the_origin_asks_no_more_about_are_forgotten(link: Link) -> None:
    link.send(5)
    link.arrive(), link.arrive()
    for number in (1, 3, 4, 5):
        link.incoming.finish(number, None, 0.0)
    outcomes = link.incoming.answer(OutcomeQuery("origin", "here", 4, [2, 4]), 0.0)
    assert (outcomes.delivered, outcomes.held) == ([(4, 4)], [2])
    outcomes = link.incoming.answer(OutcomeQuery("origin", "here", 5, [1, 2, 3, 4, 5]), 0.0)
    assert (outcomes.delivered, outcomes.failed, outcomes.held) == ([(4, 5)], [(1, "dropped"), (3, "dropped")], [2])


def test_numbers_are_reported_in_runs() -> None:
    assert runs([1, 2, 3, 5, 8, 9]) == [(1, 3), (5, 5), (8, 9)]


@pytest.mark.parametrize(
    "data", [b"", b"joined", b"left 1.1 x y 3\nabc", b"\xc1", b"\x90", b"[]", b"moved 1.1 1 p 99999\n"]
)
def test_what_is_neither_an_event_nor_a_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the text does not matter
        decode(data)
