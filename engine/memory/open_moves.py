"""Moves that runners have been told to make and have not reported."""

from collections.abc import Iterator, Sequence
from enum import Enum

from msgspec import Struct

from engine.memory.context import Context
from engine.memory.counters import StoreCounters
from engine.memory.pool import Extent, Pages
from engine.messages import Move


class Relocation(Struct, frozen=True, gc=False):
    """Extents, and the places to which their pages are copied: in the same order, and none of them for pages
    of two extents."""

    old: list[Extent]
    new: list[Extent]

    def pairs(self) -> Iterator[tuple[Extent, list[Extent]]]:
        """Each extent with its new places."""
        start = 0
        for old in self.old:
            end, missing = start, len(old.pages)
            while missing > 0:
                missing -= len(self.new[end].pages)
                end += 1
            assert not missing
            yield old, self.new[start:end]
            start = end


class Purpose(Enum):
    """What a move is for."""

    FETCH = "fetch"  # to the local pool of the device where the context will run
    MIRROR = "mirror"  # out of it
    RELOCATE = "relocate"  # from one tier to another, because the first wants its memory back
    SHIFT = "shift"  # within the local pool, out of a segment that is to be empty


class OpenMove(Struct, frozen=True, gc=False):
    """A move in flight, of pages of `contexts`. `runner` is the local pool of the device whose runner makes
    it."""

    contexts: Sequence[Context]
    purpose: Purpose
    runner: int
    move: Move
    relocation: Relocation | None = None  # of a RELOCATE or SHIFT


class OpenMoves:
    """Numbers moves and knows whose they are; counts them when they are complete."""

    def __init__(self, counters: StoreCounters) -> None:
        self._counters = counters
        self._open: dict[int, OpenMove] = {}
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, move_id: int) -> bool:
        return move_id in self._open

    def start(
        self,
        contexts: Sequence[Context],
        purpose: Purpose,
        runner: int,
        path: tuple[int, int],
        pages: tuple[Pages, Pages],
        relocation: Relocation | None = None,
    ) -> Move:
        """A new move between the pools of `path`; `pages` are its source and destination pages. The contexts
        have counted it among their moves in flight."""
        self._last_id += 1
        move = Move(
            move_id=self._last_id,
            src_pool=path[0],
            dst_pool=path[1],
            src_pages=pages[0],
            dst_pages=pages[1],
            urgent=purpose is Purpose.FETCH,
        )
        self._open[self._last_id] = OpenMove(contexts, purpose, runner, move, relocation)
        return move

    def finish(self, move_id: int, duration_ns: int) -> OpenMove:
        """All bytes of the move have arrived."""
        done = self._take(move_id)
        path = (done.move.src_pool, done.move.dst_pool)
        self._counters.count_move(path, len(done.move.src_pages), duration_ns)
        return done

    def lose(self, runner: int) -> list[OpenMove]:
        """The runner is gone: forget its moves, and return them."""
        lost = [move_id for move_id, open_move in self._open.items() if open_move.runner == runner]
        return [self._take(move_id) for move_id in lost]

    def of_context(self, context: Context) -> list[OpenMove]:
        return [open_move for open_move in self._open.values() if context in open_move.contexts]

    def being_written(self) -> Iterator[Extent]:
        """What no table names yet: destinations of relocations and shifts."""
        for open_move in self._open.values():
            if open_move.relocation is not None:
                yield from open_move.relocation.new

    def touching(self, pool_id: int) -> set[Context]:
        """Contexts that are being moved from or to this pool."""
        there = [o for o in self._open.values() if pool_id in (o.move.src_pool, o.move.dst_pool)]
        return {context for open_move in there for context in open_move.contexts}

    def _take(self, move_id: int) -> OpenMove:
        taken = self._open.pop(move_id)
        for context in taken.contexts:
            context.moves_in_flight -= 1
        return taken
