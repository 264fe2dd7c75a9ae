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


class Cache(Protocol):
    """Knows the contexts that no prompt needs."""

    def give_way(self, context: Context, count: int) -> None:
        """Free `count` local pages of a cached context, or all if it has fewer."""


@dataclass(slots=True)
class _Queue:
    """Contexts that have pages in a pool and do not run; idle longest first."""

    contexts: dict[Context, None] = field(default_factory=dict)
    dirty: dict[Context, None] = field(default_factory=dict)  # not mirrored, nor being mirrored
    evictable: int = 0  # pages that can be dropped without losing anything that a prompt needs
    in_motion: int = 0  # pages of contexts that have moves in flight

    def recount(self, context: Context, evictable: int) -> None:
        """Bring the counts up to date after a change to a context that is here."""
        in_motion = context.num_local if context.moves_in_flight else 0
        if context.mirrored < context.computed and not in_motion:
            self.dirty[context] = None
        else:
            self.dirty.pop(context, None)
        self.evictable += evictable - context.evictable
        self.in_motion += in_motion - context.in_motion
        context.evictable, context.in_motion = evictable, in_motion

    def remove(self, context: Context) -> None:
        del self.contexts[context]
        self.dirty.pop(context, None)
        self.evictable -= context.evictable
        self.in_motion -= context.in_motion
        context.evictable = context.in_motion = 0


@dataclass(slots=True)
class _Idlers:
    """Who is idle in a pool: contexts that prompts need, and cached ones."""

    needed: _Queue = field(default_factory=_Queue)
    cached: _Queue = field(default_factory=_Queue)

    def queue_of(self, context: Context) -> _Queue | None:
        if context in self.needed.contexts:
            return self.needed
        return self.cached if context in self.cached.contexts else None


class LocalCopies:
    """Allocates, evicts and releases local pages. What is idle longest is evicted first."""

    def __init__(self, layout: PageLayout, counters: StoreCounters) -> None:
        self.pools: dict[int, PagePool] = {}
        self.landlord: Landlord | None = None
        self.cache: Cache | None = None
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
        """Pages of the pool that are free, or could be freed at once without losing anything that is needed;
        not counting those of `besides` and its ancestors."""
        idlers = self._idlers[pool_id]
        available = self.pools[pool_id].num_free + idlers.needed.evictable + idlers.cached.evictable
        if self.landlord is not None:
            available += self.landlord.num_regainable(pool_id)
        while besides is not None:
            if besides.home == pool_id:
                available -= besides.evictable
            besides = besides.parent
        return available

    def make_room(self, pool_id: int, count: int, *, besides: Context | None = None) -> bool:
        """Have `count` free pages, if that loses nothing that is needed: let cached contexts give way, take
        back what was lent, evict what is idle longest. Else nothing changes, but lent pages are on their way
        back."""
        pool, cached = self.pools[pool_id], self._idlers[pool_id].cached
        if count <= pool.num_free:
            return True
        short = count - pool.num_free - cached.evictable
        if short > 0 and self.landlord is not None:
            self.landlord.regain(pool_id, short)
        if count > self.num_available(pool_id, besides=besides):
            return False
        while cached.evictable and count > pool.num_free:
            victim = next(context for context in cached.contexts if context.evictable)
            assert self.cache is not None
            self.cache.give_way(victim, count - pool.num_free)
        if count > pool.num_free:
            self._evict_needed(pool, count, besides)
        return True

    def _evict_needed(self, pool: PagePool, count: int, besides: Context | None) -> None:
        kept = [besides, *besides.ancestors()] if besides is not None else []
        victims, short = [], count - pool.num_free
        for context in self._idlers[pool.pool_id].needed.contexts:
            if context.evictable and context not in kept:
                victims.append(context)
                short -= context.evictable
                if short <= 0:
                    break
        for victim in victims:
            self.evict(victim, count - pool.num_free)

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
        for context in self.idle(pool_id):
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

    def idle(self, pool_id: int) -> list[Context]:
        """Contexts with pages here that do not run, those first that give way first."""
        idlers = self._idlers[pool_id]
        return [*idlers.cached.contexts, *idlers.needed.contexts]

    def idle_dirty(self, pool_id: int) -> list[Context]:
        """Contexts with pages here that prompts need and that do not run, are not mirrored, and are not being
        mirrored."""
        return list(self._idlers[pool_id].needed.dirty)

    def cached_dirty(self, pool_id: int) -> Iterable[Context]:
        """The same of those that no prompt needs, least recently used first; none while others of them are
        being mirrored, as these cannot give way meanwhile."""
        cached = self._idlers[pool_id].cached
        return () if cached.in_motion else cached.dirty

    def num_in_motion(self, pool_id: int) -> int:
        """Pages of contexts that do not run and have moves in flight."""
        idlers = self._idlers[pool_id]
        return idlers.needed.in_motion + idlers.cached.in_motion

    def rest(self, context: Context) -> None:
        """The context, which has a local copy, does not run any more."""
        assert context.home is not None
        idlers = self._idlers[context.home]
        queue = idlers.cached if context.is_cached else idlers.needed
        queue.contexts[context] = None
        queue.recount(context, self._num_evictable(context))

    def wake(self, context: Context) -> None:
        """The context is not idle any more."""
        if context.home is not None:
            queue = self._idlers[context.home].queue_of(context)
            if queue is not None:
                queue.remove(context)

    def requeue(self, context: Context) -> None:
        """If the context is idle, it goes to the end of its queue: it was needed just now."""
        if context.home is not None:
            queue = self._idlers[context.home].queue_of(context)
            if queue is not None:
                queue.remove(context)
                self.rest(context)

    def divide(self, context: Context, upper: Context) -> None:
        """Some of the pages of the context's local copy have become those of `upper`."""
        if context.home is None:
            return
        is_idle = self._idlers[context.home].queue_of(context) is not None
        if upper.num_local:
            upper.home = context.home
            if is_idle:
                self.rest(upper)
        if is_idle and not context.num_local:
            self.release(context)
        else:
            self.recount(context)

    def set_in_motion(self, context: Context) -> None:
        """Moves out of the local copy have begun."""
        if context.home is not None:
            idlers = self._idlers[context.home]
            if context in idlers.needed.contexts:  # what may be evicted is what it was
                idlers.needed.recount(context, context.evictable)
            elif context in idlers.cached.contexts:
                idlers.cached.recount(context, 0)

    def recount(self, context: Context) -> None:
        """Bring the pool's counts of idle contexts up to date after a change to this one."""
        if context.home is not None:
            queue = self._idlers[context.home].queue_of(context)
            if queue is not None:
                queue.recount(context, self._num_evictable(context))

    def _num_evictable(self, context: Context) -> int:
        if self._leaving and self.is_in_the_way(context):
            return 0  # what is dropped there is not free
        if context.is_cached:
            return 0 if context.moves_in_flight else context.num_local
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

    def evict(self, context: Context, count: int) -> None:
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
            for queue in (idlers.needed, idlers.cached):
                contexts = queue.contexts
                assert queue.evictable == sum(context.evictable for context in contexts)
                assert queue.in_motion == sum(context.in_motion for context in contexts)
                assert all(context.evictable == self._num_evictable(context) for context in contexts)
                assert all(context.is_cached == (queue is idlers.cached) for context in contexts)
                assert set(queue.dirty) == {c for c in contexts if c.is_dirty and not c.moves_in_flight}
