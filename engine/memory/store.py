"""All contexts of one model and the pools they live in: what is fetched, mirrored, evicted and dropped.

Pure bookkeeping: methods return the moves that a runner has to make, and are told when one is complete.
Four rules keep a page from being read before it is complete, and from being freed while anything may touch
it:

1. A page that a move writes is named by nothing but the tables of the one context that it is for, and a
   slice that needs it names the move. A move may be for many contexts, but a fetch is for one.
2. A context with a move in flight gives up no page, local or mirrored.
3. A running context gives up no live local page, and it runs until the runner has reported the end of its
   slice. Pages behind a sliding window are given up by positions that the runner has *reported*.
4. A closed context is released when it does not run and its last move is complete.

The parts: local copies (`local_copies`), mirrors in the tiers (`mirrors`), what is copied between them
(`copying`), moves in flight (`open_moves`), contexts on their way to another device (`departures`), segments
of tiers that are wanted back (`reclaim`), segments of local pools that are to be empty (`vacating`), and what
is given up for good (`losses`).

What a store can do comes in four layers: it has pools, and contexts that come and go (`store_base`); they may
share prefixes (`store_prefixes`); memory is taken from it (`store_shrinking`); and here contexts run and
pages move.
"""

from collections.abc import Collection

from engine.memory.context import Context
from engine.memory.open_moves import OpenMove, Purpose
from engine.memory.pool import Pages
from engine.memory.store_shrinking import ShrinkingStore
from engine.messages import Move


class ContextStore(ShrinkingStore):
    """The contexts of one model."""

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

    def has_room(self, context: Context, pool_id: int, num_pages: int, *, spare: int = 0) -> bool:
        """Whether the context could have so many pages more in this pool, and `spare` were left."""
        return self._local.has_room(pool_id, num_pages, besides=context, spare=spare)

    def prepare(self, context: Context, pool_id: int, end: int, *, spare: int = 0) -> list[Move] | None:
        """Make `context` ready to run in `pool_id` up to position `end`: evict idle contexts if need be,
        allocate pages, and return the moves that its slice has to wait for.

        None, with nothing changed, if there is no room for it and `spare` pages more, a move is bringing it
        somewhere else, it has pages that the device cannot reach, or some in a segment that is to be empty.
        """
        assert not context.is_running
        if context.is_blank:
            return self._furnish(context, pool_id, end, spare)
        ancestors = context.ancestors()
        if not self._may_come(context, pool_id):
            return None
        for each in ancestors:
            if not self._may_come(each, pool_id):
                return None
        if not self._local.make_room(
            pool_id, self.pages_needed(context, pool_id, end), besides=context, spare=spare
        ):
            return None
        moves = self._bring(context, pool_id, end)
        for each in ancestors:
            if not each.is_running:
                moves += self._bring(each, pool_id, each.computed)
            each.num_users += 1
        return moves

    def _furnish(self, context: Context, pool_id: int, end: int, spare: int) -> list[Move] | None:
        """`prepare` for a blank context: it has nothing to bring, nothing behind windows, and may go
        anywhere."""
        last = self.layout.num_pages(end)
        if not self._local.make_room(pool_id, last * len(context.groups), spare=spare):
            return None
        self._set_running(context, pool_id)
        pool = self._local.pools[pool_id]
        for group in context.groups:
            group.local.grow(pool, group.live_from, last, context)
            group.arriving_end = 0
        return []

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
        self._set_running(context, pool_id)
        return self._copying.bring(context, end)

    def _set_running(self, context: Context, pool_id: int) -> None:
        """The context runs in this pool, and is found there."""
        if self._prefixes is not None and context.indexed_at not in (None, pool_id):
            self._prefixes.move(context, pool_id)
        context.home = pool_id
        context.is_running = True
        self._running[context] = None

    def awaited(self, context: Context) -> list[int]:
        """Moves in flight that bring pages of the context or its ancestors: its slice waits for them."""
        if context.parent is None and not context.moves_in_flight:
            return []
        moves = context.fetches[:]
        if context.parent is not None:
            for each in context.ancestors():
                moves += each.fetches
        return moves

    def extend(self, context: Context, end: int) -> list[Pages] | None:
        """Let a running context go on to position `end`. Returns the pages added to each group's table, or
        None, with nothing changed, if there is no room."""
        assert context.is_running
        assert context.home is not None
        self.trim(context)
        if not self._local.make_room(context.home, context.num_absent(end)):
            return None
        pool, last = self._local.pools[context.home], self.layout.num_pages(end)
        return [group.local.fill(pool, group.live_from, last, context)[:] for group in context.groups]

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
        dirty = self._local.idle_dirty(pool_id)
        return self._copying.mirror(dirty, whole=True) if dirty else []

    def lacks_mirrors(self, pool_id: int) -> bool:
        """Whether `mirror_idle` or `mirror_cached` would copy something out if the tiers had room."""
        if self._local.idle_dirty(pool_id):
            return True
        return self._wants_cached_mirrors(pool_id) and any(True for _ in self._local.cached_dirty(pool_id))

    @property
    def changed_pools(self) -> Collection[int]:
        """What `take_changed_pools` would return, without what lenders may have made available."""
        return self._local.changed_pools

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

    def finish_move(self, move_id: int, duration_ns: int) -> bool:
        """All bytes of the move have arrived. Whether that may have made room, or left something to be moved:
        not if it was of a context that runs on and had nothing to leave behind."""
        done = self._moves.finish(move_id, duration_ns)
        is_news = self._reclaim.is_busy or self._local.is_shrinking(done.runner)
        if done.purpose is Purpose.RELOCATE:
            self._reclaim.finish(done)
        elif done.purpose is Purpose.SHIFT:
            self._vacating.finish(done)
        for context in done.contexts:
            if not context.moves_in_flight:
                is_news |= not context.is_running or bool(context.retired) or context in self._departures
                context.mirrored = context.mirror_target
                self._settle(context)
                self._reclaim.moved(context)
                self._local.recount(context)
        return is_news

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

    @property
    def num_moves_in_flight(self) -> int:
        return len(self._moves)

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
