"""What is given up for good: redundant mirrors, and positions that will have to be recomputed."""

from engine.memory.context import Context
from engine.memory.counters import StoreCounters
from engine.memory.local_copies import LocalCopies
from engine.memory.mirrors import Mirrors, Places
from engine.memory.page import PageLayout


class Losses:
    """Every method leaves the context so that each live computed page is local or mirrored."""

    def __init__(
        self, layout: PageLayout, local: LocalCopies, mirrors: Mirrors, counters: StoreCounters
    ) -> None:
        self._layout = layout
        self._local = local
        self._mirrors = mirrors
        self._counters = counters

    def drop_mirror(self, context: Context) -> int:
        """Release the mirror of a context whose local copy is whole; the number of pages that came back."""
        if context.moves_in_flight or context.home is None or context.num_absent(context.computed) > 0:
            return 0
        released = self._mirrors.drop_all(context)
        self._counters.redundant_pages += released
        self._local.recount(context)
        return released

    def lose_bytes(self, context: Context, places: Places) -> None:
        """These mirrored pages of the context hold anything now. It is not on the move, or it is closing."""
        if places and not context.is_closing:
            assert not context.moves_in_flight
            self._counters.lost_pages += sum(len(indices) for _, indices in places)
            self.lose(context, places)

    def lose(self, context: Context, places: Places) -> None:
        """Mirrored pages are gone: recompute from the first that has no local copy either."""
        if self.drop_mirror(context):
            return
        for group, indices in places:
            self._mirrors.drop_at(context, group, indices)
        first = min(indices[0] for _, indices in places)
        page_tokens = self._layout.page_tokens
        context.mirrored = context.mirror_target = min(context.mirrored, first * page_tokens)
        missing = [i for indices in context.absent(context.computed) for i in indices if i >= first]
        if missing:
            self.forget_from(context, min(missing) * page_tokens)
        self._local.recount(context)

    def forget_from(self, context: Context, position: int) -> None:
        """Positions from this one on have to be recomputed; all of them, if a window has moved past it."""
        before = context.computed
        if self._is_trimmed_behind(context, position):
            self.release_all(context)
        else:
            context.computed = position
            context.mirrored = context.mirror_target = min(context.mirrored, position)
            self._local.cut(context, context.num_valid_pages)
            if context.home is not None and not context.num_local:
                self._local.release(context)
        self._counters.dropped_contexts += 1
        self._counters.dropped_tokens += before - context.computed

    def release_all(self, context: Context) -> None:
        """Give up every page of the context."""
        self._local.release(context)
        self._mirrors.drop_all(context)
        context.computed = 0
        context.live_from = [0] * len(context.live_from)

    def _is_trimmed_behind(self, context: Context, position: int) -> bool:
        """Whether pages are gone, behind a window, that a token at `position` would read."""
        first_live = self._layout.first_live_page
        return any(
            live_from > first_live(group, position) for group, live_from in enumerate(context.live_from)
        )
