"""What fairness promises of waits: nobody starves, and everybody reads on. `fair_simulation` says on what."""

from dataclasses import replace

import pytest

from engine.simulator.simulation import Simulation
from tests.engine.fair_simulation import (
    BATCH,
    FAIR,
    GAP_NS,
    MS,
    SETTINGS,
    SLICE_NS,
    longest_gap_s,
    request,
    run_until,
    shares,
    simulation,
)


@FAIR
@pytest.mark.parametrize("num_gpus", [1, 4])
def test_endless_arrivals_starve_nobody(policy, num_gpus):
    """Newcomers go first, but once a prompt is overdue for half the gap bound only those do that came
    earlier. So it waits for 1.5 gaps, and then for those before it to have had a slice: the other old prompts
    and the newcomers of that time, two batches of them."""
    old = [request("t")] * (12 * num_gpus)
    requests = old + [request("t", 1 + i * 0.05 / num_gpus, 12) for i in range(240 * num_gpus)]
    sim = simulation(requests, {"t": 1.0}, policy=policy, num_gpus=num_gpus)
    run_until(sim, 12)
    assert longest_gap_s(sim, len(old)) <= (1.5 * GAP_NS + 3 * SLICE_NS) / 1e9


@FAIR
@pytest.mark.parametrize("num_gpus", [1, 4])
def test_endless_arrivals_of_many_tenants_starve_nobody(policy, num_gpus):
    """Sixteen other tenants send half as much again as fits, for ever. Who is due goes first of its tenant,
    whose turn it is when each tenant has had as much: so behind a slice of each prompt of its tenant, and as
    many of each other tenant, at as many places. Twice, since services differ by that much."""
    num_old, num_others = 4 * num_gpus, 16
    weights = {"old": 1.0} | {f"t{number}": 1.0 for number in range(num_others)}
    arrivals = [request(f"t{i % num_others}", 1 + i * 0.01 / num_gpus, 12) for i in range(900 * num_gpus)]
    sim = simulation([request("old")] * num_old + arrivals, weights, policy=policy, num_gpus=num_gpus)
    run_until(sim, 10)
    assert sim.scheduler.num_waiting() > 200 * num_gpus
    rotation_ns = num_old * len(weights) * SLICE_NS / (BATCH * num_gpus)
    assert longest_gap_s(sim, num_old) <= (1.5 * GAP_NS + 2 * rotation_ns) / 1e9


@FAIR
def test_everybody_reads_on_at_the_floor_while_capacity_allows(policy):
    """Eight places at 100 tokens/s each; twenty readers of 20/s take half of that. From its first token on
    nobody is ever behind its reader by more than what is read between two turns."""
    sim = simulation([request("t")] * 20, {"t": 1.0}, policy=policy)
    run_until(sim, 12)
    floor = SETTINGS.floor_tokens_per_s
    for index in range(20):
        times = sim.token_times_s(index)
        behind = [floor * (at_s - times[0]) - number for number, at_s in enumerate(times)]
        assert max(behind) <= floor * 1.5 * GAP_NS / 1e9
        assert sim.now_ns / 1e9 - times[-1] <= 1.5 * GAP_NS / 1e9


def wish(sim: Simulation, speeds: dict[int, float]) -> None:
    """Once all requests have come, let some have readers with speeds of their own."""
    while len(sim.scheduler.prompts) < 20:
        assert sim.step()
    for index, tokens_per_s in speeds.items():
        sim.scheduler.prompts[str(index)].tokens_per_s = tokens_per_s


def most_behind(sim: Simulation, index: int, tokens_per_s: float) -> float:
    """Tokens that a request was behind a reader of this speed who began with its first, at worst."""
    times = [*sim.token_times_s(index), sim.now_ns / 1e9]
    return max(tokens_per_s * (at_s - times[0]) - number for number, at_s in enumerate(times))


@FAIR
def test_a_reader_with_a_speed_of_its_own_is_kept_busy_while_capacity_allows(policy):
    """As before, but two of the twenty read 50 and 70 tokens/s, most of what a place gives: 480 of 800."""
    speeds = {3: 50.0, 11: 70.0}
    sim = simulation([request("t")] * 20, {"t": 1.0}, policy=policy)
    wish(sim, speeds)
    run_until(sim, 12)
    for index in range(20):
        speed = speeds.get(index, SETTINGS.floor_tokens_per_s)
        assert most_behind(sim, index, speed) <= speed * 1.5 * GAP_NS / 1e9
    unwished = simulation([request("t")] * 20, {"t": 1.0}, policy=policy)
    run_until(unwished, 12)
    assert most_behind(unwished, 11, 70.0) > 10 * most_behind(sim, 11, 70.0)


@FAIR
def test_readers_whom_nothing_is_fast_enough_for_stay_within_their_share(policy):
    """More of them than there are places: those of their own tenant wait no longer than the gap bound and two
    slices, and another tenant has its half."""
    weights = {"greedy": 1.0, "modest": 1.0}
    sim = simulation([request("greedy")] * 12 + [request("modest")] * 8, weights, policy=policy)
    wish(sim, dict.fromkeys(range(10), 5000.0))
    run_until(sim, 12)
    assert shares(sim)["modest"] == pytest.approx(0.5, abs=0.02)
    assert longest_gap_s(sim, 12) <= (1.5 * GAP_NS + 2 * SLICE_NS) / 1e9


@FAIR
def test_a_long_answer_is_done_in_time_though_newcomers_never_end(policy):
    """Ten newcomers a second, of 100 tokens each, want 1,000 tokens/s where 800 are to be had. Who is older
    than its patience of 3 s runs on at 100 tokens/s, but for those that are due; else it had its floor."""
    requests = [request("t", 0.0, 1000)] + [request("t", i * 0.1, 100) for i in range(1, 200)]
    num_tokens = {}
    for patience_ns in (3_000 * MS, 10**15):
        settings = replace(SETTINGS, patience_ns=patience_ns)
        sim = simulation(requests, {"t": 1.0}, policy=policy, settings=settings)
        run_until(sim, 3 + 10 + 3)
        num_tokens[patience_ns] = len(sim.token_times_s(0))
    assert num_tokens[3_000 * MS] == 1000
    assert num_tokens[10**15] < 800


@FAIR
def test_old_prompts_of_a_tenant_are_no_reason_for_another_to_wait(policy):
    """One tenant's eight answers are past all patience; the other has newcomers only."""
    requests = [request("old")] * BATCH + [request("new", 1 + i * 0.1, 100) for i in range(200)]
    settings = replace(SETTINGS, patience_ns=1)
    sim = simulation(requests, {"old": 1.0, "new": 1.0}, policy=policy, settings=settings)
    run_until(sim, 20)
    assert shares(sim)["new"] == pytest.approx(19 / 40, abs=0.03)
