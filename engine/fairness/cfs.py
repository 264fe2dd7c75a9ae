"""The completely fair scheduler: whoever has been served least, by weight, goes first.

After Linux's CFS as it was before 6.6 (kernel/sched/fair.c): `vruntime`, `min_vruntime`, `place_entity`,
`wakeup_preempt_entity`.
"""

from typing import Generic

from sortedcontainers import SortedList

from engine.fairness.policy import Task
from engine.fairness.run_queue import BisectList, E, virtual_granularity
from engine.fairness.tenants import Account
from engine.fairness.two_level import TwoLevelPolicy


class LeastServedQueue(Generic[E]):
    """Entities by vruntime, then serial. `entries` is an empty SortedList, or a BisectList for few."""

    def __init__(self, entries: "SortedList | BisectList[E]", granularity_ns: int) -> None:
        self._entries = entries
        self._add = entries.add
        self._granularity_ns = granularity_ns

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, entity: E) -> bool:
        return (entity.vruntime_ns, entity.serial, entity) in self._entries

    def add(self, entity: E) -> None:
        self._add((entity.vruntime_ns, entity.serial, entity))

    def remove(self, entity: E) -> None:
        self._entries.remove((entity.vruntime_ns, entity.serial, entity))

    def first(self) -> E:
        entity: E = self._entries[0][2]
        return entity

    def pop_first(self) -> E:
        entity: E = self._entries.pop(0)[2]
        return entity

    def floor_ns(self) -> int:
        first: E = self._entries[0][2]
        return first.vruntime_ns - first.projected_ns

    def outranks(self, waiting: E, waiting_ns: int, running: E, running_ns: int) -> bool:
        """`wakeup_preempt_entity`: the one that runs must be ahead by more than the granularity."""
        return running_ns - waiting_ns > virtual_granularity(self._granularity_ns, waiting)

    def check_integrity(self) -> None:
        keys = [(vruntime_ns, serial) for vruntime_ns, serial, _ in self._entries]
        assert keys == sorted(set(keys))
        for vruntime_ns, serial, entity in self._entries:
            assert (vruntime_ns, serial) == (entity.vruntime_ns, entity.serial)


class CfsPolicy(TwoLevelPolicy):
    """A prompt preempts a running one that is more than `granularity_ns` ahead of it, by weight."""

    def __init__(self, *, slice_ns: int, granularity_ns: int, memory_ns: int) -> None:
        def make_task_queue() -> LeastServedQueue[Task]:
            return LeastServedQueue(SortedList(), granularity_ns)

        tenants: LeastServedQueue[Account] = LeastServedQueue(BisectList(), granularity_ns)
        super().__init__(tenants, make_task_queue, slice_ns=slice_ns, memory_ns=memory_ns)
