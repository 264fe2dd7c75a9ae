"""Mirrors: copies of contexts in other tiers, page by page wherever there is room.

A mirror stays where it is while it is good. Contexts take turns, so what stopped last runs last: to make
place for it by pushing out what runs sooner would cost two moves and gain nothing. Contexts that find no
room in the better tiers go to the next, and those that are there already keep their fast way back.
"""

from collections.abc import Iterator
from typing import Protocol

from engine.memory.context import ABSENT, Context, by_pool, page_ref
from engine.memory.placement import Placement
from engine.memory.pool import PagePool

Places = list[tuple[int, list[int]]]
"""Pages of a context: (group, page indices in order), for each group that has some."""


class Market(Protocol):
    """Where leased tiers get their segments."""

    def num_on_offer(self, pool_id: int) -> int:
        """Pages that this pool could be given now."""

    def lease(self, pool_id: int, num_pages: int) -> None:
        """Add segments to this pool for `num_pages` more, as far as they are on offer."""


class Mirrors:
    """Gives mirrored pages their places in `tiers` and takes them back."""

    def __init__(self, placement: Placement) -> None:
        self.tiers: dict[int, PagePool] = {}
        self.market: Market | None = None
        self.placement = placement
        self._holders: dict[int, dict[Context, None]] = {}  # by leased segment: who may have pages there

    # ------------------------------------------------------------------ places

    def num_missing(self, context: Context, first: int, last: int) -> int:
        """Places that live pages from index `first` to `last` need and do not have."""
        missing = 0
        for refs, live_from in zip(context.mirror, context.live_from, strict=True):
            missing += max(0, last - max(len(refs), live_from))
            missing += refs[max(first, live_from) : last].count(ABSENT)
        return missing

    def has_room(self, home: int, count: int) -> bool:
        """Whether mirrors of contexts at `home` could have so many pages more."""
        for pools in self.placement.classes(home):
            for pool_id in pools:
                count -= self.tiers[pool_id].num_free
                if count <= 0:
                    return True
        return count <= sum(
            self._num_on_offer(pool_id) for pools in self.placement.classes(home) for pool_id in pools
        )

    def grow(self, context: Context, first: int, last: int) -> bool:
        """Give every live page from index `first` to `last` a place in the best tiers that have room; False,
        with nothing changed, if they do not all fit."""
        assert context.home is not None
        missing = self.num_missing(context, first, last)
        if not self.has_room(context.home, missing):
            return False
        places = self.take(context, context.home, missing)
        for refs, live_from in zip(context.mirror, context.live_from, strict=True):
            start = max(first, live_from)
            holes = [index for index in range(start, min(last, len(refs))) if refs[index] == ABSENT]
            for index in holes:
                refs[index] = places.pop()
            refs.extend([ABSENT] * (start - len(refs)))
            more = last - max(len(refs), start)
            if more > 0:
                refs += places[-more:]
                del places[-more:]
        return True

    def take(self, context: Context, home: int, count: int) -> list[int]:
        """Places for pages of the context, in the best tiers that `home` reaches and that have room: as
        references, at most `count`."""
        places: list[int] = []
        for pools in self.placement.classes(home):
            if len(places) == count:
                break
            roomiest = sorted(pools, key=self._num_free_in, reverse=True) if len(pools) > 1 else pools
            for pool_id in roomiest:
                if len(places) == count:
                    return places
                places += self._take_from(context, self.tiers[pool_id], count - len(places))
        return places

    def _take_from(self, context: Context, pool: PagePool, count: int) -> list[int]:
        if pool.is_leased and pool.num_free < count and self.market is not None:
            self.market.lease(pool.pool_id, count - pool.num_free)
        pages = pool.allocate(min(count, pool.num_free))
        if pool.is_leased:
            for number, _ in pool.by_segment(pages):
                key = page_ref(pool.pool_id, number)
                context.mirror_segments.add(key)
                self._holders.setdefault(key, {})[context] = None
        base = page_ref(pool.pool_id, 0)
        return [base | page for page in pages]

    def _num_free_in(self, pool_id: int) -> int:
        return self.tiers[pool_id].num_free + self._num_on_offer(pool_id)

    def _num_on_offer(self, pool_id: int) -> int:
        if self.market is None or not self.tiers[pool_id].is_leased:
            return 0
        return self.market.num_on_offer(pool_id)

    # ------------------------------------------------------------------ giving back

    def drop(self, context: Context, group: int, first: int, last: int) -> int:
        """Release the mirrored pages with indices `first .. last - 1`; how many there were."""
        refs = context.mirror[group]
        last = min(last, len(refs))
        dropped = [ref for ref in refs[first:last] if ref != ABSENT]
        self.release(dropped)
        refs[first:last] = [ABSENT] * max(0, last - first)
        return len(dropped)

    def drop_at(self, context: Context, group: int, indices: list[int]) -> None:
        """Release these mirrored pages."""
        refs = context.mirror[group]
        self.release([refs[index] for index in indices])
        for index in indices:
            refs[index] = ABSENT

    def drop_all(self, context: Context) -> int:
        """Release the whole mirror; how many pages it had."""
        dropped = [ref for refs in context.mirror for ref in refs if ref != ABSENT]
        self.release(dropped)
        for refs in context.mirror:
            refs.clear()
        for key in context.mirror_segments:
            self._holders[key].pop(context, None)
        context.mirror_segments.clear()
        context.mirrored = context.mirror_target = 0
        return len(dropped)

    def release(self, refs: list[int]) -> None:
        """Give places back."""
        for pool_id, (pages, _) in by_pool(refs, refs).items():
            self.tiers[pool_id].release(pages)

    def release_retired(self, context: Context) -> None:
        """Nothing touches the pages any more that the context moved away from."""
        self.release(context.retired)
        context.retired.clear()

    # ------------------------------------------------------------------ segments

    def holders(self, pool_id: int, number: int) -> dict[Context, None]:
        """Contexts that may have pages in a leased segment."""
        return dict(self._holders.get(page_ref(pool_id, number), ()))

    def places_in(self, context: Context, pool_id: int, number: int) -> Places:
        """The context's pages in a segment. Forgets it as a holder if it has none."""
        pages = self.tiers[pool_id].whole_pages(number)
        low, high = page_ref(pool_id, pages.start), page_ref(pool_id, pages.stop)
        found = [
            (group, indices)
            for group, refs in enumerate(context.mirror)
            if (indices := [index for index, ref in enumerate(refs) if low <= ref < high])
        ]
        if not found and not context.retired:
            key = page_ref(pool_id, number)
            self._holders.get(key, {}).pop(context, None)
            context.mirror_segments.discard(key)
        return found

    def held(self, context: Context) -> Iterator[int]:
        """References of all pages that the context has in tiers."""
        for refs in context.mirror:
            yield from (ref for ref in refs if ref != ABSENT)
        yield from context.retired
