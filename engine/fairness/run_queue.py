"""Queues of those who compete for the next place on a GPU: prompts of one tenant, or tenants."""

from bisect import bisect_left, insort
from collections import deque
from typing import Protocol, TypeVar

from engine.fairness.weights import virtual


class Entity(Protocol):
    """A task or a tenant's account. Only `projected_ns` may change while it is in a queue."""

    serial: int
    load: int
    vruntime_ns: int
    projected_ns: int
    start_ns: int
    deadline_ns: int

    @property
    def latency_ns(self) -> int | None:
        """Wished slice length."""


E = TypeVar("E", bound=Entity)

_ARRIVAL_SHIFT = 3  # an eighth
_NEAR = 64  # entries at the front among which those who are put back are sought first


class RunQueue(Protocol[E]):
    """Who goes first among the entities in it; equal ones by serial."""

    def __len__(self) -> int: ...

    def __contains__(self, entity: E) -> bool: ...

    def add(self, entity: E) -> None: ...

    def remove(self, entity: E) -> None: ...

    def first(self) -> E:
        """Who goes first; stays in the queue, which must not be empty."""

    def pop_first(self) -> E:
        """Remove and return who goes first. The queue must not be empty."""

    def floor_ns(self) -> int:
        """The vruntime that newcomers may be placed at without falling behind those who wait. The queue must
        not be empty."""

    def outranks(self, waiting: E, waiting_ns: int, running: E, running_ns: int) -> bool:
        """Whether `waiting`, at vruntime `waiting_ns`, deserves the place of `running`, at `running_ns`."""

    def check_integrity(self) -> None: ...


class VirtualClock:
    """The virtual time at which newcomers are placed: the kernel's `min_vruntime`, for many servers.

    The kernel takes the least vruntime of the queue and of the one task that runs. Here many run at once, and
    one that runs without a break and yet uses less than its share must not hold the clock back, or newcomers
    would be handed credit for time in which they were not there. So the clock follows whoever is served: it
    moves with a charge by no more than that charge, not past the one that was charged, and not past those who
    wait. A debt (a vruntime ahead of the clock) is thus neither forgiven by an idle moment nor made larger by
    service that nobody else waited for.

    It never goes back. Newcomers are placed at `arrival_ns`, which is the clock unless that stands still
    while service is given: then newcomers without end, each placed before everybody, would starve those who
    have been served once. So it also moves with all service, at an eighth of the speed of fluid fair queueing
    (service by the load of all), slow enough that in a usual rotation newcomers still come early.
    """

    __slots__ = ("arrival_ns", "now_ns")

    def __init__(self) -> None:
        self.now_ns = 0
        self.arrival_ns = 0

    def advance(self, delta_ns: int, fluid_ns: int, vruntime_ns: int, floor_ns: int | None) -> None:
        """Somebody was charged `delta_ns` of virtual time and is at `vruntime_ns` now; `fluid_ns` is the same
        service by the load of all. `floor_ns` is that of the queue, None if nobody waits."""
        now_ns = self.now_ns + delta_ns
        if vruntime_ns < now_ns:
            now_ns = vruntime_ns
        if floor_ns is not None and floor_ns < now_ns:
            now_ns = floor_ns
        if now_ns > self.now_ns:
            self.now_ns = now_ns
        self.arrival_ns += fluid_ns >> _ARRIVAL_SHIFT
        if self.arrival_ns < self.now_ns:
            self.arrival_ns = self.now_ns


class SortedDeque(deque[tuple[int, int, E]]):
    """Entries (key, serial, entity) in order; (key, serial) is unique.

    Who begins to wait comes last, nearly always, and goes when it is first, or is put back where it was:
    neither end of a deque touches what is between them, however much that is. In the middle a deque is no
    slower than a list.
    """

    __slots__ = ()

    def add(self, entry: tuple[int, int, E]) -> None:
        if not self or self[-1] < entry:
            self.append(entry)
        elif entry < self[0]:
            self.appendleft(entry)
        elif len(self) > _NEAR and entry < self[_NEAR]:
            insort(self, entry, hi=_NEAR)
        else:
            insort(self, entry)

    def remove(self, entry: tuple[int, int, E]) -> None:
        index = bisect_left(self, entry)
        if index == len(self) or self[index] != entry:
            raise ValueError(f"not in the queue: {entry[:2]}")
        del self[index]


class BisectList(list[tuple[int, int, E]]):
    """SortedList's `add` and `remove` for few entries, of which a plain list makes less work.

    An entry is (key, serial, entity); (key, serial) is unique.
    """

    __slots__ = ()

    def add(self, entry: tuple[int, int, E]) -> None:
        insort(self, entry)

    def remove(self, entry: tuple[int, int, E]) -> None:
        index = bisect_left(self, entry)
        if index == len(self) or self[index] != entry:
            raise ValueError(f"not in the list: {entry[:2]}")
        del self[index]


def virtual_granularity(granularity_ns: int, waiting: Entity) -> int:
    """`wakeup_gran` of kernel/sched/fair.c: the heavier the one who wakes, the sooner it preempts."""
    return virtual(granularity_ns, waiting.load)
