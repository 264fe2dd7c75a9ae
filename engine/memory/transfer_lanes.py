"""Lanes: the moves of one path, cut and joined into batches that are launched a little ahead of the device.

What has been launched cannot be overtaken, and launching takes the time of the runner's loop. So only so much
is launched ahead, and the rest waits in a queue in which urgent moves go first. Contexts are of all sizes: a
large move is cut, so that what is launched ahead can be kept in bounds, and small ones go together, because a
launch has a price of its own. Page lists are arrays, which are cut and joined at little cost per page.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engine.memory.transfer import CompletedMove, MoveQueue
from engine.messages import Move

PageList = npt.NDArray[np.int32]
"""Numbers of pages, `[n]`."""


class Mark(Protocol):
    """A point in a stream's work, such as a CUDA event."""

    def query(self) -> bool:
        """Whether the device has passed it."""

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this mark to a later one; both passed."""


@dataclass(frozen=True, slots=True)
class ListedMove:
    """A move, its pages as arrays."""

    move: Move
    src_pages: PageList
    dst_pages: PageList

    @classmethod
    def of(cls, move: Move) -> "ListedMove":
        """Copies: an array cannot grow while another looks into its memory."""
        return cls(move, *(np.array(pages, dtype=np.int32) for pages in (move.src_pages, move.dst_pages)))

    @property
    def pools(self) -> tuple[int, int]:
        """Source and destination."""
        return self.move.src_pool, self.move.dst_pool


@dataclass(frozen=True, slots=True)
class Piece:
    """Pages `first .. first + num_pages - 1` of the lists of a move."""

    listed: ListedMove
    first: int
    num_pages: int

    @property
    def is_last(self) -> bool:
        return self.first + self.num_pages == len(self.listed.src_pages)


@dataclass(frozen=True, slots=True)
class Batch:
    """Pieces, one at least, of moves between the same two pools."""

    pieces: Sequence[Piece]

    @property
    def pools(self) -> tuple[int, int]:
        """Source and destination."""
        return self.pieces[0].listed.pools

    @property
    def num_pages(self) -> int:
        return sum(piece.num_pages for piece in self.pieces)

    def page_lists(self) -> tuple[PageList, PageList]:
        """Source and destination pages of all pieces."""
        parts = [(each.listed, slice(each.first, each.first + each.num_pages)) for each in self.pieces]
        return (
            np.concatenate([listed.src_pages[part] for listed, part in parts]),
            np.concatenate([listed.dst_pages[part] for listed, part in parts]),
        )


@dataclass(frozen=True, slots=True)
class _Launched:
    batch: Batch
    num_bytes: int
    start: Mark
    end: Mark


class Lookahead:
    """How much is to be launched on a link for it to last until the look after the next.

    Looks are a step apart while the runner computes, and next to nothing while it does not. What is launched
    without need would only be in the way of what is more urgent.
    """

    def __init__(self, bytes_per_s: int, at_least: int, at_most: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._at_least, self._at_most = at_least, at_most
        self._looked_ns: int | None = None
        self.ahead_bytes = at_least  # to be ahead after a look

    @property
    def is_short(self) -> bool:
        """Whether looks come often."""
        return self.ahead_bytes == self._at_least

    def look(self, now_ns: int) -> None:
        """Note that the runner looks at its moves. A long pause is forgotten slowly: another may follow."""
        pause_ns = 0 if self._looked_ns is None else now_ns - self._looked_ns
        self._looked_ns = now_ns
        wanted_bytes = max(2 * pause_ns * self._bytes_per_s // 10**9, self.ahead_bytes * 7 // 8)
        self.ahead_bytes = min(max(wanted_bytes, self._at_least), self._at_most)


class Lane:
    """Moves of one path. One that has begun is launched to its end before the next one begins."""

    def __init__(self) -> None:
        self._queue: MoveQueue[Move] = MoveQueue()
        self._current: ListedMove | None = None
        self._num_taken = 0  # pages of the current move
        self._launched: deque[_Launched] = deque()
        self._duration_ms = 0.0  # of the oldest launched move: of its pieces that have arrived
        self.ahead_bytes = 0  # launched, and not seen to have arrived
        self.is_fresh = True  # nothing has been seen to arrive since it last had nothing to do

    @property
    def is_idle(self) -> bool:
        """Whether nothing is waiting or on its way."""
        return not self.has_waiting and not self._launched

    @property
    def has_waiting(self) -> bool:
        """Whether `take` has something to give."""
        return self._current is not None or len(self._queue) > 0

    @property
    def has_arrived(self) -> bool:
        """Whether the oldest of what was launched has arrived, and `completed` does not know it yet."""
        return bool(self._launched) and self._launched[0].end.query()

    def push(self, move: Move) -> None:
        """Queue a move of at least one page."""
        assert move.src_pages, f"move {move.move_id} is of no page"
        self._queue.push(move)

    def peek(self) -> ListedMove:
        """The move of which `take` will give a piece first."""
        if self._current is None:
            self._current, self._num_taken = ListedMove.of(self._queue.pop()), 0
        return self._current

    def take(self, max_pages: int) -> Batch:
        """The next pages to move; the caller tells by `launch` that they are on their way."""
        pieces = [self._cut(max_pages)]
        batch = Batch(pieces)
        room = max_pages - pieces[0].num_pages
        while room and self.has_waiting:
            if self.peek().pools != batch.pools:
                break
            pieces.append(self._cut(room))
            room -= pieces[-1].num_pages
        return batch

    def launch(self, batch: Batch, num_bytes: int, start: Mark, end: Mark) -> None:
        """Note that a batch lies between two marks of a stream."""
        self.is_fresh = self.is_fresh or not self._launched
        self._launched.append(_Launched(batch, num_bytes, start, end))
        self.ahead_bytes += num_bytes

    def completed(self) -> list[CompletedMove]:
        """Moves all of whose pieces have been seen to have arrived since the last call. A batch's time is
        shared by its moves as its pages are."""
        done = []
        while self._launched and self._launched[0].end.query():
            launched = self._launched.popleft()
            self.is_fresh = False
            self.ahead_bytes -= launched.num_bytes
            page_ms = launched.start.elapsed_time(launched.end) / launched.batch.num_pages
            for piece in launched.batch.pieces:
                self._duration_ms += page_ms * piece.num_pages
                if piece.is_last:
                    done.append(
                        CompletedMove(piece.listed.move.move_id, max(0, round(self._duration_ms * 1e6)))
                    )
                    self._duration_ms = 0.0
        return done

    def clear(self) -> None:
        """Forget what has not been launched."""
        self._queue.clear()
        self._current = None

    def _cut(self, max_pages: int) -> Piece:
        listed = self.peek()
        piece = Piece(listed, self._num_taken, min(max_pages, len(listed.src_pages) - self._num_taken))
        self._num_taken += piece.num_pages
        if piece.is_last:
            self._current = None
        return piece
