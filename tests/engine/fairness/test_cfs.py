from sortedcontainers import SortedList

from engine.fairness import Task, make_policy
from engine.fairness.cfs import LeastServedQueue

from .device import MS


def test_equal_vruntimes_go_by_serial() -> None:
    queue: LeastServedQueue[Task] = LeastServedQueue(SortedList(), 0)
    tasks = [Task(serial, "a", 1.0, 0, 0) for serial in (2, 0, 1)]
    for task in tasks:
        queue.add(task)
    assert [queue.pop_first().serial for _ in tasks] == [0, 1, 2]


def test_the_least_served_goes_first() -> None:
    policy = make_policy("cfs")
    tasks = [Task(serial, "a", 1.0, 0, 0) for serial in range(3)]
    for task in tasks:
        policy.join(task, 0)
    for cost, task in zip((5, 1, 3), tasks, strict=True):
        policy.take(task, 0)
        policy.charge(task, cost * MS, 0)
    for task in tasks:
        policy.put_back(task, 0)
    assert [policy.pick(0) for _ in tasks] == [tasks[1], tasks[2], tasks[0]]


def test_the_heavier_one_preempts_sooner() -> None:
    policy = make_policy("cfs", granularity_ns=10 * MS)
    running, heavy, light = (Task(i, "a", 1.0, nice, 0) for i, nice in enumerate((0, -5, 5)))
    for task in (running, heavy, light):
        policy.join(task, 0)
    policy.take(running, 0)
    policy.charge(running, 10 * MS, 0)
    assert policy.preempts(heavy, running, 0)
    assert not policy.preempts(light, running, 0)
