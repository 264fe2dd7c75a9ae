"""Limits per minute, on a clock of the test's."""

from hypothesis import given
from hypothesis import strategies as st

from engine.token_bucket import NS_PER_MINUTE, TokenBucket

SECOND_NS = 1_000_000_000


def test_it_starts_full_and_fills_evenly() -> None:
    bucket = TokenBucket(600, now_ns=5)
    assert bucket.level(5) == 600
    bucket.take(600, 5)
    assert bucket.wait_ns(1, 5) == SECOND_NS // 10
    assert bucket.level(5 + 3 * SECOND_NS) == 30
    assert bucket.wait_ns(30, 5 + 3 * SECOND_NS) == 0
    assert bucket.level(5 + 10 * NS_PER_MINUTE) == 600


def test_a_debt_is_paid_before_anything_passes() -> None:
    bucket = TokenBucket(60, now_ns=0)
    bucket.take(150, 0)
    assert bucket.level(0) == -90
    assert bucket.wait_ns(1, 0) == 91 * SECOND_NS


def test_more_than_it_holds_passes_when_it_is_full() -> None:
    bucket = TokenBucket(60, now_ns=0)
    assert bucket.wait_ns(1000, 0) == 0
    bucket.take(1, 0)
    assert bucket.wait_ns(1000, 0) == SECOND_NS


def test_what_was_used_stays_used_under_another_limit() -> None:
    bucket = TokenBucket(60, now_ns=0)
    bucket.take(50, 0)
    bucket.change(100)
    assert bucket.level(0) == 50
    bucket.change(40)
    assert bucket.level(0) == -10


@given(st.integers(1, 10**6), st.lists(st.tuples(st.integers(0, 10**11), st.integers(0, 10**6)), max_size=30))
def test_nobody_gets_more_than_the_rate(per_minute: int, asks: list[tuple[int, int]]) -> None:
    """Whoever waits as told never passes more than the bucket and what flowed in, but for the last."""
    bucket, now_ns, passed, last = TokenBucket(per_minute, 0), 0, 0, 0
    for pause_ns, amount in asks:
        now_ns += pause_ns
        now_ns += bucket.wait_ns(amount, now_ns)
        assert bucket.wait_ns(amount, now_ns) == 0
        bucket.take(amount, now_ns)
        passed, last = passed + amount, amount
    assert passed - last <= per_minute + now_ns * per_minute / NS_PER_MINUTE
