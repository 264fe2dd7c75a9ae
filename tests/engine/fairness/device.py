"""A device that serves prompts without end: places in a batch, a manual clock, costs as a test wants them."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from engine.fairness import Policy, Task

MS = 1_000_000
SLICE_NS = 20 * MS
GRANULARITY_NS = 5 * MS


class Device:
    """`num_slots` prompts run at once. A stint of a prompt costs `cost_ns(task)`, and lasts as long."""

    def __init__(self, policy: Policy, num_slots: int, cost_ns: Callable[[Task], int]) -> None:
        self.policy = policy
        self.num_slots = num_slots
        self.cost_ns = cost_ns
        self.now_ns = 0
        self.num_stints = 0
        self.service_ns: dict[str, int] = {}
        self.last_stint: dict[Task, int] = {}  # waiting or running -> number of stints when it last began
        self.longest_wait = 0  # stints of others between two of a prompt
        self.stints_left: dict[Task, int] = {}
        self._serials = count()
        self._running: list[tuple[int, int, Task, int]] = []  # (end, serial, task, cost)

    def submit(
        self,
        tenant: str,
        *,
        weight: float = 1.0,
        nice: int = 0,
        stints: int = 10**9,
        latency_ns: int | None = None,
    ) -> Task:
        task = Task(next(self._serials), tenant, weight, nice, self.now_ns, latency_ns)
        self.stints_left[task] = stints
        self.last_stint[task] = self.num_stints
        self.policy.join(task, self.now_ns)
        return task

    def abort(self, task: Task) -> None:
        self._running = [entry for entry in self._running if entry[2] is not task]
        self._running.sort()
        self._forget(task)

    def fill(self) -> None:
        while len(self._running) < self.num_slots:
            task = self.policy.pick(self.now_ns)
            if task is None:
                return
            self.longest_wait = max(self.longest_wait, self.num_stints - self.last_stint[task])
            self.num_stints += 1
            self.last_stint[task] = self.num_stints
            cost_ns = self.cost_ns(task)
            heappush(self._running, (self.now_ns + cost_ns, task.serial, task, cost_ns))

    def step(self) -> Task:
        """Run until the next stint ends; whose it was. A prompt that is finished has left."""
        self.fill()
        self.now_ns, _, task, cost_ns = heappop(self._running)
        self.policy.charge(task, cost_ns, self.now_ns)
        self.service_ns[task.tenant] = self.service_ns.get(task.tenant, 0) + cost_ns
        self.stints_left[task] -= 1
        if self.stints_left[task]:
            self.policy.put_back(task, self.now_ns)
        else:
            self._forget(task)
        return task

    def run(self, num_stints: int) -> None:
        for _ in range(num_stints):
            self.step()

    def _forget(self, task: Task) -> None:
        self.policy.leave(task, self.now_ns)
        del self.stints_left[task], self.last_stint[task]
