"""Local copies: the pages of contexts in the pools of the devices where they run, or ran last."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from engine.memory.context import ABSENT, Context
from engine.memory.counters import StoreCounters
from engine.memory.idle_queue import IdleQueue
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
class _Idlers:
    """Who is idle in a pool: contexts that prompts need, and cached ones."""

    needed: IdleQueue
    cached: IdleQueue


class LocalCopies:
    """Allocates, evicts and releases local pages. What is idle longest is evicted first."""

    def __init__(self, counters: StoreCounters) -> None:
        self.pools: dict[int, PagePool] = {}
        self.landlord: Landlord | None = None
        self.cache: Cache | None = None
        self._counters = counters
        self._idlers: dict[int, _Idlers] = {}  # by pool
        self._changed: set[int] = set()  # pools, since `take_changed_pools`
        self._may_be_dirty: set[int] = set()  # pools, of those that have not changed since
        self._leaving: dict[int, set[int]] = {}  # by pool: segments that are to be empty

    def add_pool(self, pool: PagePool) -> None:
        """A device's pool; page 0 of it is not a context's (ABSENT)."""
        assert pool.first > ABSENT
        pool_id = pool.pool_id
        self.pools[pool_id] = pool
        self._idlers[pool_id] = _Idlers(IdleQueue(pool_id, self._changed), IdleQueue(pool_id, self._changed))
        pool.changed = self._changed
        self._changed.add(pool_id)

    # ------------------------------------------------------------------ news

    @property
    def changed_pools(self) -> Collection[int]:
        """Those that `take_changed_pools` would return for what happened in them."""
        return self._changed

    def take_changed_pools(self) -> set[int]:
        """Pools whose `num_available`, or whose sets of contexts that are idle, dirty or in motion, may have
        changed since the last call, or of which a running context may have lost its mirror. With a landlord,
        who does not tell, all."""
        self._may_be_dirty |= self._changed
        changed = set(self.pools) if self.landlord is not None else set(self._changed)
        self._changed.clear()
        return changed

    @property
    def dirty_pools(self) -> Collection[int]:
        """Pools where `idle_dirty` is not empty."""
        candidates = self._may_be_dirty | self._changed
        self._may_be_dirty = {pool_id for pool_id in candidates if self._idlers[pool_id].needed.dirty}
        return self._may_be_dirty

    # ------------------------------------------------------------------ room

    def num_available(self, pool_id: int, *, besides: Context | None = None) -> int:
        """Pages of the pool that are free, or could be freed at once without losing anything that is needed;
        not counting those of `besides` and its ancestors."""
        available = self._num_here(pool_id, besides)
        return available if self.landlord is None else available + self.landlord.num_regainable(pool_id)

    def _num_here(self, pool_id: int, besides: Context | None) -> int:
        """The same without what is lent."""
        idlers = self._idlers[pool_id]
        available = self.pools[pool_id].num_free + idlers.needed.evictable + idlers.cached.evictable
        while besides is not None:
            if besides.home == pool_id:
                available -= besides.evictable
            besides = besides.parent
        return available

    def has_room(self, pool_id: int, count: int, *, besides: Context | None = None, spare: int = 0) -> bool:
        """Whether `make_room` can have so many. If not, lent pages are on their way back."""
        pool = self.pools[pool_id]
        if count + spare <= pool.num_free:  # nearly always while there is no contention
            return True
        if spare and count + spare > self.num_available(pool_id, besides=besides):
            return False
        if count <= pool.num_free:
            return True
        cached = self._idlers[pool_id].cached
        if self.landlord is not None and count > pool.num_free + cached.evictable:
            self.landlord.regain(pool_id, count - pool.num_free - cached.evictable)
        # what comes on offer only now is for the next time
        return count <= self._num_here(pool_id, besides)

    def make_room(self, pool_id: int, count: int, *, besides: Context | None = None, spare: int = 0) -> bool:
        """Have `count` free pages, if that loses nothing that is needed and `spare` more are available: let
        cached contexts give way, take back what was lent, evict what is idle longest. Else nothing changes,
        but lent pages are on their way back."""
        if not self.has_room(pool_id, count, besides=besides, spare=spare):
            return False
        pool, cached = self.pools[pool_id], self._idlers[pool_id].cached
        while cached.evictable and count > pool.num_free:
            victim = next(context for context in cached.contexts if context.evictable)
            assert self.cache is not None
            self.cache.give_way(victim, count - pool.num_free)
        if count > pool.num_free:
            self._evict_needed(pool, count, besides)
        return True

    def _evict_needed(self, pool: PagePool, count: int, besides: Context | None) -> None:
        kept = (besides, *besides.ancestors()) if besides is not None else ()
        victims, short = [], count - pool.num_free
        for context in self._idlers[pool.pool_id].needed.contexts:
            if context.evictable and context not in kept:
                victims.append(context)
                short -= context.evictable
                if short <= 0:
                    break
        for victim in victims:
            self.evict(victim, count - pool.num_free)

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
        extents = [extent for group in context.groups for extent in group.local.extents]
        return [extent for extent in extents if extent.segment.is_recalled]

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
        """The context does not run any more: it is idle, or gone from here if it has no local page."""
        if context.home is None:
            return
        evictable = self._num_evictable(context)
        if not evictable and not context.num_local:
            context.home = None
            return
        idlers = self._idlers[context.home]
        (idlers.cached if context.is_cached else idlers.needed).add(context, evictable)

    def wake(self, context: Context) -> None:
        """The context is not idle any more."""
        if context.idle_in is not None:
            context.idle_in.remove(context)

    def requeue(self, context: Context) -> None:
        """If the context is idle, it goes to the end of its queue: it was needed just now."""
        if context.idle_in is not None:
            context.idle_in.remove(context)
            self.rest(context)

    def divide(self, context: Context, upper: Context) -> None:
        """Some of the pages of the context's local copy have become those of `upper`."""
        if context.home is None:
            return
        is_idle = context.idle_in is not None
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
        if context.idle_in is not None:  # what may be evicted of one that is needed is what it was
            context.idle_in.recount(context, 0 if context.is_cached else context.evictable)
        elif context.home is not None:
            self._changed.add(context.home)

    def recount(self, context: Context) -> None:
        """Bring the pool's counts of idle contexts up to date after a change to this one."""
        if context.idle_in is not None:
            context.idle_in.recount(context, self._num_evictable(context))
        elif context.home is not None:
            self._changed.add(context.home)

    def _num_evictable(self, context: Context) -> int:
        if self._leaving and self.is_in_the_way(context):
            return 0  # what is dropped there is not free
        if context.is_cached:
            return 0 if context.moves_in_flight else context.num_local
        clean, count = context.num_clean_pages, 0
        for group in context.groups:
            below, num_pages = clean - group.local.first, group.local.num_pages
            if below > 0:
                count += below if below < num_pages else num_pages
        return count

    # ------------------------------------------------------------------ release

    def release(self, context: Context) -> None:
        """Give up the whole local copy."""
        if context.home is None:
            return
        for group in context.groups:
            group.local.clear()
        if context.idle_in is not None:
            context.idle_in.remove(context)
        context.home = None

    def cut(self, context: Context, first: int) -> None:
        """Release local pages with index `first` or above."""
        for group in context.groups:
            group.local.cut(first)

    def drop_arriving(self, context: Context) -> None:
        """Release the pages that fetches were to write, and did not all."""
        assert context.fetches
        for group in context.groups:
            group.local.drop_before(group.arriving_end)
        context.fetches = []

    def drop_clean(self, context: Context) -> None:
        """Drop all local pages of an idle context that the mirror has as well."""
        clean, num_local = context.num_clean_pages, context.num_local
        for group in context.groups:
            group.local.drop_before(clean)
        self._counters.evicted_pages += num_local - context.num_local
        if context.num_local or context.moves_in_flight:
            self.recount(context)
        else:
            self.release(context)

    def evict(self, context: Context, count: int) -> None:
        """Drop local pages of an idle context that are clean, `count` if it has so many: its first ones. A
        small one is dropped whole, since it has to be fetched anyway before it runs again."""
        num_local = context.num_local
        if context.evictable <= SMALL_PAGES or count > context.evictable:
            count = context.evictable
        if count == num_local and not context.moves_in_flight:
            self.release(context)
            self._counters.evicted_pages += num_local
            return
        clean = context.num_clean_pages
        for group in context.groups:
            if count > 0 and group.local.num_pages:
                count -= group.local.drop_before(min(clean, group.local.first + count))
        self._counters.evicted_pages += num_local - context.num_local
        self.recount(context)

    def check_integrity(self) -> None:
        """The counts of idle contexts agree with them. Raises AssertionError."""
        for idlers in self._idlers.values():
            for queue in (idlers.needed, idlers.cached):
                queue.check_integrity()
                for context in queue.contexts:
                    assert context.evictable == self._num_evictable(context)
                    assert context.is_cached == (queue is idlers.cached)
