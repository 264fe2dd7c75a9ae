"""Prompts that share prefixes, on fake runners whose tokens depend on every page that is read."""

import random

import pytest

from engine.messages import FinishReason
from tests.engine.fake_runner import FULL, WINDOWED, generate
from tests.engine.rig import Rig


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


@pytest.mark.parametrize("layout", [FULL, WINDOWED])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", ["cfs", "fcfs"])
def test_outputs_are_exact_whatever_is_shared(layout, depth, policy):
    for seed in range(12):
        source = random.Random(seed)
        local = source.choice([(40,), (60,), (200,), (45, 45)])
        rig = Rig(
            layout, depth=depth, policy=policy, local=local, seed=seed, host=source.choice([10, 60, 400])
        )
        wanted = family(source, 40)
        submit_all(rig, wanted, source)
        rig.run(check_every=5)
        check_outputs(rig, wanted)
        if layout is FULL:
            assert rig.scheduler.planner.prefixes.counters.hit > 0


@pytest.mark.parametrize("layout", [FULL, WINDOWED])
@pytest.mark.parametrize("policy", ["cfs", "fcfs"])
def test_outputs_stay_exact_whatever_ends_or_dies(layout, policy):
    for seed in range(10):
        source = random.Random(seed)
        local = (80, 80) if seed % 2 else (90,)
        rig = Rig(
            layout, depth=1 + seed % 2, policy=policy, local=local, seed=seed, host=source.choice([10, 100])
        )
        wanted = family(source, 50)
        for prompt_id, (ids, max_tokens) in list(wanted.items()):
            rig.submit(prompt_id, ids, max_tokens)
            for _ in range(source.randint(0, 6)):
                rig.tick()
            if source.random() < 0.25:
                gone = source.choice(list(rig.scheduler.prompts) or [prompt_id])
                if rig.scheduler.prompts.get(gone) is not None and gone not in rig.finished:
                    rig.abort(gone)
                    wanted.pop(gone, None)
            if source.random() < 0.1:
                name = source.choice(list(rig.ledgers))
                rig.kill_runner(name, trusted=source.random() < 0.5)
                for _ in range(source.randint(0, 5)):
                    rig.tick()
                rig.scheduler.check_integrity()
                rig.start_runner(name)
        rig.run(check_every=5)
        check_outputs(rig, wanted)
