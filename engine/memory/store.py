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
from engine.memory.reclaim import Reclaim
from engine.memory.vacating import Vacating
from engine.messages import Move


class ContextStore:
    """`local_pools` are the devices' (by pool id), `tiers` the places for mirrors."""

    def __init__(self, layout: PageLayout, placement: Placement | None = None) -> None:
        self.layout = layout
        self.placement = placement or Placement()
        self.counters = StoreCounters()
        self.contexts: dict[Context, None] = {}  # in order of opening
        self._running: dict[Context, None] = {}
        self._local = LocalCopies(layout, self.counters)
        self._mirrors = Mirrors(self.placement)
        self._moves = OpenMoves(self.counters)
        self._losses = Losses(layout, self._local, self._mirrors, self.counters)
        self._reclaim = Reclaim(self._local, self._mirrors, self._moves, self._losses, self.counters)
        self._vacating = Vacating(self._local, self._mirrors, self._moves, self._losses)
        self._copying = Copying(self._local, self._mirrors, self._moves, self._losses, self._running)
        self._departures = Departures(self._local)
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
        self._settle(context)

    def drop(self, context: Context) -> None:
        """Give up the local copy of a context that is idle: what its mirror lacks will be recomputed from
        its tokens. So too if the copy cannot be trusted any more."""
        assert not context.is_running
        assert not context.moves_in_flight
        self._local.release(context)
        if context.is_dirty:
            self._losses.forget_from(context, context.mirrored)

    # ------------------------------------------------------------------ running

    def pages_needed(self, context: Context, pool_id: int, end: int) -> int:
        """Pages to allocate in pool `pool_id` before `context` can run there up to position `end`."""
        if context.home == pool_id:
            return context.num_absent(end)
        return context.num_absent(end) + context.num_local

    def num_available(self, pool_id: int, *, besides: Context | None = None) -> int:
        """Pages of the pool that are free, or could be freed at once without losing anything."""
        return self._local.num_available(pool_id, besides=besides)

    def prepare(self, context: Context, pool_id: int, end: int, *, spare: int = 0) -> list[Move] | None:
        """Make `context` ready to run in `pool_id` up to position `end`: evict idle contexts if need be,
        allocate pages, and return the moves that its slice has to wait for.

        None, with nothing changed, if there is no room for it and `spare` pages more, a move is bringing it
        somewhere else, it has pages that the device cannot reach, or some in a segment that is to be empty.
        """
        assert not context.is_running
        if context.home == pool_id and self._vacating.is_in_the_way(context):
            return None
        if context.home != pool_id and (
            context.moves_in_flight or not self._copying.can_fetch(context, pool_id)
        ):
            return None
        needed = self.pages_needed(context, pool_id, end)
        if spare and needed + spare > self._local.num_available(pool_id, besides=context):
            return None
        if not self._local.make_room(pool_id, needed, besides=context):
            return None
        self._local.wake(context)
        old = self._departures.leave(context) if context.home not in (pool_id, None) else []
        context.home = pool_id
        valid = context.num_valid_pages
        fetch_until = [min(t.first, valid) if t.num_pages else valid for t in context.local]
        added = self._local.allocate(context, end)
        context.is_running = True
        self._running[context] = None
        return self._copying.fetch(context, fetch_until, added, old) if valid else []

    def extend(self, context: Context, end: int) -> list[list[int]] | None:
        """Let a running context go on to position `end`. Returns the pages added to each group's table, or
        None, with nothing changed, if there is no room."""
        assert context.is_running
        assert context.home is not None
        self.trim(context)
        if not self._local.make_room(context.home, context.num_absent(end)):
            return None
        return [pages[:] for pages in self._local.allocate(context, end)]

    def stop(self, context: Context) -> None:
        """The runner has ended the context's slice. Pages that it did not use come back; the others stay
        until somebody needs the room."""
        context.is_running = False
        self._running.pop(context, None)
        if not context.is_closing and context.home is not None:
            self._local.cut(context, context.num_valid_pages)
            self.trim(context)
            if context.num_local:
                self._local.rest(context)
            else:
                self._local.release(context)
        self._settle(context)

    def trim(self, context: Context) -> None:
        """Release what lies behind sliding windows, local and mirrored, unless a move may touch it."""
        if context.moves_in_flight or not self._windowed:
            return
        for group in self._windowed:
            first = self.layout.first_live_page(group, context.computed)
            if first > context.live_from[group]:
                context.live_from[group] = first
                context.local[group].drop_before(first)
                context.mirror[group].drop_before(first)

    # ------------------------------------------------------------------ mirrors

    def mirror(self, context: Context, *, whole: bool) -> list[Move]:
        """Copy out what the mirror lacks: full pages, and with `whole` the half-full last one too.

        Empty if there is nothing to copy, no room in any tier, or a move in flight.
        """
        return self._copying.mirror(context, whole=whole)

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
        context = done.context
        if done.purpose is Purpose.RELOCATE:
            self._reclaim.finish(done)
        elif done.purpose is Purpose.SHIFT:
            self._vacating.finish(done)
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
        for context in dict.fromkeys(lost.context for lost in lost_moves):
            if not context.moves_in_flight:
                if context in self._departures and not context.is_closing:
                    self._departures.undo(context)
                self._settle(context)
            self._local.recount(context)

    def coming_from(self, pool_id: int) -> list[Context]:
        """Contexts that are being moved out of this pool to another device."""
        return self._departures.coming_from(pool_id)

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
        return {context for context in holders if context.moves_in_flight} | self._moves.touching(pool_id)

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
        return self._vacating.is_in_the_way(context)

    def empty_segments(self, pool_id: int) -> list[Move]:
        """Go on emptying segments of this local pool; the moves that its runner has to make."""
        if not self._local.is_shrinking(pool_id):
            return []
        idle = list(self._local.idle(pool_id))
        return [move for context in idle for move in self._vacating.empty(context)]

    # ------------------------------------------------------------------ inner workings

    def _undo(self, lost: OpenMove) -> None:
        """What the move should have written is nobody's again."""
        context = lost.context
        if lost.purpose is Purpose.RELOCATE:
            self._reclaim.undo(lost)
        elif lost.purpose is Purpose.SHIFT:
            self._vacating.undo(lost)
        elif lost.purpose is Purpose.MIRROR:
            self._mirrors.cut(context, context.mirrored)
        elif context.arriving is not None and context not in self._departures:
            self._local.drop_arriving(context)

    def _settle(self, context: Context) -> None:
        """Once nothing touches the context any more: free what it left behind, and all of it if closed."""
        if context.moves_in_flight:
            return
        context.arriving = None
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
            for table in context.local:
                for extent in table.extents:
                    assert extent.segment.pool.pool_id == context.home
                    held[extent.segment.pool].append(extent)
            for extent in self._mirrors.held(context):
                held[extent.segment.pool].append(extent)
        for extent in (*self._departures.held(), *self._moves.being_written()):
            held[extent.segment.pool].append(extent)
        self._local.check_integrity()
        for pool, extents in held.items():
            pool.check_integrity(extents)
