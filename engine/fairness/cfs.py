"""The completely fair scheduler: whoever has been served least, by weight, goes first.

After Linux's CFS as it was before 6.6 (kernel/sched/fair.c): `vruntime`, `min_vruntime`, `place_entity`,
`wakeup_preempt_entity`.

Tenants go by vruntime. The prompts of a tenant go by the vruntime at which their current request began, a
request being so much charged GPU time, as packets go in start-time fair queueing (Goyal, Vin and Cheng,
SIGCOMM 1996). Their shares are the same, but who came first is done first: if the prompts of a tenant changed
places at every small lead, all of them would finish last.
"""

from typing import Generic

from engine.fairness.policy import Task
from engine.fairness.run_queue import E, SortedDeque, virtual_granularity
from engine.fairness.tenants import Account
from engine.fairness.two_level import TwoLevelPolicy
from engine.fairness.weights import NICE_0_LOAD


class LeastServedQueue(Generic[E]):
    """Entities by the start of their request of `request_ns`, then serial; by vruntime if that is 0."""

    def __init__(self, granularity_ns: int, *, request_ns: int = 0) -> None:
        self._entries: SortedDeque[E] = SortedDeque()
        self._lead_ns = max(granularity_ns, request_ns)
        self._request_shares = request_ns * NICE_0_LOAD  # what it is worth, whatever the load

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, entity: E) -> bool:
        return (entity.start_ns, entity.serial, entity) in self._entries

    def add(self, entity: E) -> None:
        """A request that is done makes room for the next."""
        done_ns = entity.vruntime_ns - entity.start_ns
        if not 0 <= done_ns * entity.load < self._request_shares:
            entity.start_ns = entity.vruntime_ns
        self._entries.add((entity.start_ns, entity.serial, entity))

    def remove(self, entity: E) -> None:
        if self._entries[0][2] is entity:  # mostly: who goes first
            self._entries.popleft()
        else:
            self._entries.remove((entity.start_ns, entity.serial, entity))

    def first(self) -> E:
        return self._entries[0][2]

    def pop_first(self) -> E:
        return self._entries.popleft()[2]

    def floor_ns(self) -> int:
        first = self._entries[0][2]
        return first.start_ns - first.projected_ns

    def outranks(self, waiting: E, waiting_ns: int, running: E, running_ns: int) -> bool:
        """`wakeup_preempt_entity`: the one that runs must be ahead by more than the granularity, which is
        not less than a request."""
        return running_ns - waiting_ns > virtual_granularity(self._lead_ns, waiting)

    def check_integrity(self) -> None:
        keys = [(start_ns, serial) for start_ns, serial, _ in self._entries]
        assert keys == sorted(set(keys))
        for start_ns, serial, entity in self._entries:
            assert (start_ns, serial) == (entity.start_ns, entity.serial)


class CfsPolicy(TwoLevelPolicy):
    """A prompt preempts a running one that is more than `granularity_ns` ahead of it, by weight."""

    def __init__(self, *, slice_ns: int, request_ns: int, granularity_ns: int, memory_ns: int) -> None:
        def make_task_queue() -> LeastServedQueue[Task]:
            return LeastServedQueue(granularity_ns, request_ns=request_ns)

        tenants: LeastServedQueue[Account] = LeastServedQueue(granularity_ns)
        super().__init__(tenants, make_task_queue, slice_ns=slice_ns, memory_ns=memory_ns)
