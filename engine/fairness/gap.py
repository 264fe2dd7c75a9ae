"""Prompts that wait, by the time of their last token: those whose gap passes the bound go first.

Fair shares alone leave a prompt that was ahead of its share (a long one, whose prefill was charged) without a
token for seconds. Within its tenant such a prompt goes first; between tenants the policy's order holds, so
nobody gains a share by being late.

Bounds. Newcomers are due before all that are overdue by less than half of the bound (`engine.waiting`). So
a prompt whose tenant is alone waits for 1.5 bounds at most, and for a turn of each that is due before it; one
of m prompts of a tenant, among k of the same weight at n places, for 1.5 bounds and 2 m k / n slices: m turns
of its tenant beside as many of each other one, twice because services may differ (`fairness.two_level`).
"""

from engine.fairness.policy import Task
from engine.fairness.run_queue import SortedDeque

_SPARE_ENTRIES = 64  # a line is rebuilt when it holds twice as many entries as prompts, and these


class _Line:
    """The waiting prompts of one tenant, by the time of their last token. `Task.waits_since_ns` is the truth;
    `entries` also holds some of prompts that have left or come back since, which are dropped at its front.

    Who begins to wait had its last token after nearly all that wait, or goes back to the front where it was
    just taken: an end of a sorted deque is mostly the place, and neither end touches the others.
    """

    __slots__ = ("entries", "num_waiting")

    def __init__(self) -> None:
        self.num_waiting = 0
        self.entries: SortedDeque[Task] = SortedDeque()  # (last token, serial, task)

    def add(self, task: Task, last_token_ns: int) -> None:
        if task.waits_since_ns is None:
            self.num_waiting += 1
        task.waits_since_ns = last_token_ns
        self.entries.add((last_token_ns, task.serial, task))
        if len(self.entries) > 2 * self.num_waiting + _SPARE_ENTRIES:
            self.entries = SortedDeque(self.waiting())

    def waiting(self) -> list[tuple[int, int, Task]]:
        """The entries that are true, each once."""
        true = [entry for entry in self.entries if entry[2].waits_since_ns == entry[0]]
        return list(dict.fromkeys(true))


class GapQueue:
    """`bound_ns`: the longest that a prompt should wait for its next token."""

    def __init__(self, bound_ns: int) -> None:
        self._bound_ns = bound_ns
        self._lines: dict[str, _Line] = {}  # by tenant

    def add(self, task: Task, last_token_ns: int) -> None:
        """The prompt waits; its last token (or, before the first, its arrival) was at `last_token_ns`."""
        line = self._lines.get(task.tenant)
        if line is None:
            line = self._lines[task.tenant] = _Line()
        line.add(task, last_token_ns)

    def discard(self, task: Task) -> None:
        """The prompt runs, or is gone. It need not have waited."""
        if task.waits_since_ns is not None:
            self._take(self._lines[task.tenant], task)

    def _take(self, line: _Line, task: Task) -> None:
        task.waits_since_ns = None
        line.num_waiting -= 1
        if not line.num_waiting:
            del self._lines[task.tenant]

    def is_overdue(self, last_token_ns: int, now_ns: int) -> bool:
        return now_ns - last_token_ns > self._bound_ns

    def take_overdue(self, tenant: str, now_ns: int) -> Task | None:
        """The tenant's prompt that has waited longest for a token, if that is past the bound: it waits no
        more."""
        line = self._lines.get(tenant)
        if line is None:
            return None
        entries, due_ns = line.entries, now_ns - self._bound_ns
        while entries and entries[0][0] < due_ns:
            since_ns, _, task = entries.popleft()
            if task.waits_since_ns == since_ns:
                self._take(line, task)
                return task
        return None

    def check_integrity(self) -> None:
        for tenant, line in self._lines.items():
            waiting = line.waiting()
            assert len(waiting) == line.num_waiting > 0
            assert all(task.tenant == tenant for _, _, task in waiting)
            entries = [entry[:2] for entry in line.entries]
            assert entries == sorted(entries)
