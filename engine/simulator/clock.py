"""The manual clock: what happens next, and when."""

from collections.abc import Callable
from heapq import heappop, heappush


class EventQueue:
    """Actions by time, those of one time in the order in which they were set. `now_ns` is the latest."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, time_ns: int, action: Callable[[], None]) -> None:
        """Do `action` at `time_ns`, which must not be over."""
        assert time_ns >= self.now_ns
        self._serial += 1
        heappush(self._heap, (time_ns, self._serial, action))

    def step(self) -> None:
        """Go on to the next action and do it. There must be one."""
        self.now_ns, _, action = heappop(self._heap)
        action()

    def run(self) -> None:
        """All actions, and those that they set, until there are none."""
        heap = self._heap
        while heap:
            self.now_ns, _, action = heappop(heap)
            action()
