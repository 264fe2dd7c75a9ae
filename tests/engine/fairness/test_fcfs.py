from engine.fairness import Task, make_policy


def test_arrival_order_survives_being_put_back() -> None:
    policy = make_policy("fcfs")
    tasks = [Task(serial, "a", 1.0, 0, 0) for serial in range(4)]
    for task in reversed(tasks):
        policy.join(task, 0)
    assert (policy.rotates, policy.recomputes) == (False, True)
    first = policy.pick(0)
    assert first is tasks[0]
    policy.charge(first, 10**9, 0)
    assert not policy.preempts(tasks[1], first, 0)
    policy.put_back(first, 0)
    policy.take(tasks[2], 0)
    policy.leave(tasks[2], 0)
    policy.leave(tasks[1], 0)
    policy.check_integrity()
    assert [policy.pick(0), policy.pick(0), policy.pick(0)] == [tasks[0], tasks[3], None]
    assert policy.num_queued() == 0
