"""Which prompt ends runners is found out, and it alone is failed."""

import pytest

from engine.messages import FinishReason
from engine.suspects import MAX_ENDS
from tests.engine.fake_runner import FULL, generate
from tests.engine.rig import Rig

PROMPTS = {f"p{number}": [3 + number, 4, 5, 6 + number] for number in range(6)}
NUM_TOKENS = 30
POISON = "p3"


def runs(rig: Rig, device: str) -> list[str]:
    return [prompt.prompt_id for prompt in rig.scheduler.devices[device].running]


def serve(rig: Rig, poison: str, *, num_tokens: int) -> int:
    """Until all is done, with runners that end as soon as the prompt runs there and has so many tokens, and
    others in their stead a little later. Returns how many ended."""
    num_ended = 0
    for _ in range(2000):
        rig.tick()
        for name in list(rig.runners):
            if poison in runs(rig, name) and len(rig.outputs[poison]) >= num_tokens:
                rig.kill_runner(name, was_killed=False)
                num_ended += 1
                for _ in range(3):
                    rig.tick()
                rig.start_runner(name)
                rig.flush()
        rig.scheduler.check_integrity()
        if len(rig.finished) == len(PROMPTS):
            return num_ended
    raise AssertionError(f"only {rig.finished} ended")


@pytest.mark.parametrize("num_tokens", [0, 7])
@pytest.mark.parametrize("local", [(45,), (45, 45), (12,)])
def test_the_prompt_that_ends_every_runner_is_failed_and_no_other(
    local: tuple[int, ...], num_tokens: int
) -> None:
    rig = Rig(FULL, local=local, max_batch=4, depth=2)
    for prompt_id, ids in PROMPTS.items():
        rig.submit(prompt_id, ids, NUM_TOKENS)
    assert MAX_ENDS <= serve(rig, POISON, num_tokens=num_tokens) <= MAX_ENDS + 2
    assert rig.finished.pop(POISON) is FinishReason.ERROR
    assert set(rig.finished.values()) == {FinishReason.LENGTH}
    assert all(rig.outputs[name] == generate(FULL, PROMPTS[name], NUM_TOKENS) for name in rig.finished)
    assert not any(device.suspects for device in rig.scheduler.devices.values())


def test_prompts_that_get_further_each_time_are_never_suspected() -> None:
    rig = Rig(FULL, local=(80,), max_batch=8, depth=2)
    for prompt_id, ids in PROMPTS.items():
        rig.submit(prompt_id, ids, NUM_TOKENS)
    (name,) = rig.runners
    for _ in range(5):
        for _ in range(8):
            rig.tick()
        rig.kill_runner(name, was_killed=False)
        assert not rig.scheduler.devices[name].suspects
        rig.start_runner(name)
        rig.flush()
    rig.run()
    assert set(rig.finished.values()) == {FinishReason.LENGTH}


def end_twice(rig: Rig, name: str) -> None:
    """Two runners of the device end in a row before they have done anything."""
    for _ in range(MAX_ENDS - 1):
        rig.start_runner(name)
        rig.flush()
        assert runs(rig, name)
        rig.kill_runner(name, was_killed=False)
    assert rig.scheduler.devices[name].suspects


def test_while_suspects_wait_for_their_device_others_are_served() -> None:
    rig = Rig(FULL, local=(45, 45), first_slices=1)
    first, second = rig.runners
    rig.kill_runner(first)
    rig.kill_runner(second)
    rig.submit("suspect", [1, 2, 3], NUM_TOKENS)
    end_twice(rig, first)
    rig.start_runner(second)
    rig.submit("other", [4, 5, 6], NUM_TOKENS)
    while "other" not in rig.finished:
        rig.tick()
    assert "suspect" not in rig.finished
    assert not rig.outputs["suspect"]
    rig.start_runner(first)
    rig.run()
    assert rig.outputs["suspect"] == generate(FULL, [1, 2, 3], NUM_TOKENS)


def test_suspects_of_a_device_where_no_runner_can_start_run_elsewhere() -> None:
    rig = Rig(FULL, local=(45, 45))
    first, second = rig.runners
    rig.kill_runner(first)
    rig.kill_runner(second)
    rig.submit("suspect", [1, 2, 3], NUM_TOKENS)
    end_twice(rig, first)
    rig.start_runner(second)
    rig.scheduler.start_failed(first)
    rig.run()
    assert rig.outputs["suspect"] == generate(FULL, [1, 2, 3], NUM_TOKENS)


def test_suspects_that_are_aborted_keep_nobody_waiting() -> None:
    rig = Rig(FULL)
    (name,) = rig.runners
    rig.kill_runner(name)
    rig.submit("suspect", [1, 2, 3], NUM_TOKENS)
    end_twice(rig, name)
    rig.abort("suspect")
    rig.start_runner(name)
    rig.submit("other", [4, 5, 6], NUM_TOKENS)
    rig.run()
    assert rig.finished["other"] is FinishReason.LENGTH
