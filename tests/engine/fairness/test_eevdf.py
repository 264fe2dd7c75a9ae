import random
from fractions import Fraction

from sortedcontainers import SortedList

from engine.fairness import Task, make_policy
from engine.fairness.eevdf import DeadlineQueue
from engine.fairness.run_queue import BisectList
from engine.fairness.weights import nice_load

from .device import GRANULARITY_NS, MS, SLICE_NS, Device


def test_lags_sum_to_zero_and_the_earliest_eligible_deadline_is_picked() -> None:
    """Against the definition, on a queue whose entities come, run and go at random."""
    rng = random.Random(3)
    queue: DeadlineQueue[Task] = DeadlineQueue(SortedList(), BisectList(), 5 * MS)
    waiting: dict[int, Task] = {}
    for serial in range(2000):
        nice = rng.randrange(-5, 6)
        latency_ns = rng.choice([None, None, MS, 20 * MS])
        task = Task(serial, "a", 1.0, nice, 0, latency_ns, load=nice_load(nice))
        task.vruntime_ns = rng.randrange(100 * MS)
        queue.add(task)
        waiting[serial] = task
        while len(waiting) > 20:
            load = sum(task.load for task in waiting.values())
            v = Fraction(sum(task.load * task.vruntime_ns for task in waiting.values()), load)
            lags = {task.serial: task.load * (v - task.vruntime_ns) for task in waiting.values()}
            assert sum(lags.values()) == 0
            eligible = [task for task in waiting.values() if lags[task.serial] >= 0]
            expected = min(eligible, key=lambda task: (task.deadline_ns, task.serial))
            assert queue.first() is expected
            assert queue.pop_first() is expected
            del waiting[expected.serial]
            if rng.random() < 0.5:
                expected.vruntime_ns += rng.randrange(10 * MS)
                queue.add(expected)
                waiting[expected.serial] = expected
        if rng.random() < 0.1:
            gone = waiting.pop(rng.choice(list(waiting)))
            assert gone in queue
            queue.remove(gone)
            assert gone not in queue
        queue.check_integrity()


def longest_wait_of_visitors(latency_ns: int | None) -> int:
    """Stints of nine residents before a prompt that comes for a single one gets it."""
    policy = make_policy("eevdf", slice_ns=SLICE_NS, granularity_ns=GRANULARITY_NS)
    rng = random.Random(1)
    device = Device(policy, 1, lambda task: rng.randrange(1, 4 * MS))
    for _ in range(9):
        device.submit("a")
    device.run(100)
    longest = 0
    for _ in range(100):
        visitor = device.submit("a", stints=1, latency_ns=latency_ns)
        came = device.num_stints
        while visitor in device.stints_left:
            device.step()
        longest = max(longest, device.num_stints - came)
        device.run(20)
    return longest


def test_a_shorter_wish_waits_less() -> None:
    assert longest_wait_of_visitors(MS // 10) <= 2 < longest_wait_of_visitors(None)


def test_a_shorter_wish_gets_no_more() -> None:
    policy = make_policy("eevdf", slice_ns=SLICE_NS, granularity_ns=GRANULARITY_NS)
    device = Device(policy, 1, lambda task: MS)
    for _ in range(9):
        device.submit("a")
    hasty = device.submit("a", latency_ns=MS // 10)
    device.run(5000)
    assert abs(hasty.service_ns - 500 * MS) <= 10 * MS


def test_a_wish_speeds_up_its_tenant() -> None:
    policy = make_policy("eevdf", slice_ns=SLICE_NS, granularity_ns=GRANULARITY_NS)
    plain, hasty = Task(0, "plain", 1.0, 0, 0), Task(1, "hasty", 1.0, 0, 0, latency_ns=MS)
    policy.join(plain, 0)
    policy.join(hasty, 0)
    assert policy.pick(0) is hasty


def test_a_wish_preempts() -> None:
    policy = make_policy("eevdf", slice_ns=SLICE_NS, granularity_ns=GRANULARITY_NS)
    running, plain = Task(0, "a", 1.0, 0, 0), Task(1, "a", 1.0, 0, 0)
    policy.join(running, 0)
    policy.join(plain, 0)
    assert policy.pick(0) is running
    hasty = Task(2, "a", 1.0, 0, 0, latency_ns=MS)
    policy.join(hasty, 0)
    assert policy.preempts(hasty, running, 0)
    assert not policy.preempts(plain, running, 0)
