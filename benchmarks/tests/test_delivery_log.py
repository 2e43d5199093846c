"""The delivery log notices what no fault excuses."""

from __future__ import annotations

import pytest

from tests.harness.delivery_log import NOBODY, DeliveryLog


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=[True, False], ids=["keep", "open only"])
def log(request: pytest.FixtureRequest) -> DeliveryLog:
    return DeliveryLog(keep=request.param, clock=Clock(), notice_seconds=0.5)


def ends(log: DeliveryLog) -> dict[str, int]:
    """Close the log; returns how many relays ended in which way, and the breaches."""
    log.close()
    found = {**log.count, **log.answers, **log.breaches}
    return {name: count for name, count in found.items() if count and name != "sent"}


def relay(log: DeliveryLog) -> str:
    return log.sent("sender", "target")


def test_a_relay_is_delivered_or_answered(log: DeliveryLog) -> None:
    log.delivered(relay(log), "target")
    log.answered(relay(log), "sender", "dropped")
    assert not log.open()
    assert ends(log) == {"delivered": 1, "dropped": 1}


def test_without_an_end_it_is_lost(log: DeliveryLog) -> None:
    relay(log)
    assert len(log.open("sender")) == 1
    assert ends(log) == {"lost": 1}


def test_a_relay_that_is_delivered_and_answered_is_counted_as_both() -> None:
    log = DeliveryLog()
    for order in (1, -1):
        msg_id = relay(log)
        for step in (0, 1)[::order]:
            log.answered(msg_id, "sender", "dropped") if step else log.delivered(msg_id, "target")
    assert ends(log) == {"both": 2}


def test_a_log_of_open_relays_takes_a_second_end_for_a_breach() -> None:
    log = DeliveryLog(keep=False)
    first, second = relay(log), relay(log)
    log.delivered(first, "target")
    log.delivered(first, "target")
    log.answered(second, "sender", "dropped")
    log.delivered(second, "target")
    log.answered(second, "sender", "dropped")
    assert ends(log) == {
        "delivered": 1,
        "dropped": 1,
        "delivered, but not open": 2,
        "answered, but not open": 1,
    }
    assert not log.relays


def test_twice_late_or_at_the_wrong_peer_is_a_breach() -> None:
    log = DeliveryLog()
    names = [relay(log) for _ in range(4)]
    log.delivered(names[1], "target")
    log.delivered(names[0], "target")
    log.delivered(names[1], "target")
    log.delivered(names[2], "sender")
    log.answered(names[3], "sender", "dropped")
    log.answered(names[3], "sender", "target_not_found")
    log.answered("", "sender", "invalid_message")
    assert dict(log.breaches) == {
        "out of order": 1,
        "delivered twice": 1,
        "delivered to the wrong peer": 1,
        "answered twice": 1,
        "answered, but not open": 1,
    }


def test_an_ended_connection_excuses_only_what_could_be_written_to_it(log: DeliveryLog) -> None:
    relay(log)
    log.ended("target", read_all=False)
    assert not log.open()
    log.clock.now = 1.0
    relay(log)
    assert ends(log) == {"cut": 1, "lost": 1}


def test_after_a_peer_left_only_an_answer_is_right(log: DeliveryLog) -> None:
    relay(log)
    log.ended("target", read_all=False)
    log.peer_left("sender", "target")
    relay(log)
    assert ends(log) == {"cut": 1, "lost": 1}


def test_a_target_that_read_all_excuses_nothing(log: DeliveryLog) -> None:
    relay(log)
    log.ended("target", read_all=True)
    assert len(log.open()) == 1
    assert ends(log) == {"lost": 1}


def test_a_sender_that_goes_early_does_not_read_its_answers(log: DeliveryLog) -> None:
    relay(log)
    log.leaves("sender")
    assert ends(log) == {"unread": 1}


def test_a_sender_that_did_not_read_all_may_have_missed_the_answer(log: DeliveryLog) -> None:
    relay(log)
    log.ended("target", read_all=False)
    log.ended("sender", read_all=False)
    assert ends(log) == {"unread": 1}


def test_a_sender_learns_when_its_relays_have_their_ends(log: DeliveryLog) -> None:
    called = []
    log.on_end["sender"] = lambda: called.append(len(log.open("sender")))
    first, second = relay(log), relay(log)
    log.delivered(first, "target")
    log.answered(second, "sender", "dropped")
    log.sent("sender", "other")
    log.ended("other", read_all=False)
    assert called == [1, 0, 0]


def test_the_counts_of_another_process_are_added(log: DeliveryLog) -> None:
    other = DeliveryLog()
    other.delivered(relay(other), "target")
    relay(other)
    other.close()
    log.answered(relay(log), "sender", "dropped")
    log.add(other.summary())
    assert log.count["sent"] == 3
    assert ends(log)["delivered"] == ends(log)["dropped"] == 1
    assert log.breaches == {"lost": 1}


# Beside a server's own counters


def balances(log: DeliveryLog, **server: int) -> bool:
    """Close the log; returns whether it agrees with a server that counted as given."""
    log.close()
    refused = {code: count for code, count in server.items() if code != "written"}
    written = server.get("written", 0)
    counters = {"accepted": written, "written": written, "undelivered": 0, "waiting": 0, "refused": refused}
    return all(log.balance(counters).values())


def test_delivered_and_answered_relays_balance() -> None:
    log = DeliveryLog(keep=False)
    log.delivered(relay(log), "target")
    log.answered(relay(log), "sender", "dropped")
    log.answered(log.sent("sender", NOBODY), "sender", "invalid_message")
    assert balances(log, written=1, dropped=1, invalid_message=1)
    assert not balances(log, written=2, dropped=1, invalid_message=1)
    assert not balances(log, written=1, invalid_message=1)
    assert not balances(log, written=1, target_not_found=1, invalid_message=1)


def test_a_loss_does_not_balance() -> None:
    log = DeliveryLog(keep=False)
    relay(log)
    assert not balances(log, written=1)


def test_what_was_cut_was_written() -> None:
    log = DeliveryLog(keep=False)
    relay(log)
    log.ended("target", read_all=False)
    assert balances(log, written=1)
    assert not balances(log)


def test_unread_answers_leave_a_tolerance_of_their_number() -> None:
    log = DeliveryLog(keep=False)
    relay(log)
    log.leaves("sender")
    assert balances(log, written=1)
    assert balances(log, dropped=1)
    assert balances(log)
    assert not balances(log, written=1, dropped=1)
    assert not balances(log, written=2)
