"""What a policy costs the engine: filling a batch of 64 out of 10,000 queued prompts, and putting it back.

    python -m bench.policies

Exit status 1 if a policy takes longer than the limit.
"""

import random
import statistics
import sys
import time

from engine.fairness import POLICIES, Policy, Task, make_policy

NUM_QUEUED = 10_000
BATCH = 64
ROUNDS = 200
LIMIT_MS = 0.5  # median of pick and put_back together


def fill(policy: Policy, num_tenants: int, rng: random.Random) -> None:
    """Prompts that have run before, so that their vruntimes differ."""
    for serial in range(NUM_QUEUED):
        tenant = rng.randrange(num_tenants)
        policy.join(Task(serial, f"tenant-{tenant}", 1.0 + tenant % 3, 0, arrival_ns=serial), now_ns=0)
    for _ in range(NUM_QUEUED):
        task = policy.pick(0)
        assert task is not None
        policy.charge(task, rng.randrange(1, 200_000_000), 0)
        policy.put_back(task, 0)


def measure(name: str, num_tenants: int) -> tuple[float, float, float]:
    """Medians, in ms, of 64 picks, 64 charges and 64 put_backs."""
    rng = random.Random(1)
    policy = make_policy(name, slice_ns=200_000_000, granularity_ns=25_000_000)
    fill(policy, num_tenants, rng)
    rows = []
    for now_ns in range(ROUNDS):
        costs_ns = [rng.randrange(1, 10_000_000) for _ in range(BATCH)]
        started = time.perf_counter()
        tasks = [task for _ in range(BATCH) if (task := policy.pick(now_ns)) is not None]
        picked = time.perf_counter()
        for task, cost_ns in zip(tasks, costs_ns, strict=True):
            policy.charge(task, cost_ns, now_ns)
        charged = time.perf_counter()
        for task in tasks:
            policy.put_back(task, now_ns)
        rows.append((picked - started, charged - picked, time.perf_counter() - charged))
    pick_s, charge_s, put_back_s = (statistics.median(column) for column in zip(*rows, strict=True))
    return 1e3 * pick_s, 1e3 * charge_s, 1e3 * put_back_s


def main() -> int:
    print(f"{BATCH} of {NUM_QUEUED:,} queued, medians of {ROUNDS}, ms; limit of pick + put_back: {LIMIT_MS}")
    print(f"{'policy':8}{'tenants':>8}{'pick':>8}{'charge':>8}{'put_back':>10}{'pick+put_back':>15}")
    slowest = 0.0
    for name in POLICIES:
        for num_tenants in (1, 100):
            pick, charge, put_back = measure(name, num_tenants)
            slowest = max(slowest, pick + put_back)
            print(f"{name:8}{num_tenants:8}{pick:8.3f}{charge:8.3f}{put_back:10.3f}{pick + put_back:15.3f}")
    return 0 if slowest <= LIMIT_MS else 1


if __name__ == "__main__":
    sys.exit(main())
