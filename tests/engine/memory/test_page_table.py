"""Page tables against plain lists, under random use; and the pool's rules about who gets which pages."""

import random

import pytest

from engine.memory.page_table import PageTable, Paths, pair
from engine.memory.pool import PagePool


def make_pool(pool_id=1, num_pages=60, pages_per_segment=8):
    return PagePool(pool_id, num_pages, 10, first=1, segment_bytes=10 * pages_per_segment)


def extents(tables):
    return [extent for table in tables for extent in table.extents]


def test_a_table_grows_in_its_segment_while_that_has_room():
    pool = make_pool()
    first, second = PageTable(), PageTable()
    for index in range(1, 4):
        first.grow(pool, 0, index, None)
        second.grow(pool, 0, index, None)
    assert len(first.extents) == len(second.extents) == 1
    first.grow(pool, 0, 5, None)  # the seventh page of the segment, and the first of the next
    assert [len(extent.pages) for extent in first.extents] == [4, 1]
    pool.check_integrity(extents([first, second]))


def test_low_segments_are_used_first_and_recalled_ones_not():
    pool = make_pool()
    (low,) = pool.allocate(7)
    (high,) = pool.allocate(2)
    assert (low.segment.number, high.segment.number) == (0, 1)
    pool.release(low)
    pool.recall(0)
    (extent,) = pool.allocate(1)
    assert extent.segment.number == 1
    pool.remove(0)
    assert 0 not in pool.segments
    with pytest.raises(AssertionError, match="in use"):
        pool.remove(1)


def test_parts_join_neighbours_in_one_pool_only():
    near, far = make_pool(1), make_pool(2)
    table = PageTable()
    table.grow(near, 3, 13, None)
    table.grow(far, 3, 15, None)
    assert [(pool.pool_id, len(pages)) for pool, pages in table.parts(3, 15)] == [(1, 10), (2, 2)]
    assert table.parts(5, 5) == []
    paths: Paths = {}
    pair(paths, table.parts(11, 14), [7, 8, 9])
    assert paths == {near: (table.between(11, 13), [7, 8]), far: (table.between(13, 14), [9])}


def test_random_operations():
    source, pool = random.Random(5), make_pool(num_pages=200)
    tables = [PageTable() for _ in range(4)]
    known: list[dict[int, int]] = [{} for _ in tables]  # index -> page
    for _ in range(4000):
        number = source.randrange(len(tables))
        table, pages = tables[number], known[number]
        change(source, pool, table, pages)
        assert table.pages().tolist() == [pages[index] for index in sorted(pages)]
        if pages:
            assert (table.first, table.end) == (min(pages), max(pages) + 1)
            first = source.randrange(table.first, table.end)
            last = source.randint(first, table.end)
            assert table.between(first, last).tolist() == [pages[index] for index in range(first, last)]
        table.check_integrity()
        pool.check_integrity(extents(tables))


def change(source, pool, table, pages):
    choice = source.random()
    count = min(source.randrange(12), pool.num_free)
    start = table.end if pages else source.randrange(10)
    if choice < 0.4:
        pages.update(
            zip(range(start, start + count), table.grow(pool, start, start + count, None), strict=True)
        )
    elif choice < 0.5 and pages:
        first = max(0, table.first - count)
        pages.update(zip(range(first, table.first), table.grow_down(pool, first, None), strict=True))
    elif choice < 0.7 and pages:
        index = source.randrange(table.first, table.end + 2)
        assert table.drop_before(index) == sum(each < index for each in pages)
        for each in [each for each in pages if each < index]:
            del pages[each]
    elif choice < 0.9 and pages:
        index = source.randrange(table.first, table.end + 2)
        assert table.cut(index) == sum(each >= index for each in pages)
        for each in [each for each in pages if each >= index]:
            del pages[each]
    elif choice < 0.97 and pages:
        extent = source.choice(table.extents)
        if len(extent.pages) > 1:
            table.split(extent, source.randrange(1, len(extent.pages)))
    else:
        assert table.clear() == len(pages)
        pages.clear()
