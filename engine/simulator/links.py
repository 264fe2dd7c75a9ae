"""Links on which pages move, one move at a time."""

from collections import deque
from collections.abc import Callable

from engine.messages import Move
from engine.simulator.clock import EventQueue
from engine.simulator.hardware import LinkSpeed


class Link:
    """One direction of a link of one GPU. Urgent moves go before those that wait, never into one that is
    under way. `on_end(move, duration_ns)` is called when all bytes are there."""

    def __init__(
        self, events: EventQueue, speed: LinkSpeed, page_bytes: int, on_end: Callable[[Move, int], None]
    ) -> None:
        self._events = events
        self._speed = speed
        self._page_bytes = page_bytes
        self._on_end = on_end
        self._urgent: deque[Move] = deque()
        self._others: deque[Move] = deque()
        self._is_busy = False
        self.busy_ns = 0

    def submit(self, move: Move) -> None:
        (self._urgent if move.urgent else self._others).append(move)
        if not self._is_busy:
            self._begin()

    def _begin(self) -> None:
        move = (self._urgent or self._others).popleft()
        duration_ns = self._speed.duration_ns(len(move.src_pages) * self._page_bytes)
        self._is_busy = True
        self.busy_ns += duration_ns
        self._events.at(self._events.now_ns + duration_ns, lambda: self._end(move, duration_ns))

    def _end(self, move: Move, duration_ns: int) -> None:
        self._is_busy = False
        self._on_end(move, duration_ns)
        if not self._is_busy and (self._urgent or self._others):
            self._begin()
