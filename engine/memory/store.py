"""All contexts of one model and the pools they live in: what is fetched, mirrored, evicted and dropped.

Pure bookkeeping: methods return the moves that a runner has to make, and are told when one is complete.
Four rules keep a page from being read before it is complete, and from being freed while anything may touch
it:

1. A page that a move writes is named by nothing but the tables of the move's context, and a slice that
   needs it names the move.
2. A context with a move in flight gives up no page, local or mirrored.
3. A running context gives up no live local page, and it runs until the runner has reported the end of its
   slice. Pages behind a sliding window are given up by positions that the runner has *reported*.
4. A closed context is released when it does not run and its last move is complete.

The parts: local copies (`local_copies`), mirrors in the tiers (`mirrors`), what is copied between them
(`copying`), moves in flight (`open_moves`), contexts on their way to another device (`departures`), segments
of tiers that are wanted back (`reclaim`), segments of local pools that are to be empty (`vacating`), and what
is given up for good (`losses`).
"""

from collections.abc import Collection, Hashable, Mapping
from itertools import islice

from engine.memory.context import Context
from engine.memory.copying import Copying
from engine.memory.counters import StoreCounters
from engine.memory.departures import Departures
from engine.memory.local_copies import Landlord, LocalCopies
from engine.memory.losses import Losses
from engine.memory.mirrors import Market, Mirrors
from engine.memory.open_moves import OpenMove, OpenMoves, Purpose
from engine.memory.page import PageLayout
from engine.memory.placement import Placement
from engine.memory.pool import Extent, PagePool
from engine.memory.prefix_cache import NOWHERE, Prefix, PrefixCache
from engine.memory.reclaim import Reclaim
from engine.memory.vacating import Vacating
from engine.messages import Move

CACHE_MIRROR_FREE = 0.25  # cached contexts are copied out while less than this part of a pool is free, ...
CACHE_MIRROR_BATCH = 4  # ... so many at a time


