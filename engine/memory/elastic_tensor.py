"""One elastic tensor: where its bytes are, and what is on its way."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from engine.memory.page_table import PageTable
from engine.memory.pool import Extent, Segment


@dataclass(slots=True, eq=False)
class ElasticTensor:
    """`kept` is its place in the tiers, `local` its copy in the device's pool. Each has all `num_pages` or
    none, and one has all, unless the tensor is lost. While a move is in flight no page is given up."""

    shape: torch.Size
    dtype: torch.dtype
    num_bytes: int
    num_pages: int
    kept: PageTable = field(default_factory=PageTable)
    local: PageTable = field(default_factory=PageTable)
    moves: set[int] = field(default_factory=set)  # in flight
    is_arriving: bool = False  # the local copy is not complete
    relocations: list[tuple[Extent, list[Extent]]] = field(default_factory=list)  # from there to there
    retired: list[Extent] = field(default_factory=list)  # nobody's, once no move is in flight
    is_gone: bool = False  # what is kept is not good; it is given up once no move is in flight
    is_lost: bool = False  # and there is no other copy

    @property
    def is_kept(self) -> bool:
        """Whether it has a place in the tiers, though its bytes may not all be there yet."""
        return self.kept.num_pages == self.num_pages and not self.is_gone

    @property
    def is_local(self) -> bool:
        """Whether it has a place on the device, though its bytes may not all be there yet."""
        return self.local.num_pages == self.num_pages

    @property
    def is_alone(self) -> bool:
        """Whether the local copy is the only one."""
        return not self.is_kept and not self.is_lost

    def keep(self, places: list[Extent]) -> None:
        """These are its places in the tiers from now on."""
        assert not self.kept.num_pages
        self.kept.extents, self.kept.num_pages = places, self.num_pages

    def extents_in_the_way(self) -> list[Extent]:
        """Places in segments that are to be empty."""
        return [extent for extent in self.kept.extents if extent.segment.is_recalled]

    def lose(self, segment: Segment) -> None:
        """The bytes of this segment are gone, whatever moves that are in flight say."""
        new = [extent for _, places in self.relocations for extent in places]
        if any(extent.segment is segment for extent in self.kept.extents):
            self.is_gone = True
            self.is_lost = not self.is_local or self.is_arriving
        elif any(extent.segment is segment for extent in new):
            self.retired += new  # it stays where it is
            self.relocations.clear()
        if not self.moves:
            self.settle()

    def settle(self) -> None:
        """None of its moves is in flight any more: copies are good, and what they replace is free."""
        for old, new in self.relocations:
            self.kept.replace(old, new)
            self.retired.append(old)
        for extent in self.retired:
            extent.segment.pool.release(extent)
        self.relocations.clear()
        self.retired.clear()
        self.is_arriving = False
        if self.is_gone:
            self.kept.clear()
            self.is_gone = False
        if self.is_lost:
            self.local.clear()

    def held_in_tiers(self) -> Iterator[Extent]:
        yield from self.kept.extents
        yield from self.retired
        for _, new in self.relocations:
            yield from new

    def check_integrity(self) -> None:
        """Raises AssertionError."""
        assert self.kept.num_pages in (0, self.num_pages)
        assert self.local.num_pages in (0, self.num_pages)
        assert self.is_lost or self.is_kept or self.is_local
        assert self.moves or not (self.relocations or self.retired or self.is_arriving or self.is_gone)
        self.kept.check_integrity()
        self.local.check_integrity()
