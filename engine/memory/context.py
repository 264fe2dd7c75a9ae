"""A prompt's context: which pages hold its K and V, and where.

A context has at most one *local* copy (in the pool of the device where it runs, or ran last) and one
*mirror* (in other tiers, wherever there was room). Local copies exist to run; mirrors exist to survive
preemption. A page, once full, never changes, so a mirror only ever grows at its end; a last page that was
copied half full is copied again when it has more.

A context may begin where another, its *parent*, ends: it has the pages from `start` on, and shares those
before with all that continue the same parent, which does not grow any more. The context of a prompt that
ended may stay, *cached*, for prompts to come.

Both copies have one `PageTable` per layer group (`GroupPages`). A local copy lacks what was evicted, from the
front, and has room for positions that come next; a mirror has the live pages of positions below
`mirror_target`, and no others.
"""

from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.memory.page import PageLayout
from engine.memory.page_table import PageTable
from engine.memory.pool import Extent, Pages, no_pages
from engine.memory.prefix_tree import PrefixNode

if TYPE_CHECKING:
    from engine.memory.idle_queue import IdleQueue

ABSENT = 0  # in a slice's tables: a page behind the window. Local pools keep page 0 for padding


@dataclass(slots=True, eq=False)
class GroupPages:
    """What a context has of one layer group."""

    live_from: int = 0  # first page index that is not behind the window
    local: PageTable = field(default_factory=PageTable)
    mirror: PageTable = field(default_factory=PageTable)
    arriving_end: int = 0  # while fetches are in flight: local pages below this index are theirs
    former: PageTable | None = (
        None  # local pages where it comes from, until the moves out of there are complete
    )


