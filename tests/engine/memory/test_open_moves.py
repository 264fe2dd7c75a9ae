"""What moves in flight know of the pages that they move."""

from engine.memory.open_moves import Relocation
from engine.memory.pool import PagePool


def test_a_relocation_pairs_extents_with_places_that_segments_cut():
    source, target = PagePool(1, 9, 10), PagePool(2, 12, 10, segment_bytes=40)
    old = [extent for count in (3, 2, 4) for extent in source.allocate(count)]
    new, pages = target.copies(old, 9)
    assert [len(extent.pages) for extent in new] == [3, 1, 1, 3, 1]
    assert [page for extent in new for page in extent.pages] == list(pages)
    assert list(Relocation(old, new).pairs()) == [
        (old[0], new[:1]),
        (old[1], new[1:3]),
        (old[2], new[3:]),
    ]
    target.check_integrity(new)
    assert target.num_free == 3
