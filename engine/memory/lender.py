"""What the ledger knows of a lender: whose memory it is, how its borrowers see it, and what is on its way."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from engine.memory.leases import Lease
from engine.memory.pool import PagePool
from engine.memory.returns import PagesReturned
from engine.memory.store import ContextStore


@dataclass(slots=True)
class Owner:
    """The model that runs on a lender. At least `keep_pages` stay free, at most `max_segments` are lent."""

    store: ContextStore
    pool: PagePool
    keep_pages: int
    max_segments: int
    since_ns: int = 0
    low_water: int = 0  # fewest free pages since then

    @property
    def pages_per_segment(self) -> int:
        return self.pool.segment_bytes // self.pool.page_bytes

    def empty_segments(self, count: int) -> Iterator[int]:
        """Up to `count` segments that are whole, empty and hold no page 0, from the highest."""
        for number in sorted(self.pool.segments, reverse=True):
            if count <= 0:
                return
            segment = self.pool.segments[number]
            if not segment.num_used and not segment.is_recalled and self.has_whole(number):
                count -= 1
                yield number

    def has_whole(self, number: int) -> bool:
        """Whether all pages of the segment are the owner's, so that it can be given away as one."""
        return self.pool.segments[number].num_pages == self.pages_per_segment


@dataclass(slots=True)
class OpenRecall:
    """A leased segment that is being emptied."""

    lease: Lease
    pool: PagePool
    since_ns: int
    returned: PagesReturned | None  # to an owner, page by page


@dataclass(slots=True)
class Lender:
    """`pools` are its memory as its borrowers see it. A segment is on offer, leased, its owner's, or
    `withdrawn`: nobody's, so that its memory can be given back to other programs."""

    name: str
    device: str
    num_segments: int
    segment_bytes: int
    owner: Owner | None  # None: nothing runs there
    wanted_segments: int  # that are not withdrawn, once it is done
    pools: dict[str, PagePool] = field(default_factory=dict)
    recalls: dict[int, OpenRecall] = field(default_factory=dict)  # by segment
    leaving: set[int] = field(default_factory=set)  # to be withdrawn as soon as they are empty
    withdrawn: set[int] = field(default_factory=set)

    @property
    def num_present(self) -> int:
        """Segments that are somebody's or on offer."""
        return self.num_segments - len(self.withdrawn)

    def pages_per_segment(self, borrower: str) -> int:
        """Pages that every whole segment has for a borrower, at least: some may straddle its borders."""
        pool = self.pools[borrower]
        whole, rest = divmod(pool.segment_bytes, pool.page_bytes)
        return whole if not rest else max(0, whole - 1)
