"""Prompts that share prefixes, on fake runners whose tokens depend on every page that is read."""

import random

import pytest

from engine.messages import FinishReason, Sampling
from engine.planner import MAX_DEFERRED
from tests.engine.fake_runner import FULL, WINDOWED, generate
from tests.engine.rig import HOST, Rig


def family(source, count, *, trunks=3, longest=60):
    """Prompts that go through a random tree: each begins with a part of an earlier one."""
    prompts = {}
    known = [[source.randrange(1000) for _ in range(source.randint(20, longest))] for _ in range(trunks)]
    for number in range(count):
        base = source.choice(known)
        ids = base[: source.randint(1, len(base))] + [
            source.randrange(1000) for _ in range(source.randint(1, 12))
        ]
        ids = ids[:100]
        prompts[f"p{number}"] = (ids, source.randint(1, 40))
        known.append(ids + generate(FULL, ids, source.randint(0, 20)))
    return prompts


def check_outputs(rig, wanted):
    for prompt_id, (ids, max_tokens) in wanted.items():
        assert rig.finished[prompt_id] == FinishReason.LENGTH
        assert rig.outputs[prompt_id] == generate(rig.layout, ids, max_tokens), prompt_id
    rig.scheduler.check_integrity()
    cached = rig.store.num_cached_pages()
    for pool in (*rig.store.local_pools.values(), *rig.store.tiers.values()):
        assert pool.num_used == cached.get(pool.pool_id, 0)


def submit_all(rig, wanted, source, *, spread=6, **request):
    for prompt_id, (ids, max_tokens) in wanted.items():
        rig.submit(prompt_id, ids, max_tokens, **request)
        for _ in range(source.randint(0, spread)):
            rig.tick()


LAYOUTS = pytest.mark.parametrize(("layout", "scale"), [(FULL, 1), (WINDOWED, 2)])
POLICIES = pytest.mark.parametrize("policy", ["cfs", "fcfs"])


@LAYOUTS
@POLICIES
@pytest.mark.parametrize("depth", [1, 2])
def test_outputs_are_exact_whatever_is_shared(layout, scale, policy, depth):
    hits = 0
    for seed, local in enumerate([(40,), (60,), (200,), (45, 45)]):
        source = random.Random(seed)
        pools = [size * scale for size in local]
        rig = Rig(
            layout, depth=depth, policy=policy, local=pools, seed=seed, host=source.choice([10, 60, 400])
        )
        wanted = family(source, 40)
        submit_all(rig, wanted, source)
        rig.run(check_every=5)
        check_outputs(rig, wanted)
        hits += rig.scheduler.planner.prefixes.counters.hit
    assert hits > 0


@LAYOUTS
@POLICIES
def test_outputs_stay_exact_whatever_ends_or_dies(layout, scale, policy):
    for seed in range(6):
        source = random.Random(seed)
        local = [40 * scale] * 2 if seed % 2 else [45 * scale]
        rig = Rig(
            layout, depth=1 + seed % 2, policy=policy, local=local, seed=seed, host=source.choice([10, 100])
        )
        wanted = family(source, 50)
        for prompt_id, (ids, max_tokens) in list(wanted.items()):
            rig.submit(prompt_id, ids, max_tokens)
            for _ in range(source.randint(0, 6)):
                rig.tick()
            if source.random() < 0.25 and rig.scheduler.prompts:
                gone = source.choice(list(rig.scheduler.prompts))
                rig.abort(gone)
                del wanted[gone]
            if source.random() < 0.1:
                restart_one(rig, source)
        rig.run(check_every=5)
        check_outputs(rig, wanted)


def restart_one(rig, source):
    name = source.choice(list(rig.ledgers))
    rig.kill_runner(name, trusted=source.random() < 0.5)
    for _ in range(source.randint(0, 5)):
        rig.tick()
    rig.scheduler.check_integrity()
    rig.start_runner(name)


def answer(rig, prompt_id, ids, max_tokens=8, **request):
    """Serve one prompt to its end; how many tokens of it were cached."""
    rig.submit(prompt_id, ids, max_tokens, **request)
    rig.run()
    assert rig.outputs[prompt_id] == generate(rig.layout, ids, max_tokens)
    return rig.cached_tokens[prompt_id]


def test_a_shared_prefix_is_stored_once():
    rig = Rig(FULL, local=(200,))
    prefix = list(range(40))
    assert answer(rig, "first", [*prefix, 1]) == 0
    assert answer(rig, "second", [*prefix, 2]) == 40
    assert answer(rig, "third", [*prefix[:22], 3]) == 20  # whole pages only
    pages = rig.store.num_cached_pages()[1]
    assert pages == 10 + 2 + 2 + 3  # of each its own: the last token of an answer is never computed


def test_a_conversation_goes_on_where_it_ended():
    rig = Rig(FULL, local=(200,))
    ids = [5, 6, 7]
    answer(rig, "turn 1", ids)
    ids = [*ids, *rig.outputs["turn 1"], 9]
    assert answer(rig, "turn 2", ids) == 10  # all but the last token sampled, which was never fed
    ids = [*ids, *rig.outputs["turn 2"], 9, 9]
    assert answer(rig, "turn 3", ids) == 19
    assert len(rig.store.contexts) == 1


