"""Prompts whose contexts were dropped hold others back only while they can come back."""

from engine.messages import FinishReason
from tests.engine.fake_runner import FULL
from tests.engine.rig import Rig


def test_who_no_device_can_hold_for_now_holds_nobody_back() -> None:
    rig = Rig(FULL, local=(20, 60), host=8, shares_prefixes=False, first_slices=100)
    for number in range(6):
        rig.submit(f"long{number}", [number] * 60, 100)
    while not rig.store.counters.dropped_contexts:
        rig.tick()
    rig.kill_runner("d2")  # d1 is too small for any of them
    assert not set(rig.finished)
    rig.submit("short", [1, 2, 3], 4)
    for _ in range(50):
        rig.tick()
    assert rig.finished == {"short": FinishReason.LENGTH}
    rig.start_runner("d2")
    rig.run()
    assert len(rig.finished) == 7
