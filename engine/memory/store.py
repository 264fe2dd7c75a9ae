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
from collections.abc import Iterator
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


class ContextStore:
    """`local_pools` are the devices' (by pool id), `tiers` the places for mirrors, best first."""

    def __init__(self, layout: PageLayout) -> None:
        self.layout = layout
        self.local_pools: dict[int, PagePool] = {}
        self.tiers: dict[int, PagePool] = {}
        self.counters = StoreCounters()
        self.contexts: dict[Context, None] = {}  # in order of opening
        self._idle: dict[int, OrderedDict[Context, None]] = {}  # by pool: local but not running, oldest first
        self._moves: dict[int, tuple[Context, Move]] = {}
        self._leaving: dict[Context, list[tuple[int, list[int]]]] = {}  # pages to free after their moves
        self._last_move_id = 0

    def add_local_pool(self, pool: PagePool) -> None:
        """A device's pool; page 0 of it is not a context's (ABSENT)."""
        assert pool.first > ABSENT
        self.local_pools[pool.pool_id] = pool
        self._idle[pool.pool_id] = OrderedDict()

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
        """Forget all pages of a context that is idle: it will be recomputed from its tokens."""
        assert not context.is_running
        assert not context.moves_in_flight
        self.counters.dropped_contexts += 1
        self.counters.dropped_tokens += context.computed
        self._release_all(context)

    def lose_local(self, context: Context) -> None:
        """The local copy cannot be trusted any more (its device failed): what is mirrored remains."""
        self._release_local(context)
        lost = context.computed - context.mirrored
        if lost:
            self.counters.dropped_contexts += 1
            self.counters.dropped_tokens += lost
            context.computed = context.mirrored

    # ------------------------------------------------------------------ running

    def pages_needed(self, context: Context, pool_id: int, end: int) -> int:
        """Pages to allocate in pool `pool_id` before `context` can run there up to position `end`."""
        if context.home == pool_id:
            return context.num_absent(end)
        return context.num_absent(end) + context.num_local

    def num_available(self, pool_id: int, *, besides: Context | None = None) -> int:
        """Pages of the pool that are free, or could be freed at once without losing anything."""
        idle = sum(self._num_evictable(context) for context in self._idle[pool_id] if context is not besides)
        return self.local_pools[pool_id].num_free + idle

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
        if context.home is not None:
            self._idle[context.home].pop(context, None)
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
        self._settle(context)

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
        targets = [
            (group, index)
            for group, live_from in enumerate(context.live_from)
            for index in range(max(first, live_from), last)
        ]
        if not self._grow_mirror(context, targets, last):
            return []
        by_tier: dict[int, list[tuple[int, int]]] = {}
        for group, index in targets:
            by_tier.setdefault(pool_of(context.mirror[group][index]), []).append((group, index))
        context.mirror_target = upto
        moves = []
        for tier, places in by_tier.items():
            src_pages = [context.local[group][index] for group, index in places]
            dst_pages = [page_of(context.mirror[group][index]) for group, index in places]
            moves.append(self._start_move(context, context.home, tier, src_pages, dst_pages))
        return moves

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

    def lose_moves(self, pool_id: int) -> None:
        """The runner of this pool is gone, and every move that it had not reported with it. Call once no
        context runs there."""
        for move_id, (context, move) in list(self._moves.items()):
            if context.home != pool_id:  # the runner of a context's home makes all its moves
                continue
            del self._moves[move_id]
            context.moves_in_flight -= 1
            context.mirror_target = context.mirrored
            if move.dst_pool == pool_id:
                self._undo_fetch(context, set(move.dst_pages))
                if context in self._leaving:  # half moved from another device: only the mirror is whole
                    self.lose_local(context)
            if not context.moves_in_flight:
                self._settle(context)

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
        home, pages = context.home, []
        for group, table in enumerate(context.local):
            refs = sources[group]
            refs.extend([ABSENT] * (len(table) - len(refs)))
            for index, page in enumerate(table):
                if page != ABSENT:
                    refs[index] = page_ref(home, page)
                    pages.append(page)
            table.clear()
        context.num_local = 0
        if pages:
            self._leaving.setdefault(context, []).append((home, pages))
        return sources

    def _allocate(self, context: Context, end: int) -> None:
        assert context.home is not None
        absent = context.absent(end)
        pages = self.local_pools[context.home].allocate(len(absent))
        last = self.layout.num_pages(end)
        for table in context.local:
            table.extend([ABSENT] * (last - len(table)))
        for (group, index), page in zip(absent, pages, strict=True):
            context.local[group][index] = page
        context.num_local += len(pages)

    def _grow_mirror(self, context: Context, targets: list[tuple[int, int]], last: int) -> bool:
        """Give every target a place in some tier, the best that has room; False if they do not all fit."""
        for refs in context.mirror:
            refs.extend([ABSENT] * (last - len(refs)))
        new = [(group, index) for group, index in targets if context.mirror[group][index] == ABSENT]
        if not context.is_running:
            self._drop_redundant_mirrors(len(new))
        if len(new) > self._num_free_in_tiers():
            return False
        places = self._mirror_places(len(new))
        for (group, index), ref in zip(new, places, strict=True):
            context.mirror[group][index] = ref
        return True

    def _num_free_in_tiers(self) -> int:
        return sum(tier.num_free for tier in self.tiers.values())

    def _drop_redundant_mirrors(self, count: int) -> None:
        """Have `count` free pages in the tiers, if mirrors of contexts that run can make the room: what is
        local need not be kept twice."""
        for context in self.contexts if count > self._num_free_in_tiers() else ():
            if context.is_running and self.drop_mirror(context) and count <= self._num_free_in_tiers():
                return

    def _mirror_places(self, count: int) -> Iterator[int]:
        for tier in self.tiers.values():
            taken = min(count, tier.num_free)
            count -= taken
            yield from [page_ref(tier.pool_id, page) for page in tier.allocate(taken)]

    def _num_evictable(self, context: Context) -> int:
        if context.moves_in_flight:
            return 0
        if not context.is_dirty:
            return context.num_local
        clean = context.num_clean_pages
        return sum(page != ABSENT for table in context.local for page in table[:clean])

    def _make_room(self, pool_id: int, count: int, *, besides: Context | None = None) -> bool:
        """Have `count` free pages, if that loses nothing; else change nothing."""
        pool = self.local_pools[pool_id]
        if count <= pool.num_free:
            return True
        if count > self.num_available(pool_id, besides=besides):
            return False
        for context in list(self._idle[pool_id]):
            if context is besides or not self._num_evictable(context):
                continue
            clean = context.num_clean_pages
            before = context.num_local
            for group, table in enumerate(context.local):
                self._drop_local(context, group, 0, min(clean, len(table)))
            self.counters.evicted_pages += before - context.num_local
            if not context.num_local:
                self._release_local(context)
            if count <= pool.num_free:
                break
        return True

    def _settle(self, context: Context) -> None:
        """Once nothing touches the context any more: free what it left behind, and all of it if closed."""
        if context.moves_in_flight:
            return
        for home, pages in self._leaving.pop(context, ()):
            self.local_pools[home].release(pages)
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
        self._idle[context.home].pop(context, None)
        context.home = None

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
        for leaving in self._leaving.values():
            for home, pages in leaving:
                held[home] += pages
        for pool in (*self.local_pools.values(), *self.tiers.values()):
            pool.check_integrity(held[pool.pool_id])

    def _check_valid(self, context: Context) -> None:
        """Every live computed page is somewhere."""
        clean = context.num_clean_pages
        for group, index in context.absent(context.computed) if not context.is_closing else ():
            assert index < clean, "a computed page is nowhere"
            assert context.mirror[group][index] != ABSENT, "an evicted page has no mirror"
