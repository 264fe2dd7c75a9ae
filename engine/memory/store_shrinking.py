"""The context store as those see it who want memory back, or have lost some."""

from engine.memory.context import Context
from engine.memory.store_prefixes import PrefixStore
from engine.messages import Move


class ShrinkingStore(PrefixStore):
    """A store whose tiers and pools shrink, and go."""

    # ------------------------------------------------------------------ tiers that shrink or go

    def recall(self, pool_id: int, segments: list[int]) -> None:
        """These segments of a leased tier are wanted back: nothing new goes there, and `reclaim` empties
        them."""
        self._reclaim.recall(pool_id, segments)

    @property
    def has_recalls(self) -> bool:
        """Whether `reclaim` has something to do."""
        return self._reclaim.is_busy

    def reclaim(self, runners: list[int]) -> list[tuple[int, Move]]:
        """Go on emptying recalled segments: give up mirrors whose originals are local, then move the rest to
        other tiers, and drop, the youngest first, what finds no place. Contexts with a move in flight wait
        for the next call.

        `runners` are the local pools of the devices that work. Returns the moves to make, each with the local
        pool of the runner that makes it.
        """
        return self._reclaim.empty(runners)

    def lose_segment(self, pool_id: int, number: int) -> None:
        """The bytes of a leased segment are gone. Contexts that hold some and are on the move (`entangled`)
        have been closed; what the others had nowhere else will be recomputed."""
        for context, extents in self._mirrors.extents_in(pool_id, number).items():
            still = [extent for extent in extents if extent in extent.segment.extents]
            if still:  # the loss of one context may have taken others along
                self._losses.lose_bytes(context, still)

    def entangled(self, pool_id: int) -> set[Context]:
        """Contexts with a move in flight that hold pages of this tier, or are about to, and all that continue
        them."""
        holders = {
            holder
            for number in self.tiers[pool_id].segments
            for holder in self._mirrors.extents_in(pool_id, number)
        }
        entangled = {context for context in holders if context.moves_in_flight}
        entangled |= self._moves.touching(pool_id)
        for context in self.contexts:
            bad = entangled.union(holders) if context.moves_in_flight else entangled
            if not bad.isdisjoint(context.ancestors()):
                entangled.add(context)
        return entangled.union(*[context.descendants() for context in entangled])

    # ------------------------------------------------------------------ local pools that shrink

    def vacate(self, pool_id: int, number: int) -> None:
        """This segment of a local pool is to be empty: nothing new goes there, and `empty_segments` gets out
        what is there."""
        self._local.vacate(pool_id, number)

    def is_shrinking(self, pool_id: int) -> bool:
        """Whether segments of this local pool are to be empty and are not yet."""
        return self._local.is_shrinking(pool_id)

    def is_in_the_way(self, context: Context) -> bool:
        """Whether a segment of its local pool cannot be emptied while the context runs."""
        return any(self._vacating.is_in_the_way(each) for each in (context, *context.ancestors()))

    def empty_segments(self, pool_id: int) -> list[Move]:
        """Go on emptying segments of this local pool; the moves that its runner has to make."""
        if not self._local.is_shrinking(pool_id):
            return []
        idle = list(self._local.idle(pool_id))
        return [move for context in idle for move in self._vacating.empty(context)]

    # ------------------------------------------------------------------ devices that go

    def lose_local(self, pool_id: int) -> None:
        """The bytes of a local pool are gone, where nothing runs any more; contexts that are moving from
        there (`coming_from`) have been closed."""
        for context in [c for c in self.contexts if c.home == pool_id]:
            if context.moves_in_flight and not context.is_growing:
                self.abandon(context)
            elif context.home == pool_id and not context.is_closing:
                self.drop(context)

    def lose_idle(self, pool_id: int) -> None:
        """The bytes of a local pool are gone, where something may still run: nothing is fetched from there
        any more. Contexts that run or move have to wait for `lose_local`."""
        for context in [c for c in self.contexts if c.home == pool_id]:
            if not (context.is_running or context.moves_in_flight or context.is_closing):
                self.drop(context)

    def coming_from(self, pool_id: int) -> set[Context]:
        """Contexts that are being moved out of this pool to another device, and such as are on the move, do
        not run, and continue others that are in this pool."""
        coming = set(self._departures.coming_from(pool_id))
        for context in self.contexts:
            is_on_the_move = context.moves_in_flight and not context.is_running
            if is_on_the_move and any(each.home == pool_id for each in context.ancestors()):
                coming.add(context)
        return coming
