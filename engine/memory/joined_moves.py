"""Pages of many contexts that go the same way, joined into few moves."""

from engine.memory.context import Context
from engine.memory.open_moves import OpenMoves, Purpose, Relocation
from engine.memory.pool import Extent, PagePool, Pages, no_pages
from engine.messages import Move

Way = tuple[int, PagePool, PagePool]
"""Runner (by its local pool), where from, and where to"""


class _Open:
    """What the next move on one path will be."""

    __slots__ = ("contexts", "dst_pages", "full", "new", "old", "src_pages")

    def __init__(self, full: int) -> None:
        self.full = full  # pages
        self.contexts: list[Context] = []
        self.src_pages = no_pages()
        self.dst_pages = no_pages()
        self.old: list[Extent] = []
        self.new: list[Extent] = []


class JoinedMoves:
    """The moves of one purpose that are being planned; a context waits until those with its pages are
    complete. So they are joined only up to a size, and only what no slice waits for."""

    def __init__(self, moves: OpenMoves, purpose: Purpose) -> None:
        self._moves = moves
        self._purpose = purpose
        self._open: dict[Way, _Open] = {}
        self._started: list[tuple[int, Move]] = []

    def add(
        self,
        context: Context,
        way: Way,
        src_pages: Pages,
        dst_pages: Pages,
        relocation: Relocation | None = None,
    ) -> None:
        """Pages of the context go this way."""
        joined = self._open.get(way)
        if joined is None:
            joined = self._open[way] = _Open(min(way[1].full_move, way[2].full_move))
        contexts = joined.contexts
        if not contexts or contexts[-1] is not context:
            contexts.append(context)
            context.moves_in_flight += 1
        joined.src_pages += src_pages
        joined.dst_pages += dst_pages
        if relocation is not None:
            joined.old += relocation.old
            joined.new += relocation.new
        if len(joined.src_pages) >= joined.full:
            self._start(way)

    def start(self) -> list[tuple[int, Move]]:
        """All moves, each with the local pool of its runner."""
        for way in list(self._open):
            self._start(way)
        return self._started

    def _start(self, way: Way) -> None:
        joined, (runner, source, destination) = self._open.pop(way), way
        path, pages = (source.pool_id, destination.pool_id), (joined.src_pages, joined.dst_pages)
        relocation = Relocation(joined.old, joined.new) if joined.old else None
        move = self._moves.start(joined.contexts, self._purpose, runner, path, pages, relocation)
        self._started.append((runner, move))
