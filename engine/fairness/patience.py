"""Patience: who has been here for long goes before the younger prompts of its tenant, oldest first.

Small requests (`policy`) let short answers finish soon, and every newcomer passes those whose answers are
long. Alone that makes the last answers of an overload very late. So a prompt older than the bound goes first
among its tenant's, after those whose gap passes its own bound; between tenants the policy's order holds.

Age is looked at when a prompt begins to wait: the bound on the gap sees to it that this is often.
"""

from engine.fairness.policy import Task
from engine.fairness.run_queue import SortedDeque


class ElderQueue:
    """The waiting prompts that have been here for longer than `patience_ns`, by arrival."""

    def __init__(self, patience_ns: int) -> None:
        self._patience_ns = patience_ns
        self._lines: dict[str, SortedDeque[Task]] = {}  # by tenant: (arrival, serial, task)
        self._tasks: set[Task] = set()  # those in a line

    def is_elder(self, task: Task, now_ns: int) -> bool:
        """Whether it goes first by now."""
        return now_ns - task.arrival_ns > self._patience_ns

    def add(self, task: Task) -> None:
        """An elder waits."""
        assert task not in self._tasks
        self._tasks.add(task)
        self._lines.setdefault(task.tenant, SortedDeque()).add((task.arrival_ns, task.serial, task))

    def discard(self, task: Task) -> None:
        """The prompt runs, or is gone. It need not have been here."""
        if task in self._tasks:
            self._tasks.remove(task)
            line = self._lines[task.tenant]
            line.remove((task.arrival_ns, task.serial, task))
            if not line:
                del self._lines[task.tenant]

    def take(self, tenant: str) -> Task | None:
        """The tenant's oldest: it waits no more."""
        line = self._lines.get(tenant)
        if line is None:
            return None
        task = line[0][2]
        self.discard(task)
        return task

    def check_integrity(self) -> None:
        """Raise AssertionError if the lines are not what they should be."""
        waiting = [task for line in self._lines.values() for _, _, task in line]
        assert set(waiting) == self._tasks
        assert len(waiting) == len(self._tasks)
        for tenant, line in self._lines.items():
            assert line
            assert list(line) == sorted(line, key=lambda entry: entry[:2])
            assert all(task.tenant == tenant for _, _, task in line)