def test_the_last_token_of_a_prompt_is_always_computed():
    rig = Rig(FULL, local=(200,))
    ids = list(range(16))
    answer(rig, "first", ids)
    assert answer(rig, "again", ids) == 12


@pytest.mark.parametrize("request_of_other", [{"tenant": "other"}, {"cache_salt": "pepper"}])
def test_nothing_is_shared_across_tenants_or_salts(request_of_other):
    rig = Rig(FULL, local=(200,))
    ids = list(range(30))
    answer(rig, "first", ids)
    assert answer(rig, "stranger", ids, **request_of_other) == 0
    assert answer(rig, "own", ids, cache_salt="") == 28


def test_prompts_whose_logprobs_are_wanted_are_computed_whole():
    rig = Rig(FULL, local=(200,))
    ids = list(range(30))
    answer(rig, "first", ids)
    wanted = Sampling(max_tokens=8, temperature=0.0, prompt_logprobs=1)
    assert answer(rig, "scored", ids, sampling=wanted) == 0


def test_newcomers_wait_for_a_prefix_that_is_being_computed():
    rig = Rig(FULL, local=(400,), max_model_len=400, max_batch=8)
    prefix = [n % 7 for n in range(240)]
    for number in range(5):
        rig.submit(f"p{number}", [*prefix, number], 4)
    rig.run()
    assert rig.scheduler.counters.computed_tokens < 240 + 5 * (16 + 8)
    assert [rig.cached_tokens[f"p{number}"] for number in range(5)] == [0, 240, 240, 240, 240]


def test_a_plan_does_not_look_at_all_who_wait_for_the_same_prefix():
    rig = Rig(FULL, local=(400,), max_batch=8, max_model_len=400, first_slices=1000)
    shared = list(range(300))
    wanted = {f"p{number}": ([*shared, number], 4) for number in range(3 * MAX_DEFERRED)}
    deferred = []
    for prompt_id, (ids, max_tokens) in wanted.items():
        rig.submit(prompt_id, ids, max_tokens)
        deferred.append(rig.scheduler.planner.num_deferred)
    assert max(deferred) == MAX_DEFERRED
    rig.run()
    check_outputs(rig, wanted)


def test_a_cached_prefix_sleeps_in_the_host_tier():
    rig = Rig(FULL, local=(40,), host=100)
    prefix = list(range(60))
    answer(rig, "first", [*prefix, 1])
    for number in range(4):
        answer(rig, f"other {number}", [100 + number] * 80)
    assert rig.store.counters.moved_pages[1, 100] >= 15
    assert answer(rig, "second", [*prefix, 2]) == 60
    assert rig.store.counters.moved_pages[100, 1] >= 15


def test_cached_contexts_cost_living_ones_nothing():
    """With a full cache in all tiers, prompts that do not share preempt and recompute as without one."""
    counted = {}
    for shares_prefixes in (False, True):
        rig = Rig(FULL, local=(60,), host=120, shares_prefixes=shares_prefixes)
        for number in range(30):
            answer(rig, f"before {number}", [number] * 30)
        for number in range(12):
            rig.submit(f"p{number}", [500 + number] * 20, 40)
        rig.run()
        assert rig.scheduler.counters.recomputed_tokens == 0
        counted[shares_prefixes] = rig.scheduler.counters.computed_tokens
    assert counted[True] == counted[False]


def test_a_prefix_behind_the_window_is_not_used():
    rig = Rig(WINDOWED, local=(400,))
    prefix = list(range(40))
    ids = [*prefix, *range(50, 90)]
    answer(rig, "long", ids)
    assert answer(rig, "short", [*prefix, 7]) == 0  # pages before it are gone
    ids += rig.outputs["long"]
    assert answer(rig, "next turn", [*ids, 7]) == len(ids) - 1


@pytest.mark.parametrize("is_aborted", [False, True])
@pytest.mark.parametrize("what_is_lost", ["device", "tier"])
def test_a_prefix_in_use_is_lost_while_it_is_copied_out(what_is_lost, is_aborted):
    rig = Rig(FULL, local=(60,))
    prefix = list(range(20))
    for number in range(2):
        answer(rig, f"before {number}", [*prefix, 100 + number])
    (shared,) = [context for context in rig.store.contexts if context.children]
    answer(rig, "shorter", [*prefix[:8], 102])  # so that what they share has a parent
    runner = rig.runners["d1"]
    runner.move_ticks = 10**6
    runner._moves += rig.store.mirror(shared, whole=True)
    rig.submit("p", [*prefix, 103], 12)
    rig.tick()
    assert shared.parent is not None
    assert shared.moves_in_flight
    assert shared.is_running
    if is_aborted:
        rig.abort("p")  # the runner has not heard of it
    if what_is_lost == "device":
        rig.fault_runner("d1", 3)
        rig.start_runner("d1")
    else:
        rig.scheduler.distrust_tier(HOST, rig.now_ns)
        for number in rig.store.tiers[HOST].segments:
            rig.store.lose_segment(HOST, number)
        runner.move_ticks = 1
    rig.scheduler.check_integrity()
    rig.flush()
    rig.run()
    check_outputs(rig, {} if is_aborted else {"p": ([*prefix, 103], 12)})
