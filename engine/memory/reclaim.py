"""Emptying segments of leased tiers that their lenders want back."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from operator import attrgetter

from engine.memory.context import Context
from engine.memory.counters import StoreCounters
from engine.memory.joined_moves import JoinedMoves
from engine.memory.local_copies import LocalCopies
from engine.memory.losses import Losses
from engine.memory.mirrors import Cache, Mirrors
from engine.memory.open_moves import OpenMove, OpenMoves, Purpose, Relocation
from engine.memory.pool import Extent, PagePool, Pages, Segment, joined
from engine.messages import Move

Portion = list[Extent]
"""Extents that leave one pool with the moves of one runner"""

# Of extents in tiers, all of which have a holder
_holder: Callable[[Extent], Context] = attrgetter("holder")
_age: Callable[[Extent], int] = attrgetter("holder.serial")
_pool: Callable[[Extent], PagePool] = attrgetter("segment.pool")
_way: Callable[[Extent], tuple[int | None, PagePool]] = attrgetter("holder.home", "segment.pool")
_holder_and_pool: Callable[[Extent], tuple[Context, PagePool]] = attrgetter("holder", "segment.pool")


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
    ) -> None:
        self._local = local
        self._mirrors = mirrors
        self._moves = moves
        self._losses = losses
        self._counters = counters
        self.cache: Cache | None = None
        self._recalled: dict[Segment, None] = {}
        self._has_lost = False  # something that was found to be in the way may have been given up since

    def recall(self, pool_id: int, segments: list[int]) -> None:
        """Give out no page of these segments any more."""
        pool = self._mirrors.tiers[pool_id]
        for number in segments:
            pool.recall(number)
            self._recalled[pool.segments[number]] = None

    @property
    def is_busy(self) -> bool:
        """Whether some segment is still being emptied, as far as `empty` has seen."""
        return bool(self._recalled)

    def _movable(self) -> list[Extent]:
        """What is in segments that are not empty yet and can be moved now, once all is given up that is not
        needed."""
        found: list[Extent] = []
        for segment in list(self._recalled):
            if not segment.extents:
                del self._recalled[segment]
            else:
                found += segment.extents
        drop_mirror = self._losses.drop_mirror
        movable = {c for c in _holders(found) if not c.moves_in_flight and not drop_mirror(c)}
        return [extent for extent in found if extent.holder in movable]

    def empty(self, runners: list[int]) -> list[tuple[int, Move]]:
        """Get everybody out who has no move in flight, now or with the moves returned: each with the local
        pool of its runner. If there is room for all, so many contexts share a move as fill one; else they go
        one by one, the oldest first."""
        self._has_lost = False
        found = self._movable()
        if not found or not runners:
            return []
        count = _num_pages(found)
        self._mirrors.lease_ahead(runners[0], count)
        fits = self._mirrors.has_room(runners[0], count)
        moves: list[tuple[int, Move]] = []
        for group in _grouped(found, _way) if fits else _grouped(sorted(found, key=_age), _holder_and_pool):
            runner = self._choose_runner(_holder(group[0]).home, _pool(group[0]).pool_id, runners)
            for portion in _in_full_moves(group) if fits else (group,):
                moves += self._empty(portion, runner)
        return moves

    def _empty(self, portion: Portion, runner: int | None) -> list[tuple[int, Move]]:
        """Start moving a portion to the best tier, if there is one that has room for all of it; or else each
        context to the best tiers that have. What finds no room is lost."""
        if self._has_lost:  # the loss of one context may take others along
            portion = [extent for extent in portion if extent in extent.segment.extents]
        if runner is not None and portion:
            src_pages = joined(portion)
            target = self._mirrors.place_for_all(None, runner, len(src_pages))
            if target is not None:
                return [(runner, self._move_together(portion, src_pages, runner, target))]
        self._has_lost = True  # or will soon have
        joint = JoinedMoves(self._moves, Purpose.RELOCATE)
        for extents in _grouped(portion, _holder):
            context, count = _holder(extents[0]), _num_pages(extents)
            has_room = runner is not None and (
                self._mirrors.has_room(runner, count) or self._make_room(runner, count, context)
            )
            if runner is not None and has_room:
                for target, relocation in self._new_places(context, extents, runner).items():
                    pages = joined(relocation.old), joined(relocation.new)
                    joint.add(context, (runner, _pool(extents[0]), target), *pages, relocation)
            elif not context.is_family_moving():
                self._losses.lose(context, extents)
            self._local.recount(context)
        return joint.start()

    def _move_together(self, portion: Portion, src_pages: Pages, runner: int, target: PagePool) -> Move:
        new, dst_pages = target.copies(portion, len(src_pages))
        contexts = list(_holders(portion))
        for context in contexts:
            context.moves_in_flight += 1
            if context.home is not None:
                self._local.recount(context)
        path, pages = (_pool(portion[0]).pool_id, target.pool_id), (src_pages, dst_pages)
        return self._moves.start(contexts, Purpose.RELOCATE, runner, path, pages, Relocation(portion, new))

    def _new_places(self, context: Context, extents: list[Extent], runner: int) -> dict[PagePool, Relocation]:
        """By target pool. An extent that has to be spread over several pools is split."""
        by_target: dict[PagePool, Relocation] = {}
        for extent in extents:
            new = self._mirrors.take(context, runner, len(extent.pages))
            for places in _grouped(new, _pool):
                target = _pool(places[0])
                count = _num_pages(places)
                rest = self._split(context, extent, count) if count < len(extent.pages) else None
                relocation = by_target.setdefault(target, Relocation([], []))
                relocation.old.append(extent)
                relocation.new.extend(places)
                extent = rest or extent
        return by_target

    def _split(self, context: Context, extent: Extent, count: int) -> Extent:
        (mirror,) = (group.mirror for group in context.groups if extent in group.mirror.extents)
        return mirror.split(extent, count)

    def finish(self, done: OpenMove) -> None:
        """The copies are good: they are the mirror now."""
        assert done.relocation is not None
        for old, new in done.relocation.pairs():
            context = _holder(old)
            for group in context.groups:
                if old in group.mirror.extents:
                    group.mirror.replace(old, new)
            context.retired.append(old)
        self._counters.relocated_pages += len(done.move.src_pages)

    def moved(self, context: Context) -> None:
        """The context has no move in flight any more: it leaves now if it can without one. By the next call
        of `empty` it may be on the move again, and so on for as long as it runs."""
        if self._recalled and any(extent.segment.is_recalled for extent in self._mirrors.held(context)):
            self._losses.drop_mirror(context)

    def undo(self, lost: OpenMove) -> None:
        """The runner is gone before the copies were complete."""
        assert lost.relocation is not None
        for new in lost.relocation.new:
            _holder(new).retired.append(new)

    def _make_room(self, runner: int, count: int, context: Context) -> bool:
        return self.cache is not None and self.cache.make_room_in_tiers(runner, count, context)

    def _choose_runner(self, home: int | None, pool_id: int, runners: list[int]) -> int | None:
        """The runner where the context is if it works and reaches the pool, else another that does."""
        able = [runner for runner in runners if self._mirrors.placement.reaches(runner, pool_id)]
        return home if home in able else able[0] if able else None


def _num_pages(extents: list[Extent]) -> int:
    return sum([len(extent.pages) for extent in extents])


def _holders(extents: list[Extent]) -> Iterable[Context]:
    """Each once."""
    return dict.fromkeys(map(_holder, extents))


def _grouped(extents: list[Extent], key: Callable[[Extent], Hashable]) -> list[list[Extent]]:
    """Those with the same key together, in order."""
    groups: dict[Hashable, list[Extent]] = {}
    for extent in extents:
        groups.setdefault(key(extent), []).append(extent)
    return list(groups.values())


def _in_full_moves(portion: Portion) -> Iterator[Portion]:
    """In parts of which each but the last fills a move."""
    full = portion[0].segment.pool.full_move
    start = num_pages = 0
    for end, extent in enumerate(portion, 1):
        num_pages += len(extent.pages)
        if num_pages >= full:
            yield portion[start:end]
            start, num_pages = end, 0
    if start < len(portion):
        yield portion[start:]
