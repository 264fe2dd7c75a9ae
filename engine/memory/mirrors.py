"""Mirrors: copies of contexts in other tiers, wherever there was room.

A mirror stays where it is while it is good. Contexts take turns, so what stopped last runs last: to make
place for it by pushing out what runs sooner would cost two moves and gain nothing. Contexts that find no
room in the better tiers go to the next, and those that are there already keep their fast way back.
"""

from collections.abc import Iterator
from typing import Protocol

from engine.memory.context import Context
from engine.memory.placement import Placement
from engine.memory.pool import Extent, PagePool


class Market(Protocol):
    """Where leased tiers get their segments."""

    def num_on_offer(self, pool_id: int) -> int:
        """Pages that this pool could be given now."""

    def lease(self, pool_id: int, num_pages: int) -> None:
        """Add segments to this pool for `num_pages` more, as far as they are on offer."""


class Cache(Protocol):
    """Knows the contexts that no prompt needs."""

    def make_room_in_tiers(self, home: int, count: int, asker: Context) -> bool:
        """Have room for `count` pages more of a context at `home`, if giving up cached ones makes it."""


class Mirrors:
    """Gives mirrored pages their places in `tiers` and takes them back."""

    def __init__(self, placement: Placement) -> None:
        self.tiers: dict[int, PagePool] = {}
        self.market: Market | None = None
        self.placement = placement

    # ------------------------------------------------------------------ places

    def num_missing(self, context: Context, last: int) -> int:
        """Places that live pages below index `last` need and do not have."""
        missing = 0
        for group in context.groups:
            lacking = group.mirror.num_missing(group.live_from, last)
            if lacking > 0:
                missing += lacking
        return missing

    def has_room(self, home: int, count: int) -> bool:
        """Whether mirrors of contexts at `home` could have so many pages more."""
        return self.num_short(home, count) <= 0

    def num_short(self, home: int, count: int) -> int:
        """How many pages are lacking for so many more of contexts at `home`; none, if not above 0."""
        classes = self.placement.classes(home)
        for pools in classes:
            for pool_id in pools:
                count -= self.tiers[pool_id].num_free
                if count <= 0:
                    return count
        for pools in classes:
            for pool_id in pools:
                count -= self._num_on_offer(pool_id)
        return count

    def grow(self, context: Context, last: int) -> bool:
        """Give every live page below index `last` a place in the best tiers that have room; False, with
        nothing changed, if they do not all fit."""
        assert context.home is not None
        missing = self.num_missing(context, last)
        pool = self.place_for_all(context, context.home, missing)
        if pool is not None:
            for group in context.groups:
                group.mirror.grow(pool, group.live_from, last, context)
            return True
        if not self.has_room(context.home, missing):
            return False
        for pool in self._places(context.home, missing):
            for group in context.groups:
                table = group.mirror
                room = min(pool.num_free, table.num_missing(group.live_from, last))
                if room > 0:
                    start = table.end if table.num_pages else group.live_from
                    table.grow(pool, group.live_from, start + room, context)
        return True

    def take(self, holder: Context | None, home: int, count: int) -> list[Extent]:
        """Places for `count` pages of the holder in the best tiers that `home` reaches; there is room."""
        pool = self.place_for_all(None, home, count)
        if pool is not None:
            return pool.allocate(count, holder)
        extents: list[Extent] = []
        for pool in self._places(home, count):
            room = min(pool.num_free, count)
            pool.grow(extents, room, holder)
            count -= room
        assert not count
        return extents

    def lease_ahead(self, home: int, count: int) -> None:
        """So many places will be needed: lease what they lack at once, and what the last full move to each
        tier may need besides. Equally good lenders have equal shares, as far as their memory goes."""
        for pools in self.placement.classes(home):
            for others, pool_id in enumerate(sorted(pools, key=self._num_free_in)):
                pool, share = self.tiers[pool_id], -(-count // (len(pools) - others))
                if pool.num_free < share + pool.full_move:
                    self._lease(pool, share + pool.full_move - pool.num_free)
                count -= min(share, pool.num_free)
            if count <= 0:
                return

    def place_for_all(self, context: Context | None, home: int, count: int) -> PagePool | None:
        """The best tier, if there is one that has so many pages free: that where the context's mirror ends,
        if none is better, or else the roomiest of equally good ones. None if pages have to be leased there,
        or spread over several."""
        for pools in self.placement.classes(home):
            best = self._current(context, pools, count) if context is not None else None
            if best is not None:
                return best
            most = count - 1
            for pool_id in pools:
                pool = self.tiers[pool_id]
                if pool.num_free > most:
                    best, most = pool, pool.num_free
            if best is not None:
                return best
            if any(self.tiers[pool_id].num_free or self._num_on_offer(pool_id) for pool_id in pools):
                return None
            for pool_id in pools:
                self._lease(self.tiers[pool_id], count)  # in vain, but the wish is remembered
        return None

    def _current(self, context: Context, pools: list[int], count: int) -> PagePool | None:
        """The pool in which the context's mirror ends, if it is one of these and has room or can lease it: a
        mirror in one place comes back in one move."""
        extents = context.groups[0].mirror.extents
        if not extents:
            return None
        pool = extents[-1].segment.pool
        if pool.pool_id not in pools:
            return None
        if 0 < count - pool.num_free <= self._num_on_offer(pool.pool_id):
            self._lease(pool, count - pool.num_free)
        return pool if pool.num_free >= count else None

    def _places(self, home: int, count: int) -> Iterator[PagePool]:
        """Tiers with free pages, best first, until `count` were offered; what they lack is leased."""
        for pools in self.placement.classes(home):
            for pool_id in sorted(pools, key=self._num_free_in, reverse=True) if len(pools) > 1 else pools:
                pool = self.tiers[pool_id]
                if pool.num_free < count:
                    self._lease(pool, count - pool.num_free)
                if pool.num_free:
                    count -= min(pool.num_free, count)
                    yield pool
                if not count:
                    return

    def _lease(self, pool: PagePool, count: int) -> None:
        if pool.is_leased and self.market is not None:
            self.market.lease(pool.pool_id, count)

    def _num_free_in(self, pool_id: int) -> int:
        return self.tiers[pool_id].num_free + self._num_on_offer(pool_id)

    def _num_on_offer(self, pool_id: int) -> int:
        if self.market is None or not self.tiers[pool_id].is_leased:
            return 0
        return self.market.num_on_offer(pool_id)

    # ------------------------------------------------------------------ giving back

    def cut(self, context: Context, position: int) -> None:
        """Have no more than the positions before this one."""
        context.mirrored = context.mirror_target = min(context.mirrored, position)
        end = context.layout.num_pages(context.mirrored)
        for group in context.groups:
            group.mirror.cut(end)

    def drop_all(self, context: Context) -> int:
        """Release the whole mirror; how many pages it had."""
        dropped = 0
        for group in context.groups:
            dropped += group.mirror.clear()
        context.mirrored = context.mirror_target = context.start
        return dropped

    def release_retired(self, context: Context) -> None:
        """Nothing touches the pages any more that the context moved away from."""
        for extent in context.retired:
            extent.segment.pool.release(extent)
        context.retired.clear()

    # ------------------------------------------------------------------ segments

    def extents_in(self, pool_id: int, number: int) -> dict[Context, list[Extent]]:
        """The extents of a segment, by the context that has them."""
        found: dict[Context, list[Extent]] = {}
        for extent in self.tiers[pool_id].segments[number].extents:
            assert extent.holder is not None
            found.setdefault(extent.holder, []).append(extent)
        return found

    def held(self, context: Context) -> Iterator[Extent]:
        """All extents that the context has in tiers."""
        for group in context.groups:
            yield from group.mirror.extents
        yield from context.retired
