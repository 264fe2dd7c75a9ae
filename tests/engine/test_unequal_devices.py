"""Devices of which some hold longer contexts than others."""

import pytest

from engine.messages import FinishReason, Sampling
from tests.engine.fake_runner import FULL, generate
from tests.engine.rig import Rig

SMALL_TOKENS = 19 * FULL.page_tokens  # of a pool of 20 pages, one of which is nobody's


def device_of(rig: Rig, prompt_id: str) -> str | None:
    turn = rig.scheduler.prompts[prompt_id].turn
    return None if turn is None else turn.device.name


def ids(length: int, first: int = 0) -> list[int]:
    return [(7 * i + first) % 1000 for i in range(length)]


def test_a_prompt_goes_where_its_context_fits() -> None:
    rig = Rig(FULL, local=(20, 60), shares_prefixes=False, first_slices=100)
    for number in range(4):
        rig.submit(f"long{number}", ids(60, number), SMALL_TOKENS - 60 + 1)
    rig.submit("short", ids(60), SMALL_TOKENS - 60)
    assert device_of(rig, "short") == "d1"
    seen = set()
    while rig.scheduler.prompts:
        rig.tick()
        seen |= {device_of(rig, name) for name in rig.scheduler.prompts if name != "short"}
    assert seen <= {"d2", None}
    assert rig.outputs["short"] == generate(FULL, ids(60), SMALL_TOKENS - 60)
    for number in range(4):
        assert rig.outputs[f"long{number}"] == generate(FULL, ids(60, number), SMALL_TOKENS - 60 + 1)


def test_an_answer_of_any_length_that_outgrows_its_device_goes_on_at_another() -> None:
    rig = Rig(FULL, local=(20, 60), max_batch=1)
    rig.submit("in the way", ids(20, 5), 100)  # on the roomier one
    assert device_of(rig, "in the way") == "d2"
    small = Sampling(max_tokens=180, is_open_ended=True, temperature=0.0, stop_token_ids=())
    rig.submit("grows", ids(20), 180, sampling=small)
    rig.run()
    assert rig.finished["grows"] is FinishReason.LENGTH
    assert rig.outputs["grows"] == generate(FULL, ids(20), 180)


@pytest.mark.parametrize("first_slices", [1, 4, 100])
def test_prompts_too_long_for_what_is_up_keep_nobody_waiting(first_slices: int) -> None:
    """Their device is gone for a while; nor do they stand in the gate of their tenant."""
    rig = Rig(FULL, local=(20, 60), shares_prefixes=False, first_slices=first_slices)
    rig.kill_runner("d2")
    for number in range(8):
        rig.submit(f"long{number}", ids(100, number), 10)
    rig.submit("short", ids(20), 10)
    for _ in range(50):
        rig.tick()
    assert rig.finished == {"short": FinishReason.LENGTH}
    rig.start_runner("d2")
    rig.run()
    assert len(rig.finished) == 9
