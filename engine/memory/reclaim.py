"""Emptying segments of leased tiers that their lenders want back."""

from engine.memory.context import Context, by_pool, page_ref
from engine.memory.counters import StoreCounters
from engine.memory.losses import Losses
from engine.memory.mirrors import Mirrors, Places
from engine.memory.open_moves import OpenMove, OpenMoves, Purpose
from engine.messages import Move


class Reclaim:
    """Knows which segments are being emptied and moves pages out of them, to other lenders or to the host.

    A page that is being moved keeps its old place until the move is complete, and the old place is freed when
    no other move of its context is in flight: a fetch may be reading it.
    """

    def __init__(self, mirrors: Mirrors, moves: OpenMoves, losses: Losses, counters: StoreCounters) -> None:
        self._mirrors = mirrors
        self._moves = moves
        self._losses = losses
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

    def empty(self, context: Context, runners: list[int]) -> list[tuple[int, Move]]:
        """Get the context out of recalled segments, now or with the moves returned. One with a move in flight
        stays as it is."""
        if context.moves_in_flight or self._losses.drop_mirror(context):
            return []
        moves = []
        for pool_id, places in self._places(context).items():
            relocated = self._relocate(context, pool_id, places, runners)
            if not relocated and runners and not context.moves_in_flight:
                self._losses.lose(context, places)
            moves += relocated
        return moves

    def _places(self, context: Context) -> dict[int, Places]:
        """By pool, the context's pages in recalled segments."""
        places: dict[int, Places] = {}
        for key in sorted(context.mirror_segments & self._recalled.keys()):
            pool_id, number = self._recalled[key]
            found = self._mirrors.places_in(context, pool_id, number)
            if found:
                places.setdefault(pool_id, []).extend(found)
        return places

    def _relocate(
        self, context: Context, pool_id: int, places: Places, runners: list[int]
    ) -> list[tuple[int, Move]]:
        """Start moving these pages of an idle or partly local context to the best tiers that have room.

        Returns each move with its runner: the context's own if it works, else another that reaches both
        pools. Empty, with nothing changed, if there is no room for all of them or nobody to do it.
        """
        runner = self._choose_runner(context, pool_id, runners)
        if runner is None:
            return []
        refs = [context.mirror[group][index] for group, indices in places for index in indices]
        if not self._mirrors.has_room(runner, len(refs)):
            return []
        targets = self._mirrors.take(context, runner, len(refs))
        base = page_ref(pool_id, 0)
        return [
            (runner, self._moves.start(context, Purpose.RELOCATE, runner, (pool_id, target), (src, dst)))
            for target, (dst, src) in by_pool(targets, [ref - base for ref in refs]).items()
        ]

    def finish(self, done: OpenMove) -> None:
        """The copies are good: they are the mirror now."""
        move = done.move
        base, new_base = page_ref(move.src_pool, 0), page_ref(move.dst_pool, 0)
        moved = {base + src: new_base + dst for src, dst in zip(move.src_pages, move.dst_pages, strict=True)}
        for refs in done.context.mirror:
            refs[:] = [moved.get(ref, ref) for ref in refs]
        done.context.retired += moved
        self._counters.relocated_pages += len(moved)

    def undo(self, lost: OpenMove) -> None:
        """The runner is gone before the copies were complete."""
        move = lost.move
        lost.context.retired += [page_ref(move.dst_pool, page) for page in move.dst_pages]

    def _choose_runner(self, context: Context, pool_id: int, runners: list[int]) -> int | None:
        able = [runner for runner in runners if self._mirrors.placement.reaches(runner, pool_id)]
        if context.home in able:
            return context.home
        return able[0] if able else None
