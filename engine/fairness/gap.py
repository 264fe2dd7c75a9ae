"""The bound on the gap between two tokens: of a tenant's waiting prompts, one that passes it goes first.

Plain fair queueing starves long contexts after their first token: their steps cost more, so others pass them.
The rule works within a tenant, so that a tenant with many late prompts takes nothing from another.
"""

from sortedcontainers import SortedKeyList

from engine.fairness.policy import Task


class GapQueue:
    """Waiting prompts by tenant, in order of their latest token (the arrival, before the first)."""

    def __init__(self, bound_ns: int) -> None:
        self.bound_ns = bound_ns
        self._since_ns: dict[Task, int] = {}
        self._tenants: dict[str, SortedKeyList[Task]] = {}

    def add(self, task: Task, last_token_ns: int) -> None:
        """The task waits; it got its latest token at `last_token_ns`."""
        self.discard(task)
        self._since_ns[task] = last_token_ns
        queue = self._tenants.get(task.tenant)
        if queue is None:
            queue = SortedKeyList(key=self._order)
            self._tenants[task.tenant] = queue
        queue.add(task)

    def discard(self, task: Task) -> None:
        """The task does not wait (any more)."""
        if task not in self._since_ns:
            return
        queue = self._tenants[task.tenant]
        queue.remove(task)
        if not queue:
            del self._tenants[task.tenant]
        del self._since_ns[task]

    def is_overdue(self, last_token_ns: int, now_ns: int) -> bool:
        return now_ns - last_token_ns > self.bound_ns

    def oldest_overdue(self, tenant: str, now_ns: int) -> Task | None:
        """The tenant's task that waits longest, if that is past the bound."""
        queue = self._tenants.get(tenant)
        if queue is None:
            return None
        oldest: Task = queue[0]
        return oldest if self.is_overdue(self._since_ns[oldest], now_ns) else None

    def _order(self, task: Task) -> tuple[int, int]:
        return self._since_ns[task], task.serial
