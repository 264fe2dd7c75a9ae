"""Local copies: the pages of contexts in the pools of the devices where they run, or ran last."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from engine.memory.context import ABSENT, Context
from engine.memory.counters import StoreCounters
from engine.memory.page import PageLayout
from engine.memory.pool import Extent, PagePool

SMALL_PAGES = 128  # contexts up to this size are evicted at once, larger ones as far as is needed


class Landlord(Protocol):
    """Has what a local pool has lent out."""

    def num_regainable(self, pool_id: int) -> int:
        """Pages that the pool could have back at once."""

    def regain(self, pool_id: int, num_pages: int) -> None:
        """Give so many back: at once what can be, the rest by and by."""


@dataclass(slots=True)
class _Idlers:
    """The contexts that have pages in a pool and do not run; idle longest first."""

    contexts: dict[Context, None] = field(default_factory=dict)
    dirty: dict[Context, None] = field(default_factory=dict)  # not mirrored, nor being mirrored
    evictable: int = 0  # pages that can be dropped without losing anything
    in_motion: int = 0  # pages of contexts that have moves in flight


class LocalCopies:
    """Allocates, evicts and releases local pages. What is idle longest is evicted first."""

    def __init__(self, layout: PageLayout, counters: StoreCounters) -> None:
        self.pools: dict[int, PagePool] = {}
        self.landlord: Landlord | None = None
        self._layout = layout
        self._counters = counters
        self._idlers: dict[int, _Idlers] = {}  # by pool
        self._leaving: dict[int, set[int]] = {}  # by pool: segments that are to be empty

    def add_pool(self, pool: PagePool) -> None:
        """A device's pool; page 0 of it is not a context's (ABSENT)."""
        assert pool.first > ABSENT
        self.pools[pool.pool_id] = pool
        self._idlers[pool.pool_id] = _Idlers()

    # ------------------------------------------------------------------ room

    def num_available(self, pool_id: int, *, besides: Context | None = None) -> int:
        """Pages of the pool that are free, or could be freed at once without losing anything."""
        available = self.pools[pool_id].num_free + self._idlers[pool_id].evictable
        if self.landlord is not None:
            available += self.landlord.num_regainable(pool_id)
        if besides is not None and besides.home == pool_id:
            available -= besides.evictable
        return available

    def make_room(self, pool_id: int, count: int, *, besides: Context | None = None) -> bool:
        """Have `count` free pages, if that loses nothing: take back what was lent, and evict what is idle
        longest. Else nothing changes, but lent pages are on their way back."""
        pool = self.pools[pool_id]
        if count <= pool.num_free:
            return True
        if self.landlord is not None:
            self.landlord.regain(pool_id, count - pool.num_free)
            if count <= pool.num_free:
                return True
        if count > self.num_available(pool_id, besides=besides):
            return False
        victims, short = [], count - pool.num_free
        for context in self._idlers[pool_id].contexts:
            if context.evictable and context is not besides:
                victims.append(context)
                short -= context.evictable
                if short <= 0:
                    break
        for victim in victims:
            self._evict(victim, count - pool.num_free)
        return True

    def allocate(self, context: Context, end: int) -> list[list[int]]:
        """Give every live position below `end` a local page; there is room. Returns those added, by group:
        those before the ones that were there, and those after."""
        assert context.home is not None
        pool, last = self.pools[context.home], -(-end // self._layout.page_tokens)
        return [
            table.grow(pool, live_from, last, context)
            if not table.num_pages or table.first <= live_from
            else table.grow_down(pool, live_from, context) + table.grow(pool, live_from, last, context)
            for table, live_from in zip(context.local, context.live_from, strict=True)
        ]

    # ------------------------------------------------------------------ segments that are to be empty

    def vacate(self, pool_id: int, number: int) -> None:
        """Give out no page of this segment any more. What is there does not count as evictable: the room
        would not be free."""
        self.pools[pool_id].recall(number)
        self._leaving.setdefault(pool_id, set()).add(number)
        for context in self._idlers[pool_id].contexts:
            self.recount(context)

    def is_shrinking(self, pool_id: int) -> bool:
        """Whether segments of the pool are to be empty and are not yet."""
        if pool_id not in self._leaving:
            return False
        pool, leaving = self.pools[pool_id], self._leaving[pool_id]
        present = leaving & pool.segments.keys()
        leaving &= {n for n in present if pool.segments[n].is_recalled and not pool.is_empty(n)}
        if not leaving:
            del self._leaving[pool_id]
        return bool(leaving)

    def extents_in_the_way(self, context: Context) -> list[Extent]:
        """Extents of the context's local copy in such segments."""
        if context.home not in self._leaving:
            return []
        return [extent for table in context.local for extent in table.extents if extent.segment.is_recalled]

    def is_in_the_way(self, context: Context) -> bool:
        return bool(self.extents_in_the_way(context))

    # ------------------------------------------------------------------ idle contexts

    def idle(self, pool_id: int) -> Iterable[Context]:
        """Contexts with pages here that do not run, idle longest first."""
        return self._idlers[pool_id].contexts

    def idle_dirty(self, pool_id: int) -> list[Context]:
        """Contexts with pages here that do not run, are not mirrored, and are not being mirrored."""
        return list(self._idlers[pool_id].dirty)

    def num_in_motion(self, pool_id: int) -> int:
        """Pages of contexts that do not run and have moves in flight."""
        return self._idlers[pool_id].in_motion

    def rest(self, context: Context) -> None:
        """The context, which has a local copy, does not run any more."""
        assert context.home is not None
        self._idlers[context.home].contexts[context] = None
        self.recount(context)

    def wake(self, context: Context) -> None:
        """The context is not idle any more."""
        idlers = self._idlers[context.home] if context.home is not None else None
        if idlers is not None and context in idlers.contexts:
            del idlers.contexts[context]
            idlers.dirty.pop(context, None)
            idlers.evictable -= context.evictable
            idlers.in_motion -= context.in_motion
            context.evictable = context.in_motion = 0

    def set_in_motion(self, context: Context) -> None:
        """Moves out of the local copy have begun: what may be evicted is what it was."""
        idlers = self._idlers[context.home] if context.home is not None else None
        if idlers is not None and context in idlers.contexts:
            idlers.dirty.pop(context, None)
            idlers.in_motion -= context.in_motion
            context.in_motion = context.num_local
            idlers.in_motion += context.in_motion

    def recount(self, context: Context) -> None:
        """Bring the pool's counts of idle contexts up to date after a change to this one."""
        idlers = self._idlers[context.home] if context.home is not None else None
        if idlers is None or context not in idlers.contexts:
            return
        evictable = self._num_evictable(context)
        in_motion = context.num_local if context.moves_in_flight else 0
        if context.mirrored < context.computed and not in_motion:
            idlers.dirty[context] = None
        else:
            idlers.dirty.pop(context, None)
        idlers.evictable += evictable - context.evictable
        idlers.in_motion += in_motion - context.in_motion
        context.evictable, context.in_motion = evictable, in_motion

    def _num_evictable(self, context: Context) -> int:
        if self._leaving and self.is_in_the_way(context):
            return 0  # what is dropped there is not free
        clean, count = context.num_clean_pages, 0
        for table in context.local:
            below = clean - table.first
            if below > 0:
                count += below if below < table.num_pages else table.num_pages
        return count

    # ------------------------------------------------------------------ release

    def release(self, context: Context) -> None:
        """Give up the whole local copy."""
        if context.home is None:
            return
        for table in context.local:
            table.clear()
        self.wake(context)
        context.home = None

    def cut(self, context: Context, first: int) -> None:
        """Release local pages with index `first` or above."""
        for table in context.local:
            table.cut(first)

    def drop_arriving(self, context: Context) -> None:
        """Release the pages that fetches were to write, and did not all."""
        assert context.arriving is not None
        for table, end in zip(context.local, context.arriving, strict=True):
            table.drop_before(end)
        context.arriving = None

    def drop_clean(self, context: Context) -> None:
        """Drop all local pages of an idle context that the mirror has as well."""
        clean, num_local = context.num_clean_pages, context.num_local
        for table in context.local:
            if table.num_pages:
                table.drop_before(clean)
        self._counters.evicted_pages += num_local - context.num_local
        if context.num_local or context.moves_in_flight:
            self.recount(context)
        else:
            self.release(context)

    def _evict(self, context: Context, count: int) -> None:
        """Drop local pages of an idle context that are clean, `count` if it has so many: its first ones. A
        small one is dropped whole, since it has to be fetched anyway before it runs again."""
        clean, num_local = context.num_clean_pages, context.num_local
        if context.evictable <= SMALL_PAGES:
            count = context.evictable
        if count == num_local and not context.moves_in_flight:
            self.release(context)
            self._counters.evicted_pages += num_local
            return
        for table in context.local:
            if count > 0 and table.num_pages:
                count -= table.drop_before(min(clean, table.first + count))
        self._counters.evicted_pages += num_local - context.num_local
        self.recount(context)

    def check_integrity(self) -> None:
        """The counts of idle contexts agree with them. Raises AssertionError."""
        for idlers in self._idlers.values():
            assert idlers.evictable == sum(context.evictable for context in idlers.contexts)
            assert idlers.in_motion == sum(context.in_motion for context in idlers.contexts)
            assert all(context.evictable == self._num_evictable(context) for context in idlers.contexts)
            dirty = {c for c in idlers.contexts if c.is_dirty and not c.moves_in_flight}
            assert set(idlers.dirty) == dirty
