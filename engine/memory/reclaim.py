"""Emptying segments of leased tiers that their lenders want back."""

from engine.memory.context import Context
from engine.memory.counters import StoreCounters
from engine.memory.joined_moves import JoinedMoves, Way
from engine.memory.local_copies import LocalCopies
from engine.memory.losses import Losses
from engine.memory.mirrors import Cache, Mirrors
from engine.memory.open_moves import OpenMove, OpenMoves, Purpose, Relocation
from engine.memory.pool import Extent, PagePool, Pages, no_pages
from engine.messages import Move


class _Portion:
    """Extents of contexts that leave one pool, with the moves of one runner (None: nobody can)."""

    __slots__ = ("members", "num_pages", "pool", "runner")

    def __init__(self, runner: int | None, pool: PagePool) -> None:
        self.runner = runner
        self.pool = pool
        self.members: list[tuple[Context, list[Extent]]] = []
        self.num_pages = 0

    def add(self, context: Context, extents: list[Extent]) -> None:
        self.members.append((context, extents))
        self.num_pages += _num_pages(extents)

    def keep_held(self) -> None:
        """Forget what was given up since: the loss of one context may take others along."""
        members, self.members, self.num_pages = self.members, [], 0
        for context, extents in members:
            held = [extent for extent in extents if extent in extent.segment.extents]
            if held:
                self.add(context, held)


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
        self._recalled: dict[tuple[int, int], None] = {}  # (pool id, segment)
        self._has_lost = False  # something that was found to be in the way may have been given up since

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
        pool of its runner. If there is room for all, so many contexts share a move as fill one; else they go
        one by one, the oldest first."""
        self._has_lost = False
        found = [(c, extents) for c, extents in self._contexts() if not self._losses.drop_mirror(c)]
        if not found or not runners:
            return []
        count = sum([_num_pages(extents) for _, extents in found])
        self._mirrors.lease_ahead(runners[0], count)
        fits = self._mirrors.has_room(runners[0], count)
        moves: list[tuple[int, Move]] = []
        portions: dict[tuple[int | None, PagePool], _Portion] = {}
        for context, extents in found:
            for pool, own in _by_pool(extents):
                way = context.home, pool
                portion = portions.get(way)
                if portion is None:
                    runner = self._choose_runner(context.home, pool.pool_id, runners)
                    portion = portions[way] = _Portion(runner, pool)
                portion.add(context, own)
                if portion.num_pages >= pool.full_move or not fits:
                    moves += self._empty(portions.pop(way))
        for portion in portions.values():
            moves += self._empty(portion)
        return moves

    def _empty(self, portion: "_Portion") -> list[tuple[int, Move]]:
        """Start moving a portion to the best tier, if there is one that has room for all of it; or else each
        context to the best tiers that have. What finds no room is lost."""
        runner = portion.runner
        if self._has_lost:
            portion.keep_held()
        if runner is not None and portion.members:
            target = self._mirrors.place_for_all(None, runner, portion.num_pages)
            if target is not None:
                return [(runner, self._move_together(portion, runner, target))]
        self._has_lost = True  # or will soon have
        joined = JoinedMoves(self._moves, Purpose.RELOCATE)
        for context, extents in portion.members:
            count = _num_pages(extents)
            has_room = runner is not None and (
                self._mirrors.has_room(runner, count) or self._make_room(runner, count, context)
            )
            if runner is not None and has_room:
                for target, relocations in self._new_places(context, extents, runner).items():
                    _join(joined, context, (runner, portion.pool, target), relocations)
            elif not context.is_family_moving():
                self._losses.lose(context, extents)
            self._local.recount(context)
        return joined.start()

    def _move_together(self, portion: "_Portion", runner: int, target: PagePool) -> Move:
        relocations = target.copies([extent for _, extents in portion.members for extent in extents])
        src_pages, dst_pages = _page_lists(relocations)
        contexts = [context for context, _ in portion.members]
        for context in contexts:
            context.moves_in_flight += 1
            if context.home is not None:
                self._local.recount(context)
        path, pages = (portion.pool.pool_id, target.pool_id), (src_pages, dst_pages)
        return self._moves.start(contexts, Purpose.RELOCATE, runner, path, pages, relocations)

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

    def _choose_runner(self, home: int | None, pool_id: int, runners: list[int]) -> int | None:
        """The runner where the context is if it works and reaches the pool, else another that does."""
        able = [runner for runner in runners if self._mirrors.placement.reaches(runner, pool_id)]
        return home if home in able else able[0] if able else None


def _num_pages(extents: list[Extent]) -> int:
    if len(extents) == 1:
        return len(extents[0].pages)
    return sum([len(extent.pages) for extent in extents])


def _by_age(found: tuple[Context, list[Extent]]) -> int:
    return found[0].serial


def _join(joined: JoinedMoves, context: Context, way: Way, relocations: list[Relocation]) -> None:
    joined.add(context, way, *_page_lists(relocations), relocations)


def _page_lists(relocations: list[Relocation]) -> tuple[Pages, Pages]:
    """The pages at the old places and at the new ones."""
    src_pages, dst_pages = no_pages(), no_pages()
    for old, new in relocations:
        src_pages += old.pages
        for extent in new:
            dst_pages += extent.pages
    return src_pages, dst_pages


def _by_pool(extents: list[Extent]) -> list[tuple[PagePool, list[Extent]]]:
    """Split extents by pool, in order."""
    if len(extents) == 1:
        return [(extents[0].segment.pool, extents)]
    split: dict[PagePool, list[Extent]] = {}
    for extent in extents:
        split.setdefault(extent.segment.pool, []).append(extent)
    return list(split.items())
