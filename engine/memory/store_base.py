"""What every part of a context store stands on: its pools and tiers, and contexts that come and go."""

from engine.memory.context import Context
from engine.memory.copying import Copying
from engine.memory.counters import StoreCounters
from engine.memory.demotion import Demotion
from engine.memory.departures import Departures
from engine.memory.local_copies import Landlord, LocalCopies
from engine.memory.losses import Losses
from engine.memory.mirrors import Market, Mirrors
from engine.memory.open_moves import OpenMoves
from engine.memory.page import PageLayout
from engine.memory.placement import Placement
from engine.memory.pool import Extent, PagePool
from engine.memory.prefix_cache import PrefixCache
from engine.memory.reclaim import Reclaim
from engine.memory.vacating import Vacating


class StoreBase:
    """`local_pools` are the devices' (by pool id), `tiers` the places for mirrors."""

    def __init__(
        self, layout: PageLayout, placement: Placement | None = None, *, shares_prefixes: bool = False
    ) -> None:
        self.layout = layout
        self.placement = placement or Placement()
        self.counters = StoreCounters()
        self.contexts: dict[Context, None] = {}  # in order of opening
        self._running: dict[Context, None] = {}
        self._local = LocalCopies(self.counters)
        self._mirrors = Mirrors(self.placement)
        self._moves = OpenMoves(self.counters)
        self._losses = Losses(layout, self._local, self._mirrors, self.counters)
        self._reclaim = Reclaim(self._local, self._mirrors, self._moves, self._losses, self.counters)
        self._vacating = Vacating(self._local, self._mirrors, self._moves, self._losses)
        self._copying = Copying(self._local, self._mirrors, self._moves, self._losses, self._running)
        self._departures = Departures(self._local)
        self.shares_prefixes = shares_prefixes
        self._prefixes: PrefixCache | None = None
        self._demotion: Demotion | None = None
        if shares_prefixes:
            self._prefixes = PrefixCache(
                layout, self._local, self._mirrors, self._losses, self._running, self.open, self.close
            )
            self._reclaim.cache = self._copying.cache = self._prefixes
            self._demotion = Demotion(self._local, self._mirrors, self._moves, self._prefixes)
        self._windowed = layout.windowed()
        self._last_serial = 0

    @property
    def local_pools(self) -> dict[int, PagePool]:
        return self._local.pools

    @property
    def tiers(self) -> dict[int, PagePool]:
        return self._mirrors.tiers

    def add_local_pool(self, pool: PagePool, device: str = "") -> None:
        """The pool of `device`; page 0 of it is not a context's (ABSENT)."""
        self._local.add_pool(pool)
        self.placement.add_home(pool.pool_id, device)

    def add_tier(self, pool: PagePool, device: str | None = None, owner: int | None = None) -> None:
        """A pool for mirrors, in the memory of `device` (None: of the host), lent by local pool `owner`."""
        self.tiers[pool.pool_id] = pool
        self.placement.add_tier(pool.pool_id, device, owner)

    def set_market(self, market: Market) -> None:
        """Where leased tiers get their segments."""
        self._mirrors.market = market

    def set_landlord(self, landlord: Landlord) -> None:
        """Who has what local pools have lent out."""
        self._local.landlord = landlord

    # ------------------------------------------------------------------ opening and closing

    def open(self) -> Context:
        """A new context, with nothing in it."""
        self._last_serial += 1
        context = Context(self.layout, self._last_serial)
        self.contexts[context] = None
        return context

    def close(self, context: Context) -> None:
        """The prompt is gone; its pages are free as soon as rules 2 and 3 allow."""
        context.is_closing = True
        if self._prefixes is not None:
            self._prefixes.close(context)
        self._settle(context)

    def drop(self, context: Context) -> None:
        """Give up the local copy of a context that is idle: what its mirror lacks will be recomputed from
        its tokens. So too if the copy cannot be trusted any more."""
        assert not context.is_running
        assert not context.moves_in_flight
        self._local.release(context)
        if context.is_dirty:
            self._losses.forget_from(context, context.mirrored)
        if self._prefixes is not None and context.is_growing and context.computed == context.start:
            self._prefixes.leave(context)  # ancestors must not be kept for it
        elif self._prefixes is not None:
            self._prefixes.cached.refile(context)

    def _settle(self, context: Context) -> None:
        """Once nothing touches the context any more: free what it left behind, and all of it if closed."""
        if context.moves_in_flight:
            return
        if context.fetches:
            context.fetches = []
        if context.retired:
            self._mirrors.release_retired(context)
        if self._departures:
            self._departures.complete(context)
        if context.is_closing and not context.is_running and context in self.contexts:
            self._losses.release_all(context)
            del self.contexts[context]
        elif self._prefixes is not None:
            self._prefixes.cached.refile(context)

    def check_integrity(self) -> None:
        """Every page of every pool is free or somebody's, once; counts agree with tables. AssertionError."""
        pools = (*self.local_pools.values(), *self.tiers.values())
        held: dict[PagePool, list[Extent]] = {pool: [] for pool in pools}
        for context in self.contexts:
            context.check_integrity()
            assert context.moves_in_flight == len(self._moves.of_context(context))
            assert context.is_running == (context in self._running)
            for group in context.groups:
                for extent in group.local.extents:
                    assert extent.segment.pool.pool_id == context.home
                    held[extent.segment.pool].append(extent)
            for extent in self._mirrors.held(context):
                held[extent.segment.pool].append(extent)
        for extent in (*self._departures.held(), *self._moves.being_written()):
            held[extent.segment.pool].append(extent)
        self._local.check_integrity()
        if self._prefixes is not None:
            self._prefixes.check_integrity(self.contexts)
        for pool, extents in held.items():
            pool.check_integrity(extents)
