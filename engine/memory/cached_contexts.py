"""Cached contexts, the least recently used first: all, and in each tier those that have pages there."""

from collections.abc import Collection, Iterator
from heapq import merge
from operator import itemgetter
from typing import TypeAlias

from sortedcontainers import SortedDict

from engine.memory.context import Context

_Queue: TypeAlias = "SortedDict[int, Context]"


class CachedContexts:
    """Uses are numbered, and contexts in the order of their latest ones. In each tier those *asleep*, which
    have no local copy, have a queue of their own. What is on the move is filed when its moves are complete.
    """

    def __init__(self) -> None:
        self._uses: dict[Context, int] = {}
        self._num_uses = 0
        self._queues: dict[tuple[int, bool], _Queue] = {}  # by tier and whether they are asleep
        self._filed: dict[Context, list[_Queue]] = {}  # those with pages in tiers

    def __len__(self) -> int:
        return len(self._uses)

    def __iter__(self) -> Iterator[Context]:
        return iter(self._uses)

    def __contains__(self, context: Context) -> bool:
        return context in self._uses

    def use(self, context: Context) -> None:
        """The context, which may be new here, has been used just now."""
        self.discard(context)
        self._num_uses += 1
        self._uses[context] = self._num_uses
        self.refile(context)

    def discard(self, context: Context) -> None:
        """The context, if it is here, is not cached any more."""
        if context in self._uses:
            self._take_out(context)
            del self._uses[context]

    def refile(self, context: Context) -> None:
        """The context, if it is here, may have its pages elsewhere than before."""
        use = self._uses.get(context)
        if use is None:
            return
        self._take_out(context)
        tiers = _tiers(context)
        if tiers:
            self._filed[context] = queues = self._queues_of(context, tiers)
            for queue in queues:
                queue[use] = context

    def _take_out(self, context: Context) -> None:
        for queue in self._filed.pop(context, ()):
            del queue[self._uses[context]]

    def _queues_of(self, context: Context, tiers: Collection[int]) -> list[_Queue]:
        is_asleep = context.home is None
        return [self._queues.setdefault((pool_id, is_asleep), SortedDict()) for pool_id in tiers]

    # ------------------------------------------------------------------ who gives way

    def oldest(self, pools: Collection[int], before: Context | None = None) -> Iterator[Context]:
        """Contexts with pages in these tiers that neither run nor are on the move, the least recently used
        first; with `before`, which is cached, only such as are asleep and longer unused. Nothing may change
        meanwhile."""
        limit = self._uses[before] if before is not None else self._num_uses + 1
        kinds = (True,) if before is not None else (True, False)
        found = [self._queues.get((pool_id, kind)) for pool_id in pools for kind in kinds]
        last = 0
        for use, context in merge(*[queue.items() for queue in found if queue], key=itemgetter(0)):
            if use >= limit:
                return
            if use != last and not context.moves_in_flight and not context.is_running:
                yield context  # once, though it may have pages in several
            last = use

    def oldest_with(self, count: int, pools: Collection[int], before: Context | None = None) -> list[Context]:
        """As many of them as have `count` pages in these tiers; none, if all have not so many."""
        found: list[Context] = []
        for context in self.oldest(pools, before):
            found.append(context)
            count -= context.num_mirrored_in(pools)
            if count <= 0:
                return found
        return []

    def check_integrity(self) -> None:
        """Contexts are filed where their pages are. Raises AssertionError."""
        assert list(self._uses.values()) == sorted(self._uses.values())
        num_entries = 0
        for context, queues in self._filed.items():
            assert all(queue[self._uses[context]] is context for queue in queues)
            num_entries += len(queues)
        assert num_entries == sum(map(len, self._queues.values()))
        for context in self._uses:
            if not context.is_running and not context.moves_in_flight:
                queues = self._queues_of(context, _tiers(context))
                assert {id(queue) for queue in queues} == {
                    id(queue) for queue in self._filed.get(context, ())
                }


def _tiers(context: Context) -> set[int]:
    """The tiers where the context's mirror has pages."""
    return {extent.segment.pool.pool_id for group in context.groups for extent in group.mirror.extents}