@dataclass(slots=True, eq=False)
class Context:
    """The page tables of one prompt; `engine.memory.store.ContextStore` alone changes them. What is asked of
    one whose prompt starts stands first."""

    layout: PageLayout = field(repr=False)
    serial: int = 0  # in order of opening
    computed: int = 0  # positions that exist somewhere
    home: int | None = None  # pool id of the local copy
    parent: "Context | None" = field(default=None, repr=False)  # has the pages of positions before `start`
    moves_in_flight: int = 0
    node: "PrefixNode[Context] | None" = field(default=None, repr=False)  # in the index
    indexed_at: int | None = None  # pool id of the device by whose index it is found
    salt: Hashable = None  # of the prompts that may find it
    groups: tuple[GroupPages, ...] = field(init=False)
    is_running: bool = False  # a runner has, or is about to get, a slice with these pages
    start: int = 0  # a page border
    mirrored: int = 0  # of the computed positions, a prefix that is complete in the mirror
    mirror_target: int = 0  # what `mirrored` will be when the moves in flight are complete
    children: "dict[Context, None]" = field(default_factory=dict, repr=False)
    fetches: list[int] = field(default_factory=list)  # moves that bring local pages, until all are complete
    retired: list[Extent] = field(default_factory=list)  # mirrored pages that moves in flight may still touch
    idle_in: "IdleQueue | None" = field(default=None, repr=False)  # of its pool, while it does not run
    evictable: int = 0  # local pages that may be dropped without losing anything, as its pool counts them
    in_motion: int = 0  # local pages that wait for moves while it does not run, as its pool counts them
    num_prompts: int = 1  # that need it: its own, and those of its descendants
    num_users: int = 0  # descendants that run
    is_growing: bool = True  # a prompt, or a slice that is being cancelled, may write to it
    is_closing: bool = False  # its prompt is gone

    def __post_init__(self) -> None:
        self.groups = tuple([GroupPages() for _ in self.layout.groups])

    @property
    def is_cached(self) -> bool:
        """Whether no prompt needs it."""
        return not (self.num_prompts or self.is_growing or self.is_closing)

    @property
    def is_blank(self) -> bool:
        """Whether it has nothing, needs nothing of others, and nothing is on its way."""
        return not self.computed and self.home is None and self.parent is None and not self.moves_in_flight

    @property
    def has_family(self) -> bool:
        """Whether it shares pages with others, or begins where another ends."""
        return self.parent is not None or bool(self.children)

    def ancestors(self) -> "Sequence[Context]":
        """Those that it continues, the nearest first."""
        context = self.parent
        if context is None:
            return ()
        found = []
        while context is not None:
            found.append(context)
            context = context.parent
        return found

    @property
    def num_local(self) -> int:
        """Pages of the local copy."""
        count = 0
        for group in self.groups:
            count += group.local.num_pages
        return count

    def extents_in(self, pools: Container[int]) -> list[Extent]:
        """Where the mirror lies in these tiers."""
        extents = [extent for group in self.groups for extent in group.mirror.extents]
        return [extent for extent in extents if extent.segment.pool.pool_id in pools]

    def num_mirrored_in(self, pools: Container[int]) -> int:
        """Pages of the mirror in these tiers."""
        return sum([len(extent.pages) for extent in self.extents_in(pools)])

    @property
    def num_valid_pages(self) -> int:
        """Page indices per group that hold computed positions."""
        return -(-self.computed // self.layout.page_tokens)

    @property
    def num_clean_pages(self) -> int:
        """Page indices that the mirror has whole, and that no move in flight touches: to drop the local copy
        of one loses nothing. A mirror being written takes only what comes after them."""
        if self.fetches or (self.moves_in_flight and self.mirror_target == self.mirrored):
            return 0  # something else is being moved
        if self.mirrored < self.computed:
            return self.mirrored // self.layout.page_tokens
        return self.num_valid_pages

    @property
    def is_dirty(self) -> bool:
        """Whether the local copy has positions that the mirror lacks."""
        return self.mirrored < self.computed

    def would_be_lost(self, pools: Container[int]) -> bool:
        """Whether positions of it, or that it continues, are nowhere but in these pools, and nothing of it is
        on the move: it could be given up now."""
        if self.moves_in_flight:
            return False
        return any(each.is_dirty and each.home in pools for each in (self, *self.ancestors()))

    def num_absent(self, end: int) -> int:
        """Live pages for positions below `end` that are not in the local copy."""
        last = -(-end // self.layout.page_tokens)
        absent = 0
        for group in self.groups:
            if last > group.live_from:
                absent += last - group.live_from
            absent -= group.local.num_pages  # nothing local is behind a window or at `end` or after it
        return absent

    def slice_tables(self) -> list[Pages]:
        """By group, the local page of every index; ABSENT behind a window. All that is live is local."""
        if self.parent is None and len(self.groups) == 1:
            table = self.groups[0].local
            if not table.first:
                return [table.pages()]
        tables = [no_pages() for _ in self.groups]
        for context in (*reversed(self.ancestors()), self):
            for pages, group in zip(tables, context.groups, strict=True):
                table = group.local
                if table.num_pages:
                    pages.extend([ABSENT] * (table.first - len(pages)))
                    pages += table.pages()
        return tables

    def begin_at(self, position: int) -> None:
        """A context without pages begins at this position, a page border."""
        self.start = self.computed = self.mirrored = self.mirror_target = position
        for group in self.groups:
            group.live_from = position // self.layout.page_tokens

    def check_integrity(self) -> None:
        """Counts agree with tables, and every live computed page is somewhere. Raises AssertionError."""
        for group in self.groups:
            group.local.check_integrity()
            group.mirror.check_integrity()
        assert self.start <= self.computed
        assert self.mirrored <= self.computed
        assert self.parent is None or (self in self.parent.children and self.parent.computed == self.start)
        assert self.num_users == sum(child.is_running for child in self.descendants() if child.is_growing)
        assert self.mirrored <= self.mirror_target
        assert self.moves_in_flight or not self.fetches
        if self.is_closing:
            return
        end, valid = self.layout.num_pages(self.mirror_target), self.num_valid_pages
        for group in self.groups:
            local, mirror, live_from = group.local, group.mirror, group.live_from
            assert mirror.num_pages == max(0, end - live_from)
            assert not mirror.num_pages or mirror.first == live_from
            assert not local.num_pages or (local.first >= live_from and local.end >= valid)
            absent_end = min(local.first, valid) if local.num_pages else valid
            if absent_end > live_from:
                assert absent_end * self.layout.page_tokens <= self.mirrored or not self.is_dirty, (
                    "an evicted page has no mirror"
                )

    def is_family_moving(self) -> bool:
        """Whether it or a descendant has a move in flight."""
        return self.moves_in_flight > 0 or any(c.moves_in_flight for c in self.descendants())

    def descendants(self) -> "list[Context]":
        """All that continue it."""
        found = list(self.children)
        for child in found:
            found += child.children
        return found
