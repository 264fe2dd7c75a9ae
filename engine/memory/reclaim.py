"""Emptying segments of leased tiers that their lenders want back."""

from engine.memory.context import Context, page_of, page_ref, pool_of
from engine.memory.counters import StoreCounters
from engine.memory.mirrors import Mirrors
from engine.memory.open_moves import OpenMove, OpenMoves, Purpose
from engine.messages import Move


class Reclaim:
    """Knows which segments are being emptied and moves pages out of them, to other lenders or to the host.

    A page that is being moved keeps its old place until the move is complete, and the old place is freed when
    no other move of its context is in flight: a fetch may be reading it.
    """

    def __init__(self, mirrors: Mirrors, moves: OpenMoves, counters: StoreCounters) -> None:
        self._mirrors = mirrors
        self._moves = moves
        self._counters = counters
        self._recalled: dict[int, tuple[int, int]] = {}  # by the segment's key: pool id, segment

    def recall(self, pool_id: int, segments: list[int]) -> None:
        """Give out no page of these segments any more."""
        for number in segments:
            self._mirrors.tiers[pool_id].recall(number)
            self._recalled[page_ref(pool_id, number)] = (pool_id, number)

    @property
    def is_busy(self) -> bool:
        """Whether some segment is still being emptied, as far as `contexts` has seen."""
        return bool(self._recalled)

    def contexts(self) -> list[Context]:
        """Who may have pages in segments that are not empty yet, oldest first."""
        found: dict[Context, None] = {}
        for key, (pool_id, number) in list(self._recalled.items()):
            pool = self._mirrors.tiers[pool_id]
            if number not in pool.segments or pool.is_empty(number):
                del self._recalled[key]
            else:
                found |= self._mirrors.holders(pool_id, number)
        return sorted(found, key=lambda context: context.serial)

    def places(self, context: Context) -> dict[int, list[tuple[int, int]]]:
        """By pool, (group, page index) of the context's pages in recalled segments."""
        places: dict[int, list[tuple[int, int]]] = {}
        for key in sorted(context.mirror_segments & self._recalled.keys()):
            pool_id, number = self._recalled[key]
            found = self._mirrors.places_in(context, pool_id, number)
            if found:
                places.setdefault(pool_id, []).extend(found)
        return places

    def relocate(
        self, context: Context, pool_id: int, places: list[tuple[int, int]], runners: list[int]
    ) -> list[tuple[int, Move]]:
        """Start moving these pages of an idle or partly local context to the best tiers that have room.

        Returns each move with its runner: the context's own if it works, else another that reaches both
        pools. Empty, with nothing changed, if there is no room for all of them or nobody to do it.
        """
        runner = self._choose_runner(context, pool_id, runners)
        if runner is None or len(places) > self._mirrors.num_free(runner):
            return []
        by_target: dict[int, list[tuple[tuple[int, int], int]]] = {}
        for place, ref in zip(places, self._mirrors.take(context, runner, len(places)), strict=True):
            by_target.setdefault(pool_of(ref), []).append((place, page_of(ref)))
        moves = []
        for target, placed in by_target.items():
            own = [place for place, _ in placed]
            src_pages = [page_of(context.mirror[group][index]) for group, index in own]
            pages = (src_pages, [page for _, page in placed])
            move = self._moves.start(context, Purpose.RELOCATE, runner, (pool_id, target), pages, own)
            moves.append((runner, move))
        return moves

    def finish(self, done: OpenMove) -> None:
        """The copies are good: they are the mirror now."""
        context, move = done.context, done.move
        for (group, index), page in zip(done.places, move.dst_pages, strict=True):
            refs = context.mirror[group]
            context.retired.append(refs[index])
            refs[index] = page_ref(move.dst_pool, page)
        self._counters.relocated_pages += len(done.places)

    def undo(self, lost: OpenMove) -> None:
        """The runner is gone before the copies were complete."""
        move = lost.move
        lost.context.retired += [page_ref(move.dst_pool, page) for page in move.dst_pages]

    def _choose_runner(self, context: Context, pool_id: int, runners: list[int]) -> int | None:
        able = [runner for runner in runners if self._mirrors.placement.reaches(runner, pool_id)]
        if context.home in able:
            return context.home
        return able[0] if able else None
