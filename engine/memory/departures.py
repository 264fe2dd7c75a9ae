"""Contexts on their way from one device to another."""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.memory.context import ABSENT, Context, page_ref
from engine.memory.local_copies import LocalCopies


@dataclass(frozen=True, slots=True)
class _OldHome:
    """The local copy that a context had where it comes from."""

    pool_id: int
    tables: list[list[int]]

    @property
    def pages(self) -> list[int]:
        return [page for table in self.tables for page in table if page != ABSENT]


class Departures:
    """Keeps the old local copy of a context until the moves away from there are complete."""

    def __init__(self, local: LocalCopies) -> None:
        self._local = local
        self._old: dict[Context, _OldHome] = {}

    def __contains__(self, context: Context) -> bool:
        return context in self._old

    def leave(self, context: Context) -> list[list[int]]:
        """Take the local copy of an idle context out of its tables: where each page can be fetched from."""
        sources = [list(refs) for refs in context.mirror]
        if context.home is None:
            return sources
        for refs, table in zip(sources, context.local, strict=True):
            refs.extend([ABSENT] * (len(table) - len(refs)))
            for index, page in enumerate(table):
                if page != ABSENT:
                    refs[index] = page_ref(context.home, page)
        if context.num_local:
            self._old[context] = _OldHome(context.home, context.local)
        context.local = [[] for _ in context.local]
        context.num_local = 0
        return sources

    def undo(self, context: Context) -> None:
        """The moves that should have brought the context to its new home will not be made."""
        self._local.release(context)
        old = self._old.pop(context)
        context.home, context.local, context.num_local = old.pool_id, old.tables, len(old.pages)

    def complete(self, context: Context) -> None:
        """No move of the context is in flight any more: release what it left behind, if it did."""
        old = self._old.pop(context, None)
        if old is not None:
            self._local.pools[old.pool_id].release(old.pages)

    def coming_from(self, pool_id: int) -> list[Context]:
        """Contexts that are being moved out of this pool to another device."""
        return [context for context, old in self._old.items() if old.pool_id == pool_id]

    def held(self) -> Iterator[tuple[int, list[int]]]:
        """(pool, pages) of old copies."""
        for old in self._old.values():
            yield old.pool_id, old.pages
