"""A prompt's context: which pages hold its K and V, and where.

A context has at most one *local* copy (in the pool of the device where it runs, or ran last) and one
*mirror* (in other tiers, page by page wherever there was room). Local copies exist to run; mirrors exist to
survive preemption. A page, once full, never changes, so a mirror only ever grows at its end; a last page
that was copied half full is copied again when it has more.

Tables have one entry per page of `page_tokens` positions. ABSENT stands for a page that this copy does not
have: dropped behind a sliding window, evicted, or never made.
"""

from dataclasses import dataclass, field

from engine.memory.page import PageLayout

ABSENT = 0  # local pools keep page 0 for padding, and no pool has the id 0, so no page is mistaken for it

_PAGE_BITS = 40


def page_ref(pool_id: int, page: int) -> int:
    """A page of some pool as one integer, so that tables stay flat."""
    return pool_id << _PAGE_BITS | page


def pool_of(ref: int) -> int:
    return ref >> _PAGE_BITS


def page_of(ref: int) -> int:
    return ref & (1 << _PAGE_BITS) - 1


def by_pool(refs: list[int], others: list[int]) -> dict[int, tuple[list[int], list[int]]]:
    """Split references by pool: the pages of each, and what stands beside them in `others`."""
    if not refs:
        return {}
    pool_id = pool_of(min(refs))
    if pool_id == pool_of(max(refs)):  # as nearly always: some nanoseconds a page
        base = page_ref(pool_id, 0)
        return {pool_id: ([ref - base for ref in refs], others)}
    split: dict[int, tuple[list[int], list[int]]] = {}
    for pool_id in dict.fromkeys([ref >> _PAGE_BITS for ref in refs]):
        low, high = page_ref(pool_id, 0), page_ref(pool_id + 1, 0)
        own = [index for index, ref in enumerate(refs) if low <= ref < high]
        split[pool_id] = ([refs[index] - low for index in own], [others[index] for index in own])
    return split


@dataclass(slots=True, eq=False)
class Context:
    """The page tables of one prompt; `engine.memory.store.ContextStore` alone changes them."""

    layout: PageLayout
    serial: int = 0  # in order of opening
    computed: int = 0  # positions that exist somewhere
    mirrored: int = 0  # of those, a prefix that is complete in the mirror
    mirror_target: int = 0  # what `mirrored` will be when the moves in flight are complete
    home: int | None = None  # pool id of the local copy
    local: list[list[int]] = field(init=False)  # [group][page index] -> page of `home`
    mirror: list[list[int]] = field(init=False)  # [group][page index] -> page_ref
    live_from: list[int] = field(init=False)  # [group] first page index that is not behind the window
    num_local: int = 0  # entries of `local` that are not ABSENT
    mirror_segments: set[int] = field(default_factory=set)  # where mirrored pages may be: see `Mirrors`
    retired: list[int] = field(default_factory=list)  # mirrored pages that moves in flight may still touch
    moves_in_flight: int = 0
    evictable: int = 0  # local pages that may be dropped without losing anything, as its pool counts them
    is_running: bool = False  # a runner has, or is about to get, a slice with these pages
    is_closing: bool = False  # its prompt is gone

    def __post_init__(self) -> None:
        num_groups = len(self.layout.groups)
        self.local = [[] for _ in range(num_groups)]
        self.mirror = [[] for _ in range(num_groups)]
        self.live_from = [0] * num_groups

    @property
    def num_valid_pages(self) -> int:
        """Page indices per group that hold computed positions."""
        return self.layout.num_pages(self.computed)

    @property
    def num_clean_pages(self) -> int:
        """Page indices that the mirror has whole, and that no move in flight touches: to drop the local copy
        of one loses nothing. A mirror being written takes only what comes after them."""
        if self.moves_in_flight and self.mirror_target == self.mirrored:
            return 0  # something else is being moved
        if self.is_dirty:
            return self.mirrored // self.layout.page_tokens
        return self.num_valid_pages

    @property
    def is_dirty(self) -> bool:
        """Whether the local copy has positions that the mirror lacks."""
        return self.mirrored < self.computed

    def absent(self, end: int) -> list[list[int]]:
        """By group, the indices of live pages for positions below `end` that are not in the local copy."""
        last = self.layout.num_pages(end)
        missing = []
        for table, first in zip(self.local, self.live_from, strict=True):
            holes: list[int] = []
            if self.num_local:
                present = min(last, len(table))
                holes = [index for index in range(first, present) if table[index] == ABSENT]
                first = max(first, present)
            missing.append([*holes, *range(first, last)])
        return missing

    def num_absent(self, end: int) -> int:
        """How many pages `absent` would list, without listing them."""
        last = self.layout.num_pages(end)
        live = sum(max(0, last - first) for first in self.live_from)
        return live - self.num_local  # nothing local is behind a window or at `end` or after it

    def local_pages(self) -> list[int]:
        """All pages of the local copy."""
        return [page for table in self.local for page in table if page != ABSENT]

    def check_integrity(self) -> None:
        """Counts agree with tables, and every live computed page is somewhere. Raises AssertionError."""
        assert len(self.local_pages()) == self.num_local
        assert self.mirrored <= self.computed
        if self.is_closing:
            return
        for refs, indices in zip(self.mirror, self.absent(self.computed), strict=True):
            for index in indices:
                assert (index + 1) * self.layout.page_tokens <= self.mirrored or not self.is_dirty
                assert refs[index] != ABSENT, "an evicted page has no mirror"
