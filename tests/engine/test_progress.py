"""Which steps are a reason to plan."""

import msgspec

from engine.messages import Report
from tests.engine.fake_runner import FULL
from tests.engine.rig import STEP_NS, Rig


def test_a_first_token_is_no_reason_to_plan_while_nobody_waits():
    rig = Rig(FULL, local=(200,))
    rig.submit("p", range(10), 90)
    rig.now_ns += STEP_NS
    while not rig.scheduler.prompts["p"].output_ids:
        rig.scheduler.on_report("d1", rig.runners["d1"].tick(), rig.now_ns)
        assert not rig.scheduler.needs_plan


def test_a_turn_that_has_had_the_least_time_is_a_reason_to_plan_if_others_wait():
    rig = Rig(FULL, max_batch=1, slice_ns=64 * STEP_NS, target_ns=640 * STEP_NS)
    rig.submit("first", range(4), 90)
    for _ in range(20):
        rig.tick()
    first = rig.scheduler.prompts["first"].turn
    rig.submit("second", range(4), 90)
    while rig.scheduler.prompts["first"].turn is first:
        rig.tick()
    second = rig.scheduler.prompts["second"].turn
    assert second is not None
    while second.old_ns is None:
        rig.tick()
    least_ns = rig.scheduler.planner.turns.floor_ns(second.device)
    first_ns = second.old_ns - least_ns
    planned_after_ns = []
    for _ in range(6):
        rig.now_ns += STEP_NS
        rig.scheduler.on_report("d1", rig.runners["d1"].tick(), rig.now_ns)
        if rig.scheduler.needs_plan:
            planned_after_ns.append(rig.now_ns - first_ns)
        rig.flush()
    assert least_ns == 4 * STEP_NS
    assert least_ns in planned_after_ns


def test_steps_that_slow_down_do_not_spend_the_reason_to_end_a_turn():
    """The step at which a turn has had the least time is reported together with a slow one."""
    rig = Rig(FULL, max_batch=1, slice_ns=64 * STEP_NS, target_ns=640 * STEP_NS, gap_ns=2 * STEP_NS)
    rig.submit("first", range(4), 90)
    rig.tick()
    rig.submit("second", range(4), 90)
    while not rig.scheduler.prompts["second"].output_ids:
        rig.tick()
    turn = rig.scheduler.prompts["second"].turn
    for _ in range(3):
        rig.tick()
    assert not turn.is_ending
    old, slow = (rig.runners["d1"].tick().steps[0] for _ in range(2))
    slow = msgspec.structs.replace(slow, step_ns=30 * STEP_NS)
    rig.now_ns += STEP_NS
    rig.scheduler.on_report("d1", Report(steps=[old, slow]), rig.now_ns)
    assert rig.scheduler.planner.turns.floor_ns(turn.device) > 12 * STEP_NS
    rig.flush()
    for _ in range(20):
        rig.tick()
    assert turn.is_ending
