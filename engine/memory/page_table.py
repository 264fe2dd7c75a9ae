"""Page tables: which pages hold what one layer group of a context has in one place."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.memory.pool import Extent, PagePool

if TYPE_CHECKING:
    from engine.memory.context import Context


class PageTable:
    """The pages with indices `first .. end - 1`, in extents; an index stands for `page_tokens` positions.

    There are no holes: what a copy lacks is before `first` (dropped behind a sliding window, or evicted) or
    has not been made yet.
    """

    __slots__ = ("extents", "first", "num_pages")

    def __init__(self) -> None:
        self.first = 0  # without meaning while there are no pages
        self.num_pages = 0
        self.extents: list[Extent] = []

    @property
    def end(self) -> int:
        return self.first + self.num_pages

    def num_missing(self, first: int, last: int) -> int:
        """How many of the indices `first .. last - 1` stand after what is here; all, if nothing is."""
        end = self.first + self.num_pages
        return last - (end if self.num_pages and end > first else first)

    # ------------------------------------------------------------------ reading

    def pages(self) -> list[int]:
        """All pages, in order of their indices."""
        if len(self.extents) == 1:
            return self.extents[0].pages[:]
        return [page for extent in self.extents for page in extent.pages]

    def between(self, first: int, last: int) -> list[int]:
        """The pages with indices `first .. last - 1`, all of which are here."""
        if len(self.extents) == 1:
            return self.extents[0].pages[first - self.first : last - self.first]
        pages: list[int] = []
        for _, part in self.parts(first, last):
            pages += part
        return pages

    def parts(self, first: int, last: int) -> Iterator[tuple[PagePool, list[int]]]:
        """The same, with the pool in which each part of them lies."""
        end = self.first + self.num_pages
        start = self.first
        extents = self.extents
        if end - last < first - start:  # nearer to the end, as with what has just been added
            found = len(extents)
            start = end
            while start > first:
                found -= 1
                start -= len(extents[found].pages)
            extents = extents[found:]
        for extent in extents:
            if start >= last:
                return
            stop = start + len(extent.pages)
            if stop > first:
                yield extent.segment.pool, extent.pages[max(0, first - start) : last - start]
            start = stop

    # ------------------------------------------------------------------ growing

    def grow(self, pool: PagePool, first: int, last: int, holder: "Context | None") -> list[int]:
        """Have pages from index `first` (if there are none) to `last - 1`; returns those that are new, which
        come from `pool`."""
        if not self.num_pages:
            self.first = first
        count = last - self.first - self.num_pages
        if count <= 0:
            return []
        self.num_pages += count
        return pool.grow(self.extents, count, holder)

    def grow_down(self, pool: PagePool, first: int, holder: "Context | None") -> None:
        """Have pages before those that are here, from index `first` on; new ones come from `pool`."""
        count = self.first - first
        if count > 0:
            self.extents[:0] = pool.allocate(count, holder)
            self.first = first
            self.num_pages += count

    # ------------------------------------------------------------------ giving back

    def clear(self) -> int:
        """Give all pages back; how many there were."""
        count = self.num_pages
        for extent in self.extents:
            extent.segment.pool.release(extent)
        self.extents.clear()
        self.num_pages = 0
        return count

    def drop_before(self, index: int) -> int:
        """Give back the pages with lower indices; how many there were."""
        dropped = min(index - self.first, self.num_pages)
        if dropped <= 0:
            return 0
        count, whole = dropped, 0
        for extent in self.extents:
            if len(extent.pages) > count:
                if count:
                    extent.segment.pool.release_first(extent, count)
                break
            count -= len(extent.pages)
            whole += 1
            extent.segment.pool.release(extent)
        del self.extents[:whole]
        self.first += dropped
        self.num_pages -= dropped
        return dropped

    def cut(self, index: int) -> int:
        """Give back the pages with this index or a higher one; how many there were."""
        dropped = min(self.first + self.num_pages - index, self.num_pages)
        if dropped <= 0:
            return 0
        count = dropped
        while count:
            extent = self.extents[-1]
            if len(extent.pages) > count:
                extent.segment.pool.release_last(extent, count)
                break
            count -= len(extent.pages)
            extent.segment.pool.release(extent)
            self.extents.pop()
        self.num_pages -= dropped
        return dropped

    # ------------------------------------------------------------------ replacing

    def split(self, extent: Extent, count: int) -> Extent:
        """Leave the first `count` pages to `extent`, which is in this table; the others, as the next one."""
        rest = extent.segment.pool.split(extent, count)
        self.extents.insert(self.extents.index(extent) + 1, rest)
        return rest

    def replace(self, old: Extent, new: list[Extent]) -> None:
        """Copies of the pages of `old` stand in its place from now on."""
        index = self.extents.index(old)
        self.extents[index : index + 1] = new

    def check_integrity(self) -> None:
        assert self.num_pages == sum(len(extent.pages) for extent in self.extents)
