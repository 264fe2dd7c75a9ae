"""How turns and prompts end."""

import random

import pytest

from engine.messages import FinishReason, Sampling
from tests.engine.fake_runner import FULL, generate
from tests.engine.rig import STEP_NS, Rig, check_outputs, random_prompts


@pytest.mark.parametrize("depth", [1, 2])
def test_fcfs_recomputes_the_youngest_when_memory_runs_out(depth):
    rig = Rig(FULL, policy="fcfs", depth=depth, local=(50,))
    wanted = {f"p{number}": ([number] * 10, 100) for number in range(8)}
    for prompt_id, (ids, max_tokens) in wanted.items():
        rig.submit(prompt_id, ids, max_tokens)
    rig.run()
    check_outputs(rig, wanted)
    assert rig.scheduler.counters.recomputed_tokens > 0
    ends = [rig.token_times[prompt_id][-1] for prompt_id in wanted]
    assert ends[0] == min(ends)


def test_deltas_that_nobody_is_told_are_gone_and_so_are_finished_prompts():
    rig = Rig(FULL)
    rig.submit("short", range(4), 1)
    rig.submit("long", range(4), 20)
    while rig.scheduler.prompts["short"].finish is None:
        rig.now_ns += STEP_NS
        rig.scheduler.on_report("d1", rig.runners["d1"].tick(), rig.now_ns)
    rig.scheduler.drop_deltas()
    assert list(rig.scheduler.prompts) == ["long"]
    assert rig.scheduler.take_deltas() == {}
    rig.scheduler.check_integrity()


def test_a_stop_token_ends_a_prompt_and_its_pages_come_back():
    rig = Rig(FULL)
    ids = [1, 2, 3]
    stop = generate(FULL, ids, 12)[-1]
    rig.submit("p", ids, 50, sampling=Sampling(max_tokens=50, stop_token_ids=(stop,)))
    rig.run()
    assert rig.finished["p"] == FinishReason.STOP
    assert rig.outputs["p"] == generate(FULL, ids, 50, stop=[stop])


def test_aborts_at_any_time_free_everything():
    for seed in range(20):
        source = random.Random(seed)
        rig = Rig(FULL, seed=seed, depth=1 + seed % 2)
        wanted = random_prompts(25, seed)
        alive = dict(wanted)
        for prompt_id, (ids, max_tokens) in wanted.items():
            rig.submit(prompt_id, ids, max_tokens)
            if source.random() < 0.5:
                rig.tick()
            if source.random() < 0.4:
                gone = source.choice(list(alive))
                if gone not in rig.finished:
                    del alive[gone]
                    rig.abort(gone)
        rig.run()
        check_outputs(rig, alive)


def test_a_prompt_that_is_aborted_as_it_ends_is_not_spoken_of_again():
    rig = Rig(FULL)
    rig.submit("gone", [1, 2, 3], 1)
    rig.submit("stays", [4, 5, 6], 9)
    while rig.scheduler.counters.finished.get("length", 0) == 0:
        rig.now_ns += STEP_NS
        rig.scheduler.on_report("d1", rig.runners["d1"].tick(), rig.now_ns)
    rig.scheduler.abort("gone", rig.now_ns)
    deltas = [delta for each in rig.scheduler.take_deltas().values() for delta in each]
    assert [delta.prompt_id for delta in deltas] == ["stays"]
    assert list(rig.scheduler.prompts) == ["stays"]
    rig.scheduler.check_integrity()


def test_a_slice_that_is_shorter_than_it_takes_to_plan_the_next_ends_no_turn():
    rig = Rig(FULL, policy="fcfs", local=(200,))
    rig.submit("p", range(10), 150)
    for _ in range(100):
        rig.tick()
    device = rig.scheduler.devices["d1"]
    assert device.lookahead_steps > 2 * FULL.page_tokens  # grants are two pages, as nobody waits
    rig.run()
    assert rig.scheduler.planner.num_preemptions == 0
