"""What fairness promises: shares of GPU time, credit and debt, isolation. `fair_simulation` says on what."""

from itertools import pairwise

import pytest

from loadgen.results import RequestRecord
from tests.engine.fair_simulation import (
    BATCH,
    FAIR,
    INPUT_TOKENS,
    SLICE_NS,
    STEP_NS,
    request,
    run_until,
    service_ns,
    shares,
    simulation,
)


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
@pytest.mark.parametrize("num_early", [0, 12])
def test_idling_banks_no_credit(policy, num_early):
    """A tenant that comes 20 s late, or comes back then, gets its half from then on, not what it missed."""
    weights = {"busy": 1.0, "late": 1.0}
    requests = [request("busy")] * 12 + [request("late", 20.0)] * 12
    requests += [request("late", output=50)] * num_early
    sim = simulation(requests, weights, policy=policy)
    run_until(sim, 20)
    before = service_ns(sim)
    run_until(sim, 40)
    gained = {tenant: served - before.get(tenant, 0) for tenant, served in service_ns(sim).items()}
    assert gained["late"] / sum(gained.values()) == pytest.approx(0.5, abs=0.03)


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
def test_the_gaps_of_a_tenant_under_its_share_are_the_same_in_a_flood(policy):
    """A modest tenant asks for a tenth of the GPU, another floods it. The step time is fixed, so what the
    modest one feels is the planner's doing."""
    modest = [request("modest", 1 + i * 0.5, 20) for i in range(16)]
    flood = [request("flood", output=200)] * 60
    alone, flooded = (
        [b - a for record in modest_records(policy, requests) for a, b in pairwise(record.chunk_s)]
        for requests in (modest, modest + flood)
    )
    assert sum(flooded) / len(flooded) <= 1.1 * sum(alone) / len(alone)
    assert max(flooded) <= max(alone) + 2 * STEP_NS / 1e9


@FAIR
def test_the_first_tokens_of_a_tenant_under_its_share_come_as_soon_in_a_flood(policy):
    """Its prompts take 0.2 s to compute, and a place is free a step after it is asked for."""
    modest = [request("modest", 1 + i * 1.0, 20) for i in range(16)]
    flood = [request("flood", output=200)] * 100
    alone, flooded = (
        max(record.ttft_s for record in modest_records(policy, requests, input_tokens=4000))
        for requests in (modest, modest + flood)
    )
    assert alone > 0.2
    assert flooded <= 1.1 * alone


def modest_records(policy: str, requests: list, input_tokens: int = INPUT_TOKENS) -> list[RequestRecord]:
    """Those of the tenant "modest", whose prompts are so long."""
    weights = {"modest": 1.0, "flood": 1.0}
    lengths = {"modest": input_tokens}
    sim = simulation(requests, weights, policy=policy, prefill_ns=50_000, input_tokens=lengths)
    return [record for record in sim.run() if record.tenant == "modest"]


@pytest.mark.parametrize("num_gpus", [1, 4])
@pytest.mark.parametrize("policy", ["cfs", "eevdf", "fcfs", "vtc"])
def test_no_gpu_idles_while_work_waits(policy, num_gpus):
    requests = [request("a" if i % 2 else "b", 0.0, 100) for i in range(40 * num_gpus)]
    sim = simulation(requests, {"a": 1.0, "b": 1.0}, policy=policy, num_gpus=num_gpus)
    while sim.step():
        if sim.scheduler.num_waiting():
            busy = [device.running for device in sim.scheduler.devices.values()]
            assert sim.now_ns == 0 or all(busy)
