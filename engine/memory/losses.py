"""What is given up for good: redundant mirrors, and positions that will have to be recomputed."""

from typing import Protocol

from engine.memory.cached_contexts import CachedContexts
from engine.memory.context import Context
from engine.memory.counters import StoreCounters
from engine.memory.local_copies import LocalCopies
from engine.memory.mirrors import Mirrors
from engine.memory.page import PageLayout
from engine.memory.pool import Extent


class Cache(Protocol):
    """Knows what continues a context."""

    @property
    def cached(self) -> CachedContexts:
        """Contexts that no prompt needs."""

    def shortened(self, context: Context) -> None:
        """Positions of a context are gone that others continued."""


class Losses:
    """Every method leaves the context so that each live computed page is local or mirrored."""

    def __init__(
        self, layout: PageLayout, local: LocalCopies, mirrors: Mirrors, counters: StoreCounters
    ) -> None:
        self._layout = layout
        self._local = local
        self._mirrors = mirrors
        self._counters = counters
        self.cache: Cache | None = None

    def drop_mirror(self, context: Context) -> int:
        """Release the mirror of a context whose local copy is whole; the number of pages that came back."""
        if context.moves_in_flight or context.home is None or context.num_absent(context.computed) > 0:
            return 0
        released = self._mirrors.drop_all(context)
        self._counters.redundant_pages += released
        self._local.recount(context)
        self.refile(context)
        return released

    def lose_bytes(self, context: Context, extents: list[Extent]) -> None:
        """These mirrored pages of the context hold anything now. It is not on the move, or it is closing."""
        if not context.is_closing:
            assert not context.moves_in_flight
            self._counters.lost_pages += sum(len(extent.pages) for extent in extents)
            self.lose(context, extents)

    def lose(self, context: Context, extents: list[Extent]) -> None:
        """Mirrored pages are gone, and with them what comes after: a mirror has no holes. Recompute from the
        first of those that has no local copy either."""
        if self.drop_mirror(context):
            return
        first = _first_index(context, set(extents))
        valid, missing = context.num_valid_pages, []
        for group in context.groups:
            table, start = group.local, max(first, group.live_from)
            if start < (min(table.first, valid) if table.num_pages else valid):
                missing.append(start)
        page_tokens = self._layout.page_tokens
        self._mirrors.cut(context, first * page_tokens)
        if missing:
            self.forget_from(context, min(missing) * page_tokens)
        self._local.recount(context)
        self.refile(context)

    def forget_from(self, context: Context, position: int) -> None:
        """Positions from this one on have to be recomputed; all of the context's own, if a window has moved
        past it. What continued it has to begin again."""
        before = context.computed
        position = max(position, context.start)
        if self._is_trimmed_behind(context, position):
            self.release_all(context)
        else:
            context.computed = position
            self._mirrors.cut(context, position)
            self._local.cut(context, context.num_valid_pages)
            if context.home is not None and not context.num_local:
                self._local.release(context)
        if context.is_growing and context.num_prompts:
            self.count(before - context.computed)
        if self.cache is not None and not context.is_growing:
            self.cache.shortened(context)

    def refile(self, context: Context) -> None:
        """The context, if no prompt needs it, may have its pages elsewhere than before."""
        if self.cache is not None:
            self.cache.cached.refile(context)

    def count(self, num_tokens: int) -> None:
        """A context that a prompt needs has lost so many positions."""
        self._counters.dropped_contexts += 1
        self._counters.dropped_tokens += num_tokens

    def release_all(self, context: Context) -> None:
        """Give up every page of the context."""
        self._local.release(context)
        self._mirrors.drop_all(context)
        context.begin_at(context.start)

    def _is_trimmed_behind(self, context: Context, position: int) -> bool:
        """Whether pages are gone, behind a window, that a token at `position` would read. Ancestors have what
        those before `start` need."""
        first_live, first = self._layout.first_live_page, context.start // self._layout.page_tokens
        return any(
            group.live_from > max(first, first_live(number, position))
            for number, group in enumerate(context.groups)
        )


def _first_index(context: Context, extents: set[Extent]) -> int:
    """The lowest page index that one of these extents of the context's mirror holds."""
    found = []
    for group in context.groups:
        index = group.mirror.first
        for extent in group.mirror.extents:
            if extent in extents:
                found.append(index)
                break
            index += len(extent.pages)
    return min(found)
