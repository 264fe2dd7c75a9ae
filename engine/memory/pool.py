"""The ledger of a pool of equal pages: which are free. Bytes live elsewhere (in runners, by descriptor)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sortedcontainers import SortedSet


@dataclass(slots=True)
class Segment:
    """Pages that lie together and are lent together. `free` is a stack."""

    num_pages: int = 0  # that the pool may use: free or somebody's
    free: list[int] = field(default_factory=list)
    is_recalled: bool = False  # gives out no page any more

    @property
    def num_used(self) -> int:
        return self.num_pages - len(self.free)


class PagePool:
    """Pages `first .. num_pages - 1` of pool `pool_id`; a runner's local pool keeps page 0 for padding.

    The pool is in segments of `segment_bytes` (None: it is all one); a page belongs to the segment in which
    it begins. Segments come and go as they are lent: a leased pool starts with none. Pages are taken from the
    lowest segment that has some, so that high ones stay empty; within a segment, allocation and release are
    slices of a list: microseconds for thousands.
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
        self.segments: dict[int, Segment] = {}
        self._roomy: SortedSet[int] = SortedSet()  # segments that have a free page to give
        self.num_usable = 0  # pages that contexts may have, those of recalled segments included
        self.num_used = 0
        self.num_free = 0
        for number in range(0 if is_leased else self.num_segments):
            self.add(number, range(max(first, self._begin(number)), self._begin(number + 1)))

    @property
    def num_segments(self) -> int:
        """Segments that the pool's memory has, whoever uses them."""
        return -(-self.num_pages * self.page_bytes // self.segment_bytes)

    def segment_of(self, page: int) -> int:
        return page * self.page_bytes // self.segment_bytes

    def whole_pages(self, number: int) -> range:
        """Pages that lie wholly within a segment: what a borrower can use of it."""
        end = min((number + 1) * self.segment_bytes // self.page_bytes, self.num_pages)
        return range(self._begin(number), max(self._begin(number), end))

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages. The caller has looked at `num_free`."""
        assert 0 <= count <= self.num_free, f"pool {self.pool_id}: {count} of {self.num_free} free"
        pages: list[int] = []
        while len(pages) < count:
            number = self._roomy[0]
            free = self.segments[number].free
            taken = free[-(count - len(pages)) :]
            del free[-len(taken) :]
            if not free:
                self._roomy.discard(number)
            taken.reverse()
            pages += taken
        self.num_free -= count
        self.num_used += count
        return pages

    def release(self, pages: Sequence[int]) -> None:
        """Give pages back. Nobody may read or write them any more."""
        for number, run in self.by_segment(pages):
            segment = self.segments[number]
            segment.free += run
            assert segment.num_used >= 0, f"pool {self.pool_id}: a page was released twice"
            if not segment.is_recalled:
                self.num_free += len(run)
                self._roomy.add(number)
        self.num_used -= len(pages)

    def by_segment(self, pages: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
        """Runs of `pages` that lie in the same segment, in order."""
        start = 0
        if len(pages) > 0 and self.num_segments == 1:
            yield 0, pages
            return
        while start < len(pages):
            number = self.segment_of(pages[start])
            low, high = self._begin(number), self._begin(number + 1)
            end = start + 1
            while end < len(pages) and low <= pages[end] < high:
                end += 1
            yield number, pages[start:end]
            start = end

    # ------------------------------------------------------------------ segments that come and go

    def add(self, number: int, pages: Sequence[int]) -> None:
        """These pages of segment `number` may be used from now on."""
        if not pages:
            return
        segment = self.segments.setdefault(number, Segment())
        assert not segment.is_recalled
        segment.free += reversed(pages)
        segment.num_pages += len(pages)
        self.num_usable += len(pages)
        self.num_free += len(pages)
        self._roomy.add(number)

    def recall(self, number: int) -> None:
        """Give out no page of this segment any more; it may be removed once it is empty."""
        segment = self.segments[number]
        if not segment.is_recalled:
            segment.is_recalled = True
            self.num_free -= len(segment.free)
            self._roomy.discard(number)

    def remove(self, number: int) -> None:
        """The segment, which is empty, is not this pool's any more."""
        self.recall(number)
        segment = self.segments.pop(number)
        assert not segment.num_used, f"pool {self.pool_id}: segment {number} is in use"
        self.num_usable -= segment.num_pages

    def is_empty(self, number: int) -> bool:
        return self.segments[number].num_used == 0

    def check_integrity(self, held: Iterable[int]) -> None:
        """`held` are all pages that somebody has: with the free ones they make up the pool, each once."""
        pages = list(held)
        assert self.num_used == len(pages), f"pool {self.pool_id}: {len(pages)} held, {self.num_used} counted"
        counts = dict.fromkeys(self.segments, 0)
        for number, run in self.by_segment(sorted(pages)):
            counts[number] += len(run)
        for number, segment in self.segments.items():
            assert counts[number] == segment.num_used, f"pool {self.pool_id}: pages lost in segment {number}"
            assert (number in self._roomy) == (bool(segment.free) and not segment.is_recalled)
            pages += segment.free
        assert len(set(pages)) == len(pages) == self.num_usable, f"pool {self.pool_id}: a page is shared"
        assert all(self.first <= page < self.num_pages for page in pages)
        free = sum(len(s.free) for s in self.segments.values() if not s.is_recalled)
        assert free == self.num_free

    def _begin(self, number: int) -> int:
        """The first page that begins in segment `number`, or the end of the pool."""
        return min(-(-number * self.segment_bytes // self.page_bytes), self.num_pages)
