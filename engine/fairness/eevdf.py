"""Earliest eligible virtual deadline first: who is owed service goes first in the order of their deadlines.

Stoica and Abdel-Wahab, "Earliest Eligible Virtual Deadline First" (Old Dominion University, TR-95-22, 1995),
in the form of Linux since 6.6 (kernel/sched/fair.c): `avg_vruntime`, `entity_eligible`, `update_deadline`,
`pick_eevdf`. The lag of an entity is its load times (V - its vruntime), where V is the average vruntime
weighted by load, so lags sum to 0; it is eligible while its lag is not negative. Its virtual deadline is the
vruntime at which its current request (a slice of `latency_ns` of service) will be done, so a short wish is
served sooner and smaller, and nobody gains service by it.

What differs: V is taken over those who compete for the next place, that is who wait, since many run at once.
So whenever somebody waits somebody is eligible. Newcomers are placed by the virtual clock, which V holds
back: they keep a debt, but no lag that was owed to them.

The prompts of a tenant ask for a slice of charged GPU time, if they wish nothing shorter. As in the paper
a request that became eligible stays so until it is done, and as in the kernel (RUN_TO_PARITY, PREEMPT_SHORT)
who runs keeps the place for as long, unless one with a shorter request waits. Tenants, who hold many places,
ask for a granularity at a time.
"""

from typing import Generic

from sortedcontainers import SortedList

from engine.fairness.policy import Task
from engine.fairness.run_queue import BisectList, E, virtual_granularity
from engine.fairness.tenants import Account
from engine.fairness.two_level import TwoLevelPolicy
from engine.fairness.weights import virtual


