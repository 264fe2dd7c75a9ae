"""Models that lend each other memory: outputs stay exact whatever is lent, reclaimed, lost or full."""

import random

import pytest

from engine.messages import FinishReason
from tests.engine.fake_runner import FULL, generate
from tests.engine.lending_rig import LendingRig

TERM_NS = 3_000_000_000


def prompts(count, seed=0, longest=30):
    source = random.Random(seed)
    return {
        f"p{number}": (
            [source.randrange(1000) for _ in range(source.randint(1, longest))],
            source.randint(10, 60),
        )
        for number in range(count)
    }


def submit(lending, model, wanted):
    for prompt_id, (ids, max_tokens) in wanted.items():
        lending.rigs[model].submit(prompt_id, ids, max_tokens)


def check_outputs(lending, model, wanted):
    rig = lending.rigs[model]
    for prompt_id, (ids, max_tokens) in wanted.items():
        assert rig.finished[prompt_id] == FinishReason.LENGTH
        assert rig.outputs[prompt_id] == generate(FULL, ids, max_tokens), prompt_id
    lending.check_integrity()
    assert not any(pool.num_used for pool in rig.store.local_pools.values())
    assert not any(tier.num_used for tier in rig.store.tiers.values())


def test_contexts_live_with_a_lender_before_the_host():
    lending = LendingRig(local=(40,), lenders=(400,))
    wanted = prompts(40)
    submit(lending, "m1", wanted)
    lending.run()
    check_outputs(lending, "m1", wanted)
    assert ("l1", "d1") in lending.paths("m1")
    assert ("d1", "host") not in lending.paths("m1")


def test_mirrors_spread_over_equally_good_lenders():
    lending = LendingRig(local=(40,), lenders=(200, 200))
    wanted = prompts(40)
    submit(lending, "m1", wanted)
    lending.run()
    check_outputs(lending, "m1", wanted)
    moved = lending.rigs["m1"].store.counters.moved_pages
    to_lenders = [moved[1, tier] for tier in (200, 201)]
    assert min(to_lenders) > 0.5 * max(to_lenders)


def test_from_local_to_a_peer_to_another_peer_to_the_host_and_back():
    """Two devices lend, the better linked one first; then they need their memory one after the other."""
    links = {("d1", "d2"): 3e11, ("d1", "d3"): 2e11, ("d2", "d3"): 1e11}
    lending = LendingRig(
        local=(40, 120, 240), host=1000, links=links, gap_ns=10**12, first_slices=60, max_batch=30
    )
    lending.calm()
    wanted = {"m1": prompts(30, 1), "m2": prompts(50, 2, longest=60), "m3": prompts(80, 3, longest=60)}
    for name, of_model in wanted.items():
        submit(lending, name, of_model)
        for _ in range(60):
            lending.tick()
    lending.run()
    for name, of_model in wanted.items():
        check_outputs(lending, name, of_model)
        assert lending.rigs[name].scheduler.counters.recomputed_tokens == 0
    assert {("d1", "d2"), ("d2", "d3"), ("d3", "host"), ("host", "d1")} <= lending.paths("m1")
    assert lending.lending.counters.returned > 0


@pytest.mark.parametrize("seed", range(6))
def test_random_load_on_everybody(seed):
    """Everybody lends and borrows, aborts happen, runners die, pools are distrusted."""
    source = random.Random(seed)
    lending = LendingRig(local=(44, 60, 80), lenders=(40,), host=source.choice([10, 300]), seed=seed)
    wanted = {name: {} for name in lending.rigs}
    for number in range(120):
        model = source.choice(list(lending.rigs))
        rig = lending.rigs[model]
        prompt = prompts(1, seed * 1000 + number)["p0"]
        wanted[model][f"p{number}"] = prompt
        rig.submit(f"p{number}", *prompt)
        for _ in range(source.choice([0, 0, 1, 5, 60])):
            lending.tick()
        if source.random() < 0.2:
            disturb(lending, model, wanted[model], source)
        if number % 10 == 0:
            lending.check_integrity()
    lending.run()
    for model, of_model in wanted.items():
        check_outputs(lending, model, of_model)


