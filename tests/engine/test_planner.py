"""What a plan looks at, and what it leaves alone."""

import pytest

from engine.messages import FinishReason
from engine.prompt import Prompt
from tests.engine.fake_runner import FULL
from tests.engine.rig import Rig


@pytest.mark.parametrize("policy", ["cfs", "eevdf"])
def test_a_plan_that_can_change_nothing_takes_nobody_out_of_the_queue(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(FULL, policy=policy, max_batch=2)
    waiting = rig.scheduler.planner.waiting
    taken: list[Prompt | None] = []
    take_next = waiting.next

    def watched(now_ns: int) -> Prompt | None:
        taken.append(take_next(now_ns))
        return taken[-1]

    monkeypatch.setattr(waiting, "next", watched)
    for number in range(2):
        rig.submit(f"p{number}", [number] * 8, 40)
    assert [prompt.prompt_id for prompt in taken if prompt is not None] == ["p0", "p1"]
    taken.clear()
    for number in range(2, 6):
        rig.submit(f"p{number}", [number] * 8, 40)  # a plan each: two run, and have not begun
    assert not taken
    while not rig.scheduler.planner.num_preemptions:
        rig.tick()
    assert taken  # once their turns were old enough
    rig.run()
    assert set(rig.finished.values()) == {FinishReason.LENGTH}


def test_those_served_most_make_way_first() -> None:
    rig = Rig(FULL, max_batch=3)
    for number in range(3):
        rig.submit(f"p{number}", [number] * (8 + 40 * (number == 1)), 80)
    for _ in range(8):
        rig.tick()
    prompts = {prompt.prompt_id: prompt for prompt in rig.scheduler.devices["d1"].running}
    prompts["p1"].task.vruntime_ns += 10 * rig.settings.slice_ns
    rig.submit("late", [9] * 8, 8)
    assert [prompt.prompt_id for prompt in rig.scheduler.devices["d1"].ending] == ["p1"]


def two_full_devices(policy: str) -> Rig:
    """Two prompts run on each, and nobody waits."""
    rig = Rig(FULL, policy=policy, max_batch=2, local=(64, 64))
    for number in range(4):
        rig.submit(f"p{number}", [number] * 8, 60)
    for _ in range(3):
        rig.tick()
    return rig


@pytest.mark.parametrize("policy", ["cfs", "eevdf", "fcfs"])
def test_turns_on_a_device_that_failed_do_not_keep_places_of_another_empty(policy: str) -> None:
    rig = two_full_devices(policy)
    scheduler = rig.scheduler
    failed, healthy = scheduler.devices.values()
    assert len(failed.running) == len(healthy.running) == 2
    scheduler.device_faulted(failed.name, rig.now_ns)  # its runner has not ended yet
    for prompt in list(healthy.running):
        scheduler.abort(prompt.prompt_id, rig.now_ns)
    rig.submit("new", [9] * 8, 20)
    scheduler.plan(rig.now_ns)
    turn = scheduler.prompts["new"].turn
    assert turn is not None
    assert turn.device is healthy


def test_turns_on_a_device_that_failed_do_not_hide_that_another_stands_idle() -> None:
    """Any move's end may be what it waits for."""
    rig = two_full_devices("cfs")
    scheduler = rig.scheduler
    failed, healthy = scheduler.devices.values()
    assert not scheduler.planner.awaits_move()
    scheduler.device_faulted(failed.name, rig.now_ns)
    assert not scheduler.planner.awaits_move()
    for prompt in list(healthy.running):
        scheduler.abort(prompt.prompt_id, rig.now_ns)
    assert failed.running
    assert scheduler.planner.awaits_move()
