"""Prompts that wait, by the time of their last token: those whose gap passes the bound go first.

Fair shares alone leave a prompt that was ahead of its share (a long one, whose prefill was charged) without a
token for seconds. Within its tenant such a prompt goes first; between tenants the policy's order holds, so
nobody gains a share by being late.
"""

from heapq import heapify, heappop, heappush

from engine.fairness.policy import Task

_SPARE_ENTRIES = 64  # a heap is rebuilt when it holds twice as many entries as prompts, and these


class _Waiting:
    """The waiting prompts of one tenant. `since_ns` is the truth; the heap also holds entries of prompts that
    have left or come back since, which are dropped when they reach its top."""

    __slots__ = ("heap", "since_ns")

    def __init__(self) -> None:
        self.since_ns: dict[Task, int] = {}
        self.heap: list[tuple[int, int, Task]] = []  # (last token, serial, task)

    def add(self, task: Task, last_token_ns: int) -> None:
        self.since_ns[task] = last_token_ns
        heappush(self.heap, (last_token_ns, task.serial, task))
        if len(self.heap) > 2 * len(self.since_ns) + _SPARE_ENTRIES:
            self.heap = [(since_ns, task.serial, task) for task, since_ns in self.since_ns.items()]
            heapify(self.heap)

    def oldest(self) -> tuple[int, Task] | None:
        while self.heap:
            since_ns, _, task = self.heap[0]
            if self.since_ns.get(task) == since_ns:
                return since_ns, task
            heappop(self.heap)
        return None


class GapQueue:
    """`bound_ns`: the longest that a prompt should wait for its next token."""

    def __init__(self, bound_ns: int) -> None:
        self._bound_ns = bound_ns
        self._tenants: dict[str, _Waiting] = {}

    def add(self, task: Task, last_token_ns: int) -> None:
        """The prompt waits; its last token (or, before the first, its arrival) was at `last_token_ns`."""
        waiting = self._tenants.get(task.tenant)
        if waiting is None:
            waiting = self._tenants[task.tenant] = _Waiting()
        waiting.add(task, last_token_ns)

    def discard(self, task: Task) -> None:
        """The prompt runs, or is gone. It need not have waited."""
        waiting = self._tenants.get(task.tenant)
        if waiting is not None and waiting.since_ns.pop(task, None) is not None and not waiting.since_ns:
            del self._tenants[task.tenant]

    def is_overdue(self, last_token_ns: int, now_ns: int) -> bool:
        return now_ns - last_token_ns > self._bound_ns

    def oldest_overdue(self, tenant: str, now_ns: int) -> Task | None:
        """The tenant's prompt that has waited longest for a token, if that is past the bound."""
        waiting = self._tenants.get(tenant)
        oldest = waiting.oldest() if waiting is not None else None
        if oldest is None or not self.is_overdue(oldest[0], now_ns):
            return None
        return oldest[1]

    def check_integrity(self) -> None:
        for tenant, waiting in self._tenants.items():
            assert waiting.since_ns
            assert all(task.tenant == tenant for task in waiting.since_ns)
            entries = {(since_ns, task.serial, task) for task, since_ns in waiting.since_ns.items()}
            assert entries <= set(waiting.heap)
