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
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from engine.memory.context import ABSENT, Context, page_of, page_ref, pool_of
from engine.memory.page import PageLayout
from engine.memory.pool import PagePool
from engine.messages import Move


@dataclass(slots=True)
class StoreCounters:
    """Totals since the start."""

    moves: int = 0
    moved_pages: dict[tuple[int, int], int] = field(default_factory=dict)  # (from pool, to pool) -> pages
    moved_ns: dict[tuple[int, int], int] = field(default_factory=dict)  # same, time that the moves took
    evicted_pages: int = 0
    dropped_contexts: int = 0
    dropped_tokens: int = 0  # positions that have to be recomputed


@dataclass(frozen=True, slots=True)
class _OldHome:
    """The local copy that a context had where it comes from."""

    pool_id: int
    tables: list[list[int]]

    @property
    def pages(self) -> list[int]:
        return [page for table in self.tables for page in table if page != ABSENT]


class ContextStore:
    """`local_pools` are the devices' (by pool id), `tiers` the places for mirrors, best first."""

    def __init__(self, layout: PageLayout) -> None:
        self.layout = layout
        self.local_pools: dict[int, PagePool] = {}
        self.tiers: dict[int, PagePool] = {}
        self.counters = StoreCounters()
        self.contexts: dict[Context, None] = {}  # in order of opening
        self._idle: dict[int, OrderedDict[Context, None]] = {}  # by pool: local but not running, oldest first
        self._evictable: dict[int, int] = {}  # by pool: sum over its idle contexts
        self._moves: dict[int, tuple[Context, Move]] = {}
        self._leaving: dict[Context, _OldHome] = {}  # until the moves away from there are complete
        self._last_move_id = 0

    def add_local_pool(self, pool: PagePool) -> None:
        """A device's pool; page 0 of it is not a context's (ABSENT)."""
        assert pool.first > ABSENT
        self.local_pools[pool.pool_id] = pool
        self._idle[pool.pool_id] = OrderedDict()
        self._evictable[pool.pool_id] = 0

    def add_tier(self, pool: PagePool) -> None:
        """A pool for mirrors, after those that are there."""
        self.tiers[pool.pool_id] = pool

    # ------------------------------------------------------------------ opening and closing

    def open(self) -> Context:
        """A new context, with nothing in it."""
        context = Context(self.layout)
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
        self._release_local(context)
        if not context.is_dirty:
            return
        before = context.computed
        if self._is_trimmed_behind(context, context.mirrored):
            self._release_all(context)
        context.computed = context.mirrored
        self.counters.dropped_contexts += 1
        self.counters.dropped_tokens += before - context.computed

    # ------------------------------------------------------------------ running

    def pages_needed(self, context: Context, pool_id: int, end: int) -> int:
        """Pages to allocate in pool `pool_id` before `context` can run there up to position `end`."""
        if context.home == pool_id:
            return context.num_absent(end)
        return context.num_absent(end) + context.num_local

    def num_available(self, pool_id: int, *, besides: Context | None = None) -> int:
        """Pages of the pool that are free, or could be freed at once without losing anything."""
        own = besides.evictable if besides is not None and besides.home == pool_id else 0
        return self.local_pools[pool_id].num_free + self._evictable[pool_id] - own

    def prepare(self, context: Context, pool_id: int, end: int) -> list[Move] | None:
        """Make `context` ready to run in `pool_id` up to position `end`: evict idle contexts if need be,
        allocate pages, and return the moves that its slice has to wait for.

        None, with nothing changed, if there is no room or a move is bringing it somewhere else.
        """
        assert not context.is_running
        if context.moves_in_flight and context.home != pool_id:
            return None
        if not self._make_room(pool_id, self.pages_needed(context, pool_id, end), besides=context):
            return None
        self._wake(context)
        sources = self._leave_home(context) if context.home != pool_id else context.mirror
        context.home = pool_id
        fetched = context.absent(context.computed)
        self._allocate(context, end)
        context.is_running = True
        by_source: dict[int, list[tuple[int, int]]] = {}
        for group, index in fetched:
            by_source.setdefault(pool_of(sources[group][index]), []).append((group, index))
        moves = []
        for source, targets in by_source.items():
            src_pages = [page_of(sources[group][index]) for group, index in targets]
            dst_pages = [context.local[group][index] for group, index in targets]
            moves.append(self._start_move(context, source, pool_id, src_pages, dst_pages, urgent=True))
        return moves

    def extend(self, context: Context, end: int) -> list[list[int]] | None:
        """Let a running context go on to position `end`. Returns the pages added to each group's table, or
        None, with nothing changed, if there is no room."""
        assert context.is_running
        assert context.home is not None
        self.trim(context)
        if not self._make_room(context.home, context.num_absent(end)):
            return None
        sizes = [len(table) for table in context.local]
        self._allocate(context, end)
        return [table[size:] for table, size in zip(context.local, sizes, strict=True)]

    def stop(self, context: Context) -> None:
        """The runner has ended the context's slice. Pages that it did not use come back; the others stay
        until somebody needs the room."""
        context.is_running = False
        if not context.is_closing and context.home is not None:
            self._cut(context, context.num_valid_pages)
            self.trim(context)
            if context.num_local:
                self._idle[context.home][context] = None
            else:
                self._release_local(context)
        self._settle(context)
        self._recount(context)

    def trim(self, context: Context) -> None:
        """Release what lies behind sliding windows, local and mirrored, unless a move may touch it."""
        if context.moves_in_flight:
            return
        for group, before in enumerate(context.live_from):
            first = self.layout.first_live_page(group, context.computed)
            if first > before:
                context.live_from[group] = first
                self._drop_local(context, group, before, first)
                self._drop_mirror(context, group, before, first)

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
        if not self._grow_mirror(context, first, last):
            return []
        context.mirror_target = upto
        by_tier: dict[int, tuple[list[int], list[int]]] = {}
        for pages, refs, live_from in zip(context.local, context.mirror, context.live_from, strict=True):
            start = max(first, live_from)
            for page, ref in zip(pages[start:last], refs[start:last], strict=True):
                src_pages, dst_pages = by_tier.setdefault(pool_of(ref), ([], []))
                src_pages.append(page)
                dst_pages.append(page_of(ref))
        return [
            self._start_move(context, context.home, tier, src_pages, dst_pages)
            for tier, (src_pages, dst_pages) in by_tier.items()
        ]

    def idle_dirty(self, pool_id: int) -> list[Context]:
        """Contexts with pages in this pool that do not run, are not mirrored, and are not being mirrored."""
        return [c for c in self._idle[pool_id] if c.is_dirty and not c.moves_in_flight]

    def num_in_motion(self, pool_id: int) -> int:
        """Pages of idle contexts in this pool that will be clean once their moves are complete."""
        return sum(context.num_local for context in self._idle[pool_id] if context.moves_in_flight)

    def drop_mirror(self, context: Context) -> int:
        """Release the mirror of a context whose local copy is whole; the number of pages that came back."""
        if context.moves_in_flight or context.absent(context.computed):
            return 0
        released = 0
        for group, refs in enumerate(context.mirror):
            released += self._drop_mirror(context, group, 0, len(refs))
            refs.clear()
        context.mirrored = context.mirror_target = 0
        self._recount(context)
        return released

    # ------------------------------------------------------------------ moves

    def finish_move(self, move_id: int, duration_ns: int) -> None:
        """All bytes of the move have arrived."""
        context, move = self._moves.pop(move_id)
        context.moves_in_flight -= 1
        path = (move.src_pool, move.dst_pool)
        counters = self.counters
        counters.moves += 1
        counters.moved_pages[path] = counters.moved_pages.get(path, 0) + len(move.src_pages)
        counters.moved_ns[path] = counters.moved_ns.get(path, 0) + duration_ns
        if not context.moves_in_flight:
            context.mirrored = context.mirror_target
            self._settle(context)
            self._recount(context)

    def lose_moves(self, pool_id: int) -> None:
        """The runner of this pool is gone, and with it every move that it had not reported: those of the
        contexts whose home the pool is. A context that was coming from another device is back there."""
        for move_id, (context, move) in list(self._moves.items()):
            if context.home != pool_id:
                continue
            del self._moves[move_id]
            context.moves_in_flight -= 1
            context.mirror_target = context.mirrored
            if move.dst_pool == pool_id and context not in self._leaving:
                self._undo_fetch(context, set(move.dst_pages))
            if not context.moves_in_flight:
                if context in self._leaving and not context.is_closing:
                    self._return_home(context)
                self._settle(context)
                self._recount(context)

    def coming_from(self, pool_id: int) -> list[Context]:
        """Contexts that are being moved out of this pool to another device."""
        return [context for context, old in self._leaving.items() if old.pool_id == pool_id]

    @property
    def num_moves_in_flight(self) -> int:
        return len(self._moves)

    # ------------------------------------------------------------------ inner workings

    def _start_move(
        self,
        context: Context,
        src_pool: int,
        dst_pool: int,
        src_pages: list[int],
        dst_pages: list[int],
        *,
        urgent: bool = False,
    ) -> Move:
        self._last_move_id += 1
        move = Move(
            move_id=self._last_move_id,
            src_pool=src_pool,
            dst_pool=dst_pool,
            src_pages=src_pages,
            dst_pages=dst_pages,
            urgent=urgent,
        )
        self._moves[move.move_id] = (context, move)
        context.moves_in_flight += 1
        self._recount(context)
        return move

    def _undo_fetch(self, context: Context, pages: set[int]) -> None:
        """Local pages whose content never came are absent again."""
        for table in context.local:
            for index, page in enumerate(table):
                if page in pages:
                    table[index] = ABSENT
                    context.num_local -= 1
        assert context.home is not None
        self.local_pools[context.home].release(sorted(pages))

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
        self._release_local(context)
        old = self._leaving.pop(context)
        context.home, context.local, context.num_local = old.pool_id, old.tables, len(old.pages)

    def _allocate(self, context: Context, end: int) -> None:
        """Give every live position below `end` a local page."""
        assert context.home is not None
        pool, last = self.local_pools[context.home], self.layout.num_pages(end)
        had_pages = context.num_local > 0
        for table, live_from in zip(context.local, context.live_from, strict=True):
            if had_pages:
                holes = [i for i in range(live_from, min(last, len(table))) if table[i] == ABSENT]
                for index, page in zip(holes, pool.allocate(len(holes)), strict=True):
                    table[index] = page
                context.num_local += len(holes)
            else:
                table.clear()
            table.extend([ABSENT] * (live_from - len(table)))
            more = pool.allocate(max(0, last - len(table)))
            table.extend(more)
            context.num_local += len(more)

    def _grow_mirror(self, context: Context, first: int, last: int) -> bool:
        """Give every live page from index `first` to `last` a place in some tier, the best that has room;
        False if they do not all fit."""
        new = 0
        for refs, live_from in zip(context.mirror, context.live_from, strict=True):
            new += max(0, last - max(len(refs), live_from)) + refs[max(first, live_from) : last].count(ABSENT)
        if new > self._num_free_in_tiers() and not context.is_running:
            self._drop_redundant_mirrors(new)
        if new > self._num_free_in_tiers():
            return False
        places = self._take_places(new)
        for refs, live_from in zip(context.mirror, context.live_from, strict=True):
            start = max(first, live_from)
            holes = [index for index in range(start, min(last, len(refs))) if refs[index] == ABSENT]
            for index in holes:
                refs[index] = places.pop()
            refs.extend([ABSENT] * (start - len(refs)))
            more = last - max(len(refs), start)
            if more > 0:
                refs += places[-more:]
                del places[-more:]
        return True

    def _num_free_in_tiers(self) -> int:
        return sum(tier.num_free for tier in self.tiers.values())

    def _drop_redundant_mirrors(self, count: int) -> None:
        """Have `count` free pages in the tiers, if mirrors of contexts that run can make the room: what is
        local need not be kept twice."""
        for context in self.contexts if count > self._num_free_in_tiers() else ():
            if context.is_running and self.drop_mirror(context) and count <= self._num_free_in_tiers():
                return

    def _take_places(self, count: int) -> list[int]:
        """Pages of the tiers, in the best that have room, as references."""
        places: list[int] = []
        for tier in self.tiers.values():
            taken = min(count - len(places), tier.num_free)
            places += [page_ref(tier.pool_id, page) for page in tier.allocate(taken)]
        return places

    def _recount(self, context: Context) -> None:
        """Bring the pool's count of evictable pages up to date after a change to the context."""
        if context.home is None:
            return
        is_free = not context.moves_in_flight and not context.is_dirty and context in self._idle[context.home]
        evictable = context.num_local if is_free else 0
        self._evictable[context.home] += evictable - context.evictable
        context.evictable = evictable

    def _wake(self, context: Context) -> None:
        """The context is not idle any more."""
        if context.home is not None:
            self._idle[context.home].pop(context, None)
            self._recount(context)

    def _make_room(self, pool_id: int, count: int, *, besides: Context | None = None) -> bool:
        """Have `count` free pages, if that loses nothing, by evicting what is idle longest; else change
        nothing."""
        pool = self.local_pools[pool_id]
        if count <= pool.num_free:
            return True
        if count > self.num_available(pool_id, besides=besides):
            return False
        victims, short = [], count - pool.num_free
        for context in self._idle[pool_id]:
            if context.evictable and context is not besides:
                victims.append(context)
                short -= context.evictable
                if short <= 0:
                    break
        for victim in victims:
            self._evict(victim, count - pool.num_free)
        return True

    def _evict(self, context: Context, count: int) -> None:
        """Drop local pages of a clean idle context, `count` if it has so many: its first ones."""
        before = context.num_local
        for group, table in enumerate(context.local):
            short = count - (before - context.num_local)
            present = [index for index, page in enumerate(table) if page != ABSENT][: max(0, short)]
            if present:
                self._drop_local(context, group, present[0], present[-1] + 1)
        self.counters.evicted_pages += before - context.num_local
        self._recount(context)
        if not context.num_local:
            self._release_local(context)

    def _settle(self, context: Context) -> None:
        """Once nothing touches the context any more: free what it left behind, and all of it if closed."""
        if context.moves_in_flight:
            return
        old = self._leaving.pop(context, None)
        if old is not None:
            self.local_pools[old.pool_id].release(old.pages)
        if context.is_closing and not context.is_running and context in self.contexts:
            self._release_all(context)
            del self.contexts[context]

    def _release_all(self, context: Context) -> None:
        self._release_local(context)
        for group, refs in enumerate(context.mirror):
            self._drop_mirror(context, group, 0, len(refs))
            refs.clear()
        context.computed = context.mirrored = context.mirror_target = 0
        context.live_from = [0] * len(context.live_from)

    def _release_local(self, context: Context) -> None:
        if context.home is None:
            return
        self._cut(context, 0)
        self._wake(context)
        context.home = None

    def _is_trimmed_behind(self, context: Context, position: int) -> bool:
        """Whether pages are gone, behind a window, that a token at `position` would read."""
        first_live = self.layout.first_live_page
        return any(live_from > first_live(group, position) for group, live_from in enumerate(context.live_from))

    def _cut(self, context: Context, first: int) -> None:
        """Release local pages with index `first` or above."""
        for group, table in enumerate(context.local):
            self._drop_local(context, group, first, len(table))
            del table[first:]

    def _drop_local(self, context: Context, group: int, first: int, last: int) -> None:
        assert context.home is not None or not context.num_local
        table = context.local[group]
        last = min(last, len(table))
        pages = [page for page in table[first:last] if page != ABSENT]
        if pages:
            assert context.home is not None
            self.local_pools[context.home].release(pages)
            table[first:last] = [ABSENT] * (last - first)
            context.num_local -= len(pages)

    def _drop_mirror(self, context: Context, group: int, first: int, last: int) -> int:
        refs = context.mirror[group]
        last = min(last, len(refs))
        dropped = [ref for ref in refs[first:last] if ref != ABSENT]
        for ref in dropped:
            self.tiers[pool_of(ref)].release([page_of(ref)])
        refs[first:last] = [ABSENT] * max(0, last - first)
        return len(dropped)

    def check_integrity(self) -> None:
        """Every page of every pool is free or somebody's, once; counts agree with tables. AssertionError."""
        held: dict[int, list[int]] = {pool_id: [] for pool_id in (*self.local_pools, *self.tiers)}
        for context in self.contexts:
            present = [page for table in context.local for page in table if page != ABSENT]
            assert len(present) == context.num_local
            if context.home is not None:
                held[context.home] += present
            for ref in (ref for refs in context.mirror for ref in refs if ref != ABSENT):
                held[pool_of(ref)].append(page_of(ref))
            assert context.mirrored <= context.computed
            assert context.moves_in_flight == sum(c is context for c, _ in self._moves.values())
            self._check_valid(context)
        for pool_id, idle in self._idle.items():
            assert self._evictable[pool_id] == sum(context.evictable for context in idle)
        for old in self._leaving.values():
            held[old.pool_id] += old.pages
        for pool in (*self.local_pools.values(), *self.tiers.values()):
            pool.check_integrity(held[pool.pool_id])

    def _check_valid(self, context: Context) -> None:
        """Every live computed page is somewhere."""
        for group, index in context.absent(context.computed) if not context.is_closing else ():
            assert (index + 1) * self.layout.page_tokens <= context.mirrored or not context.is_dirty
            assert context.mirror[group][index] != ABSENT, "an evicted page has no mirror"
