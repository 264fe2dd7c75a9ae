"""What fairness promises, of the real scheduler, planner and policies on simulated GPUs and a manual clock.

A step takes 10 ms whatever is in it, a GPU has room for eight prompts at a time, and moves are free, so that
what is measured is the planner's doing.
"""

from collections.abc import Sequence
from itertools import pairwise

import pytest

from engine.messages import CostModel
from engine.planner import PlannerSettings
from engine.simulator.hardware import FREE_LINK, LLAMA_8B, Cluster, Gpu
from engine.simulator.simulation import Simulation
from loadgen.plan import Sending
from loadgen.traces import TraceRow

MS = 1_000_000
STEP_NS = 10 * MS
BATCH = 8
SLICE_NS = 200 * MS
GAP_NS = 500 * MS
SETTINGS = PlannerSettings(
    target_ns=400 * MS,
    slice_ns=SLICE_NS,
    min_slice_ns=40 * MS,
    gap_ns=GAP_NS,
    first_slices=8,
    max_model_len=100_000,
    reserve=0.0,
    floor_tokens_per_s=20.0,
)
ENDLESS = 50_000  # output tokens
FAIR = pytest.mark.parametrize("policy", ["cfs", "eevdf"])


def request(tenant: str, at_s: float = 0.0, output: int = ENDLESS) -> tuple[str, float, int]:
    return tenant, at_s, output


def simulation(
    requests: Sequence[tuple[str, float, int]],
    weights: dict[str, float],
    *,
    policy: str = "cfs",
    num_gpus: int = 1,
    pool_pages: int = 100_000,
) -> Simulation:
    cluster = Cluster(
        num_gpus=num_gpus,
        gpu=Gpu(CostModel(step_ns=STEP_NS, decode_ns=1, prefill_ns=1, context_ns=0), 4e12),
        layout=LLAMA_8B,
        pool_pages=pool_pages,
        host_pages=1_000_000,
        peer_link=FREE_LINK,
        host_link=FREE_LINK,
        max_batch=BATCH,
        depth=1,
        message_ns=0,
    )
    sendings = [
        Sending(
            index, TraceRow(line=index, arrival_s=None, input_tokens=32, output_tokens=output), at_s, tenant
        )
        for index, (tenant, at_s, output) in enumerate(sorted(requests, key=lambda each: each[1]))
    ]
    return Simulation(cluster, policy, SETTINGS, sendings, weights)


def service_ns(sim: Simulation) -> dict[str, int]:
    """GPU time by tenant, that of slices which have not ended included."""
    totals = dict(sim.scheduler.service_by_tenant())
    for prompt in sim.scheduler.prompts.values():
        totals[prompt.task.tenant] = totals.get(prompt.task.tenant, 0) + prompt.uncharged_ns
    return totals


def run_until(sim: Simulation, end_s: float) -> None:
    while sim.now_ns < end_s * 1e9 and sim.step():
        pass


def shares(sim: Simulation) -> dict[str, float]:
    totals = service_ns(sim)
    return {tenant: total / sum(totals.values()) for tenant, total in totals.items()}


@FAIR
@pytest.mark.parametrize("num_gpus", [1, 4])
def test_weighted_service_of_backlogged_tenants_differs_by_a_constant(policy, num_gpus):
    """The constant of `fairness.two_level`: n places, turns that are charged at most L = SLICE_NS."""
    weights = {"light": 1.0, "heavy": 3.0}
    requests = [request(tenant) for tenant in weights for _ in range(12 * num_gpus)]
    sim = simulation(requests, weights, policy=policy, num_gpus=num_gpus)
    bound_ns = 2 * BATCH * num_gpus * SLICE_NS / min(weights.values())
    worst_ns = 0.0
    while sim.now_ns < 16e9 and sim.step():
        served = service_ns(sim)
        by_weight = [served.get(tenant, 0) / weight for tenant, weight in weights.items()]
        worst_ns = max(worst_ns, max(by_weight) - min(by_weight))
    assert worst_ns <= bound_ns
    assert min(service_ns(sim).values()) > bound_ns  # long enough that the bound says something


@FAIR
def test_shares_follow_weights_within_two_percent(policy):
    weights = {"a": 1.0, "b": 2.0, "c": 5.0}
    sim = simulation([request(tenant) for tenant in weights for _ in range(12)], weights, policy=policy)
    while sim.scheduler.counters.slices < 10_000:
        assert sim.step()
    for tenant, share in shares(sim).items():
        assert share == pytest.approx(weights[tenant] / 8, rel=0.02)


@FAIR
def test_splitting_into_a_hundred_prompts_gains_nothing(policy):
    weights = {"one": 1.0, "many": 1.0}
    requests = [request("one")] * BATCH + [request("many")] * 100
    sim = simulation(requests, weights, policy=policy)
    run_until(sim, 40)
    assert shares(sim)["many"] == pytest.approx(0.5, abs=0.015)


