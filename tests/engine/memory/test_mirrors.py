"""Which lender a mirror's pages lie with."""

import pytest

from engine.memory.context import Context
from engine.memory.mirrors import Mirrors
from engine.memory.placement import Placement
from engine.memory.pool import PagePool
from tests.engine.fake_runner import FULL

HOME, FIRST, SECOND = 1, 2, 3
SEGMENT_PAGES = 4


class OnOffer:
    """A market with so many segments of each pool left, the lowest of which go first."""

    def __init__(self, pools: dict[int, PagePool], segments: dict[int, int]) -> None:
        self.pools = pools
        self.segments = segments

    def num_on_offer(self, pool_id: int) -> int:
        return self.segments[pool_id] * SEGMENT_PAGES

    def lease(self, pool_id: int, num_pages: int) -> None:
        pool = self.pools[pool_id]
        for _ in range(min(-(-num_pages // SEGMENT_PAGES), self.segments[pool_id])):
            number = len(pool.segments)
            pool.add(number, pool.whole_pages(number))
            self.segments[pool_id] -= 1


def mirrors_between(first: int, second: int) -> Mirrors:
    """Mirrors with two equally good lenders, which have so many segments on offer."""
    placement = Placement()
    placement.add_home(HOME, "gpu 0")
    mirrors = Mirrors(placement)
    for pool_id in (FIRST, SECOND):
        placement.add_tier(pool_id, f"gpu {pool_id}")
        mirrors.tiers[pool_id] = PagePool(pool_id, 400, 10, segment_bytes=10 * SEGMENT_PAGES, is_leased=True)
    mirrors.market = OnOffer(mirrors.tiers, {FIRST: first, SECOND: second})
    return mirrors


def resident(mirrors: Mirrors) -> Context:
    context = Context(FULL)
    context.home = HOME
    assert mirrors.grow(context, 3)
    return context


def pool_ids(context: Context) -> list[int]:
    return [extent.segment.pool.pool_id for extent in context.groups[0].mirror.extents]


def test_a_mirror_grows_where_it_is_though_another_lender_has_more():
    mirrors = mirrors_between(2, 50)
    context = resident(mirrors)
    (before,) = set(pool_ids(context))
    mirrors.market.segments[SECOND + FIRST - before] = 50
    assert mirrors.grow(context, 3 + SEGMENT_PAGES)
    assert set(pool_ids(context)) == {before}


def test_a_mirror_whose_lender_is_full_goes_on_with_another():
    mirrors = mirrors_between(1, 1)
    context = resident(mirrors)
    (before,) = set(pool_ids(context))
    assert mirrors.grow(context, 3 + SEGMENT_PAGES)
    assert set(pool_ids(context)) == {FIRST, SECOND}
    assert pool_ids(context)[0] == before


@pytest.mark.parametrize(
    ("on_offer", "leased"),
    [((30, 30), (24, 24)), ((1, 30), (4, 40)), ((30, 2), (36, 8)), ((30, 0), (44, 0))],
)
def test_what_one_lender_lacks_is_leased_ahead_from_the_other(on_offer, leased):
    """For 40 pages, and a full move of 4 to each."""
    mirrors = mirrors_between(*on_offer)
    mirrors.lease_ahead(HOME, 40)
    assert (mirrors.tiers[FIRST].num_free, mirrors.tiers[SECOND].num_free) == leased
