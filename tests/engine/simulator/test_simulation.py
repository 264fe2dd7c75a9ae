"""Known cases whose times can be worked out by hand, and what must hold whatever the policy."""

from dataclasses import replace

import pytest

from engine.messages import CostModel
from engine.planner import PlannerSettings
from engine.simulator.hardware import FREE_LINK, LLAMA_8B, Cluster, Gpu, LinkSpeed
from engine.simulator.simulation import Simulation
from loadgen.arrivals import ClosedLoop, Poisson, TraceTimes
from loadgen.plan import schedule
from loadgen.tenants import parse_tenants
from loadgen.traces import TraceRow

MS = 1_000_000
SETTINGS = PlannerSettings(
    target_ns=400 * MS,
    slice_ns=200 * MS,
    request_ns=40 * MS,
    min_slice_ns=25 * MS,
    gap_ns=500 * MS,
    patience_ns=7_000 * MS,
    first_slices=8,
    max_model_len=4096,
    reserve=0.0,
    floor_tokens_per_s=25.0,
)
GPU = Gpu(CostModel(step_ns=10 * MS, decode_ns=0, prefill_ns=0, context_ns=0), 4e12)


def simulate(num_rows, *, rate=100.0, policy="cfs", output=50, **cluster):
    rows = [
        TraceRow(line=i + 1, arrival_s=None, input_tokens=64, output_tokens=output) for i in range(num_rows)
    ]
    sendings = schedule(rows, Poisson(rate), parse_tenants("round-robin:2"), 1, None)
    shape = {
        "num_gpus": 1,
        "gpu": GPU,
        "layout": LLAMA_8B,
        "pool_pages": 64,
        "host_pages": 10_000,
        "peer_link": FREE_LINK,
        "host_link": FREE_LINK,
        "depth": 1,
        "message_ns": 0,
    }
    simulation = Simulation(
        Cluster(**(shape | cluster)), policy, SETTINGS, sendings, {"tenant-1": 1.0, "tenant-2": 1.0}
    )
    records = simulation.run()
    simulation.scheduler.check_integrity()
    return simulation, records


def test_one_prompt_takes_its_steps():
    _, [record] = simulate(1)
    assert record.ttft_s == pytest.approx(0.010)
    assert record.completion_s == pytest.approx(0.500)


def test_prefill_pays_for_the_positions_that_it_looks_back_on():
    gpu = replace(GPU, attention_ns=1000.0)
    for max_step_tokens, num_steps in ((2048, 1), (16, 4)):
        _, [record] = simulate(1, output=1, gpu=gpu, max_step_tokens=max_step_tokens)
        attention_s = sum(range(1, 65)) * 1e-6  # however the prompt was cut into chunks
        assert record.ttft_s == pytest.approx(0.010 * num_steps + attention_s)


@pytest.mark.parametrize("policy", ["cfs", "eevdf", "fcfs", "vtc"])
@pytest.mark.parametrize(
    "shape", [{}, {"num_gpus": 4}, {"depth": 2, "message_ns": 200_000, "peer_pages": 50}]
)
def test_every_request_gets_its_tokens(policy, shape):
    simulation, records = simulate(60, policy=policy, **shape)
    assert [record.output_tokens for record in records] == [50] * 60
    store = simulation.scheduler.store
    pools = (*store.local_pools.values(), *store.tiers.values())
    assert store.num_cached_pages() == {pool.pool_id: pool.num_used for pool in pools if pool.num_used}
    assert simulation.machine().num_preemptions > 0 or policy in ("fcfs", "vtc")


def test_the_same_seed_gives_the_same_times():
    one, other = (simulate(40, depth=2, message_ns=200_000)[1] for _ in range(2))
    assert one == other


def test_slow_links_show_as_time_that_compute_waits():
    simulation, _ = simulate(30, pool_pages=9, host_link=LinkSpeed(2e8, 0))
    free, _ = simulate(30, pool_pages=9)
    assert free.machine().stall_ns == 0
    assert simulation.machine().stall_ns == simulation.scheduler.counters.wait_ns > 0
    assert simulation.machine().end_ns > free.machine().end_ns


def test_a_closed_loop_has_so_many_open_and_pauses_between():
    rows = [TraceRow(line=i, arrival_s=None, input_tokens=8, output_tokens=10) for i in range(6)]
    loop = ClosedLoop(users=2, think_s=0.5)
    sendings = schedule(rows, loop, parse_tenants("round-robin:1"), 1, None)
    cluster = Cluster(1, GPU, LLAMA_8B, 64, 1000, depth=1, message_ns=0)
    records = Simulation(cluster, "cfs", SETTINGS, sendings, {"tenant-1": 1.0}, closed_loop=loop).run()
    assert [record.sent_s for record in records] == pytest.approx([0, 0, 0.6, 0.61, 1.2, 1.22])
    assert [record.output_tokens for record in records] == [10] * 6


def test_an_engine_that_plans_answers_all_that_came_meanwhile_at_once():
    simulation, records = simulate(40, plan_ns=30 * MS)
    quick, _ = simulate(40)
    assert [record.output_tokens for record in records] == [50] * 40
    assert simulation.scheduler.counters.plans < quick.scheduler.counters.plans


def test_requests_with_the_same_blocks_share_prefixes():
    rows = [
        TraceRow(line=1, arrival_s=0.0, input_tokens=1000, output_tokens=5, hash_ids=(3, 4)),
        TraceRow(line=2, arrival_s=1.0, input_tokens=1000, output_tokens=5, hash_ids=(3, 5)),
    ]
    sendings = schedule(rows, TraceTimes(), parse_tenants("round-robin:1"), 1, None)
    cluster = Cluster(
        num_gpus=1,
        gpu=GPU,
        layout=LLAMA_8B,
        pool_pages=1000,
        host_pages=0,
        peer_link=FREE_LINK,
        host_link=FREE_LINK,
        depth=1,
        message_ns=0,
    )
    computed = {}
    for shares_prefixes in (True, False):
        simulation = Simulation(
            cluster, "cfs", SETTINGS, sendings, {"tenant-1": 1.0}, shares_prefixes=shares_prefixes
        )
        simulation.run()
        computed[shares_prefixes] = simulation.scheduler.counters.computed_tokens
    assert computed[False] - computed[True] == 512
