"""Emptying segments of leased tiers that their lenders want back."""

from engine.memory.context import Context
from engine.memory.counters import StoreCounters
from engine.memory.joined_moves import JoinedMoves
from engine.memory.local_copies import LocalCopies
from engine.memory.losses import Losses
from engine.memory.mirrors import Cache, Mirrors
from engine.memory.open_moves import OpenMove, OpenMoves, Purpose, Relocation
from engine.memory.pool import Extent, PagePool
from engine.messages import Move


class Reclaim:
    """Knows which segments are being emptied and moves extents out of them, to other lenders or to the host.

    An extent that is being moved keeps its old place until the move is complete, and the old place is freed
    when no other move of its context is in flight: a fetch may be reading it.
    """

    def __init__(
        self,
        local: LocalCopies,
        mirrors: Mirrors,
        moves: OpenMoves,
        losses: Losses,
        counters: StoreCounters,
        page_bytes: int,
    ) -> None:
        self._local = local
        self._mirrors = mirrors
        self._moves = moves
        self._losses = losses
        self._counters = counters
        self._page_bytes = page_bytes
        self.cache: Cache | None = None
        self._recalled: dict[tuple[int, int], None] = {}  # (pool id, segment)
        self._runners: dict[tuple[int | None, int], int | None] = {}  # (home, pool id) -> who moves

    def recall(self, pool_id: int, segments: list[int]) -> None:
        """Give out no page of these segments any more."""
        for number in segments:
            self._mirrors.tiers[pool_id].recall(number)
            self._recalled[pool_id, number] = None

    @property
    def is_busy(self) -> bool:
        """Whether some segment is still being emptied, as far as `empty` has seen."""
        return bool(self._recalled)

    def _contexts(self) -> list[tuple[Context, list[Extent]]]:
        """Who has extents in segments that are not empty yet, oldest first, and can be moved now."""
        found: dict[Context, list[Extent]] = {}
        for pool_id, number in list(self._recalled):
            segment = self._mirrors.tiers[pool_id].segments.get(number)
            if segment is None or not segment.extents:
                del self._recalled[pool_id, number]
                continue
            for extent in segment.extents:
                context = extent.holder
                assert context is not None
                if context in found:
                    found[context].append(extent)
                elif not context.moves_in_flight:
                    found[context] = [extent]
        return sorted(found.items(), key=_by_age)

    def empty(self, runners: list[int]) -> list[tuple[int, Move]]:
        """Get everybody out who has no move in flight, now or with the moves returned: each with the local
        pool of its runner."""
        joined = JoinedMoves(self._moves, Purpose.RELOCATE, self._page_bytes)
        self._runners.clear()
        found = [(c, extents) for c, extents in self._contexts() if not self._losses.drop_mirror(c)]
        if found and runners:
            count = sum([len(extent.pages) for _, extents in found for extent in extents])
            self._mirrors.lease_ahead(runners[0], count)
        for context, extents in found:
            self._empty(context, extents, runners, joined)
        return joined.start()

    def _empty(
        self, context: Context, extents: list[Extent], runners: list[int], joined: JoinedMoves
    ) -> None:
        """Start moving these extents of an idle or partly local context to the best tiers that have room; if
        there is none for all of them, they are lost. Nothing happens if nobody is there to do it."""
        held = [extent for extent in extents if extent in extent.segment.extents]  # if it was not given up
        for pool, own in _by_pool(held) if held else ():
            runner = self._choose_runner(context, pool.pool_id, runners)
            if runner is None:
                if runners and not context.is_family_moving():
                    self._losses.lose(context, own)
                    return  # it may have taken the other extents along
                continue
            count = len(own[0].pages) if len(own) == 1 else sum([len(extent.pages) for extent in own])
            target = self._mirrors.place_for_all(None, runner, count)
            if target is not None:
                relocations = [(extent, target.allocate(len(extent.pages), context)) for extent in own]
                _join(joined, context, (runner, pool.pool_id, target.pool_id), relocations)
            elif self._mirrors.has_room(runner, count) or self._make_room(runner, count, context):
                for each, relocations in self._new_places(context, own, runner).items():
                    _join(joined, context, (runner, pool.pool_id, each.pool_id), relocations)
            elif not context.is_family_moving():
                self._losses.lose(context, own)
                return
        self._local.recount(context)

    def _new_places(
        self, context: Context, extents: list[Extent], runner: int
    ) -> dict[PagePool, list[Relocation]]:
        """By target pool. An extent that has to be spread over several pools is split."""
        by_target: dict[PagePool, list[Relocation]] = {}
        for extent in extents:
            new = self._mirrors.take(context, runner, len(extent.pages))
            for target, places in _by_pool(new):
                count = sum([len(place.pages) for place in places])
                rest = self._split(context, extent, count) if count < len(extent.pages) else None
                by_target.setdefault(target, []).append((extent, places))
                extent = rest or extent
        return by_target

    def _split(self, context: Context, extent: Extent, count: int) -> Extent:
        (mirror,) = (group.mirror for group in context.groups if extent in group.mirror.extents)
        return mirror.split(extent, count)

    def finish(self, done: OpenMove) -> None:
        """The copies are good: they are the mirror now."""
        for old, new in done.relocations:
            context = old.holder
            assert context is not None
            for group in context.groups:
                if old in group.mirror.extents:
                    group.mirror.replace(old, new)
            context.retired.append(old)
        self._counters.relocated_pages += len(done.move.src_pages)

    def undo(self, lost: OpenMove) -> None:
        """The runner is gone before the copies were complete."""
        for old, new in lost.relocations:
            assert old.holder is not None
            old.holder.retired += new

    def _make_room(self, runner: int, count: int, context: Context) -> bool:
        return self.cache is not None and self.cache.make_room_in_tiers(runner, count, context)

    def _choose_runner(self, context: Context, pool_id: int, runners: list[int]) -> int | None:
        """The context's own runner if it works and reaches the pool, else another that does."""
        key = (context.home, pool_id)
        if key not in self._runners:
            able = [runner for runner in runners if self._mirrors.placement.reaches(runner, pool_id)]
            self._runners[key] = context.home if context.home in able else able[0] if able else None
        return self._runners[key]


def _by_age(found: tuple[Context, list[Extent]]) -> int:
    return found[0].serial


def _join(
    joined: JoinedMoves, context: Context, way: tuple[int, int, int], relocations: list[Relocation]
) -> None:
    src_pages: list[int] = []
    dst_pages: list[int] = []
    for old, new in relocations:
        src_pages += old.pages
        for extent in new:
            dst_pages += extent.pages
    joined.add(context, way, src_pages, dst_pages, relocations)


def _by_pool(extents: list[Extent]) -> list[tuple[PagePool, list[Extent]]]:
    """Split extents by pool, in order."""
    if len(extents) == 1:
        return [(extents[0].segment.pool, extents)]
    split: dict[PagePool, list[Extent]] = {}
    for extent in extents:
        split.setdefault(extent.segment.pool, []).append(extent)
    return list(split.items())
