import pytest

from engine.fairness import Task, make_policy
from engine.fairness.vtc import INPUT_COST, OUTPUT_COST


def make_tasks(*tenants: str, prompt_tokens: int = 100) -> list[Task]:
    return [
        Task(serial, tenant, 1.0, 0, 0, prompt_tokens=prompt_tokens) for serial, tenant in enumerate(tenants)
    ]


def test_picks_alternate_by_input_tokens() -> None:
    policy = make_policy("vtc")
    tasks = make_tasks("a", "a", "a", "b", "b")
    for task in tasks:
        policy.join(task, 0)
    picked = [policy.pick(0) for _ in range(6)]
    assert picked == [tasks[0], tasks[3], tasks[1], tasks[4], tasks[2], None]
    assert (policy.rotates, policy.recomputes) == (False, True)
    assert not policy.preempts(tasks[0], tasks[1], 0)


def test_output_counts_twice_as_much() -> None:
    policy = make_policy("vtc")
    tasks = make_tasks("a", "a", "b", "b", "b")
    for task in tasks:
        policy.join(task, 0)
    for task in tasks[0], tasks[2]:
        assert policy.pick(0) is task
        policy.charge(task, 1000, 0)
    policy.charge_tokens(tasks[0], 100 * INPUT_COST // OUTPUT_COST + 1, 0)
    assert [policy.pick(0) for _ in range(3)] == [tasks[3], tasks[4], tasks[1]]


def test_a_tenant_that_comes_late_is_lifted() -> None:
    policy = make_policy("vtc")
    tasks = make_tasks("a", "a", "a", "a", "b", "b")
    for task in tasks[:4]:
        policy.join(task, 0)
    assert [policy.pick(0), policy.pick(0)] == tasks[:2]
    policy.join(tasks[4], 0)
    policy.join(tasks[5], 0)
    assert [policy.pick(0) for _ in range(4)] == [tasks[2], tasks[4], tasks[3], tasks[5]]


def test_the_last_to_stop_waiting_sets_the_level() -> None:
    policy = make_policy("vtc")
    tasks = make_tasks("a", "b", "a", "b", "b")
    policy.join(tasks[0], 0)
    assert policy.pick(0) is tasks[0]
    policy.charge_tokens(tasks[0], 50, 0)
    policy.join(tasks[1], 0)  # at a's counter of now: 200 tokens
    policy.join(tasks[2], 0)
    assert [policy.pick(0), policy.pick(0)] == [tasks[2], tasks[1]]


@pytest.mark.parametrize("leaves", [False, True])
def test_a_pick_that_found_no_room_counts_nothing(leaves: bool) -> None:
    policy = make_policy("vtc")
    tasks = make_tasks("a", "a", "b")
    for task in tasks:
        policy.join(task, 0)
    assert policy.pick(0) is tasks[0]
    if leaves:
        policy.leave(tasks[0], 0)
        assert policy.pick(0) is tasks[1]
    else:
        policy.put_back(tasks[0], 0)
        assert policy.pick(0) is tasks[0]


def test_input_counts_once_even_if_recomputed() -> None:
    policy = make_policy("vtc")
    tasks = make_tasks("a", "b", "b")
    for task in tasks:
        policy.join(task, 0)
    assert policy.pick(0) is tasks[0]
    policy.charge(tasks[0], 1000, 0)
    policy.put_back(tasks[0], 0)
    assert [policy.pick(0), policy.pick(0), policy.pick(0)] == [tasks[1], tasks[0], tasks[2]]


def test_weights_divide() -> None:
    policy = make_policy("vtc")
    tasks = [Task(i, "ab"[i % 2], (3.0, 1.0)[i % 2], 0, 0, prompt_tokens=10) for i in range(40)]
    for task in tasks:
        policy.join(task, 0)
    picked = [policy.pick(0) for _ in range(20)]
    assert sum(task is not None and task.tenant == "a" for task in picked) == 15


def test_tokens_of_a_prompt_that_left_are_dropped_with_its_tenant() -> None:
    policy = make_policy("vtc")
    (task,) = make_tasks("a", prompt_tokens=0)
    policy.leave(task, 0)
    policy.join(task, 0)
    policy.leave(task, 0)
    policy.charge_tokens(task, 5, 0)
    policy.check_integrity()
    assert policy.num_queued() == 0
