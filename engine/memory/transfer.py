"""Moving pages between pools: what a runner asks of the transfers of its device.

A move is reported once, when all of its bytes are at their destination. That is the only moment at which the
engine counts the copies as there and lets slices start that wait for it, so no page is read before it is
complete; and until then the engine gives neither its source nor its destination pages to anybody else.
"""

from collections import deque
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from engine.messages import Move

Pages = npt.NDArray[np.int64]
"""Numbers of pages, `[n]`."""


class TransferError(Exception):
    """A move could not be made; the runner cannot go on."""


@dataclass(frozen=True, slots=True)
class CompletedMove:
    """`duration_ns` is the time that the copy itself took, without the wait for its turn."""

    move_id: int
    duration_ns: int


class Transfers(Protocol):
    """Makes moves beside the computing. Used by the runner's loop alone; never blocks it."""

    def submit(self, move: Move) -> None:
        """Queue a move: urgent ones first, else in order."""

    def completed(self) -> list[CompletedMove]:
        """Moves whose bytes have arrived since the last call. Raises TransferError."""

    def wake_descriptor(self) -> int | None:
        """Readable when `completed` has something new; None: it has to be polled."""

    @property
    def num_open(self) -> int:
        """Moves submitted and not yet returned by `completed`."""

    def close(self) -> None:
        """Drop what has not begun, finish what has."""


class HasUrgency(Protocol):
    """A move, or what stands for one."""

    @property
    def urgent(self) -> bool:
        """Whether it goes before those that are not."""


Queued = TypeVar("Queued", bound=HasUrgency)


class MoveQueue(Generic[Queued]):
    """Moves waiting for one link: urgent ones first, in order of arrival otherwise."""

    def __init__(self) -> None:
        self._urgent: deque[Queued] = deque()
        self._others: deque[Queued] = deque()

    def __len__(self) -> int:
        return len(self._urgent) + len(self._others)

    def push(self, move: Queued) -> None:
        (self._urgent if move.urgent else self._others).append(move)

    def pop(self) -> Queued:
        return (self._urgent or self._others).popleft()

    def clear(self) -> None:
        self._urgent.clear()
        self._others.clear()


@dataclass(frozen=True, slots=True)
class PageRuns:
    """Runs of pages that are neighbours in both pools, int64 `[runs]` each: where they begin, how many."""

    src: Pages
    dst: Pages
    counts: Pages

    def __len__(self) -> int:
        return len(self.counts)


def page_runs(src_pages: npt.ArrayLike, dst_pages: npt.ArrayLike) -> PageRuns:
    """Join neighbours, in order. Both lists have the same length."""
    src, dst = np.asarray(src_pages, dtype=np.int64), np.asarray(dst_pages, dtype=np.int64)
    assert src.shape == dst.shape, "as many pages to write as to read"
    follows = (np.diff(src) == 1) & (np.diff(dst) == 1)
    starts = np.flatnonzero(np.concatenate(([True], ~follows))) if len(src) else np.zeros(0, dtype=np.int64)
    return PageRuns(src[starts], dst[starts], np.diff(starts, append=len(src)))
