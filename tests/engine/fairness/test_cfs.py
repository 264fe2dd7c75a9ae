from engine.fairness import Task, make_policy
from engine.fairness.cfs import LeastServedQueue

from .device import MS


def test_equal_vruntimes_go_by_serial() -> None:
    queue: LeastServedQueue[Task] = LeastServedQueue(0)
    tasks = [Task(serial, "a", 1.0, 0, 0) for serial in (2, 0, 1)]
    for task in tasks:
        queue.add(task)
    assert [queue.pop_first().serial for _ in tasks] == [0, 1, 2]


def test_the_least_served_goes_first() -> None:
    policy = make_policy("cfs")
    tasks = [Task(serial, "a", 1.0, 0, 0) for serial in range(3)]
    for task in tasks:
        policy.join(task, 0)
    for cost, task in zip((700, 300, 500), tasks, strict=True):
        policy.take(task, 0)
        policy.charge(task, cost * MS, 0)
    for task in tasks:
        policy.put_back(task, 0)
    assert [policy.pick(0) for _ in tasks] == [tasks[1], tasks[2], tasks[0]]


def test_who_came_first_goes_first_until_a_request_is_done() -> None:
    policy = make_policy("cfs", slice_ns=10 * MS, granularity_ns=MS)
    first, second = (Task(serial, "a", 1.0, 0, 0) for serial in range(2))
    for task in (first, second):
        policy.join(task, 0)
    for _ in range(2):
        assert policy.pick(0) is first
        assert not policy.preempts(second, first, 0)
        policy.charge(first, 5 * MS, 0)
        policy.put_back(first, 0)
    for _ in range(2):
        assert policy.pick(0) is second
        policy.charge(second, 5 * MS, 0)
        policy.put_back(second, 0)
    assert policy.pick(0) is first


def test_the_heavier_one_preempts_sooner() -> None:
    policy = make_policy("cfs", slice_ns=10 * MS, granularity_ns=10 * MS)
    running, heavy, light = (Task(i, "a", 1.0, nice, 0) for i, nice in enumerate((0, -5, 5)))
    for task in (running, heavy, light):
        policy.join(task, 0)
    policy.take(running, 0)
    policy.charge(running, 10 * MS, 0)
    assert policy.preempts(heavy, running, 0)
    assert not policy.preempts(light, running, 0)