@FAIR
def test_a_flood_of_one_token_prompts_gains_nothing(policy):
    weights = {"worker": 1.0, "flood": 1.0}
    requests = [request("worker")] * BATCH + [request("flood", i * 0.001, 1) for i in range(6_000)]
    sim = simulation(requests, weights, policy=policy)
    run_until(sim, 6)
    assert shares(sim)["flood"] < 0.53


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
    gaps = []
    for index in range(len(old)):
        times = [*sim.token_times_s(index), sim.now_ns / 1e9]
        gaps.append(max(after - before for before, after in pairwise(times)))
    assert max(gaps) <= 1.5 * GAP_NS / 1e9 + 3 * SLICE_NS / 1e9


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
    for index in (10, 11):
        times = [*sim.token_times_s(index), sim.now_ns / 1e9]
        assert max(after - before for before, after in pairwise(times)) <= (1.5 * GAP_NS + 2 * SLICE_NS) / 1e9


@FAIR
def test_idling_banks_no_credit(policy):
    """A tenant that comes 20 s late gets its half from then on, not what it missed."""
    weights = {"busy": 1.0, "late": 1.0}
    requests = [request("busy")] * 12 + [request("late", 20.0)] * 12
    sim = simulation(requests, weights, policy=policy)
    run_until(sim, 20)
    before = service_ns(sim)["busy"]
    run_until(sim, 40)
    served = service_ns(sim)
    assert served["late"] / (served["late"] + served["busy"] - before) == pytest.approx(0.5, abs=0.03)


@FAIR
def test_aborting_and_resubmitting_erases_no_debt(policy):
    """One tenant aborts all its prompts every half second and sends them again."""
    weights = {"steady": 1.0, "restless": 1.0}
    requests = [request("steady")] * 12
    requests += [request("restless", i * 0.5) for i in range(60) for _ in range(12)]
    sim = simulation(requests, weights, policy=policy)
    for round_number in range(60):
        run_until(sim, round_number * 0.5 + 0.499)
        for prompt_id, prompt in list(sim.scheduler.prompts.items()):
            if prompt.task.tenant == "restless":
                sim.scheduler.abort(prompt_id, sim.now_ns)
    assert shares(sim)["restless"] < 0.53


@FAIR
def test_preemption_and_migration_keep_the_books(policy):
    """Pages for five contexts on each of four GPUs: prompts are preempted and move, and shares stay."""
    weights = {"a": 1.0, "b": 2.0}
    requests = [request(tenant, output=4000) for tenant in weights for _ in range(30)]
    sim = simulation(requests, weights, policy=policy, num_gpus=4, pool_pages=300)
    run_until(sim, 12)
    counters = sim.scheduler.store.counters
    assert sim.scheduler.planner.num_preemptions > 100
    assert any({source, target} <= {1, 2, 3, 4} for source, target in counters.moved_pages)
    assert shares(sim)["a"] == pytest.approx(1 / 3, abs=0.02)


@FAIR
def test_a_tenant_under_its_share_does_not_feel_a_flood(policy):
    """A modest tenant asks for a tenth of the GPU; another floods it. The step time is fixed, so what the
    modest one feels is the planner's doing: a wait for a place."""
    modest = [request("modest", 1 + i * 0.5, 20) for i in range(16)]
    flood = [request("flood", 0.0, 200)] * 60
    weights = {"modest": 1.0, "flood": 1.0}

    def figures(requests: list) -> tuple[float, float]:
        sim = simulation(requests, weights, policy=policy)
        records = [r for r in sim.run() if r.tenant == "modest"]
        ttft = sorted(record.ttft_s for record in records)[len(records) // 2]
        gaps = [b - a for r in records for a, b in pairwise(r.chunk_s)]
        return ttft, sum(gaps) / len(gaps)

    alone, flooded = figures(modest), figures(modest + flood)
    step_s = STEP_NS / 1e9
    assert flooded[0] <= 1.1 * alone[0] + 2 * step_s  # a place is free one step after it is asked for
    assert flooded[1] <= 1.1 * alone[1]


@pytest.mark.parametrize("num_gpus", [1, 4])
@pytest.mark.parametrize("policy", ["cfs", "eevdf", "fcfs", "vtc"])
def test_no_gpu_idles_while_work_waits(policy, num_gpus):
    requests = [request("a" if i % 2 else "b", 0.0, 100) for i in range(40 * num_gpus)]
    sim = simulation(requests, {"a": 1.0, "b": 1.0}, policy=policy, num_gpus=num_gpus)
    while sim.step():
        if sim.scheduler.num_waiting():
            busy = [device.running for device in sim.scheduler.devices.values()]
            assert sim.now_ns == 0 or all(busy)
