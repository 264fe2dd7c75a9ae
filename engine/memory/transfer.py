"""Moving pages between pools: what a runner asks of the transfers of its device.

A move is reported once, when all of its bytes are at their destination. That is the only moment at which the
engine counts the copies as there and lets slices start that wait for it, so no page is read before it is
complete; and until then the engine gives neither its source nor its destination pages to anybody else.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.messages import Move


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


class MoveQueue:
    """Moves waiting for one link: urgent ones first, in order of arrival otherwise."""

    def __init__(self) -> None:
        self._urgent: deque[Move] = deque()
        self._others: deque[Move] = deque()

    def __len__(self) -> int:
        return len(self._urgent) + len(self._others)

    def push(self, move: Move) -> None:
        (self._urgent if move.urgent else self._others).append(move)

    def pop(self) -> Move:
        return (self._urgent or self._others).popleft()

    def clear(self) -> None:
        self._urgent.clear()
        self._others.clear()


def extents(src_pages: Sequence[int], dst_pages: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Join neighbours: (first source page, first destination page, number of pages), in order."""
    src = dst = count = 0
    for next_src, next_dst in zip(src_pages, dst_pages, strict=True):
        if count and next_src == src + count and next_dst == dst + count:
            count += 1
            continue
        if count:
            yield src, dst, count
        src, dst, count = next_src, next_dst, 1
    if count:
        yield src, dst, count
