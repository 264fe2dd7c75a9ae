"""Contexts on their way from one device to another."""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.memory.context import Context
from engine.memory.local_copies import LocalCopies
from engine.memory.page_table import PageTable
from engine.memory.pool import Extent


@dataclass(frozen=True, slots=True)
class _OldHome:
    """The local copy that a context had where it comes from."""

    pool_id: int
    tables: list[PageTable]


class Departures:
    """Keeps the old local copy of a context until the moves away from there are complete."""

    def __init__(self, local: LocalCopies) -> None:
        self._local = local
        self._old: dict[Context, _OldHome] = {}

    def __bool__(self) -> bool:
        return bool(self._old)

    def __contains__(self, context: Context) -> bool:
        return context in self._old

    def leave(self, context: Context) -> list[PageTable]:
        """Take the local copy of an idle context away, to be fetched from where it is; returns its tables."""
        old = context.local
        if context.home is not None and context.num_local:
            self._old[context] = _OldHome(context.home, old)
        context.local = [PageTable() for _ in old]
        return old

    def undo(self, context: Context) -> None:
        """The moves that should have brought the context to its new home will not be made."""
        self._local.release(context)
        old = self._old.pop(context)
        context.home, context.local = old.pool_id, old.tables

    def complete(self, context: Context) -> None:
        """No move of the context is in flight any more: release what it left behind, if it did."""
        old = self._old.pop(context, None)
        if old is not None:
            for table in old.tables:
                table.clear()

    def coming_from(self, pool_id: int) -> list[Context]:
        """Contexts that are being moved out of this pool to another device."""
        return [context for context, old in self._old.items() if old.pool_id == pool_id]

    def held(self) -> Iterator[Extent]:
        """What old copies consist of."""
        for old in self._old.values():
            for table in old.tables:
                yield from table.extents
