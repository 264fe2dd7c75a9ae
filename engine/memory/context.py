"""A prompt's context: which pages hold its K and V, and where.

A context has at most one *local* copy (in the pool of the device where it runs, or ran last) and one
*mirror* (in other tiers, wherever there was room). Local copies exist to run; mirrors exist to survive
preemption. A page, once full, never changes, so a mirror only ever grows at its end; a last page that was
copied half full is copied again when it has more.

Both have one `PageTable` per layer group. A local copy lacks what was evicted, from the front, and has room
for positions that come next; a mirror has the live pages of positions below `mirror_target`, and no others.
"""

from dataclasses import dataclass, field

from engine.memory.page import PageLayout
from engine.memory.page_table import PageTable
from engine.memory.pool import Extent

ABSENT = 0  # in a slice's tables: a page behind the window. Local pools keep page 0 for padding


@dataclass(slots=True, eq=False)
class Context:
    """The page tables of one prompt; `engine.memory.store.ContextStore` alone changes them."""

    layout: PageLayout
    serial: int = 0  # in order of opening
    computed: int = 0  # positions that exist somewhere
    mirrored: int = 0  # of those, a prefix that is complete in the mirror
    mirror_target: int = 0  # what `mirrored` will be when the moves in flight are complete
    home: int | None = None  # pool id of the local copy
    local: list[PageTable] = field(init=False)  # by group
    mirror: list[PageTable] = field(init=False)  # by group
    live_from: list[int] = field(init=False)  # [group] first page index that is not behind the window
    arriving: list[int] | None = None  # [group] while fetches are in flight: local pages below are theirs
    retired: list[Extent] = field(default_factory=list)  # mirrored pages that moves in flight may still touch
    moves_in_flight: int = 0
    evictable: int = 0  # local pages that may be dropped without losing anything, as its pool counts them
    in_motion: int = 0  # local pages that wait for moves while it does not run, as its pool counts them
    is_running: bool = False  # a runner has, or is about to get, a slice with these pages
    is_closing: bool = False  # its prompt is gone

    def __post_init__(self) -> None:
        num_groups = len(self.layout.groups)
        self.local = [PageTable() for _ in range(num_groups)]
        self.mirror = [PageTable() for _ in range(num_groups)]
        self.live_from = [0] * num_groups

    @property
    def num_local(self) -> int:
        """Pages of the local copy."""
        if len(self.local) == 1:
            return self.local[0].num_pages
        return sum([table.num_pages for table in self.local])

    @property
    def num_valid_pages(self) -> int:
        """Page indices per group that hold computed positions."""
        return -(-self.computed // self.layout.page_tokens)

    @property
    def num_clean_pages(self) -> int:
        """Page indices that the mirror has whole, and that no move in flight touches: to drop the local copy
        of one loses nothing. A mirror being written takes only what comes after them."""
        if self.arriving is not None or (self.moves_in_flight and self.mirror_target == self.mirrored):
            return 0  # something else is being moved
        if self.mirrored < self.computed:
            return self.mirrored // self.layout.page_tokens
        return self.num_valid_pages

    @property
    def is_dirty(self) -> bool:
        """Whether the local copy has positions that the mirror lacks."""
        return self.mirrored < self.computed

    def num_absent(self, end: int) -> int:
        """Live pages for positions below `end` that are not in the local copy."""
        last = -(-end // self.layout.page_tokens)
        absent = 0
        for table, live_from in zip(self.local, self.live_from, strict=True):
            if last > live_from:
                absent += last - live_from
            absent -= table.num_pages  # nothing local is behind a window or at `end` or after it
        return absent

    def slice_tables(self) -> list[list[int]]:
        """By group, the local page of every index; ABSENT behind a window. All that is live is local."""
        if len(self.local) == 1 and not self.local[0].first:
            return [self.local[0].pages()]
        return [[ABSENT] * table.first + table.pages() for table in self.local]

    def check_integrity(self) -> None:
        """Counts agree with tables, and every live computed page is somewhere. Raises AssertionError."""
        for table in (*self.local, *self.mirror):
            table.check_integrity()
        assert self.mirrored <= self.computed
        assert self.mirrored <= self.mirror_target
        if self.is_closing:
            return
        end, valid = self.layout.num_pages(self.mirror_target), self.num_valid_pages
        for local, mirror, live_from in zip(self.local, self.mirror, self.live_from, strict=True):
            assert mirror.num_pages == max(0, end - live_from)
            assert not mirror.num_pages or mirror.first == live_from
            assert not local.num_pages or (local.first >= live_from and local.end >= valid)
            absent_end = min(local.first, valid) if local.num_pages else valid
            if absent_end > live_from:
                assert absent_end * self.layout.page_tokens <= self.mirrored or not self.is_dirty, (
                    "an evicted page has no mirror"
                )
