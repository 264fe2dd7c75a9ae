"""How long the engine takes to plan a slice of 64 prompts out of 10,000 that wait, and to admit a request.

    python -m bench.planner [--queued N] [--batch N] [--repeat N]

Giving slices is one plan for an idle device with room. An exchange is the worst plan there is: all 64 turns
are used up and lose against the queue, so 64 contexts are mirrored, as many evicted, and 64 others start;
under fcfs the 64 have ended by themselves, and others follow. Admission is what the engine does between the
arrival of a `Submit` and the prompt's place in the fair queue; beside it stands the time that the built-in
byte tokenizer takes for the same prompt. Times are CPU time of the thread.
"""

import argparse
import gc
import itertools
import random
import statistics
import time

import msgspec

from bench.report import print_rows
from engine.admission import Admission
from engine.byte_tokenizer import ByteTokenizer
from engine.config import QueueConfig
from engine.fairness import make_policy
from engine.memory.page import LayerGroup, PageLayout
from engine.memory.pool import PagePool
from engine.memory.store import ContextStore
from engine.messages import CostModel, PromptSpec, Report, Sampling, Step, Submit
from engine.planner import PlannerSettings
from engine.process import GC_THRESHOLDS
from engine.scheduler import Scheduler

STEP_NS = 10_000_000
LAYOUT = PageLayout((LayerGroup(tuple(range(32))),), 16, 32, 8, 128, 2)


def make_scheduler(policy: str, batch: int, num_pages: int) -> Scheduler:
    settings = PlannerSettings(
        target_ns=400_000_000,
        slice_ns=200_000_000,
        request_ns=40_000_000,
        min_slice_ns=25_000_000,
        gap_ns=500_000_000,
        patience_ns=7_000_000_000,
        first_slices=100_000,
        max_model_len=8192,
        reserve=0.1,
        floor_tokens_per_s=25.0,
    )
    store = ContextStore(LAYOUT, shares_prefixes=True)
    store.add_tier(PagePool(9, 200_000, LAYOUT.page_bytes))
    scheduler = Scheduler(
        make_policy(
            policy,
            slice_ns=settings.slice_ns,
            request_ns=settings.request_ns,
            granularity_ns=settings.min_slice_ns,
        ),
        store,
        settings,
    )
    cost = CostModel(step_ns=STEP_NS, decode_ns=1e4, prefill_ns=1e4, context_ns=1.0)
    scheduler.runner_up("gpu", PagePool(1, num_pages, LAYOUT.page_bytes, first=1), batch, cost)
    return scheduler


def submit(number: int, num_tenants: int) -> Submit:
    first = 1000 * number  # so that no two prompts begin alike
    ids = list(range(first, first + random.Random(number).randint(50, 400)))
    spec = PromptSpec(prompt_id=f"p{number}", input_ids=ids, sampling=Sampling(max_tokens=1000))
    return Submit(request_id=f"r{number}", model="m", prompts=[spec], tenant=f"t{number % num_tenants}")


def time_plans(policy: str, queued: int, batch: int, repeat: int, num_tenants: int) -> list[int]:
    """Nanoseconds of each plan, with turns of `batch` prompts nearly used up at every plan."""
    scheduler = make_scheduler(policy, batch, num_pages=20_000)
    now_ns = 0
    for number in range(queued + batch):
        request = submit(number, num_tenants)
        scheduler.submit("api", request, request.prompts[0], now_ns)
    gc.freeze()
    times = []
    for _ in range(repeat + 3):
        began_ns = time.thread_time_ns()
        plans = scheduler.plan(now_ns)
        times.append(time.thread_time_ns() - began_ns)
        now_ns = play(scheduler, plans, now_ns)
    return times[3:]


def time_first_plans(policy: str, queued: int, batch: int, repeat: int) -> list[int]:
    """Nanoseconds of the plan that gives `batch` of `queued` prompts a slice on a device with room."""
    times = []
    for _ in range(repeat):
        scheduler = make_scheduler(policy, batch, num_pages=20_000)
        for number in range(queued):
            request = submit(number, 1)
            scheduler.submit("api", request, request.prompts[0], 0)
        gc.freeze()
        began_ns = time.thread_time_ns()
        plans = scheduler.plan(0)
        times.append(time.thread_time_ns() - began_ns)
        assert sum(len(plan.slices) for _, plan in plans) == batch
    return times


