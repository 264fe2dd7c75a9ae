"""The ledger of a pool of equal pages: which are free, and who has the others. Bytes live elsewhere (in
runners, by descriptor).

Pages are given out in extents, so that what is done with the pages of a context costs by the extent, and by
the page no more than slicing a list does.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct

if TYPE_CHECKING:
    from engine.memory.context import Context


FULL_MOVE_PAGES = 64  # 128 MiB of an 8B model: 0.3 ms of NVLink, 2.5 ms of PCIe

Pages: TypeAlias = "array[int]"
"""Page numbers, of 32 bits each: a list of the same would be ten times as large, and to copy it would look at
every number."""


def no_pages() -> Pages:
    """None yet."""
    return array("i")


class Extent(Struct, eq=False):
    """Pages of one segment that stand next to each other in a page table of `holder`, in this order.

    They need not be neighbours in the pool: a context grows by a page or two per slice, beside many others,
    and would soon be in as many runs as it has pages.
    """

    segment: "Segment"
    pages: Pages
    holder: "Context | None"  # None: not a context's


def joined(extents: Iterable[Extent]) -> Pages:
    """Their pages, in order."""
    pages = no_pages()
    for extent in extents:
        pages += extent.pages
    return pages


@dataclass(slots=True, eq=False)
class Segment:
    """Pages that lie together and are lent together."""

    pool: "PagePool"
    number: int
    num_pages: int = 0  # that the pool may use: free or somebody's
    num_free: int = 0
    stack: Pages = field(default_factory=no_pages)  # those that are free, and then what is left of others
    extents: dict[Extent, None] = field(default_factory=dict)  # all that is not free
    is_recalled: bool = False  # gives out no page any more

    @property
    def num_used(self) -> int:
        return self.num_pages - self.num_free

    @property
    def free(self) -> Pages:
        return self.stack[: self.num_free]

    def take(self, count: int) -> Pages:
        """Up to `count` pages off the stack, whose array stays as long as it is: to cut off its end would
        copy it."""
        end = self.num_free
        self.num_free = end - count if count < end else 0
        return self.stack[self.num_free : end]

    def give_back(self, pages: Pages) -> None:
        """These pages, which are not to be changed, are free."""
        end = self.num_free + len(pages)
        self.stack[self.num_free : end] = pages
        self.num_free = end


class PagePool:
    """Pages `first .. num_pages - 1` of pool `pool_id`; a runner's local pool keeps page 0 for padding.

    The pool is in segments of `segment_bytes` (None: it is all one); a page belongs to the segment in which
    it begins. Segments come and go as they are lent: a leased pool starts with none. Pages are taken from the
    lowest segment that has some, so that high ones stay empty.
    """

    def __init__(
        self,
        pool_id: int,
        num_pages: int,
        page_bytes: int,
        *,
        first: int = 0,
        segment_bytes: int | None = None,
        is_leased: bool = False,
    ) -> None:
        self.pool_id = pool_id
        self.page_bytes = page_bytes
        self.num_pages = num_pages
        self.first = first
        self.is_leased = is_leased
        self.segment_bytes = segment_bytes or max(1, num_pages) * page_bytes
        # Pages after which no further context joins a move from or to here: what memory is taken back by is
        # not to wait for more.
        self.full_move = max(1, min(FULL_MOVE_PAGES, self.segment_bytes // page_bytes))
        self.segments: dict[int, Segment] = {}
        self._roomy: list[int] = []  # heap of segments: all that have a page to give, and some that had
        self._in_heap: set[int] = set()
        self.num_usable = 0  # pages that contexts may have, those of recalled segments included
        self.num_used = 0
        self.num_free = 0
        self.changed: set[int] = set()  # learns of this pool's id whenever `num_free` may have changed
        self._numbers = array("i", range(num_pages))  # to slice from
        for number in range(0 if is_leased else self.num_segments):
            self.add(number, range(max(first, self._begin(number)), self._begin(number + 1)))

    @property
    def num_segments(self) -> int:
        """Segments that the pool's memory has, whoever uses them."""
        return -(-self.num_pages * self.page_bytes // self.segment_bytes)

    def whole_pages(self, number: int) -> range:
        """Pages that lie wholly within a segment: what a borrower can use of it."""
        end = min((number + 1) * self.segment_bytes // self.page_bytes, self.num_pages)
        return range(self._begin(number), max(self._begin(number), end))

    # ------------------------------------------------------------------ allocation

    def allocate(self, count: int, holder: "Context | None" = None) -> list[Extent]:
        """Take `count` pages. The caller has looked at `num_free`."""
        extents: list[Extent] = []
        self.grow(extents, count, holder)
        return extents

    def grow(self, extents: list[Extent], count: int, holder: "Context | None") -> Pages:
        """Take `count` pages and put them behind `extents`: in the segment of the last of them while that has
        room. The caller has looked at `num_free`. Returns the pages, which are not to be changed or kept:
        they may be an extent's own."""
        self._count_taken(count)
        added: Pages | None = None
        if extents and count:
            last = extents[-1]
            segment = last.segment
            if segment.pool is self and segment.num_free and not segment.is_recalled:
                added = segment.take(count)
                last.pages += added
                count -= len(added)
        while count:
            segment = self._lowest()
            pages = segment.take(count)
            extent = Extent(segment, pages, holder)
            segment.extents[extent] = None
            extents.append(extent)
            added = pages if added is None else added + pages
            count -= len(pages)
        return added if added is not None else no_pages()

    def copies(self, extents: Iterable[Extent], count: int) -> tuple[list[Extent], Pages]:
        """Take new places for the `count` pages of these extents, each for its holder and none for pages of
        two extents. Returns them, and their pages. The caller has looked at `num_free`."""
        self._count_taken(count)
        new: list[Extent] = []
        new_pages, taken, start = no_pages(), no_pages(), 0
        for old in extents:
            missing = len(old.pages)
            while missing:
                if start == len(taken):
                    segment, start = self._lowest(), 0
                    taken = segment.take(count - len(new_pages))
                    new_pages += taken
                pages = taken[start : start + missing]
                extent = Extent(segment, pages, old.holder)
                segment.extents[extent] = None
                new.append(extent)
                start += len(pages)
                missing -= len(pages)
        return new, new_pages

    def _count_taken(self, count: int) -> None:
        assert 0 <= count <= self.num_free, f"pool {self.pool_id}: {count} of {self.num_free} free"
        self.num_free -= count
        self.num_used += count
        self.changed.add(self.pool_id)

    def _lowest(self) -> Segment:
        """The lowest segment that has a page to give."""
        while True:
            segment = self.segments.get(self._roomy[0])
            if segment is not None and segment.num_free and not segment.is_recalled:
                return segment
            self._in_heap.remove(heappop(self._roomy))

    def _list(self, segment: Segment) -> None:
        """The segment may have a page to give."""
        if segment.number not in self._in_heap:
            self._in_heap.add(segment.number)
            heappush(self._roomy, segment.number)

    def release(self, extent: Extent) -> None:
        """Give all its pages back. Nobody may read or write them any more."""
        del extent.segment.extents[extent]
        self._give_back(extent.segment, extent.pages)

    def release_first(self, extent: Extent, count: int) -> None:
        """Give back the first `count` of its pages, of which some stay."""
        pages = extent.pages[:count]
        del extent.pages[:count]
        self._give_back(extent.segment, pages)

    def release_last(self, extent: Extent, count: int) -> None:
        """Give back the last `count` of its pages, of which some stay."""
        pages = extent.pages[-count:]
        del extent.pages[-count:]
        self._give_back(extent.segment, pages)

    def split(self, extent: Extent, count: int) -> Extent:
        """Leave the first `count` pages to `extent`; the others, in an extent of their own."""
        rest = Extent(extent.segment, extent.pages[count:], extent.holder)
        del extent.pages[count:]
        extent.segment.extents[rest] = None
        return rest

    def _give_back(self, segment: Segment, pages: Pages) -> None:
        self.changed.add(self.pool_id)
        self.num_used -= len(pages)
        if not segment.is_recalled:
            self.num_free += len(pages)
            if not segment.num_free:
                self._list(segment)
        segment.give_back(pages)

    # ------------------------------------------------------------------ segments that come and go

    def add(self, number: int, pages: Sequence[int]) -> None:
        """These pages of segment `number` may be used from now on."""
        if not pages:
            return
        segment = self.segments.get(number)
        if segment is None:
            segment = self.segments[number] = Segment(self, number)
        assert not segment.is_recalled
        if isinstance(pages, range):
            segment.give_back(self._numbers[pages.start : pages.stop])
        else:
            segment.give_back(array("i", pages))
        segment.num_pages += len(pages)
        self.num_usable += len(pages)
        self.num_free += len(pages)
        self.changed.add(self.pool_id)
        self._list(segment)

    def recall(self, number: int) -> None:
        """Give out no page of this segment any more; it may be removed once it is empty."""
        segment = self.segments[number]
        if not segment.is_recalled:
            segment.is_recalled = True
            self.changed.add(self.pool_id)
            self.num_free -= segment.num_free

    def remove(self, number: int) -> None:
        """The segment, which is empty, is not this pool's any more."""
        self.recall(number)
        segment = self.segments.pop(number)
        assert not segment.num_used, f"pool {self.pool_id}: segment {number} is in use"
        self.num_usable -= segment.num_pages

    def is_empty(self, number: int) -> bool:
        return self.segments[number].num_used == 0

    def check_integrity(self, held: Iterable[Extent]) -> None:
        """`held` are all extents that somebody has: with the free pages they make up the pool, each once."""
        extents = [extent for segment in self.segments.values() for extent in segment.extents]
        assert set(held) == set(extents), f"pool {self.pool_id}: an extent is nobody's"
        pages = [page for segment in self.segments.values() for page in segment.free]
        for number, segment in self.segments.items():
            own = [page for extent in segment.extents for page in extent.pages]
            assert all(extent.segment is segment and extent.pages for extent in segment.extents)
            assert len(own) == segment.num_used, f"pool {self.pool_id}: pages lost in segment {number}"
            assert all(
                self._begin(number) <= page < self._begin(number + 1) for page in (*own, *segment.free)
            )
            assert number in self._in_heap or not segment.num_free or segment.is_recalled
            pages += own
        assert len(set(pages)) == len(pages) == self.num_usable, f"pool {self.pool_id}: a page is shared"
        assert all(self.first <= page < self.num_pages for page in pages)
        assert sorted(self._roomy) == sorted(self._in_heap)
        segments = self.segments.values()
        assert self.num_used == sum(segment.num_used for segment in segments)
        assert self.num_free == sum(s.num_free for s in segments if not s.is_recalled)

    def _begin(self, number: int) -> int:
        """The first page that begins in segment `number`, or the end of the pool."""
        return min(-(-number * self.segment_bytes // self.page_bytes), self.num_pages)
