from hypothesis import given
from hypothesis import strategies as st

from loadgen.curves import cdf, running_curve, service_curve, thin, tokens_curve, waiting_curve
from loadgen.results import Outcome
from tests.loadgen.records import record


@given(values=st.lists(st.floats(0, 1e6), max_size=3000), failed=st.integers(0, 50))
def test_a_cdf_rises_to_the_part_that_did_not_fail(values: list[float], failed: int) -> None:
    xs, ys = cdf(values, len(values) + failed)
    assert xs == sorted(xs)
    assert ys == sorted(ys)
    assert len(xs) <= 1602
    if values:
        assert xs[-1] == max(values)
        assert ys[-1] == len(values) / (len(values) + failed)


def test_thinning_keeps_the_last_point() -> None:
    xs, ys = thin(list(range(10_000)), list(range(10_000)))
    assert (xs[0], xs[-1], ys[-1]) == (0, 9999, 9999)


def test_running_and_waiting() -> None:
    records = [
        record(0, sent=0.0, chunks=[2.0, 5.0]),
        record(1, sent=1.0, chunks=[], outcome=Outcome.FAILED, end_s=3.0),
    ]
    assert waiting_curve(records) == ([0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 1.0, 0.0])
    assert running_curve(records) == ([2.0, 5.0], [1.0, 0.0])


def test_token_rates_add_up_to_the_tokens() -> None:
    records = [record(0, chunks=[1.0, 4.0, 6.0], output_tokens=9)]
    middles, rates = tokens_curve(records, num_bins=3)
    assert middles == [1.0, 3.0, 5.0]
    assert sum(rates) * 2.0 == 9.0
    assert tokens_curve([]) == ([], [])


def test_service_sums_up_by_weight() -> None:
    records = [record(0, tenant="a", chunks=[1.0, 2.0], input_tokens=4), record(1, tenant="b")]
    assert service_curve(records, "a", 2.0) == ([1.0, 2.0], [3.0, 4.0])