class ContextStore:
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
        self._reclaim = Reclaim(
            self._local, self._mirrors, self._moves, self._losses, self.counters, layout.page_bytes
        )
        self._vacating = Vacating(self._local, self._mirrors, self._moves, self._losses)
        self._copying = Copying(self._local, self._mirrors, self._moves, self._losses, self._running)
        self._departures = Departures(self._local)
        self.shares_prefixes = shares_prefixes
        self._prefixes: PrefixCache | None = None
        if shares_prefixes:
            self._prefixes = PrefixCache(
                layout, self._local, self._mirrors, self._losses, self._running, self.open, self.close
            )
            self._reclaim.cache = self._copying.cache = self._prefixes
        self._windowed = [group for group, layers in enumerate(layout.groups) if layers.window is not None]
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

    def forget(self, context: Context) -> None:
        """Give up all of a context that is idle, so that its ancestors need not be kept for it."""
        assert self._prefixes is not None
        self._losses.count(context.computed)
        self._prefixes.leave(context)

    def lose_local(self, pool_id: int) -> None:
        """The bytes of a local pool are gone, where nothing runs any more; contexts that are moving from
        there (`coming_from`) have been closed."""
        for context in [c for c in self.contexts if c.home == pool_id]:
            if context.moves_in_flight and not context.is_growing:
                self.abandon(context)
            elif context.home == pool_id and not context.is_closing:
                self.drop(context)

    def abandon(self, context: Context) -> None:
        """Nothing of a context that does not grow is to be trusted. Prompts that continue it and cannot begin
        again at once, as they run or move, have been closed."""
        if self._prefixes is not None and not context.is_closing:
            self._prefixes.abandon(context)

    # ------------------------------------------------------------------ prefixes

    def find_prefixes(self, salt: Hashable, tokens: bytes) -> Mapping[int, Prefix]:
        """How much of a prompt is computed, by the pool of each device where something begins as it does, of
        prompts with the same salt. `tokens` (`prefix_tree.pack_tokens`) are the prompt's but for the last:
        that is always computed."""
        return NOWHERE if self._prefixes is None else self._prefixes.find(salt, tokens)

    def join(self, context: Context, pool_id: int, salt: Hashable, tokens: bytes, prefix: Prefix) -> Context:
        """The prompt of an empty context goes on from a prefix that was just found on this device, and can be
        found itself. Returns the context that is the prompt's from now on."""
        assert context.node is None
        if self._prefixes is None:
            return context
        return self._prefixes.join(context, pool_id, salt, tokens, prefix)

    def part(self, context: Context, tokens: bytes) -> Context:
        """Undo `join`: there was no room. Returns an empty context for the prompt."""
        if self._prefixes is None or context.node is None:
            return context
        if context.computed > context.start:  # it was taken over
            self._prefixes.retire(context, tokens)
            return self.open()
        self._prefixes.leave(context)
        return context

    def retire(self, context: Context, tokens: bytes) -> None:
        """The prompt has ended; `tokens` are all of it and of its answer. Others that begin alike may use
        what it computed, while there is room."""
        if self._prefixes is None or context.node is None:
            self.close(context)
        else:
            self._prefixes.retire(context, tokens)

    def mirror_cached(self, pool_id: int) -> list[Move]:
        """Copy out some cached contexts, if their room will soon be wanted and there is some in the tiers."""
        if not self._wants_cached_mirrors(pool_id):
            return []
        dirty = list(islice(self._local.cached_dirty(pool_id), CACHE_MIRROR_BATCH))
        return self._copying.mirror(dirty, whole=True)

    def _wants_cached_mirrors(self, pool_id: int) -> bool:
        pool = self._local.pools[pool_id]
        return self._prefixes is not None and pool.num_free < pool.num_usable * CACHE_MIRROR_FREE

    def num_cached_pages(self) -> dict[int, int]:
        """Pages of contexts that no prompt needs, by pool, of those that have some."""
        counts: dict[int, int] = {}
        for context in self._prefixes.contexts() if self._prefixes is not None else ():
            for group in context.groups:
                for extent in (*group.local.extents, *group.mirror.extents):
                    pool_id = extent.segment.pool.pool_id
                    counts[pool_id] = counts.get(pool_id, 0) + len(extent.pages)
        return counts

    # ------------------------------------------------------------------ running

    def pages_needed(self, context: Context, pool_id: int, end: int) -> int:
        """Pages to allocate in pool `pool_id` before `context` can run there up to position `end`."""
        needed = context.num_absent(end)
        if context.home not in (None, pool_id):
            needed += context.num_local
        for each in context.ancestors():
            needed += each.num_absent(each.computed)
            if each.home != pool_id:
                needed += each.num_local
        return needed

    def num_available(self, pool_id: int, *, besides: Context | None = None) -> int:
        """Pages of the pool that are free, or could be freed at once without losing anything that a prompt
        needs; not counting those of `besides` and its ancestors."""
        return self._local.num_available(pool_id, besides=besides)

    def prepare(self, context: Context, pool_id: int, end: int, *, spare: int = 0) -> list[Move] | None:
        """Make `context` ready to run in `pool_id` up to position `end`: evict idle contexts if need be,
        allocate pages, and return the moves that its slice has to wait for.

        None, with nothing changed, if there is no room for it and `spare` pages more, a move is bringing it
        somewhere else, it has pages that the device cannot reach, or some in a segment that is to be empty.
        """
        assert not context.is_running
        ancestors = context.ancestors()
        if not self._may_come(context, pool_id):
            return None
        for each in ancestors:
            if not self._may_come(each, pool_id):
                return None
        needed = self.pages_needed(context, pool_id, end)
        if spare and needed + spare > self._local.num_available(pool_id, besides=context):
            return None
        if not self._local.make_room(pool_id, needed, besides=context):
            return None
        moves = self._bring(context, pool_id, end)
        for each in ancestors:
            if not each.is_running:
                moves += self._bring(each, pool_id, each.computed)
            each.num_users += 1
        return moves

    def is_bound(self, context: Context) -> bool:
        """Whether the context cannot go to another device now: it is on the move, or shares pages."""
        return context.moves_in_flight > 0 or (context.node is not None and context.has_family)

    def _may_come(self, context: Context, pool_id: int) -> bool:
        """Whether nothing but room keeps the context from coming to this pool, or staying there."""
        if context.home == pool_id:
            return not self._vacating.is_in_the_way(context)
        if context.is_running or context.moves_in_flight or not self._copying.can_fetch(context, pool_id):
            return False
        return context.node is None or context.indexed_at == pool_id or not context.has_family

    def _bring(self, context: Context, pool_id: int, end: int) -> list[Move]:
        """Have all that is live of the context below `end` in this pool, where there is room."""
        self._local.wake(context)
        if context.home != pool_id:
            self._departures.leave(context)
        if self._prefixes is not None and context.indexed_at not in (None, pool_id):
            self._prefixes.move(context, pool_id)
        context.home = pool_id
        context.is_running = True
        self._running[context] = None
        return self._copying.bring(context, end)

    def awaited(self, context: Context) -> list[int]:
        """Moves in flight that bring pages of the context or its ancestors: its slice waits for them."""
        moves = context.fetches[:]
        for each in context.ancestors():
            moves += each.fetches
        return moves

    def extend(self, context: Context, end: int) -> list[list[int]] | None:
        """Let a running context go on to position `end`. Returns the pages added to each group's table, or
        None, with nothing changed, if there is no room."""
        assert context.is_running
        assert context.home is not None
        self.trim(context)
        if not self._local.make_room(context.home, context.num_absent(end)):
            return None
        pool, last = self._local.pools[context.home], self.layout.num_pages(end)
        return [group.local.fill(pool, group.live_from, last, context).tolist() for group in context.groups]

    def stop(self, context: Context) -> None:
        """The runner has ended the context's slice. Pages that it did not use come back; the others stay
        until somebody needs the room."""
        ancestors = context.ancestors()
        self._rest(context)
        for each in ancestors:
            each.num_users -= 1
            if not each.num_users:
                self._rest(each)
        self._settle_stopped(context)
        for each in ancestors:
            if not each.is_running:
                self._settle_stopped(each)

    def _settle_stopped(self, context: Context) -> None:
        if self._prefixes is not None and not context.num_prompts:
            self._prefixes.stopped(context)
        self._settle(context)

    def _rest(self, context: Context) -> None:
        context.is_running = False
        self._running.pop(context, None)
        if not context.is_closing and context.home is not None:
            self._local.cut(context, context.num_valid_pages)
            if self._windowed:
                self.trim(context)
            self._local.rest(context)

    def trim(self, context: Context) -> None:
        """Release what lies behind sliding windows, local and mirrored, unless a move may touch it."""
        if context.moves_in_flight or not self._windowed:
            return
        for number in self._windowed:
            border = context.computed - context.computed % self.layout.page_tokens  # where others may begin
            first, group = self.layout.first_live_page(number, border), context.groups[number]
            if first > group.live_from:
                group.live_from = first
                group.local.drop_before(first)
                group.mirror.drop_before(first)

    # ------------------------------------------------------------------ mirrors

    def mirror(self, context: Context, *, whole: bool) -> list[Move]:
        """Copy out what the mirror lacks: full pages, and with `whole` the half-full last one too.

        Empty if there is nothing to copy, no room in any tier, or a move in flight.
        """
        return self._copying.mirror((context,), whole=whole)

    def mirror_idle(self, pool_id: int) -> list[Move]:
        """Copy out all of the contexts that prompts need, have pages in this pool and do not run, so that
        their pages can be had for free."""
        return self._copying.mirror(self._local.idle_dirty(pool_id), whole=True)

    def lacks_mirrors(self, pool_id: int) -> bool:
        """Whether `mirror_idle` or `mirror_cached` would copy something out if the tiers had room."""
        if self._local.idle_dirty(pool_id):
            return True
        return self._wants_cached_mirrors(pool_id) and any(True for _ in self._local.cached_dirty(pool_id))

    def take_changed_pools(self) -> set[int]:
        """Local pools of which `num_available`, or what is idle, dirty or in motion there, may have changed
        since the last call."""
        return self._local.take_changed_pools()

    @property
    def dirty_pools(self) -> Collection[int]:
        """Local pools where `idle_dirty` is not empty."""
        return self._local.dirty_pools

    def idle_dirty(self, pool_id: int) -> list[Context]:
        """Contexts with pages in this pool that do not run, are not mirrored, and are not being mirrored."""
        return self._local.idle_dirty(pool_id)

    def num_in_motion(self, pool_id: int) -> int:
        """Pages of idle contexts in this pool that will be clean once their moves are complete."""
        return self._local.num_in_motion(pool_id)

    def drop_mirror(self, context: Context) -> int:
        """Release the mirror of a context whose local copy is whole; the number of pages that came back."""
        return self._losses.drop_mirror(context)

    # ------------------------------------------------------------------ moves

    def finish_move(self, move_id: int, duration_ns: int) -> None:
        """All bytes of the move have arrived."""
        done = self._moves.finish(move_id, duration_ns)
        if done.purpose is Purpose.RELOCATE:
            self._reclaim.finish(done)
        elif done.purpose is Purpose.SHIFT:
            self._vacating.finish(done)
        for context in done.contexts:
            if not context.moves_in_flight:
                context.mirrored = context.mirror_target
                self._settle(context)
                self._local.recount(context)

    def lose_moves(self, pool_id: int) -> None:
        """The runner of this pool is gone, and with it every move that it had not reported. A context that
        was coming from another device is back there."""
        lost_moves = self._moves.lose(pool_id)
        for lost in lost_moves:
            self._undo(lost)
        for context in dict.fromkeys(context for lost in lost_moves for context in lost.contexts):
            if not context.moves_in_flight:
                if context in self._departures and not context.is_closing:
                    self._departures.undo(context)
                    if self._prefixes is not None and context.home is not None:
                        self._prefixes.move(context, context.home)
                self._settle(context)
            self._local.recount(context)

    def coming_from(self, pool_id: int) -> set[Context]:
        """Contexts that are being moved out of this pool to another device, and such as are on the move and
        continue others that are in this pool."""
        coming = set(self._departures.coming_from(pool_id))
        for context in self.contexts:
            if context.moves_in_flight and any(each.home == pool_id for each in context.ancestors()):
                coming.add(context)
        return coming

    @property
    def num_moves_in_flight(self) -> int:
        return len(self._moves)

    # ------------------------------------------------------------------ tiers that shrink or go

    def recall(self, pool_id: int, segments: list[int]) -> None:
        """These segments of a leased tier are wanted back: nothing new goes there, and `reclaim` empties
        them."""
        self._reclaim.recall(pool_id, segments)

    @property
    def has_recalls(self) -> bool:
        """Whether `reclaim` has something to do."""
        return self._reclaim.is_busy

    def reclaim(self, runners: list[int]) -> list[tuple[int, Move]]:
        """Go on emptying recalled segments: give up mirrors whose originals are local, then move the rest to
        other tiers, and drop, the youngest first, what finds no place. Contexts with a move in flight wait
        for the next call.

        `runners` are the local pools of the devices that work. Returns the moves to make, each with the local
        pool of the runner that makes it.
        """
        return self._reclaim.empty(runners)

    def lose_segment(self, pool_id: int, number: int) -> None:
        """The bytes of a leased segment are gone. Contexts that hold some and are on the move (`entangled`)
        have been closed; what the others had nowhere else will be recomputed."""
        for context, extents in self._mirrors.extents_in(pool_id, number).items():
            self._losses.lose_bytes(context, extents)

    def entangled(self, pool_id: int) -> set[Context]:
        """Contexts with a move in flight that hold pages of this tier, or are about to."""
        holders = {
            holder
            for number in self.tiers[pool_id].segments
            for holder in self._mirrors.extents_in(pool_id, number)
        }
        entangled = {context for context in holders if context.moves_in_flight}
        entangled |= self._moves.touching(pool_id)
        for context in self.contexts:
            bad = entangled.union(holders) if context.moves_in_flight else entangled
            if not bad.isdisjoint(context.ancestors()):
                entangled.add(context)
        return entangled

    # ------------------------------------------------------------------ local pools that shrink

    def vacate(self, pool_id: int, number: int) -> None:
        """This segment of a local pool is to be empty: nothing new goes there, and `empty_segments` gets out
        what is there."""
        self._local.vacate(pool_id, number)

    def is_shrinking(self, pool_id: int) -> bool:
        """Whether segments of this local pool are to be empty and are not yet."""
        return self._local.is_shrinking(pool_id)

    def is_in_the_way(self, context: Context) -> bool:
        """Whether a segment of its local pool cannot be emptied while the context runs."""
        return any(self._vacating.is_in_the_way(each) for each in (context, *context.ancestors()))

    def empty_segments(self, pool_id: int) -> list[Move]:
        """Go on emptying segments of this local pool; the moves that its runner has to make."""
        if not self._local.is_shrinking(pool_id):
            return []
        idle = list(self._local.idle(pool_id))
        return [move for context in idle for move in self._vacating.empty(context)]

    # ------------------------------------------------------------------ inner workings

    def _undo(self, lost: OpenMove) -> None:
        """What the move should have written is nobody's again."""
        if lost.purpose is Purpose.RELOCATE:
            self._reclaim.undo(lost)
            return
        if lost.purpose is Purpose.SHIFT:
            self._vacating.undo(lost)
            return
        for context in lost.contexts:
            if lost.purpose is Purpose.MIRROR:
                self._mirrors.cut(context, context.mirrored)
            elif context.fetches and context not in self._departures:
                self._local.drop_arriving(context)

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
