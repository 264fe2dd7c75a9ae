"""Contexts on their way from one device to another."""

from collections.abc import Iterator

from engine.memory.context import Context
from engine.memory.local_copies import LocalCopies
from engine.memory.page_table import PageTable
from engine.memory.pool import Extent


class Departures:
    """Keeps the old local copy of a context until the moves away from there are complete."""

    def __init__(self, local: LocalCopies) -> None:
        self._local = local
        self._left: dict[Context, int] = {}  # who moves -> pool id of the old copy

    def __bool__(self) -> bool:
        return bool(self._left)

    def __contains__(self, context: Context) -> bool:
        return context in self._left

    def leave(self, context: Context) -> None:
        """The local copy of an idle context, if it has one, is `former` from now on: to be fetched from."""
        if context.home is None or not context.num_local:
            return
        self._left[context] = context.home
        for group in context.groups:
            group.former, group.local = group.local, PageTable()

    def undo(self, context: Context) -> None:
        """The moves that should have brought the context to its new home will not be made."""
        self._local.release(context)
        context.home = self._left.pop(context)
        for group in context.groups:
            assert group.former is not None
            group.local, group.former = group.former, None

    def complete(self, context: Context) -> None:
        """No move of the context is in flight any more: release what it left behind, if it did."""
        if self._left.pop(context, None) is not None:
            for group in context.groups:
                assert group.former is not None
                group.former.clear()
                group.former = None

    def coming_from(self, pool_id: int) -> list[Context]:
        """Contexts that are being moved out of this pool to another device."""
        return [context for context, left in self._left.items() if left == pool_id]

    def held(self) -> Iterator[Extent]:
        """What old copies consist of."""
        for context in self._left:
            for group in context.groups:
                if group.former is not None:
                    yield from group.former.extents
