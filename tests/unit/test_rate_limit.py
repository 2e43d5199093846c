"""Token buckets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from signaling.admission.rate_limit import TokenBucket, TokenBuckets


def test_a_bucket_allows_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(2.0, 3)
    assert [bucket.take(10.0) for _ in range(4)] == [2.0, 1.0, 0.0, -1.0]
    assert bucket.take(11.0) == 0.0


def test_a_bucket_holds_no_more_than_its_burst() -> None:
    bucket = TokenBucket(2.0, 3)
    bucket.take(0.0)
    assert bucket.available(1000.0) == 3


def test_setting_the_clock_back_removes_no_tokens() -> None:
    bucket = TokenBucket(2.0, 3)
    bucket.take(10_000.0)
    assert [bucket.take(6_400.0) for _ in range(3)] == [1.0, 0.0, -1.0]
    assert bucket.take(6_401.0) == 0.0


def test_another_rate_counts_from_when_it_is_set() -> None:
    bucket = TokenBucket(2.0, 10)
    bucket.take(0.0, 10)
    bucket.change_rate(1.0, 2.0)
    assert bucket.available(2.0) == 4
    assert bucket.available(5.0) == 7


@given(st.lists(st.floats(0, 10), max_size=200), st.integers(1, 20), st.floats(0.1, 100))
def test_burst_and_rate_are_never_exceeded(pauses: list[float], burst: int, rate: float) -> None:
    now, given_since_start, bucket = 0.0, 0, TokenBucket(rate, burst)
    for pause in pauses:
        now += pause
        if bucket.available(now) >= 1:
            bucket.take(now)
            given_since_start += 1
    assert given_since_start <= burst + now * rate + 1e-6


def test_each_key_has_its_own_bucket_and_full_buckets_are_deleted() -> None:
    now = [0.0]
    buckets: TokenBuckets[str] = TokenBuckets(1.0, 2, lambda: now[0])
    assert [buckets.take("a") for _ in range(3)] == [0.0, 0.0, 1.0]
    for n in range(1000):
        assert buckets.take(f"other {n}") == 0.0
    now[0] = 2.0
    assert buckets.take("a") == 0.0
    assert len(buckets) == 1


def test_a_refused_request_takes_no_token() -> None:
    now = [0.0]
    buckets: TokenBuckets[str] = TokenBuckets(1.0, 1, lambda: now[0])
    assert [buckets.take("a") > 0 for _ in range(100)] == [False] + [True] * 99
    now[0] = 1.0
    assert buckets.take("a") == 0.0
