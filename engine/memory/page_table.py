"""Page tables: which pages hold what one layer group of a context has in one place."""

from typing import TYPE_CHECKING

from engine.memory.pool import Extent, PagePool, Pages, joined, no_pages

if TYPE_CHECKING:
    from engine.memory.context import Context

Part = tuple[PagePool, Pages]
"""Pages that lie in one pool"""


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

    def pages(self) -> Pages:
        """All pages, in order of their indices: a copy."""
        return self.extents[0].pages[:] if len(self.extents) == 1 else joined(self.extents)

    def between(self, first: int, last: int) -> Pages:
        """The pages with indices `first .. last - 1`, all of which are here, as of `parts`."""
        if len(self.extents) == 1:
            return self.extents[0].pages[first - self.first : last - self.first]
        found = no_pages()
        for _, pages in self.parts(first, last):
            found += pages
        return found

    def parts(self, first: int, last: int) -> list[Part]:
        """The same, in parts that lie in one pool each, with that pool. They may be an extent's own: they are
        not to be changed, and good as long as no page of the table is given up, nor one added behind it."""
        if first >= last:
            return []
        number, start = self._find(first)
        extent, missing = self.extents[number], last - first
        pool, pages = extent.segment.pool, extent.pages
        if first > start or len(pages) > missing:
            pages = pages[first - start : last - start]
        missing -= len(pages)
        if not missing:
            return [(pool, pages)]
        pages = pages[:]
        parts = [(pool, pages)]
        for extent in self.extents[number + 1 :]:
            more = extent.pages if len(extent.pages) <= missing else extent.pages[:missing]
            if extent.segment.pool is pool:
                pages += more
            else:
                pool, pages = extent.segment.pool, more[:]
                parts.append((pool, pages))
            missing -= len(more)
            if not missing:
                break
        return parts

    def _find(self, index: int) -> tuple[int, int]:
        """The number of the extent that holds this index, and the first index that it holds."""
        extents = self.extents
        if index == self.first:
            return 0, index
        if index - self.first > self.num_pages >> 1:  # from the end, where tables grow
            number, start = len(extents) - 1, self.first + self.num_pages - len(extents[-1].pages)
            while start > index:
                number -= 1
                start -= len(extents[number].pages)
            return number, start
        number, start = 0, self.first
        while (end := start + len(extents[number].pages)) <= index:
            number, start = number + 1, end
        return number, start

    # ------------------------------------------------------------------ growing

    def grow(self, pool: PagePool, first: int, last: int, holder: "Context | None") -> Pages:
        """Have pages from index `first` (if there are none) to `last - 1`; returns those that are new, which
        come from `pool`."""
        if not self.num_pages:
            self.first = first
        count = last - self.first - self.num_pages
        if count <= 0:
            return no_pages()
        self.num_pages += count
        return pool.grow(self.extents, count, holder)

    def fill(self, pool: PagePool, first: int, last: int, holder: "Context | None") -> Pages:
        """Have pages from index `first` to `last - 1` at least; returns those that are new, those before what
        was here first, and not to be changed or kept."""
        if self.num_pages and first < self.first:
            before = self.grow_down(pool, first, holder)
            return before + self.grow(pool, first, last, holder)
        return self.grow(pool, first, last, holder)

    def grow_down(self, pool: PagePool, first: int, holder: "Context | None") -> Pages:
        """Have pages before those that are here, from index `first` on; returns them."""
        before: list[Extent] = []
        pages = pool.grow(before, self.first - first, holder)
        self.extents[:0] = before
        self.first = first
        self.num_pages += len(pages)
        return pages

    # ------------------------------------------------------------------ giving back

    def clear(self) -> int:
        """Give all pages back; how many there were."""
        count, self.num_pages = self.num_pages, 0
        extents, self.extents = self.extents, []
        for extent in extents:
            extent.segment.pool.release(extent)
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

    def give_before(self, index: int, other: "PageTable", holder: "Context") -> None:
        """Give the pages with lower indices to `other`, an empty table of `holder`."""
        count = min(index - self.first, self.num_pages)
        if count <= 0:
            return
        other.first, other.num_pages = self.first, count
        self.first += count
        self.num_pages -= count
        while count:
            extent = self.extents[0]
            if len(extent.pages) > count:
                self.split(extent, count)
            del self.extents[0]
            extent.holder = holder
            other.extents.append(extent)
            count -= len(extent.pages)

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


Paths = dict[PagePool, tuple[Pages, Pages]]
"""Pages that are to be moved, by the pool at the far end: those there, and those here"""


def pair(paths: Paths, there: list[Part], here: Pages) -> None:
    """Add to `paths` the pages of `there` with as many of `here`, in order."""
    start = 0
    for pool, pages in there:
        own = here if len(there) == 1 else here[start : start + len(pages)]
        start += len(own)
        known = paths.get(pool)
        if known is None:
            paths[pool] = (pages, own)
        else:
            paths[pool] = (known[0] + pages, known[1] + own)