def play(scheduler: Scheduler, plans: list, now_ns: int) -> int:
    """Carry the plans out as a runner would: moves at once, then steps until turns are nearly used up."""
    moves = [{"move_id": m.move_id, "duration_ns": 1} for _, plan in plans for m in plan.moves]
    ends = []
    device = scheduler.devices["gpu"]
    report = msgspec.convert({"moves": moves, "ends": ends}, Report)
    scheduler.on_report("gpu", report, now_ns)
    while True:
        now_ns += STEP_NS
        rows = [(p, p.turn.next_id or p.turn.slice_id) for p in device.running]
        step = Step(
            step_ns=STEP_NS,
            idle_ns=0,
            slice_ids=[slice_id for _, slice_id in rows],
            fed=[p.num_tokens - p.context.computed for p, _ in rows],
            computed=[p.num_tokens for p, _ in rows],
            tokens=[7] * len(rows),
        )
        scheduler.on_report("gpu", Report(steps=[step]), now_ns)
        used_up = [p for p in device.running if p.turn.until <= len(p.output_ids) or p.turn.is_ending]
        if used_up:
            ended = [
                {
                    "slice_id": p.turn.next_id or p.turn.slice_id,
                    "computed": p.context.computed,
                    "reason": "used",
                }
                for p in used_up
            ]
            scheduler.on_report("gpu", msgspec.convert({"ends": ended}, Report), now_ns)
            return now_ns


def time_admission(repeat: int) -> tuple[list[int], list[int]]:
    """Nanoseconds to admit a request, and to tokenize its prompt."""
    scheduler = make_scheduler("cfs", 64, num_pages=20_000)
    admission, tokenizer = (
        Admission(QueueConfig(max_prompts=10**9, max_tokens=10**12), time.monotonic_ns),
        ByteTokenizer(),
    )
    decoder = msgspec.msgpack.Decoder(Submit)
    admit, tokenize = [], []
    for number in itertools.islice(itertools.count(), repeat):
        frame = msgspec.msgpack.encode(submit(number, 4))
        began_ns = time.thread_time_ns()
        request = decoder.decode(frame)
        admission.admit(request, 8192)
        scheduler.submit("api", request, request.prompts[0], began_ns)
        admit.append(time.thread_time_ns() - began_ns)
        text = "a" * len(request.prompts[0].input_ids)
        began_ns = time.thread_time_ns()
        tokenizer.encode(text)
        tokenize.append(time.thread_time_ns() - began_ns)
    return admit, tokenize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=200)
    options = parser.parse_args()
    gc.set_threshold(*GC_THRESHOLDS)  # as in the engine's process
    rows = []
    for policy in ("cfs", "fcfs"):
        times = time_first_plans(policy, options.queued, options.batch, max(5, options.repeat // 10))
        name = f"give {options.batch} of {options.queued:,} prompts a slice, {policy}"
        rows.append((name, f"{statistics.median(times) / 1e6:.3f} ms", "limit 1 ms"))
    for policy, num_tenants in (("cfs", 1), ("cfs", 100), ("fcfs", 1)):
        times = time_plans(policy, options.queued, options.batch, options.repeat, num_tenants)
        what = "exchange all" if policy == "cfs" else "follow"
        name = f"{what} {options.batch} turns, {options.queued:,} wait, {policy}, {num_tenants} tenants"
        rows.append((name, f"{statistics.median(times) / 1e6:.3f} ms", "limit 1 ms"))
    admit, tokenize = time_admission(2000)
    reference = f"limit 100 us; tokenizing {statistics.median(tokenize) / 1e3:.1f} us"
    rows.append(("admit a request", f"{statistics.median(admit) / 1e3:.1f} us", reference))
    print_rows(("what", "median", "beside"), rows)


if __name__ == "__main__":
    main()
