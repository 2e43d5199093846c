"""Which nodes are suspected to be dead."""

from __future__ import annotations

from signaling.backplane.failure_detector import FailureDetector, Suspect


def checks(detector: FailureDetector, seconds: range, heartbeats: dict[str, bytes], *expected: str) -> list[Suspect]:
    """Check once a second; returns the suspects of the last check."""
    suspects: list[Suspect] = []
    for second in seconds:
        suspects = detector.check(heartbeats, expected, float(second))
    return suspects


def test_a_node_without_heartbeats_is_suspected_after_the_timeout() -> None:
    detector = FailureDetector(10, 3)
    assert checks(detector, range(10), {"a": b"7"}) == []
    assert checks(detector, range(10, 11), {"a": b"7"}) == [Suspect("a", b"7")]


def test_each_heartbeat_restarts_the_timeout() -> None:
    detector = FailureDetector(10, 3)
    checks(detector, range(9), {"a": b"7"})
    assert checks(detector, range(9, 19), {"a": b"8"}) == []
    assert checks(detector, range(19, 20), {"a": b"8"}) == [Suspect("a", b"8")]


def test_time_without_a_check_does_not_count() -> None:
    detector = FailureDetector(10, 3)
    checks(detector, range(5), {"a": b"7"})
    assert checks(detector, range(60, 63), {"a": b"7"}) == []
    assert checks(detector, range(63, 70), {"a": b"7"}) == [Suspect("a", b"7")]


def test_a_node_that_the_store_does_not_list_is_suspected_if_it_is_expected() -> None:
    detector = FailureDetector(10, 3)
    assert checks(detector, range(10), {}, "a") == []
    assert checks(detector, range(10, 11), {}, "a") == [Suspect("a", b"")]
    assert checks(detector, range(11, 12), {}) == []


def test_a_node_that_the_store_forgot_keeps_its_time() -> None:
    detector = FailureDetector(10, 3)
    checks(detector, range(6), {"a": b"7"})
    assert checks(detector, range(6, 10), {}, "a") == []
    assert checks(detector, range(10, 11), {}, "a") == [Suspect("a", b"")]
