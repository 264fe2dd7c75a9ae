"""Prompts that wait, by the time of their last token: those whose gap passes the bound go first.

Fair shares alone leave a prompt that was ahead of its share (a long one, whose prefill was charged) without a
token for seconds. Within its tenant such a prompt goes first; between tenants the policy's order holds, so
nobody gains a share by being late.

Bounds. Newcomers are due before all that are overdue by less than half of the bound (`engine.waiting`). So
a prompt whose tenant is alone waits for 1.5 bounds at most, and for a turn of each that is due before it; one
of m prompts of a tenant, among k of the same weight at n places, for 1.5 bounds and 2 m k / n slices: m turns
of its tenant beside as many of each other one, twice because services may differ (`fairness.two_level`).
"""

from bisect import insort
from collections import deque

from engine.fairness.policy import Task

_SPARE_ENTRIES = 64  # a line is rebuilt when it holds twice as many entries as prompts, and these


class _Line:
    """The waiting prompts of one tenant, by the time of their last token. `since_ns` is the truth; `entries`
    also holds some of prompts that have left or come back since, which are dropped at its front.

    Who begins to wait had its last token after nearly all that wait, or goes back to the front where it was
    just taken: an end of a sorted deque is mostly the place, and neither end touches the others.
    """

    __slots__ = ("entries", "since_ns")

    def __init__(self) -> None:
        self.since_ns: dict[Task, int] = {}
        self.entries: deque[tuple[int, int, Task]] = deque()  # (last token, serial, task)

    def add(self, task: Task, last_token_ns: int) -> None:
        self.since_ns[task] = last_token_ns
        entry, entries = (last_token_ns, task.serial, task), self.entries
        if not entries or entries[-1] < entry:
            entries.append(entry)
        elif entry < entries[0]:
            entries.appendleft(entry)
        else:
            insort(entries, entry)
        if len(entries) > 2 * len(self.since_ns) + _SPARE_ENTRIES:
            self.entries = deque(sorted((ns, each.serial, each) for each, ns in self.since_ns.items()))


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
        line = self._lines.get(task.tenant)
        if line is not None and line.since_ns.pop(task, None) is not None and not line.since_ns:
            del self._lines[task.tenant]

    def is_overdue(self, last_token_ns: int, now_ns: int) -> bool:
        return now_ns - last_token_ns > self._bound_ns

    def take_overdue(self, tenant: str, now_ns: int) -> Task | None:
        """The tenant's prompt that has waited longest for a token, if that is past the bound: it waits no
        more."""
        line = self._lines.get(tenant)
        if line is None:
            return None
        entries = line.entries
        while entries and now_ns - entries[0][0] > self._bound_ns:
            since_ns, _, task = entries.popleft()
            if line.since_ns.get(task) == since_ns:
                del line.since_ns[task]
                if not line.since_ns:
                    del self._lines[tenant]
                return task
        return None

    def check_integrity(self) -> None:
        for tenant, line in self._lines.items():
            assert line.since_ns
            assert all(task.tenant == tenant for task in line.since_ns)
            entries = [entry[:2] for entry in line.entries]
            assert entries == sorted(entries)
            assert {(since_ns, task.serial) for task, since_ns in line.since_ns.items()} <= set(entries)
