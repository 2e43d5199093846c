"""The books of the load tools notice what a server may not do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from benchmarks.client import End, Message
from benchmarks.ledger import Ledger, Party

READ_ALL = End(1000, True)
CUT_OFF = End(None, False)


class Wire(asyncio.Transport):
    """Takes what a client writes."""

    def write(self, data: bytes) -> None:
        pass


def books(play: Callable[[Ledger, Party], None], **server: int) -> dict[str, bool]:
    """Return what the books say after ``play`` with a sender, beside a server that counted as given."""

    async def keep() -> dict[str, bool]:
        ledger = Ledger()
        sender = Party(ledger)
        sender.connection_made(Wire())
        play(ledger, sender)
        ledger.close()
        refused = {code: count for code, count in server.items() if code not in ("written", "undelivered")}
        written, undelivered = server.get("written", 0), server.get("undelivered", 0)
        counters = {"accepted": written + undelivered, "written": written, "undelivered": undelivered, "waiting": 0}
        return ledger.check({**counters, "refused": refused})

    return asyncio.run(keep())


def relay(sender: Party) -> str:
    sender.relay("offer", "reader", b"1")
    return max(sender.waiting["reader"], key=int)


def dropped(msg_id: str) -> Message:
    return Message("error", code="dropped", msg_id=msg_id)


def hear_of_its_end(sender: Party) -> None:
    """Let the sender hear that the reader left, and the answer to its fence."""
    sender.heard(Message("peer-left", peer_id="reader"))
    (fence,) = sender.waiting[""]
    sender.heard(Message("error", code="missing_target", msg_id=fence))


def test_delivered_and_refused_messages_balance() -> None:
    def play(ledger: Ledger, sender: Party) -> None:
        ledger.arrived(relay(sender), "reader")
        sender.heard(dropped(relay(sender)))

    assert all(books(play, written=1, dropped=1).values())
    assert not all(books(play, written=2, dropped=1).values())
    assert not all(books(play, written=1).values())
    assert not all(books(play, written=1, target_not_found=1).values())


def test_a_message_that_nobody_heard_of_is_lost() -> None:
    assert not all(books(lambda ledger, sender: relay(sender) and None, written=1).values())


def test_a_message_that_arrives_twice_or_after_its_error_is_noticed() -> None:
    def twice(ledger: Ledger, sender: Party) -> None:
        msg_id = relay(sender)
        ledger.arrived(msg_id, "reader")
        ledger.arrived(msg_id, "reader")

    def both(ledger: Ledger, sender: Party) -> None:
        msg_id = relay(sender)
        sender.heard(dropped(msg_id))
        ledger.arrived(msg_id, "reader")

    assert not all(books(twice, written=1).values())
    assert not all(books(both, dropped=1).values())


def test_a_message_at_the_wrong_peer_is_noticed() -> None:
    assert not all(books(lambda ledger, sender: ledger.arrived(relay(sender), "other"), written=1).values())


def test_what_was_written_to_a_connection_that_was_cut_is_no_loss() -> None:
    def play(ledger: Ledger, sender: Party) -> None:
        relay(sender)
        hear_of_its_end(sender)
        ledger.ended("reader", CUT_OFF)

    assert all(books(play, written=1, missing_target=1).values())


def test_what_was_accepted_for_a_reader_that_read_all_is_a_loss() -> None:
    def play(ledger: Ledger, sender: Party) -> None:
        relay(sender)
        ledger.ended("reader", READ_ALL)
        hear_of_its_end(sender)

    assert not all(books(play, written=1, missing_target=1).values())


def test_a_sender_that_left_early_leaves_a_play_of_its_own_messages() -> None:
    def play(ledger: Ledger, sender: Party) -> None:
        relay(sender)
        sender.left_early = True

    for server in ({"written": 1}, {"dropped": 1}, {}):
        assert all(books(play, **server).values())
    assert not all(books(play, written=1, dropped=1).values())
    assert not all(books(play, written=2).values())
