"""Lanes: the moves of one path, cut and joined into batches that are launched a little ahead of the device.

What has been launched cannot be overtaken, and launching takes the time of the runner's loop. So only so much
is launched ahead, and the rest waits in a queue in which urgent moves go first. Contexts are of all sizes: a
large move is cut, so that what is launched ahead can be kept in bounds, and small ones go together, because a
launch has a price of its own.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engine.memory.transfer import CompletedMove, MoveQueue
from engine.messages import Move


class Mark(Protocol):
    """A point in a stream's work, such as a CUDA event."""

    def query(self) -> bool:
        """Whether the device has passed it."""

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this mark to a later one; both passed."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Pages `first .. first + num_pages - 1` of the lists of a move."""

    move: Move
    first: int
    num_pages: int

    @property
    def is_last(self) -> bool:
        return self.first + self.num_pages == len(self.move.src_pages)


@dataclass(frozen=True, slots=True)
class Batch:
    """Pieces, one at least, of moves between the same two pools."""

    pieces: Sequence[Piece]

    @property
    def pools(self) -> tuple[int, int]:
        """Source and destination."""
        move = self.pieces[0].move
        return move.src_pool, move.dst_pool

    @property
    def num_pages(self) -> int:
        return sum(piece.num_pages for piece in self.pieces)

    def page_lists(self) -> tuple[list[int], list[int]]:
        """Source and destination pages of all pieces."""
        src_pages: list[int] = []
        dst_pages: list[int] = []
        for piece in self.pieces:
            part = slice(piece.first, piece.first + piece.num_pages)
            src_pages += piece.move.src_pages[part]
            dst_pages += piece.move.dst_pages[part]
        return src_pages, dst_pages


@dataclass(frozen=True, slots=True)
class _Launched:
    batch: Batch
    num_bytes: int
    start: Mark
    end: Mark


class Lane:
    """Moves of one path. One that has begun is launched to its end before the next one begins."""

    def __init__(self) -> None:
        self._queue = MoveQueue()
        self._current: Move | None = None
        self._num_taken = 0  # pages of the current move
        self._launched: deque[_Launched] = deque()
        self._duration_ms = 0.0  # of the oldest launched move: of its pieces that have arrived
        self.ahead_bytes = 0  # launched, and not seen to have arrived

    @property
    def has_waiting(self) -> bool:
        """Whether `take` has something to give."""
        return self._current is not None or len(self._queue) > 0

    def push(self, move: Move) -> None:
        """Queue a move of at least one page."""
        assert move.src_pages, f"move {move.move_id} is of no page"
        self._queue.push(move)

    def peek(self) -> Move:
        """The move of which `take` will give a piece first."""
        if self._current is None:
            self._current, self._num_taken = self._queue.pop(), 0
        return self._current

    def take(self, max_pages: int) -> Batch:
        """The next pages to move; the caller tells by `launch` that they are on their way."""
        pieces = [self._cut(max_pages)]
        batch = Batch(pieces)
        room = max_pages - pieces[0].num_pages
        while room and self.has_waiting:
            move = self.peek()
            if (move.src_pool, move.dst_pool) != batch.pools:
                break
            pieces.append(self._cut(room))
            room -= pieces[-1].num_pages
        return batch

    def launch(self, batch: Batch, num_bytes: int, start: Mark, end: Mark) -> None:
        """Note that a batch lies between two marks of a stream."""
        self._launched.append(_Launched(batch, num_bytes, start, end))
        self.ahead_bytes += num_bytes

    def completed(self) -> list[CompletedMove]:
        """Moves all of whose pieces have been seen to have arrived since the last call. A batch's time is
        shared by its moves as its pages are."""
        done = []
        while self._launched and self._launched[0].end.query():
            launched = self._launched.popleft()
            self.ahead_bytes -= launched.num_bytes
            page_ms = launched.start.elapsed_time(launched.end) / launched.batch.num_pages
            for piece in launched.batch.pieces:
                self._duration_ms += page_ms * piece.num_pages
                if piece.is_last:
                    done.append(CompletedMove(piece.move.move_id, max(0, round(self._duration_ms * 1e6))))
                    self._duration_ms = 0.0
        return done

    def clear(self) -> None:
        """Forget what has not been launched."""
        self._queue.clear()
        self._current = None

    def _cut(self, max_pages: int) -> Piece:
        move = self.peek()
        piece = Piece(move, self._num_taken, min(max_pages, len(move.src_pages) - self._num_taken))
        self._num_taken += piece.num_pages
        if piece.is_last:
            self._current = None
        return piece