def disturb(lending, model, wanted, source):
    """Abort a prompt in the midst of whatever it does, or kill the model's runner, or its pool as well."""
    rig = lending.rigs[model]
    name = next(iter(rig.ledgers))
    open_prompts = [prompt_id for prompt_id in wanted if prompt_id not in rig.finished]
    if source.random() < 0.5 and open_prompts:
        gone = source.choice(open_prompts)
        del wanted[gone]
        rig.abort(gone)
        return
    trusted = source.random() < 0.5
    runner = rig.runners[name]
    rig.kill_runner(name, trusted=True)
    if not trusted:
        distrust(lending, name)
        rig.scheduler._distrust(rig.ledgers[name].pool_id, rig.now_ns)
        for rig_of_others in lending.rigs.values():
            rig_of_others.flush()
    del runner
    for _ in range(source.randint(0, 10)):
        lending.tick()
    rig.start_runner(name)
    rig.flush()


def distrust(lending, device):
    """What the engine does when a lender's pool may hold anything; and now it does."""
    lender = lending.lending.lenders[device]
    for model, pool in lender.pools.items():
        lending.rigs[model].scheduler.distrust_tier(pool.pool_id, lending.now_ns)
    lending.lending.lose_lender(device, is_gone=False)
    memory = next(r.pools[int(device[1:])] for r in lending.rigs.values() if device in r.ledgers)
    memory[:] = [[-9] * FULL.page_tokens for _ in memory]


@pytest.mark.parametrize("move_ticks", [1, 10, 20, 80])
def test_a_lender_waits_for_one_move_however_much_is_copied(move_ticks):
    """Contexts that take turns are copied out as they grow: on slow links the next copy is due before the
    last one has arrived, and there is never a moment without."""
    lending = LendingRig(local=(2000,), lenders=(4000,), host=4000, max_batch=4, max_model_len=1500)
    rig = lending.rigs["m1"]
    rig.runners["d1"].move_ticks = move_ticks
    wanted = {f"p{number}": ([number] * 20, 400) for number in range(5)}
    submit(lending, "m1", wanted)
    for _ in range(200):
        lending.tick()
    assert len(lending.lending.book.leases_from("l1")) > 10
    lending.lending.resize("l1", 1)
    for _ in range(move_ticks + 5):
        lending.tick()
    assert lending.lending.lenders["l1"].num_present == 1
    assert len(rig.scheduler.prompts) == 5
    lending.run()
    check_outputs(lending, "m1", wanted)


def test_a_lender_that_is_gone_costs_recomputation_only():
    lending = LendingRig(local=(40,), lenders=(400,))
    wanted = prompts(40)
    submit(lending, "m1", wanted)
    for _ in range(60):
        lending.tick()
    rig = lending.rigs["m1"]
    assert rig.store.tiers[200].num_used > 0
    rig.scheduler.distrust_tier(200, lending.now_ns)
    rig.pools[200][:] = [[-9] * FULL.page_tokens for _ in rig.pools[200]]
    lending.lending.lose_lender("l1", is_gone=True)
    rig.flush()
    moved_before = rig.store.counters.moved_pages.get((1, 200), 0)
    lending.run()
    check_outputs(lending, "m1", wanted)
    assert rig.store.counters.dropped_tokens > 0
    assert ("host", "d1") in lending.paths("m1")
    lending.lending.restore("l1", set(lending.lending.lenders["l1"].withdrawn))
    submit(lending, "m1", {f"again {name}": prompt for name, prompt in wanted.items()})
    lending.run()
    assert rig.store.counters.moved_pages[1, 200] > moved_before


def test_a_dead_borrower_gives_back_what_it_had():
    lending = LendingRig(local=(40, 40), lenders=(80,), host=0, term_ns=TERM_NS)
    wanted = prompts(30)
    submit(lending, "m1", wanted)
    for _ in range(60):
        lending.tick()
    assert lending.lending.book.num_on_offer("l1") < 20
    lending.rigs["m1"].kill_runner("d1")
    lending.alive = {"m2"}
    for _ in range(2 * TERM_NS // 10_000_000):
        lending.tick()
    assert lending.lending.book.num_on_offer("l1") == 20
    assert lending.lending.counters.expired > 0
    lending.alive = None
    lending.rigs["m1"].start_runner("d1")
    lending.run()
    check_outputs(lending, "m1", wanted)


def test_borrowers_share_a_lender_evenly():
    lending = LendingRig(local=(40, 40), lenders=(160,), host=400)
    for model, seed in (("m1", 1), ("m2", 2)):
        submit(lending, model, prompts(60, seed))
        for _ in range(50):
            lending.tick()
    for _ in range(100):
        lending.tick()
    held = {m: len(lending.lending.lenders["l1"].pools[m].segments) for m in ("m1", "m2")}
    assert min(held.values()) > 0.7 * max(held.values()), held
    lending.run()
