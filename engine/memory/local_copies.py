"""Local copies: the pages of contexts in the pools of the devices where they run, or ran last."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol

from engine.memory.context import ABSENT, Context
from engine.memory.counters import StoreCounters
from engine.memory.page import PageLayout
from engine.memory.pool import PagePool


class Landlord(Protocol):
    """Has what a local pool has lent out."""

    def num_regainable(self, pool_id: int) -> int:
        """Pages that the pool could have back at once."""

    def regain(self, pool_id: int, num_pages: int) -> None:
        """Give so many back: at once what can be, the rest by and by."""


class LocalCopies:
    """Allocates, evicts and releases local pages. What is idle longest is evicted first."""

    def __init__(self, layout: PageLayout, counters: StoreCounters) -> None:
        self.pools: dict[int, PagePool] = {}
        self.landlord: Landlord | None = None
        self._layout = layout
        self._counters = counters
        self._idle: dict[int, OrderedDict[Context, None]] = {}  # by pool: local but not running, oldest first
        self._evictable: dict[int, int] = {}  # by pool: sum over its idle contexts
        self._leaving: dict[int, set[int]] = {}  # by pool: segments that are to be empty

    def add_pool(self, pool: PagePool) -> None:
        """A device's pool; page 0 of it is not a context's (ABSENT)."""
        assert pool.first > ABSENT
        self.pools[pool.pool_id] = pool
        self._idle[pool.pool_id] = OrderedDict()
        self._evictable[pool.pool_id] = 0

    # ------------------------------------------------------------------ room

    def num_available(self, pool_id: int, *, besides: Context | None = None) -> int:
        """Pages of the pool that are free, or could be freed at once without losing anything."""
        own = besides.evictable if besides is not None and besides.home == pool_id else 0
        lent = self.landlord.num_regainable(pool_id) if self.landlord is not None else 0
        return self.pools[pool_id].num_free + lent + self._evictable[pool_id] - own

    def make_room(self, pool_id: int, count: int, *, besides: Context | None = None) -> bool:
        """Have `count` free pages, if that loses nothing: take back what was lent, and evict what is idle
        longest. Else nothing changes, but lent pages are on their way back."""
        pool = self.pools[pool_id]
        if count > pool.num_free and self.landlord is not None:
            self.landlord.regain(pool_id, count - pool.num_free)
        if count <= pool.num_free:
            return True
        if count > self.num_available(pool_id, besides=besides):
            return False
        victims, short = [], count - pool.num_free
        for context in self._idle[pool_id]:
            if context.evictable and context is not besides:
                victims.append(context)
                short -= context.evictable
                if short <= 0:
                    break
        for victim in victims:
            self._evict(victim, count - pool.num_free)
        return True

    def allocate(self, context: Context, end: int) -> None:
        """Give every live position below `end` a local page; there is room."""
        assert context.home is not None
        pool, last = self.pools[context.home], self._layout.num_pages(end)
        had_pages = context.num_local > 0
        for table, live_from in zip(context.local, context.live_from, strict=True):
            if had_pages:
                holes = [i for i in range(live_from, min(last, len(table))) if table[i] == ABSENT]
                for index, page in zip(holes, pool.allocate(len(holes)), strict=True):
                    table[index] = page
                context.num_local += len(holes)
            else:
                table.clear()
            table.extend([ABSENT] * (live_from - len(table)))
            more = pool.allocate(max(0, last - len(table)))
            table.extend(more)
            context.num_local += len(more)

    # ------------------------------------------------------------------ segments that are to be empty

    def vacate(self, pool_id: int, number: int) -> None:
        """Give out no page of this segment any more. What is there does not count as evictable: the room
        would not be free."""
        pool = self.pools[pool_id]
        pool.recall(number)
        self._leaving.setdefault(pool_id, set()).add(number)
        for context in self._idle[pool_id]:
            self.recount(context)

    def leaving(self, pool_id: int) -> set[int]:
        """Segments that are to be empty and are not yet."""
        leaving = self._leaving.get(pool_id)
        if not leaving:
            return set()
        pool = self.pools[pool_id]
        leaving &= {number for number, segment in pool.segments.items() if segment.is_recalled}
        return {number for number in leaving if not pool.is_empty(number)}

    def pages_in_the_way(self, context: Context) -> list[int]:
        """Pages of the context in such segments."""
        if context.home is None or not (leaving := self.leaving(context.home)):
            return []
        segment_of = self.pools[context.home].segment_of
        return [page for page in context.local_pages() if segment_of(page) in leaving]

    def is_in_the_way(self, context: Context) -> bool:
        return bool(self.pages_in_the_way(context))

    # ------------------------------------------------------------------ idle contexts

    def idle(self, pool_id: int) -> Iterable[Context]:
        """Contexts with pages here that do not run, idle longest first."""
        return self._idle[pool_id]

    def rest(self, context: Context) -> None:
        """The context, which has a local copy, does not run any more."""
        assert context.home is not None
        self._idle[context.home][context] = None

    def wake(self, context: Context) -> None:
        """The context is not idle any more."""
        if context.home is not None:
            self._idle[context.home].pop(context, None)
            self.recount(context)

    def recount(self, context: Context) -> None:
        """Bring the pool's count of evictable pages up to date after a change to the context."""
        if context.home is None:
            return
        evictable = self._num_evictable(context, context.home)
        self._evictable[context.home] += evictable - context.evictable
        context.evictable = evictable

    def _num_evictable(self, context: Context, pool_id: int) -> int:
        if context not in self._idle[pool_id]:
            return 0
        if self.is_in_the_way(context):
            return 0  # what is dropped there is not free
        clean = context.num_clean_pages
        tables = (table[:clean] for table in context.local)
        return sum(len(table) - table.count(ABSENT) for table in tables)

    # ------------------------------------------------------------------ release

    def release(self, context: Context) -> None:
        """Give up the whole local copy."""
        if context.home is None:
            return
        self.cut(context, 0)
        self.wake(context)
        context.home = None

    def cut(self, context: Context, first: int) -> None:
        """Release local pages with index `first` or above."""
        for group, table in enumerate(context.local):
            self.drop(context, group, first, len(table))
            del table[first:]

    def drop(self, context: Context, group: int, first: int, last: int) -> None:
        """Release the local pages with indices `first .. last - 1` of a group."""
        assert context.home is not None or not context.num_local
        table = context.local[group]
        last = min(last, len(table))
        pages = [page for page in table[first:last] if page != ABSENT]
        if pages:
            assert context.home is not None
            self.pools[context.home].release(pages)
            table[first:last] = [ABSENT] * (last - first)
            context.num_local -= len(pages)

    def drop_pages(self, context: Context, pages: set[int]) -> None:
        """Release these local pages, wherever they stand in the tables: their content never came."""
        for table in context.local:
            for index, page in enumerate(table):
                if page in pages:
                    table[index] = ABSENT
                    context.num_local -= 1
        assert context.home is not None
        self.pools[context.home].release(sorted(pages))

    def _evict(self, context: Context, count: int) -> None:
        """Drop local pages of an idle context that are clean, `count` if it has so many: its first ones."""
        before, clean = context.num_local, context.num_clean_pages
        for group, table in enumerate(context.local):
            short = count - (before - context.num_local)
            present = [index for index, page in enumerate(table[:clean]) if page != ABSENT][: max(0, short)]
            if present:
                self.drop(context, group, present[0], present[-1] + 1)
        self._counters.evicted_pages += before - context.num_local
        self.recount(context)
        if not context.num_local and not context.moves_in_flight:
            self.release(context)

    def check_integrity(self) -> None:
        """The counts of evictable pages agree with the contexts. Raises AssertionError."""
        for pool_id, idle in self._idle.items():
            assert self._evictable[pool_id] == sum(context.evictable for context in idle)
            assert all(context.evictable == self._num_evictable(context, pool_id) for context in idle)
