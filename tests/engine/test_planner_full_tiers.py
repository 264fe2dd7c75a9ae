"""Every tier full: contexts that were dropped come back before more are begun, and less is computed twice."""

import random

import pytest

from engine.dropped import Dropped
from tests.engine.fake_runner import FULL, generate
from tests.engine.rig import Rig, check_outputs


def full_rig(num_prompts: int, *, num_tenants: int = 1) -> tuple[Rig, dict[str, list[int]]]:
    """Prompts of which about five fit in all tiers together, and what each is to be answered with."""
    rig = Rig(FULL, local=(60,), host=20)
    rng = random.Random(1)
    answers = {}
    for number in range(num_prompts):
        ids = [rng.randrange(1000) for _ in range(rng.randint(10, 30))]
        max_tokens = rng.randint(30, 90)
        answers[f"p{number}"] = generate(FULL, ids, max_tokens)
        rig.submit(f"p{number}", ids, max_tokens, tenant=f"t{number % num_tenants}")
        rig.tick()
    return rig, answers


def recomputed_tokens(num_tenants: int) -> int:
    rig, answers = full_rig(20, num_tenants=num_tenants)
    rig.run()
    assert rig.outputs == answers
    return rig.scheduler.counters.recomputed_tokens


@pytest.mark.parametrize("num_tenants", [1, 3])
def test_what_is_begun_gets_done_before_more_is_begun(
    num_tenants: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = recomputed_tokens(num_tenants)
    monkeypatch.setattr(Dropped, "hold_back", lambda *_: False)
    assert 0 < held < 0.6 * recomputed_tokens(num_tenants)


def test_a_tenant_that_has_begun_nothing_is_not_held_back() -> None:
    rig, answers = full_rig(20)
    for _ in range(100):
        rig.tick()
    waiting = [prompt for prompt in rig.scheduler.prompts.values() if not prompt.has_first_token]
    assert len(waiting) > 4, "nobody is held back"
    rig.submit("newcomer", [1, 2, 3], 4, tenant="other")
    arrived_ns = rig.now_ns
    rig.run()
    assert rig.outputs == answers | {"newcomer": generate(FULL, [1, 2, 3], 4)}
    first_ns = rig.token_times["newcomer"][0]
    assert first_ns < min(rig.token_times[prompt.prompt_id][0] for prompt in waiting[-4:])
    assert first_ns - arrived_ns < 3 * rig.settings.gap_ns


def test_aborted_prompts_hold_back_nobody() -> None:
    rig, answers = full_rig(20)
    while not rig.store.counters.dropped_contexts:
        rig.tick()
    for number in range(12):
        rig.abort(f"p{number}")
    rig.run()
    assert {name: rig.outputs[name] for name in list(answers)[12:]} == dict(list(answers.items())[12:])


@pytest.mark.parametrize("policy", ["cfs", "eevdf"])
@pytest.mark.parametrize("host", [0, 20])
@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_full_batch_is_no_reason_to_drop_a_context(policy: str, host: int, num_devices: int) -> None:
    """No tier has room, and none is needed: all contexts fit beside each other."""
    rig = Rig(FULL, policy=policy, local=(400,) * num_devices, host=host, max_batch=2)
    wanted = {f"p{number}": ([number] * 20, 60) for number in range(5 * num_devices)}
    for prompt_id, (ids, max_tokens) in wanted.items():
        rig.submit(prompt_id, ids, max_tokens)
    rig.run()
    check_outputs(rig, wanted)
    assert rig.scheduler.planner.num_preemptions > 0
    assert rig.scheduler.counters.recomputed_tokens == 0
