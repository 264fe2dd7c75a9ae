from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.fairness import (
    Delivery,
    Interval,
    intersection,
    jain_index,
    largest_difference,
    measure_fairness,
    union,
)
from tests.loadgen.records import record

shares = st.lists(st.just(0.0) | st.floats(1e-3, 1e9), min_size=1, max_size=20)
spans = st.lists(
    st.tuples(st.integers(0, 50), st.integers(1, 20)).map(lambda span: (float(span[0]), float(sum(span)))),
    max_size=12,
)


@given(shares=shares, scale=st.floats(0.01, 100))
def test_jains_index_is_bounded_and_has_no_unit(shares: list[float], scale: float) -> None:
    index = jain_index(shares)
    if not any(shares):
        assert index is None
        return
    assert index is not None
    assert 1 / len(shares) - 1e-9 <= index <= 1 + 1e-9
    assert index == pytest.approx(jain_index([share * scale for share in shares]), rel=1e-6)


def test_jains_index_at_its_ends() -> None:
    assert jain_index([5.0, 5.0, 5.0]) == pytest.approx(1.0)
    assert jain_index([5.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain_index([]) is None


def covers(intervals: list[Interval], moment: float) -> bool:
    return any(start <= moment < end for start, end in intervals)


@given(left=spans, right=spans)
def test_interval_algebra_agrees_with_moments(left: list[Interval], right: list[Interval]) -> None:
    one, two = union(left), union(right)
    both = intersection(one, two)
    for half in range(160):
        moment = half / 2
        assert covers(one, moment) == covers(left, moment)
        assert covers(both, moment) == (covers(left, moment) and covers(right, moment))
    assert all(before[1] < after[0] for before, after in pairwise(one))


deliveries = st.lists(
    st.tuples(st.integers(0, 30).map(float), st.integers(1, 9).map(float)), max_size=15
).map(sorted)


@given(left=deliveries, right=deliveries, together=spans.map(union))
def test_the_largest_difference_is_that_of_the_worst_stretch(
    left: list[Delivery], right: list[Delivery], together: list[Interval]
) -> None:
    worst = 0.0
    for start, end in together:
        moments = sorted({when for when, _ in [*left, *right] if start <= when <= end})
        for first in range(len(moments)):
            for last in range(first, len(moments)):
                ours = sum(amount for when, amount in left if moments[first] <= when <= moments[last])
                theirs = sum(amount for when, amount in right if moments[first] <= when <= moments[last])
                worst = max(worst, abs(ours - theirs))
    assert largest_difference(left, right, together) == pytest.approx(worst)


def test_two_backlogged_tenants_by_weight() -> None:
    records = [
        record(0, tenant="a", sent=0.0, chunks=[1.0, 2.0, 3.0, 4.0], input_tokens=0),
        record(1, tenant="b", sent=0.0, chunks=[2.5, 4.0], input_tokens=0),
    ]
    fairness, service = measure_fairness(records, {"a": 2.0, "b": 1.0})
    assert service == {"a": 8.0, "b": 4.0}
    assert fairness.jain == pytest.approx(1.0)
    assert fairness.jain_backlogged == pytest.approx(1.0)
    assert fairness.backlogged_s == 4.0
    assert fairness.service_difference == pytest.approx(2.0)
    assert fairness.between == ("a", "b")


def test_service_counts_prompts_at_the_first_token_and_spreads_unseen_tokens() -> None:
    records = [record(0, tenant="a", chunks=[1.0, 2.0], input_tokens=10, output_tokens=6)]
    _, service = measure_fairness(records, {"a": 1.0, "b": 1.0})
    assert service == {"a": 10.0 + 2 * 6, "b": 0.0}


def test_tenants_that_never_meet_have_no_difference() -> None:
    records = [record(0, tenant="a", chunks=[1.0]), record(1, tenant="b", sent=5.0, chunks=[6.0])]
    fairness, _ = measure_fairness(records, {"a": 1.0, "b": 1.0})
    assert fairness.service_difference is None
    assert fairness.jain_backlogged is None
    assert fairness.backlogged_s == 0.0
    assert fairness.jain == pytest.approx(1.0)


def test_one_tenant_has_nobody_to_be_fair_to() -> None:
    fairness, service = measure_fairness([record(chunks=[1.0])], {"t": 1.0})
    assert fairness.jain is None
    assert service == {"t": 12.0}
