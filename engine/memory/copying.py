"""What is copied for a context: its pages to where it will run, and out of there to its mirror."""

from collections.abc import Iterable

from engine.memory.context import Context, GroupPages
from engine.memory.joined_moves import JoinedMoves
from engine.memory.local_copies import LocalCopies
from engine.memory.losses import Losses
from engine.memory.mirrors import Cache, Mirrors
from engine.memory.open_moves import OpenMoves, Purpose
from engine.memory.page_table import Part, Paths, pair
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
        extents = [extent for group in context.groups for extent in group.mirror.extents]
        return all(placement.reaches(pool_id, extent.segment.pool.pool_id) for extent in extents)

    def bring(self, context: Context, end: int) -> list[Move]:
        """Give the context local pages for all that is live below `end`, for which there is room. Returns the
        moves to those that are computed: from `former` pages, where there are some, or from its mirror."""
        home, valid = context.home, context.num_valid_pages
        assert home is not None
        pool, last = self._local.pools[home], -(-end // context.layout.page_tokens)
        paths: Paths = {}
        for group in context.groups:
            table, first = group.local, group.live_from
            absent_end = table.first if table.num_pages and table.first < valid else valid
            added = table.fill(pool, first, last, context)
            if not context.fetches or absent_end > group.arriving_end:  # what an earlier turn was to have
                group.arriving_end = absent_end  # may be arriving still
            if first < absent_end:  # rule 2 keeps lists good that are the mirror's own
                pair(paths, _sources(group, first, absent_end), added[: absent_end - first])
        if not paths:
            return []
        context.moves_in_flight += len(paths)
        moves: list[Move] = []
        for pool, pages in paths.items():
            move = self._moves.start((context,), Purpose.FETCH, home, (pool.pool_id, home), pages)
            context.fetches.append(move.move_id)
            moves.append(move)
        return moves

    def mirror(self, contexts: Iterable[Context], *, whole: bool) -> list[Move]:
        """Moves of what mirrors lack: full pages, and with `whole` the half-full last ones too. Nothing is
        copied of a context that finds no room in any tier, or has a move in flight."""
        joined: JoinedMoves | None = None
        for context in contexts:
            home, page_tokens = context.home, context.layout.page_tokens
            upto = context.computed if whole else context.computed - context.computed % page_tokens
            if upto <= context.mirrored or home is None or context.moves_in_flight:
                continue
            last = -(-upto // page_tokens)
            if not self._mirrors.grow(context, last) and not self._make_way(context, home, last):
                continue
            if joined is None:
                joined = JoinedMoves(self._moves, Purpose.MIRROR)
            self._copy_out(context, home, upto, joined)
        return [move for _, move in joined.start()] if joined is not None else []

    def _copy_out(self, context: Context, home: int, upto: int, joined: JoinedMoves) -> None:
        """Copy positions up to `upto` to the mirror, which has places for them."""
        page_tokens, local = context.layout.page_tokens, self._local.pools[home]
        mirrored, last = context.mirrored // page_tokens, -(-upto // page_tokens)
        for group in context.groups:
            first = group.live_from if group.live_from > mirrored else mirrored
            if first >= last:
                continue
            here, start = group.local.between(first, last), 0
            for pool, there in group.mirror.parts(first, last):
                count = len(there)
                joined.add(context, (home, local, pool), here[start : start + count], there)
                start += count
        context.mirror_target = upto
        if context.moves_in_flight:
            self._local.set_in_motion(context)
        else:  # everything is behind windows
            context.mirrored = upto
            self._local.recount(context)

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


def _sources(group: GroupPages, first: int, last: int) -> list[Part]:
    """Where the pages with indices `first .. last - 1` are, in parts that lie in one pool each."""
    former = group.former
    if former is None or not former.num_pages:
        return group.mirror.parts(first, last)
    mirrored = max(first, min(last, former.first))
    return group.mirror.parts(first, mirrored) + former.parts(mirrored, last)
