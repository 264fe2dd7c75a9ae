"""Cached contexts in order of use, and which of them give way in a tier."""

import pytest

from engine.memory.cached_contexts import CachedContexts
from engine.memory.context import Context
from engine.memory.pool import PagePool
from tests.engine.fake_runner import FULL

LOCAL, PEER, HOST = 1, 2, 3


@pytest.fixture
def tiers():
    return {pool_id: PagePool(pool_id, 32, FULL.page_bytes) for pool_id in (PEER, HOST)}


def make_context(serial, *parts, home=None):
    """A context with so many pages in each of these pools."""
    context, end = Context(FULL, serial), 0
    for pool, count in parts:
        end += count
        context.groups[0].mirror.grow(pool, 0, end, context)
    context.home = home
    return context


def test_the_least_recently_used_come_first_each_once(tiers):
    cached = CachedContexts()
    spread = make_context(1, (tiers[PEER], 2), (tiers[HOST], 3))
    asleep, awake = make_context(2, (tiers[PEER], 4)), make_context(3, (tiers[HOST], 4), home=LOCAL)
    for context in (spread, asleep, awake, make_context(4)):
        cached.use(context)
    assert list(cached.oldest((PEER, HOST))) == [spread, asleep, awake]
    cached.use(spread)
    assert list(cached.oldest((PEER, HOST))) == [asleep, awake, spread]
    assert list(cached.oldest((HOST,))) == [awake, spread]
    assert list(cached.oldest((PEER, HOST), before=spread)) == [asleep]
    assert len(cached) == 4
    cached.discard(asleep)
    cached.check_integrity()
    assert list(cached.oldest((PEER,))) == [spread]


def test_a_context_is_looked_for_where_its_pages_are_now(tiers):
    cached = CachedContexts()
    context = make_context(1, (tiers[PEER], 4), home=LOCAL)
    cached.use(context)
    cached.use(latest := make_context(2))
    assert list(cached.oldest((PEER,), before=latest)) == []
    context.home = None
    with pytest.raises(AssertionError):
        cached.check_integrity()
    cached.refile(context)
    cached.check_integrity()
    assert list(cached.oldest((PEER,), before=latest)) == [context]
    context.groups[0].mirror.clear()
    cached.refile(context)
    assert list(cached.oldest((PEER,))) == []


def test_no_more_give_way_than_are_needed_and_none_in_vain(tiers):
    cached = CachedContexts()
    contexts = [make_context(number, (tiers[HOST], 4)) for number in range(3)]
    for context in contexts:
        cached.use(context)
    assert cached.oldest_with(5, (HOST,)) == contexts[:2]
    assert cached.oldest_with(13, (HOST,)) == []
    contexts[0].moves_in_flight = 1
    assert cached.oldest_with(5, (HOST,)) == contexts[1:]
    assert cached.oldest_with(5, (HOST,), before=contexts[2]) == []
