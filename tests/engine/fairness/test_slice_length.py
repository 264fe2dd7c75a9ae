import pytest

from engine.fairness.slice_length import slice_length_ns

BOUNDS = {"target_ns": 400, "floor_ns": 25, "cap_ns": 200, "alone_ns": 1000}


@pytest.mark.parametrize(
    ("num_running", "num_waiting", "length_ns"),
    [
        (8, 0, 1000),  # nothing rotates
        (8, 1, 200),  # capped
        (8, 8, 200),
        (8, 24, 100),  # four rotations in the target
        (8, 10_000, 25),  # floored: the rotation takes longer than the target
        (0, 3, 100),  # the device is empty: one may run
    ],
)
def test_length(num_running: int, num_waiting: int, length_ns: int) -> None:
    assert slice_length_ns(num_running=num_running, num_waiting=num_waiting, **BOUNDS) == length_ns
