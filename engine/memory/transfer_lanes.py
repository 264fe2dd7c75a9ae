"""Lanes: the moves of one path, cut into pieces that are launched a little ahead of the device.

What has been launched cannot be overtaken, and launching takes the time of the runner's loop. So only so much
is launched ahead, in pieces, and the rest waits in a queue in which urgent moves go first.
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
    def src_pages(self) -> Sequence[int]:
        return self.move.src_pages[self.first : self.first + self.num_pages]

    @property
    def dst_pages(self) -> Sequence[int]:
        return self.move.dst_pages[self.first : self.first + self.num_pages]

    @property
    def is_last(self) -> bool:
        return self.first + self.num_pages == len(self.move.src_pages)


@dataclass(frozen=True, slots=True)
class _Launched:
    piece: Piece
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
        self._start: Mark | None = None  # of the oldest move of which a piece has arrived and one has not
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
        """The move of which `take` will give a piece."""
        if self._current is None:
            self._current, self._num_taken = self._queue.pop(), 0
        return self._current

    def take(self, max_pages: int) -> Piece:
        """The next pages to move; the caller tells by `launch` that they are on their way."""
        move = self.peek()
        piece = Piece(move, self._num_taken, min(max_pages, len(move.src_pages) - self._num_taken))
        self._num_taken += piece.num_pages
        if piece.is_last:
            self._current = None
        return piece

    def launch(self, piece: Piece, num_bytes: int, start: Mark, end: Mark) -> None:
        """Note that a piece lies between two marks of a stream."""
        self._launched.append(_Launched(piece, num_bytes, start, end))
        self.ahead_bytes += num_bytes

    def completed(self) -> list[CompletedMove]:
        """Moves all of whose pieces have been seen to have arrived since the last call."""
        done = []
        while self._launched and self._launched[0].end.query():
            launched = self._launched.popleft()
            self.ahead_bytes -= launched.num_bytes
            start = self._start or launched.start
            self._start = start
            if launched.piece.is_last:
                self._start = None
                duration_ns = max(0, round(start.elapsed_time(launched.end) * 1e6))
                done.append(CompletedMove(launched.piece.move.move_id, duration_ns))
        return done

    def clear(self) -> None:
        """Forget what has not been launched."""
        self._queue.clear()
        self._current = None
