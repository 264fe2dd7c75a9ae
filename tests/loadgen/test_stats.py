import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.results import Counting, ErrorKind, Outcome
from loadgen.stats import Distribution, longest_wait_s, max_in_flight, percentile, summarize
from tests.loadgen.records import record, run_info

values = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


@given(values=values, q=st.floats(0, 100))
def test_percentiles_lie_between_neighbours(values: list[float], q: float) -> None:
    ascending = sorted(values)
    rank = q / 100 * (len(ascending) - 1)
    got = percentile(ascending, q)
    assert ascending[int(rank)] - 1e-6 <= got <= ascending[min(int(rank) + 1, len(ascending) - 1)] + 1e-6


@given(values=st.lists(st.floats(0, 1e6), min_size=2, max_size=60))
def test_percentiles_agree_with_the_inclusive_quantiles_of_the_library(values: list[float]) -> None:
    quantiles = statistics.quantiles(values, n=100, method="inclusive")
    ascending = sorted(values)
    for q in (50, 90, 99):
        assert percentile(ascending, q) == pytest.approx(quantiles[q - 1], rel=1e-9, abs=1e-9)


def test_a_distribution_of_nothing_is_none() -> None:
    assert Distribution.of([]) is None
    assert Distribution.of([3.0]) == Distribution(count=1, mean=3.0, p50=3.0, p90=3.0, p99=3.0, max=3.0)


def test_a_failed_request_is_counted_apart_and_never_as_fast() -> None:
    good = [record(i, sent=float(i), chunks=[i + 2.0, i + 4.0]) for i in range(3)]
    bad = record(
        3, sent=0.0, chunks=[0.001], outcome=Outcome.FAILED, error=ErrorKind.CUT, output_tokens=1, end_s=0.002
    )
    alone = summarize(run_info(num_planned=3), good)
    both = summarize(run_info(num_planned=4), [*good, bad])
    assert both.latencies == alone.latencies
    assert both.output_tokens == alone.output_tokens == both.tenants["t"].output_tokens == 6
    assert (both.failed, both.finished, both.errors) == (1, 3, {"stream cut": 1})


def test_the_summary_of_a_small_run() -> None:
    records = [
        record(0, sent=1.0, chunks=[1.5, 1.6, 3.0], counted_by=Counting.USAGE),
        record(1, sent=2.0, chunks=[4.0, 5.0], asked_output_tokens=4),
        record(
            2, sent=3.0, chunks=[], outcome=Outcome.FAILED, error=ErrorKind.HTTP, http_status=429, end_s=3.5
        ),
        record(3, sent=4.0, chunks=[5.0], outcome=Outcome.INTERRUPTED, end_s=7.0),
    ]
    summary = summarize(run_info(num_planned=6), records)
    assert (summary.sent, summary.finished, summary.failed, summary.interrupted, summary.not_sent) == (
        4,
        2,
        1,
        1,
        2,
    )
    assert (summary.errors, summary.num_short, summary.num_without_usage) == ({"http 429": 1}, 1, 1)
    assert (summary.duration_s, summary.sent_per_s) == (6.0, 1.0)
    assert (summary.output_tokens, summary.output_tokens_per_s) == (6, 1.0)
    assert summary.max_in_flight == 2
    latencies = summary.latencies
    assert latencies.ttft is not None
    assert (latencies.ttft.count, latencies.ttft.max) == (2, 2.0)
    assert latencies.gap is not None
    assert latencies.gap.count == 3
    assert latencies.longest_gap is not None
    assert latencies.longest_gap.max == pytest.approx(1.4)
    assert latencies.per_token is not None
    assert latencies.per_token.p50 == pytest.approx((0.75 + 1.0) / 2)
    assert summary.starvation is not None
    assert (summary.starvation.wait_s, summary.starvation.index) == (2.0, 3)


def test_the_longest_wait_counts_first_tokens_gaps_and_unhappy_ends() -> None:
    assert longest_wait_s(record(sent=1.0, chunks=[4.0, 5.0])) == 3.0
    assert longest_wait_s(record(sent=1.0, chunks=[2.0, 5.0])) == 3.0
    assert longest_wait_s(record(sent=1.0, chunks=[2.0], end_s=9.0)) == 1.0
    assert longest_wait_s(record(sent=1.0, chunks=[2.0], end_s=9.0, outcome=Outcome.FAILED)) == 7.0
    assert longest_wait_s(record(sent=1.0, chunks=[], end_s=9.0, outcome=Outcome.FAILED)) == 8.0


def test_one_that_starts_as_another_ends_is_not_beside_it() -> None:
    assert max_in_flight([record(0, sent=0.0, chunks=[1.0]), record(1, sent=1.0, chunks=[2.0])]) == 1


def test_a_run_that_sent_nothing_has_a_summary() -> None:
    summary = summarize(run_info(num_planned=5), [])
    assert (summary.sent, summary.not_sent, summary.output_tokens_per_s) == (0, 5, 0.0)
    assert summary.starvation is None
    assert summary.latencies.ttft is None
