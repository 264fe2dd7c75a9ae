"""Mirrors of cached contexts make room in good tiers: they move to worse ones before the room is wanted."""

from itertools import islice
from math import ceil
from typing import Protocol

from engine.memory.cached_contexts import CachedContexts
from engine.memory.context import Context
from engine.memory.joined_moves import JoinedMoves
from engine.memory.local_copies import LocalCopies
from engine.memory.mirrors import Mirrors
from engine.memory.open_moves import OpenMoves, Purpose, Relocation
from engine.memory.pool import PagePool, joined
from engine.messages import Move

FREE_PART = 0.0625  # of equally good tiers is to be free, ...
BATCH = 4  # ... and so many contexts leave at a time, ...
MOST_LOOKED_AT = 64  # ... of so many that were used least recently: others are other devices' business


class Cache(Protocol):
    """Knows which cached contexts give way to which."""

    @property
    def cached(self) -> CachedContexts:
        """All of them."""

    def make_room_in(self, pool: PagePool, count: int, asker: Context) -> bool:
        """Have `count` free pages in this tier, if giving up cached contexts longer unused makes it."""


class Demotion:
    """Begins moves of cached contexts' mirrors from tier to tier, by each device those of contexts that are
    found there: which tier is better, devices may see differently, and none is to undo what another did."""

    def __init__(self, local: LocalCopies, mirrors: Mirrors, moves: OpenMoves, cache: Cache) -> None:
        self._local = local
        self._mirrors = mirrors
        self._moves = moves
        self._cache = cache
        self._leaving: list[Context] = []  # the last batch

    def start(self, runner: int) -> list[Move]:
        """Moves by the runner of this local pool that keep a part of each good tier free, as far as the least
        recently used cached contexts there find room in worse ones; none while its last are under way."""
        if not (self._leaving or self._cache.cached):
            return []
        classes = self._mirrors.placement.classes(runner)
        if len(classes) < 2 or any(context.moves_in_flight for context in self._leaving):
            return []
        self._leaving = []
        joint = JoinedMoves(self._moves, Purpose.RELOCATE)
        for number, pools in enumerate(classes[:-1]):
            worse = [self._mirrors.tiers[pool_id] for later in classes[number + 1 :] for pool_id in later]
            candidates = self._candidates(pools, runner)
            self._leaving += [each for each in candidates if self._leave(each, pools, worse, runner, joint)]
        return [move for _, move in joint.start()]

    def _candidates(self, pools: list[int], runner: int) -> list[Context]:
        """Who has to leave these tiers for a part of them to be free."""
        short = self._num_short(pools)
        found: list[Context] = []
        for context in islice(self._cache.cached.oldest(pools), MOST_LOOKED_AT) if short > 0 else ():
            if context.indexed_at != runner:
                continue
            found.append(context)
            short -= context.num_mirrored_in(pools)
            if short <= 0 or len(found) == BATCH:
                break
        return found

    def _num_short(self, pools: list[int]) -> int:
        """Pages that are lacking for a part of these tiers to be free."""
        free = usable = 0
        for pool_id in pools:
            pool = self._mirrors.tiers[pool_id]
            on_offer = self._num_on_offer(pool)
            free += pool.num_free + on_offer
            usable += pool.num_usable + on_offer
        return ceil(usable * FREE_PART) - free

    def _num_on_offer(self, pool: PagePool) -> int:
        market = self._mirrors.market
        return market.num_on_offer(pool.pool_id) if market is not None and pool.is_leased else 0

    def _leave(
        self, context: Context, pools: list[int], worse: list[PagePool], runner: int, joint: JoinedMoves
    ) -> bool:
        """Begin to move what the context has in `pools` to the best of the worse tiers that can have room."""
        here = {pool_id: context.extents_in((pool_id,)) for pool_id in pools}
        count = sum([len(extent.pages) for extents in here.values() for extent in extents])
        for target in worse:
            if self._has_place(target, count, context):
                break
        else:
            return False
        for pool_id, old in here.items():
            if old:
                pages = joined(old)
                new, new_pages = target.copies(old, len(pages))
                way = runner, self._mirrors.tiers[pool_id], target
                joint.add(context, way, pages, new_pages, Relocation(old, new))
        self._local.recount(context)
        return True

    def _has_place(self, target: PagePool, count: int, context: Context) -> bool:
        """Have room for so many pages of the context in this tier."""
        market = self._mirrors.market
        if market is not None and 0 < count - target.num_free <= self._num_on_offer(target):
            market.lease(target.pool_id, count - target.num_free)
        return self._cache.make_room_in(target, count, context)
