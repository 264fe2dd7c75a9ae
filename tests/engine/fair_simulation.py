"""The real scheduler, planner and policies on simulated GPUs and a manual clock, for tests of fairness.

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
SLICE_NS, REQUEST_NS = 200 * MS, 40 * MS
GAP_NS = 500 * MS
SETTINGS = PlannerSettings(
    target_ns=400 * MS,
    slice_ns=SLICE_NS,
    request_ns=REQUEST_NS,
    min_slice_ns=40 * MS,
    gap_ns=GAP_NS,
    patience_ns=7_000 * MS,
    first_slices=8,
    max_model_len=100_000,
    reserve=0.0,
    floor_tokens_per_s=20.0,
)
ENDLESS = 50_000  # output tokens
INPUT_TOKENS = 32
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
    prefill_ns: int = 1,
    input_tokens: dict[str, int] | None = None,
    settings: PlannerSettings = SETTINGS,
) -> Simulation:
    """Prompts are as long as `input_tokens` says of their tenant."""
    cluster = Cluster(
        num_gpus=num_gpus,
        gpu=Gpu(CostModel(step_ns=STEP_NS, decode_ns=1, prefill_ns=prefill_ns, context_ns=0), 4e12),
        layout=LLAMA_8B,
        pool_pages=pool_pages,
        host_pages=1_000_000,
        peer_link=FREE_LINK,
        host_link=FREE_LINK,
        max_batch=BATCH,
        depth=1,
        message_ns=0,
    )
    lengths = input_tokens or {}
    sendings = []
    for index, (tenant, at_s, output) in enumerate(sorted(requests, key=lambda each: each[1])):
        length = lengths.get(tenant, INPUT_TOKENS)
        row = TraceRow(line=index, arrival_s=None, input_tokens=length, output_tokens=output)
        sendings.append(Sending(index, row, at_s, tenant))
    return Simulation(cluster, policy, settings, sendings, weights)


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


def longest_gap_s(sim: Simulation, num_requests: int) -> float:
    """Of the requests that came first, until now."""
    times = [[*sim.token_times_s(index), sim.now_ns / 1e9] for index in range(num_requests)]
    return max(after - before for each in times for before, after in pairwise(each))
