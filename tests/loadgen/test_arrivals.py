import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.arrivals import ClosedLoop, Gamma, Poisson, Ramp, TraceTimes, parse_arrivals
from loadgen.spec import SpecError
from loadgen.traces import TraceRow


def rows(count: int, step_s: float | None = None) -> list[TraceRow]:
    return [TraceRow(i + 2, None if step_s is None else 7.0 + i * step_s, 1, 1) for i in range(count)]


def test_poisson_is_the_running_sum_of_the_seeds_draws() -> None:
    source = random.Random(2)
    total, expected = 0.0, []
    for _ in range(300):
        total += source.expovariate(16)
        expected.append(total)
    assert parse_arrivals("poisson:16").times_s(rows(300), 2) == expected  # type: ignore[union-attr]


def test_trace_times_start_at_zero_and_speed_up() -> None:
    assert TraceTimes(speedup=2.0).times_s(rows(3, step_s=4.0), 0) == [0.0, 2.0, 4.0]


def test_a_trace_without_times_needs_a_process() -> None:
    with pytest.raises(SpecError, match="no times"):
        TraceTimes().times_s(rows(2), 0)


def test_constant_is_even() -> None:
    assert parse_arrivals("constant:4").times_s(rows(3), 0) == [0.0, 0.25, 0.5]  # type: ignore[union-attr]


@given(
    process=st.sampled_from([Poisson(3.0), Gamma(3.0, 0.2), Gamma(3.0, 5.0), Ramp(1, 9, 5), Ramp(9, 1, 5)]),
    seed=st.integers(0, 1000),
)
def test_times_ascend_and_follow_the_seed(process: Poisson | Gamma | Ramp, seed: int) -> None:
    times_s = process.times_s(rows(50), seed)
    assert all(before <= after for before, after in pairwise([0.0, *times_s]))
    assert times_s == process.times_s(rows(50), seed)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_keeps_the_rate_and_shapes_the_spread(burstiness: float) -> None:
    times_s = Gamma(10.0, burstiness).times_s(rows(20_000), 1)
    gaps_s = [after - before for before, after in pairwise([0.0, *times_s])]
    mean = sum(gaps_s) / len(gaps_s)
    variance = sum((gap - mean) ** 2 for gap in gaps_s) / len(gaps_s)
    assert mean == pytest.approx(0.1, rel=0.05)
    assert mean**2 / variance == pytest.approx(burstiness, rel=0.1)


@pytest.mark.parametrize(("first", "last"), [(100.0, 500.0), (500.0, 100.0), (300.0, 300.0)])
def test_a_ramp_has_its_rates(first: float, last: float) -> None:
    times_s = Ramp(first, last, 100.0).times_s(rows(50_000), 3)
    start = sum(time_s < 10 for time_s in times_s) / 10
    end = sum(90 <= time_s < 100 for time_s in times_s) / 10
    assert start == pytest.approx(first + (last - first) * 0.05, rel=0.15)
    assert end == pytest.approx(first + (last - first) * 0.95, rel=0.15)
    after = [time_s for time_s in times_s if time_s > 100]
    assert (len(after) - 1) / (after[-1] - after[0]) == pytest.approx(last, rel=0.1)


def test_closed_loops() -> None:
    assert parse_arrivals("closed:8") == ClosedLoop(8)
    assert parse_arrivals("closed:8:0.5") == ClosedLoop(8, 0.5)


@pytest.mark.parametrize(
    "text", ["poisson", "poisson:0", "gamma:1", "ramp:1:2", "closed:0", "burst", "trace:2"]
)
def test_refuses_unknown_forms(text: str) -> None:
    with pytest.raises(SpecError):
        parse_arrivals(text)


def test_every_process_describes_itself() -> None:
    forms = ["trace", "poisson:16", "gamma:2:0.5", "constant:3", "ramp:1:2:30", "closed:4:1"]
    assert [parse_arrivals(form).describe() for form in forms] == [
        "the trace's times",
        "Poisson, 16/s",
        "gamma, 2/s, burstiness 0.5",
        "constant, 3/s",
        "Poisson, 1/s to 2/s within 30 s",
        "closed loop, 4 open, 1 s between",
    ]
