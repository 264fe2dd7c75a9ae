"""Emptying segments of a local pool that is to shrink, though contexts live there.

A context that does not run is moved aside within the pool if there is room, else its mirrored pages are
dropped, else it is mirrored like any other that is idle; only if no tier has room either it is dropped, and
recomputed at its turn. One that runs is in the way until its turn has ended. Until its pages are out, none of
them gets a turn on this device.
"""

from engine.memory.context import Context
from engine.memory.local_copies import LocalCopies
from engine.memory.losses import Losses
from engine.memory.mirrors import Mirrors
from engine.memory.open_moves import OpenMove, OpenMoves, Purpose, Relocation
from engine.memory.pool import joined
from engine.messages import Move


class Vacating:
    """Gets contexts out of the segments that `LocalCopies` is to have empty."""

    def __init__(self, local: LocalCopies, mirrors: Mirrors, moves: OpenMoves, losses: Losses) -> None:
        self._local = local
        self._mirrors = mirrors
        self._moves = moves
        self._losses = losses
        self._shifting: set[Context] = set()

    def is_in_the_way(self, context: Context) -> bool:
        """Whether the context has pages in a segment that is being emptied, or is on its way out of there."""
        return context in self._shifting or self._local.is_in_the_way(context)

    def empty(self, context: Context) -> list[Move]:
        """Get a context that does not run out of the segments, now or with the moves returned, or later: one
        with a move in flight stays as it is."""
        extents = self._local.extents_in_the_way(context)
        if not extents or context.is_running or context.moves_in_flight:
            return []
        assert context.home is not None
        pool = self._local.pools[context.home]
        src_pages = joined(extents)
        if len(src_pages) <= pool.num_free:
            self._shifting.add(context)
            new, dst_pages = pool.copies(extents, len(src_pages))
            path, pages = (pool.pool_id, pool.pool_id), (src_pages, dst_pages)
            context.moves_in_flight += 1
            shift = Relocation(extents, new)
            move = self._moves.start((context,), Purpose.SHIFT, pool.pool_id, path, pages, shift)
            self._local.recount(context)
            return [move]
        self._local.drop_clean(context)
        has_place = not context.is_cached and self._mirrors.has_room(pool.pool_id, context.num_local)
        if context.num_local and context.is_dirty and not has_place and not context.is_family_moving():
            self._local.release(context)
            self._losses.forget_from(context, context.mirrored)
        self._losses.refile(context)
        return []

    def finish(self, done: OpenMove) -> None:
        """The copies are good: they are the context's now."""
        (context,) = done.contexts
        self._shifting.discard(context)
        assert done.relocation is not None
        for old, new in done.relocation.pairs():
            for group in context.groups:
                if old in group.local.extents:
                    group.local.replace(old, new)
            old.segment.pool.release(old)

    def undo(self, lost: OpenMove) -> None:
        """The runner is gone before the copies were complete."""
        self._shifting.difference_update(lost.contexts)
        assert lost.relocation is not None
        for new in lost.relocation.new:
            new.segment.pool.release(new)
