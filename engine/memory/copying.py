"""What is copied for a context: its pages to where it will run, and out of there to its mirror."""

from engine.memory.context import Context
from engine.memory.local_copies import LocalCopies
from engine.memory.losses import Losses
from engine.memory.mirrors import Cache, Mirrors
from engine.memory.open_moves import OpenMoves, Purpose
from engine.memory.page_table import PageTable, Paths
from engine.messages import Move


class Copying:
    """Begins fetches and mirrors. `running` are the contexts that run."""

    def __init__(
        self,
        local: LocalCopies,
        mirrors: Mirrors,
        moves: OpenMoves,
        losses: Losses,
        running: dict[Context, None],
    ) -> None:
        self._local = local
        self._mirrors = mirrors
        self._moves = moves
        self._losses = losses
        self._running = running
        self.cache: Cache | None = None

    def can_fetch(self, context: Context, pool_id: int) -> bool:
        """Whether the device of this local pool reaches all of the context."""
        placement = self._mirrors.placement
        if placement.reaches_all(pool_id):
            return True
        if context.num_local and context.home is not None and not placement.reaches(pool_id, context.home):
            return False
        extents = [extent for table in context.mirror for extent in table.extents]
        return all(placement.reaches(pool_id, extent.segment.pool.pool_id) for extent in extents)

    def fetch(
        self, context: Context, until: list[int], added: list[list[int]], old: list[PageTable]
    ) -> list[Move]:
        """Moves to the pages below index `until[group]` of the local copy, which are the first of those
        `added`: from `old` tables, which it has where it comes from, and otherwise from its mirror."""
        assert context.home is not None
        paths = Paths()
        for group, first in enumerate(context.live_from):
            last = mirrored = until[group]
            if old and old[group].num_pages:
                mirrored = max(first, min(last, old[group].first))
            if first < last:
                sources = context.mirror[group].parts(first, mirrored)
                if mirrored < last:
                    sources += old[group].parts(mirrored, last)
                paths.add(sources, added[group][: last - first])
        if not paths:
            return []
        moves = [
            self._moves.start(context, Purpose.FETCH, context.home, (pool.pool_id, context.home), pages)
            for pool, pages in paths.items()
        ]
        context.arriving, context.fetches = until, [move.move_id for move in moves]
        return moves

    def mirror(self, context: Context, *, whole: bool) -> list[Move]:
        """Moves of what the mirror lacks: full pages, and with `whole` the half-full last one too.

        Empty if there is nothing to copy, no room in any tier, or a move in flight.
        """
        page_tokens = context.layout.page_tokens
        upto = context.computed if whole else context.computed - context.computed % page_tokens
        home = context.home
        if context.moves_in_flight or home is None or upto <= context.mirrored:
            return []
        first, last = context.mirrored // page_tokens, -(-upto // page_tokens)
        if not self._mirrors.grow(context, last) and not self._make_way(context, home, last):
            return []
        context.mirror_target = upto
        paths = Paths()
        for local, mirror, live_from in zip(context.local, context.mirror, context.live_from, strict=True):
            start = live_from if live_from > first else first
            paths.add(mirror.parts(start, last), local.between(start, last))
        if not paths:  # everything is behind windows
            context.mirrored = upto
            self._local.recount(context)
            return []
        moves = [
            self._moves.start(context, Purpose.MIRROR, home, (home, pool.pool_id), (pages[1], pages[0]))
            for pool, pages in paths.items()
        ]
        self._local.set_in_motion(context)
        return moves

    def _make_way(self, context: Context, home: int, last: int) -> bool:
        """Give pages of a context below index `last` their places after all, if cached contexts can make the
        room, or, for an idle one, mirrors of contexts that run: what is local need not be kept twice."""
        missing = self._mirrors.num_missing(context, last)
        if self.cache is not None and self.cache.make_room_in_tiers(home, missing, context):
            return self._mirrors.grow(context, last)
        if context.is_running or context.is_cached:
            return False
        for other in self._running:
            if self._losses.drop_mirror(other) and self._mirrors.has_room(home, missing):
                return self._mirrors.grow(context, last)
        return False
