"""Prompts that have been here for long."""

import random

import pytest

from engine.fairness.patience import ElderQueue
from engine.fairness.policy import Task


def task(serial: int, arrival_ns: int, tenant: str = "a") -> Task:
    return Task(serial=serial, tenant=tenant, weight=1.0, nice=0, arrival_ns=arrival_ns)


def test_the_oldest_of_a_tenant_goes_first() -> None:
    queue = ElderQueue(100)
    old, older, other = task(1, 20), task(2, 10), task(3, 5, "b")
    for each in (old, older, other):
        queue.add(each)
    queue.check_integrity()
    assert [queue.take("a"), queue.take("a"), queue.take("a")] == [older, old, None]
    assert queue.take("b") is other


def test_age_counts_from_the_arrival() -> None:
    queue = ElderQueue(100)
    assert not queue.is_elder(task(1, 10), 110)
    assert queue.is_elder(task(1, 10), 111)


def test_who_leaves_is_forgotten() -> None:
    queue = ElderQueue(100)
    gone, stays = task(1, 1), task(2, 2)
    queue.add(gone)
    queue.add(stays)
    queue.discard(gone)
    queue.discard(gone)
    assert queue.take("a") is stays
    queue.check_integrity()


@pytest.mark.parametrize("seed", range(5))
def test_random_operations(seed: int) -> None:
    source, queue = random.Random(seed), ElderQueue(100)
    inside: set[Task] = set()
    for serial in range(400):
        if source.random() < 0.6:
            one = task(serial, source.randrange(50), source.choice("abc"))
            inside.add(one)
            queue.add(one)
        elif inside and source.random() < 0.5:
            one = source.choice(sorted(inside, key=lambda each: each.serial))
            inside.remove(one)
            queue.discard(one)
        else:
            tenant = source.choice("abc")
            mine = [each for each in inside if each.tenant == tenant]
            first = min(mine, key=lambda each: (each.arrival_ns, each.serial), default=None)
            assert queue.take(tenant) is first
            if first is not None:
                inside.remove(first)
        queue.check_integrity()
