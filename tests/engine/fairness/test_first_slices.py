from engine.fairness.first_slices import FirstSliceGate
from engine.fairness.policy import Task


def make_tasks(tenant: str, count: int) -> list[Task]:
    return [Task(serial, tenant, 1.0, 0, 0) for serial in range(count)]


def test_a_flood_waits_outside_in_order_of_arrival() -> None:
    gate = FirstSliceGate(2)
    flood = make_tasks("flood", 5)
    assert [gate.enter(task) for task in flood] == [True, True, False, False, False]
    (other,) = make_tasks("other", 1)
    assert gate.enter(other)
    assert [gate.holds(task) for task in flood] == [False, False, True, True, True]
    gate.check_integrity()
    assert gate.leave(flood[3]) == []  # aborted outside
    assert gate.leave(flood[1]) == [flood[2]]
    assert gate.leave(flood[1]) == []  # again, at its end
    assert gate.leave(flood[0]) == [flood[4]]
    gate.check_integrity()
    for task in (flood[2], flood[4], other):
        assert gate.leave(task) == []
    assert not gate.holds(flood[4])
    assert gate.leave(flood[4]) == []
    gate.check_integrity()
