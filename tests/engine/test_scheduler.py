"""The scheduler on fake runners: outputs stay exact whatever is preempted, moved, lost or aborted."""

import random
from itertools import pairwise

import msgspec
import pytest

from engine.messages import Report, Sampling
from tests.engine.fake_runner import FULL, WINDOWED, generate
from tests.engine.rig import STEP_NS, Rig, check_outputs, random_prompts


@pytest.mark.parametrize("layout", [FULL, WINDOWED])
@pytest.mark.parametrize("depth", [1, 2])
def test_outputs_are_exact_under_contention(layout, depth):
    rig = Rig(layout, depth=depth)
    wanted = random_prompts(40)
    for prompt_id, (ids, max_tokens) in wanted.items():
        rig.submit(prompt_id, ids, max_tokens)
    rig.run()
    check_outputs(rig, wanted)
    assert rig.scheduler.counters.recomputed_tokens == 0
    assert rig.scheduler.planner.num_preemptions > 0
    assert rig.store.counters.evicted_pages > 0


def test_everybody_gets_a_token_soon_and_in_turn():
    rig = Rig(FULL, first_slices=40)
    for number in range(16):
        rig.submit(f"p{number}", range(20), 60)
    rig.run()
    assert rig.scheduler.planner.num_preemptions + rig.scheduler.counters.slices > 16
    first_ns = [times[0] for times in rig.token_times.values()]
    last_ns = [times[-1] for times in rig.token_times.values()]
    assert max(first_ns) < min(last_ns)


def test_nothing_rotates_when_everything_fits():
    rig = Rig(FULL, local=(200,), max_batch=8)
    for number in range(8):
        rig.submit(f"p{number}", range(10), 60)
    rig.run()
    assert rig.scheduler.planner.num_preemptions == 0
    assert rig.store.counters.moves == 0
    assert all(max(b - a for a, b in pairwise(t)) == STEP_NS for t in rig.token_times.values())


def test_plans_go_by_slices_not_by_tokens():
    rig = Rig(FULL, local=(200,), max_batch=8)
    for number in range(8):
        rig.submit(f"p{number}", range(10), 90)
    rig.run()
    assert rig.runners["d1"].num_plans < rig.scheduler.counters.output_tokens / 8  # pages of 4 tokens here


@pytest.mark.parametrize("layout", [FULL, WINDOWED])
def test_the_end_of_a_move_is_a_reason_to_plan_if_it_gives_the_room_that_somebody_waits_for(layout):
    rig = Rig(layout, host=400)
    scheduler, runner = rig.scheduler, rig.runners["d1"]
    for prompt_id, (ids, max_tokens) in random_prompts(40).items():
        rig.submit(prompt_id, ids, max_tokens)
    fetches, reasons, num_moves = set(), [], 0

    def plan():
        """Returns how many turns have begun."""
        num_begun = 0
        for _, plan in scheduler.plan(rig.now_ns):
            fetches.update(move.move_id for move in plan.moves if move.urgent)
            num_begun += len(plan.slices)
            runner.apply(plan)
        return num_begun

    plan()
    while scheduler.prompts:
        rig.now_ns += STEP_NS
        report = runner.tick()
        for move in report.moves:
            scheduler.on_report("d1", Report(steps=[], ends=[], moves=[move]), rig.now_ns)
            num_moves += 1
            if scheduler.needs_plan:
                assert move.move_id not in fetches
                reasons.append(plan())
        scheduler.on_report("d1", msgspec.structs.replace(report, moves=[]), rig.now_ns)
        plan()
        rig.flush()
    assert 0 < len(reasons) < num_moves / 2
    assert any(reasons)
    rig.scheduler.check_integrity()


def test_a_full_host_tier_costs_recomputation_and_nothing_else():
    rig = Rig(FULL, host=6)
    wanted = random_prompts(20)
    for prompt_id, (ids, max_tokens) in wanted.items():
        rig.submit(prompt_id, ids, max_tokens)
    rig.run()
    check_outputs(rig, wanted)
    assert rig.store.counters.dropped_contexts > 0


@pytest.mark.parametrize("seed", [18, 3, 7])
def test_full_tiers_stop_nobody_for_ever(seed):
    source = random.Random(seed)
    local = tuple(source.randint(14, 30) for _ in range(source.randint(1, 2)))
    host = source.randint(0, 25)
    rig = Rig(FULL, local=local, host=host, max_batch=8, max_model_len=80, seed=seed, reserve=0.0)
    wanted = {}
    for number in range(source.randint(6, 30)):
        ids = [source.randrange(50) for _ in range(source.randint(1, 12))]
        wanted[f"p{number}"] = (ids, source.randint(10, 40))
        rig.submit(f"p{number}", *wanted[f"p{number}"])
        for _ in range(source.randint(0, 4)):
            rig.tick()
    rig.run()
    check_outputs(rig, wanted)


def test_two_devices_share_one_queue():
    rig = Rig(FULL, local=(30, 30), max_batch=3)
    wanted = random_prompts(30)
    for prompt_id, (ids, max_tokens) in wanted.items():
        rig.submit(prompt_id, ids, max_tokens)
    rig.run()
    check_outputs(rig, wanted)
    busy = [device.num_steps for device in rig.scheduler.devices.values()]
    assert min(busy) > 0.7 * max(busy)


