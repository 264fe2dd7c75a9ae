import random

from engine.fairness.gap import GapQueue
from engine.fairness.policy import Task


def test_the_oldest_past_the_bound_of_each_tenant() -> None:
    gaps = GapQueue(bound_ns=10)
    a, b, c = (Task(serial, tenant, 1.0, 0, 0) for serial, tenant in enumerate("xxy"))
    gaps.add(a, 5)
    gaps.add(b, 3)
    gaps.add(c, 0)
    assert gaps.take_overdue("x", 13) is None
    assert gaps.take_overdue("x", 14) is b
    assert gaps.take_overdue("y", 14) is c
    assert gaps.take_overdue("y", 14) is None
    assert gaps.take_overdue("z", 14) is None
    gaps.add(c, 0)
    gaps.discard(c)
    gaps.discard(c)
    assert gaps.take_overdue("y", 14) is None
    assert gaps.take_overdue("x", 15) is None
    assert gaps.take_overdue("x", 16) is a
    assert (gaps.is_overdue(5, 15), gaps.is_overdue(5, 16)) == (False, True)


def test_equal_gaps_go_by_serial() -> None:
    gaps = GapQueue(bound_ns=0)
    tasks = [Task(serial, "x", 1.0, 0, 0) for serial in (1, 0)]
    for task in tasks:
        gaps.add(task, 0)
    assert gaps.take_overdue("x", 1) is tasks[1]


def test_random_operations_against_a_plain_dict() -> None:
    rng = random.Random(5)
    gaps = GapQueue(bound_ns=50)
    tasks = [Task(serial, f"t{serial % 3}", 1.0, 0, 0) for serial in range(60)]
    waiting: dict[Task, int] = {}
    for now_ns in range(5000):
        task = rng.choice(tasks)
        if rng.random() < 0.6:
            waiting[task] = now_ns - rng.choice([0, 0, 20, 200])
            gaps.add(task, waiting[task])
        else:
            waiting.pop(task, None)
            gaps.discard(task)
        tenant = rng.choice(tasks).tenant
        overdue = [
            (t, each.serial) for each, t in waiting.items() if each.tenant == tenant and now_ns - t > 50
        ]
        if not overdue or rng.random() < 0.3:
            found = gaps.take_overdue(tenant, now_ns)
            assert (found.serial if found else None) == (min(overdue)[1] if overdue else None)
            waiting.pop(found, None)
        gaps.check_integrity()