class DeadlineQueue(Generic[E]):
    """Entities by deadline, then serial; those that came first in this order and were not eligible are parked
    by the start of their request, then serial, until V has passed them.

    So each step looks at few: with equal requests those with early deadlines are mostly eligible, and one
    that is not is parked once, whatever the number of picks that pass it over. `by_deadline` and `parked` are
    empty SortedLists, or BisectLists for few entities.
    """

    def __init__(
        self,
        by_deadline: "SortedList | BisectList[E]",
        parked: "SortedList | BisectList[E]",
        granularity_ns: int,
        *,
        request_ns: int = 0,
    ) -> None:
        self._by_deadline = by_deadline  # (deadline_ns, serial, entity)
        self._parked = parked  # (start_ns, serial, entity)
        self._parked_serials: set[int] = set()
        self._granularity_ns = granularity_ns
        self._request_ns = request_ns
        self._load = 0  # of all
        self._weighted_ns = 0  # vruntime times load, of all: V is this divided by the load

    def __len__(self) -> int:
        return len(self._by_deadline) + len(self._parked)

    def __contains__(self, entity: E) -> bool:
        if entity.serial in self._parked_serials:
            return True
        return (entity.deadline_ns, entity.serial, entity) in self._by_deadline

    def add(self, entity: E) -> None:
        """A request that is done makes room for the next; a wish shorter than the current one shortens it.
        What is only projected has not been done. Who has no requests to speak of is judged by vruntime."""
        load, latency_ns = entity.load, entity.latency_ns
        settled_ns = entity.vruntime_ns - entity.projected_ns
        is_done = settled_ns >= entity.deadline_ns
        if is_done or not self._request_ns or settled_ns < entity.start_ns:
            entity.start_ns = entity.vruntime_ns
        if latency_ns is not None:
            shortest_ns = settled_ns + virtual(latency_ns, load)
            if is_done or shortest_ns < entity.deadline_ns:
                entity.deadline_ns = shortest_ns
        elif is_done:
            entity.deadline_ns = settled_ns + virtual(self._request_ns or self._granularity_ns, load)
        self._load += load
        self._weighted_ns += load * entity.vruntime_ns
        self._by_deadline.add((entity.deadline_ns, entity.serial, entity))

    def remove(self, entity: E) -> None:
        if entity.serial in self._parked_serials:
            self._parked_serials.remove(entity.serial)
            self._parked.remove((entity.start_ns, entity.serial, entity))
        else:
            self._by_deadline.remove((entity.deadline_ns, entity.serial, entity))
        self._load -= entity.load
        self._weighted_ns -= entity.load * entity.vruntime_ns

    def first(self) -> E:
        entity = self._pop_eligible()
        self._by_deadline.add((entity.deadline_ns, entity.serial, entity))
        return entity

    def pop_first(self) -> E:
        entity = self._pop_eligible()
        self._load -= entity.load
        self._weighted_ns -= entity.load * entity.vruntime_ns
        return entity

    def floor_ns(self) -> int:
        return self._weighted_ns // self._load

    def outranks(self, waiting: E, waiting_ns: int, running: E, running_ns: int) -> bool:
        """The kernel preempts for an eligible entity if the running one has a later deadline or is not
        eligible itself; in the second case it must also be ahead by the granularity, or two tenants near V
        would preempt each other without end. A request of `request_ns` is done first, but for a shorter."""
        load, weighted_ns = self._load, self._weighted_ns
        if waiting not in self:  # it was picked, and found no room
            load += waiting.load
            weighted_ns += waiting.load * waiting_ns
        if waiting_ns * load > weighted_ns:
            return False
        if self._request_ns and running_ns < running.deadline_ns and not self._is_shorter(waiting, running):
            return False
        if waiting.deadline_ns < running.deadline_ns:
            return True
        is_ahead = running_ns - waiting_ns > virtual_granularity(self._granularity_ns, waiting)
        return is_ahead and running_ns * load > weighted_ns

    def check_integrity(self) -> None:
        for deadline_ns, serial, entity in self._by_deadline:
            assert (deadline_ns, serial) == (entity.deadline_ns, entity.serial)
        for start_ns, serial, entity in self._parked:
            assert (start_ns, serial) == (entity.start_ns, entity.serial)
        for entries in (self._by_deadline, self._parked):
            keys = [entry[:2] for entry in entries]
            assert keys == sorted(set(keys))
        assert self._parked_serials == {serial for _, serial, _ in self._parked}
        assert self._parked_serials.isdisjoint(serial for _, serial, _ in self._by_deadline)
        entities = [entity for _, _, entity in (*self._by_deadline, *self._parked)]
        assert self._load == sum(entity.load for entity in entities)
        assert self._weighted_ns == sum(entity.load * entity.vruntime_ns for entity in entities)
        assert not entities or any(self._is_eligible(entity.start_ns) for entity in entities)

    def _is_shorter(self, waiting: E, running: E) -> bool:
        """Whether the wish of `waiting` is shorter than the request of `running`."""
        if waiting.latency_ns is None:
            return False
        return waiting.latency_ns < (running.latency_ns or self._request_ns)

    def _is_eligible(self, vruntime_ns: int) -> bool:
        """Whether the lag at this vruntime is not negative: `entity_eligible`, without a division."""
        return vruntime_ns * self._load <= self._weighted_ns

    def _pop_eligible(self) -> E:
        """The eligible entity with the earliest deadline; in no list any more, but counted still."""
        while self._parked_serials and self._is_eligible(self._parked[0][0]):
            _, serial, entity = self._parked.pop(0)
            self._parked_serials.remove(serial)
            self._by_deadline.add((entity.deadline_ns, serial, entity))
        while True:
            earliest: E = self._by_deadline.pop(0)[2]
            if earliest.start_ns * self._load <= self._weighted_ns:  # _is_eligible, without the call
                return earliest
            self._parked_serials.add(earliest.serial)
            self._parked.add((earliest.start_ns, earliest.serial, earliest))


class EevdfPolicy(TwoLevelPolicy):
    """A prompt's `latency_ns` is its request; without one it is `request_ns`. A tenant's request is that of
    its prompt which would run next, or `granularity_ns`, as the kernel's base slice is its former minimum
    granularity."""

    grants_wishes = True

    def __init__(self, *, slice_ns: int, request_ns: int, granularity_ns: int, memory_ns: int) -> None:
        def make_task_queue() -> DeadlineQueue[Task]:
            return DeadlineQueue(SortedList(), SortedList(), granularity_ns, request_ns=request_ns)

        tenants: DeadlineQueue[Account] = DeadlineQueue(BisectList(), BisectList(), granularity_ns)
        super().__init__(tenants, make_task_queue, slice_ns=slice_ns, memory_ns=memory_ns)
