"""Who counts as dead."""

from __future__ import annotations

from signaling.backplane.failure_detector import Suspect, Watch


def looks(watch: Watch, seconds: range, beats: dict[str, bytes], *mentioned: str) -> list[Suspect]:
    """Look once a second; returns the last look's suspects."""
    suspects: list[Suspect] = []
    for second in seconds:
        suspects = watch.look(beats, mentioned, float(second))
    return suspects


def test_a_node_that_does_not_beat_is_dead_after_the_patience() -> None:
    watch = Watch(10, 3)
    assert looks(watch, range(10), {"a": b"7"}) == []
    assert looks(watch, range(10, 11), {"a": b"7"}) == [Suspect("a", b"7")]


def test_each_beat_begins_the_patience_anew() -> None:
    watch = Watch(10, 3)
    looks(watch, range(9), {"a": b"7"})
    assert looks(watch, range(9, 19), {"a": b"8"}) == []
    assert looks(watch, range(19, 20), {"a": b"8"}) == [Suspect("a", b"8")]


def test_time_in_which_nobody_looked_does_not_count() -> None:
    watch = Watch(10, 3)
    looks(watch, range(5), {"a": b"7"})
    assert looks(watch, range(60, 63), {"a": b"7"}) == []
    assert looks(watch, range(63, 70), {"a": b"7"}) == [Suspect("a", b"7")]


def test_a_node_that_the_store_does_not_know_is_watched_where_its_peers_are_mentioned() -> None:
    watch = Watch(10, 3)
    assert looks(watch, range(10), {}, "a") == []
    assert looks(watch, range(10, 11), {}, "a") == [Suspect("a", b"")]
    assert looks(watch, range(11, 12), {}) == []


def test_a_node_that_the_store_forgot_keeps_its_time() -> None:
    watch = Watch(10, 3)
    looks(watch, range(6), {"a": b"7"})
    assert looks(watch, range(6, 10), {}, "a") == []
    assert looks(watch, range(10, 11), {}, "a") == [Suspect("a", b"")]
