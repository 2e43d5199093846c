"""The books of a load on several nodes notice what no fault excuses."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.books import Books


@dataclass(eq=False)
class Peer:
    id: str
    node: str = "a"
    ended_at: float | None = None
    read_all: bool = False


def ends(books: Books) -> dict[str, int]:
    """Close the books; returns how many relays ended in which way, and what must not be, beside."""
    return {**books.close().count, **books.breaches}


def load() -> tuple[Books, Peer, Peer]:
    return Books(), Peer("sender"), Peer("target", "b")


def relay(books: Books, sender: Peer, target: Peer) -> str:
    return str(books.enter(sender, target))


def test_a_relay_is_delivered_or_answered() -> None:
    books, sender, target = load()
    books.arrived(relay(books, sender, target), target)
    books.answered(relay(books, sender, target), sender, "dropped")
    assert not [*books.open()]
    assert ends(books) == {"delivered": 1, "dropped": 1}


def test_what_has_neither_end_is_lost() -> None:
    books, sender, target = load()
    relay(books, sender, target)
    assert len([*books.open()]) == 1
    assert ends(books) == {"lost": 1, "lost without a word": 1}


def test_what_is_delivered_and_answered_is_told() -> None:
    books, sender, target = load()
    name = relay(books, sender, target)
    books.arrived(name, target)
    books.answered(name, sender, "dropped")
    assert ends(books) == {"both": 1}


def test_what_comes_twice_or_late_or_to_somebody_else_is_a_breach() -> None:
    books, sender, target = load()
    names = [relay(books, sender, target) for _ in range(4)]
    books.arrived(names[1], target)
    books.arrived(names[0], target)
    books.arrived(names[1], target)
    books.arrived(names[2], sender)
    for code in ("dropped", "target_not_found"):
        books.answered(names[3], sender, code)
    books.answered("", sender, "invalid_message")
    assert dict(books.breaches) == {
        "out of order": 1,
        "delivered twice": 1,
        "delivered to the wrong peer": 1,
        "answered twice": 1,
        "answered to the wrong peer": 1,
    }


def test_a_dead_connection_excuses_only_what_could_be_written_to_it() -> None:
    books, sender, target = load()
    relay(books, sender, target)
    target.ended_at = books.relays[0].sent
    relay(books, sender, target)
    books.relays[1].sent += 1
    assert ends(books) == {"cut": 1, "lost": 1, "lost without a word": 1}


def test_a_target_that_read_all_excuses_nothing() -> None:
    books, sender, target = load()
    relay(books, sender, target)
    target.ended_at, target.read_all = books.relays[0].sent + 1, True
    assert len([*books.open()]) == 1
    assert ends(books) == {"lost": 1, "lost without a word": 1}


def test_nobody_hears_what_became_of_the_relays_of_a_sender_that_is_gone() -> None:
    books, sender, target = load()
    relay(books, sender, target)
    sender.ended_at = books.relays[0].sent
    assert ends(books) == {"unheard": 1}
