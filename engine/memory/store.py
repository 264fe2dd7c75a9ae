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

The parts: local copies (`local_copies`), mirrors in the tiers (`mirrors`), moves in flight (`open_moves`),
and segments of tiers that are wanted back (`reclaim`).
"""

from dataclasses import dataclass

from engine.memory.context import ABSENT, Context, by_pool, page_of, page_ref, pool_of
from engine.memory.counters import StoreCounters
from engine.memory.local_copies import Landlord, LocalCopies
from engine.memory.mirrors import Market, Mirrors, Places
from engine.memory.open_moves import OpenMove, OpenMoves, Purpose
from engine.memory.page import PageLayout
from engine.memory.placement import Placement
from engine.memory.pool import PagePool
from engine.memory.reclaim import Reclaim
from engine.messages import Move


@dataclass(frozen=True, slots=True)
class _OldHome:
    """The local copy that a context had where it comes from."""

    pool_id: int
    tables: list[list[int]]

    @property
    def pages(self) -> list[int]:
        return [page for table in self.tables for page in table if page != ABSENT]


class ContextStore:
    """`local_pools` are the devices' (by pool id), `tiers` the places for mirrors."""

    def __init__(self, layout: PageLayout, placement: Placement | None = None) -> None:
        self.layout = layout
        self.placement = placement or Placement()
        self.counters = StoreCounters()
        self.contexts: dict[Context, None] = {}  # in order of opening
        self._local = LocalCopies(layout, self.counters)
        self._mirrors = Mirrors(self.placement)
        self._moves = OpenMoves(self.counters)
        self._reclaim = Reclaim(self._mirrors, self._moves, self.counters)
        self._leaving: dict[Context, _OldHome] = {}  # until the moves away from there are complete
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
            self._forget_from(context, context.mirrored)

    # ------------------------------------------------------------------ running

    def pages_needed(self, context: Context, pool_id: int, end: int) -> int:
        """Pages to allocate in pool `pool_id` before `context` can run there up to position `end`."""
        if context.home == pool_id:
            return context.num_absent(end)
        return context.num_absent(end) + context.num_local

    def num_available(self, pool_id: int, *, besides: Context | None = None) -> int:
        """Pages of the pool that are free, or could be freed at once without losing anything."""
        return self._local.num_available(pool_id, besides=besides)

    def prepare(self, context: Context, pool_id: int, end: int) -> list[Move] | None:
        """Make `context` ready to run in `pool_id` up to position `end`: evict idle contexts if need be,
        allocate pages, and return the moves that its slice has to wait for.

        None, with nothing changed, if there is no room, a move is bringing it somewhere else, or it has pages
        that the device cannot reach.
        """
        assert not context.is_running
        if context.home != pool_id and (context.moves_in_flight or not self._can_come(context, pool_id)):
            return None
        if not self._local.make_room(pool_id, self.pages_needed(context, pool_id, end), besides=context):
            return None
        self._local.wake(context)
        sources = self._leave_home(context) if context.home != pool_id else context.mirror
        context.home = pool_id
        fetched = context.absent(context.computed)
        self._local.allocate(context, end)
        context.is_running = True
        refs = [refs[index] for refs, indices in zip(sources, fetched, strict=True) for index in indices]
        pages = [
            table[index] for table, indices in zip(context.local, fetched, strict=True) for index in indices
        ]
        return [
            self._moves.start(context, Purpose.FETCH, pool_id, (source, pool_id), moved)
            for source, moved in by_pool(refs, pages).items()
        ]

    def extend(self, context: Context, end: int) -> list[list[int]] | None:
        """Let a running context go on to position `end`. Returns the pages added to each group's table, or
        None, with nothing changed, if there is no room."""
        assert context.is_running
        assert context.home is not None
        self.trim(context)
        if not self._local.make_room(context.home, context.num_absent(end)):
            return None
        sizes = [len(table) for table in context.local]
        self._local.allocate(context, end)
        return [table[size:] for table, size in zip(context.local, sizes, strict=True)]

    def stop(self, context: Context) -> None:
        """The runner has ended the context's slice. Pages that it did not use come back; the others stay
        until somebody needs the room."""
        context.is_running = False
        if not context.is_closing and context.home is not None:
            self._local.cut(context, context.num_valid_pages)
            self.trim(context)
            if context.num_local:
                self._local.rest(context)
            else:
                self._local.release(context)
        self._settle(context)
        self._local.recount(context)

    def trim(self, context: Context) -> None:
        """Release what lies behind sliding windows, local and mirrored, unless a move may touch it."""
        if context.moves_in_flight:
            return
        for group, before in enumerate(context.live_from):
            first = self.layout.first_live_page(group, context.computed)
            if first > before:
                context.live_from[group] = first
                self._local.drop(context, group, before, first)
                self._mirrors.drop(context, group, before, first)

    # ------------------------------------------------------------------ mirrors

    def mirror(self, context: Context, *, whole: bool) -> list[Move]:
        """Copy out what the mirror lacks: full pages, and with `whole` the half-full last one too.

        Empty if there is nothing to copy, no room in any tier, or a move in flight.
        """
        page_tokens = self.layout.page_tokens
        upto = context.computed if whole else context.computed - context.computed % page_tokens
        if context.moves_in_flight or context.home is None or upto <= context.mirrored:
            return []
        first, last = context.mirrored // page_tokens, self.layout.num_pages(upto)
        if not context.is_running:
            self._drop_redundant_mirrors(context, self._mirrors.num_missing(context, first, last))
        if not self._mirrors.grow(context, first, last):
            return []
        context.mirror_target = upto
        pages: list[int] = []
        refs: list[int] = []
        for local, mirror, live_from in zip(context.local, context.mirror, context.live_from, strict=True):
            pages += local[max(first, live_from) : last]
            refs += mirror[max(first, live_from) : last]
        home = context.home
        moves = [
            self._moves.start(context, Purpose.MIRROR, home, (home, tier), (src_pages, dst_pages))
            for tier, (dst_pages, src_pages) in by_pool(refs, pages).items()
        ]
        self._local.recount(context)
        return moves

    def idle_dirty(self, pool_id: int) -> list[Context]:
        """Contexts with pages in this pool that do not run, are not mirrored, and are not being mirrored."""
        return [c for c in self._local.idle(pool_id) if c.is_dirty and not c.moves_in_flight]

    def num_in_motion(self, pool_id: int) -> int:
        """Pages of idle contexts in this pool that will be clean once their moves are complete."""
        return sum(context.num_local for context in self._local.idle(pool_id) if context.moves_in_flight)

    def drop_mirror(self, context: Context) -> int:
        """Release the mirror of a context whose local copy is whole; the number of pages that came back."""
        if context.moves_in_flight or context.home is None or context.num_absent(context.computed) > 0:
            return 0
        released = self._mirrors.drop_all(context)
        self.counters.redundant_pages += released
        self._local.recount(context)
        return released

    # ------------------------------------------------------------------ moves

    def finish_move(self, move_id: int, duration_ns: int) -> None:
        """All bytes of the move have arrived."""
        done = self._moves.finish(move_id, duration_ns)
        context = done.context
        if done.purpose is Purpose.RELOCATE:
            self._reclaim.finish(done)
        if not context.moves_in_flight:
            context.mirrored = context.mirror_target
            self._settle(context)
            self._local.recount(context)

    def lose_moves(self, pool_id: int) -> None:
        """The runner of this pool is gone, and with it every move that it had not reported. A context that
        was coming from another device is back there."""
        for lost in self._moves.lose(pool_id):
            context = lost.context
            context.mirror_target = context.mirrored
            self._undo(lost)
            if not context.moves_in_flight:
                if context in self._leaving and not context.is_closing:
                    self._return_home(context)
                self._settle(context)
                self._local.recount(context)

    def coming_from(self, pool_id: int) -> list[Context]:
        """Contexts that are being moved out of this pool to another device."""
        return [context for context, old in self._leaving.items() if old.pool_id == pool_id]

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
        moves = []
        for context in self._reclaim.contexts():
            if context.moves_in_flight or self.drop_mirror(context):
                continue
            for pool_id, places in self._reclaim.places(context).items():
                relocated = self._reclaim.relocate(context, pool_id, places, runners)
                if not relocated and runners and not context.moves_in_flight:
                    self._lose_places(context, places)
                moves += relocated
            self._local.recount(context)
        return moves

    def lose_segment(self, pool_id: int, number: int) -> None:
        """The bytes of a leased segment are gone. Contexts that hold some and are on the move (`entangled`)
        have been closed; what the others had nowhere else will be recomputed."""
        for context in self._mirrors.holders(pool_id, number):
            places = self._mirrors.places_in(context, pool_id, number)
            if places and not context.is_closing:
                assert not context.moves_in_flight
                self.counters.lost_pages += sum(len(indices) for _, indices in places)
                self._lose_places(context, places)
                self._local.recount(context)

    def entangled(self, pool_id: int) -> set[Context]:
        """Contexts with a move in flight that hold pages of this tier, or are about to."""
        moving = {context for context in self.contexts if context.moves_in_flight}
        holding = {c for c in moving if any(pool_of(ref) == pool_id for ref in self._mirrors.held(c))}
        return holding | self._moves.touching(pool_id)

    # ------------------------------------------------------------------ inner workings

    def _can_come(self, context: Context, pool_id: int) -> bool:
        """Whether the device of this local pool can fetch all of the context."""
        reaches = self.placement.reaches
        if self.placement.reaches_all(pool_id):
            return True
        if context.num_local and context.home is not None and not reaches(pool_id, context.home):
            return False
        sources = {pool_of(ref) for refs in context.mirror for ref in refs if ref != ABSENT}
        return all(reaches(pool_id, source) for source in sources)

    def _leave_home(self, context: Context) -> list[list[int]]:
        """Take the local copy of an idle context out of its tables: where each page can be fetched from.
        The pages are released when the moves that read them are complete."""
        sources = [list(refs) for refs in context.mirror]
        if context.home is None:
            return sources
        for refs, table in zip(sources, context.local, strict=True):
            refs.extend([ABSENT] * (len(table) - len(refs)))
            for index, page in enumerate(table):
                if page != ABSENT:
                    refs[index] = page_ref(context.home, page)
        if context.num_local:
            self._leaving[context] = _OldHome(context.home, context.local)
        context.local = [[] for _ in context.local]
        context.num_local = 0
        return sources

    def _return_home(self, context: Context) -> None:
        """The moves that should have brought the context here will not be made."""
        self._local.release(context)
        old = self._leaving.pop(context)
        context.home, context.local, context.num_local = old.pool_id, old.tables, len(old.pages)

    def _undo(self, lost: OpenMove) -> None:
        """What the move should have written is nobody's again."""
        if lost.purpose is Purpose.RELOCATE:
            self._reclaim.undo(lost)
        elif lost.purpose is Purpose.FETCH and lost.context not in self._leaving:
            self._local.drop_pages(lost.context, set(lost.move.dst_pages))

    def _drop_redundant_mirrors(self, context: Context, count: int) -> None:
        """Have `count` free pages in the tiers, if mirrors of contexts that run can make the room: what is
        local need not be kept twice."""
        home = context.home
        assert home is not None
        if self._mirrors.has_room(home, count):
            return
        for other in self.contexts:
            if other.is_running and self.drop_mirror(other) and self._mirrors.has_room(home, count):
                return

    def _lose_places(self, context: Context, places: Places) -> None:
        """Mirrored pages are gone: recompute from the first that has no local copy either."""
        if self.drop_mirror(context):
            return
        for group, indices in places:
            self._mirrors.drop_at(context, group, indices)
        first = min(indices[0] for _, indices in places)
        page_tokens = self.layout.page_tokens
        context.mirrored = context.mirror_target = min(context.mirrored, first * page_tokens)
        missing = [i for indices in context.absent(context.computed) for i in indices if i >= first]
        if missing:
            self._forget_from(context, min(missing) * page_tokens)

    def _forget_from(self, context: Context, position: int) -> None:
        """Positions from this one on have to be recomputed; all of them, if a window has moved past it."""
        before = context.computed
        if self._is_trimmed_behind(context, position):
            self._release_all(context)
        else:
            context.computed = position
            context.mirrored = context.mirror_target = min(context.mirrored, position)
            self._local.cut(context, context.num_valid_pages)
            if context.home is not None and not context.num_local:
                self._local.release(context)
        self.counters.dropped_contexts += 1
        self.counters.dropped_tokens += before - context.computed

    def _is_trimmed_behind(self, context: Context, position: int) -> bool:
        """Whether pages are gone, behind a window, that a token at `position` would read."""
        first_live = self.layout.first_live_page
        return any(
            live_from > first_live(group, position) for group, live_from in enumerate(context.live_from)
        )

    def _settle(self, context: Context) -> None:
        """Once nothing touches the context any more: free what it left behind, and all of it if closed."""
        if context.moves_in_flight:
            return
        self._mirrors.release_retired(context)
        old = self._leaving.pop(context, None)
        if old is not None:
            self._local.pools[old.pool_id].release(old.pages)
        if context.is_closing and not context.is_running and context in self.contexts:
            self._release_all(context)
            del self.contexts[context]

    def _release_all(self, context: Context) -> None:
        self._local.release(context)
        self._mirrors.drop_all(context)
        context.computed = 0
        context.live_from = [0] * len(context.live_from)

    def check_integrity(self) -> None:
        """Every page of every pool is free or somebody's, once; counts agree with tables. AssertionError."""
        held: dict[int, list[int]] = {pool_id: [] for pool_id in (*self.local_pools, *self.tiers)}
        for context in self.contexts:
            present = [page for table in context.local for page in table if page != ABSENT]
            assert len(present) == context.num_local
            if context.home is not None:
                held[context.home] += present
            for ref in self._mirrors.held(context):
                held[pool_of(ref)].append(page_of(ref))
            assert context.mirrored <= context.computed
            assert context.moves_in_flight == len(self._moves.of_context(context))
            self._check_valid(context)
        for old in self._leaving.values():
            held[old.pool_id] += old.pages
        for pool_id, pages in self._moves.being_written():
            held[pool_id] += pages
        self._local.check_integrity()
        for pool in (*self.local_pools.values(), *self.tiers.values()):
            pool.check_integrity(held[pool.pool_id])

    def _check_valid(self, context: Context) -> None:
        """Every live computed page is somewhere."""
        absent = context.absent(context.computed) if not context.is_closing else []
        for refs, indices in zip(context.mirror, absent, strict=False):
            for index in indices:
                assert (index + 1) * self.layout.page_tokens <= context.mirrored or not context.is_dirty
                assert refs[index] != ABSENT, "an evicted page has no mirror"