def test_a_prompt_may_fill_the_pool_alone():
    rig = Rig(FULL, local=(51,), max_model_len=200)
    wanted = {"small": ([5] * 10, 20), "large": ([7] * 150, 50)}
    for prompt_id, (ids, max_tokens) in wanted.items():
        rig.submit(prompt_id, ids, max_tokens)
    for number in range(5):
        wanted[f"p{number}"] = ([number] * 12, 30)
        rig.submit(f"p{number}", *wanted[f"p{number}"])
    rig.run()
    check_outputs(rig, wanted)


@pytest.mark.parametrize("layout", [FULL, WINDOWED])
@pytest.mark.parametrize("trusted", [True, False])
def test_lost_runners_lose_no_prompt(trusted, layout):
    for seed in range(10):
        source = random.Random(seed)
        rig = Rig(layout, local=(45, 45), seed=seed, depth=2)
        wanted = random_prompts(20, seed)
        for prompt_id, (ids, max_tokens) in wanted.items():
            rig.submit(prompt_id, ids, max_tokens)
            rig.tick()
        for _ in range(4):
            name = source.choice(["d1", "d2"])
            rig.kill_runner(name, trusted=trusted)
            for _ in range(source.randint(0, 10)):
                rig.tick()
            rig.scheduler.check_integrity()
            rig.start_runner(name)
            for _ in range(source.randint(0, 10)):
                rig.tick()
        rig.run()
        check_outputs(rig, wanted)
        if trusted:
            assert rig.store.counters.dropped_contexts == 0


def test_nothing_is_read_from_the_pool_of_a_runner_that_failed_and_takes_long_to_end():
    for seed in range(10):
        source = random.Random(seed)
        rig = Rig(FULL, local=(90, 90), seed=seed, depth=2)
        wanted = random_prompts(20, seed)
        for prompt_id, (ids, max_tokens) in wanted.items():
            rig.submit(prompt_id, ids, max_tokens)
            rig.tick()
        for name in ("d1", "d2"):
            rig.fault_runner(name, source.randint(1, 20))
            rig.scheduler.check_integrity()
            rig.start_runner(name)
            for _ in range(source.randint(0, 10)):
                rig.tick()
        rig.run()
        check_outputs(rig, wanted)


def test_a_resubmitted_prompt_continues_after_what_its_api_has():
    ids, whole = [4, 5, 6], generate(FULL, [4, 5, 6], 30)
    rig = Rig(FULL)
    rig.submit("p", ids, 30, output_ids=whole[:11], resubmitted=True)
    rig.run()
    assert rig.outputs["p"] == whole


def test_a_reconnection_replays_what_was_missed():
    rig = Rig(FULL)
    rig.submit("p", [4, 5, 6], 30)
    for _ in range(10):
        rig.tick()
    had = rig.outputs["p"][:3]
    rig.outputs["p"] = list(had)
    rig.submit("p", [4, 5, 6], 30, output_ids=had, resubmitted=True)
    rig.run()
    assert rig.outputs["p"] == generate(FULL, [4, 5, 6], 30)


def test_a_flood_of_newcomers_is_gated_per_tenant():
    rig = Rig(FULL, local=(400,), max_batch=32, first_slices=3)
    for number in range(20):
        rig.submit(f"flood{number}", range(40), 2, tenant="flood")
    rig.submit("other", range(40), 2, tenant="other")
    rig.tick()
    rows = [p.task.tenant for p in rig.scheduler.devices["d1"].running]
    assert rows.count("flood") == 3
    assert rows.count("other") == 1
    rig.run()


def test_a_bounded_gap_between_tokens():
    """Everybody backlogged: rotations of at most 24 / 4 batches, slices of 4 to 16 steps."""
    rig = Rig(FULL, local=(60,), first_slices=40)
    for number in range(24):
        rig.submit(f"p{number}", [number] * 10, 40)
    rig.run()
    gaps = [b - a for times in rig.token_times.values() for a, b in pairwise(times)]
    assert max(gaps) <= (24 / 4 + 2) * 16 * STEP_NS


@pytest.mark.parametrize(("policy", "is_granted"), [("eevdf", True), ("cfs", False)])
def test_a_latency_wish_is_a_slice_length(policy, is_granted, monkeypatch):
    rig = Rig(FULL, policy=policy, local=(60,), first_slices=40, target_ns=10**12)
    runner, lengths = rig.runners["d1"], {True: [0], False: [0]}
    apply = runner.apply

    def watch(plan):
        for each in plan.slices:
            lengths[each.sampling.seed == 7].append(each.max_new)
        apply(plan)

    monkeypatch.setattr(runner, "apply", watch)
    wish = {"latency_ns": STEP_NS, "sampling": Sampling(max_tokens=60, seed=7)}
    for number in range(20):
        rig.submit(f"p{number}", range(10), 60, **(wish if number == 10 else {}))
    rig.run()
    assert max(lengths[True]) > 0
    assert (max(lengths[True]) < max(lengths[False]) / 2) == is_granted
