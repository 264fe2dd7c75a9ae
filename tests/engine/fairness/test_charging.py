import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.fairness.charging import share
from engine.messages import CostModel

COST = CostModel(step_ns=4_600_000.0, decode_ns=8_000.0, prefill_ns=23_000.0, context_ns=33.0)


@given(
    step_ns=st.integers(0, 10**12),
    rows=st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 10**6), st.none() | st.just(7)), min_size=1),
)
def test_shares_sum_to_the_step(step_ns: int, rows: list[tuple[int, int, int | None]]) -> None:
    fed, context, tokens = map(list, zip(*rows, strict=True))
    computed = [before + n for before, n in zip(context, fed, strict=True)]
    shares = share(step_ns, fed, computed, tokens, COST)
    assert sum(shares) == step_ns
    assert min(shares) >= 0


def test_a_step_costs_what_the_model_says() -> None:
    fed, computed, tokens = [1, 1, 100], [1000, 4000, 5100], [5, 6, None]
    costs = [
        COST.step_ns / 3 + COST.decode_ns + 1000 * COST.context_ns,
        COST.step_ns / 3 + COST.decode_ns + 4000 * COST.context_ns,
        COST.step_ns / 3 + 100 * COST.prefill_ns + 5100 * COST.context_ns,  # 5,000 of them from the cache
    ]
    assert share(round(sum(costs)), fed, computed, tokens, COST) == pytest.approx(costs, abs=2)


def test_a_last_chunk_of_prefill_is_prefill() -> None:
    shares = share(1_000_000, [64, 64], [64, 64], [None, 9], COST)
    assert shares == pytest.approx([500_000, 500_000], abs=1)


def test_nobody_and_nothing() -> None:
    assert share(5, [], [], [], COST) == []
    free = CostModel(decode_ns=0.0, prefill_ns=0.0)
    assert share(10, [1, 1, 1], [1, 1, 1], [1, 1, 1], free) == [3, 3, 4]
