"""When a process that ended by itself is started again, and when it is given up."""

MAX_QUICK_ENDS = 5  # in a row, before it is given up
QUICK_S = 10.0
MAX_PAUSE_S = 30.0


class Restarts:
    """How long to wait before the next start of one process; when to give up."""

    def __init__(self, restart_s: float) -> None:
        self._restart_s = restart_s
        self._num_quick = 0

    def next_pause_s(self, lasted_s: float) -> float | None:
        """After a process that ended by itself after `lasted_s`: twice as long with each in a row that ended
        quickly. None: that was one too many."""
        if lasted_s >= QUICK_S:
            self._num_quick = 0
            return self._restart_s
        self._num_quick += 1
        if self._num_quick == MAX_QUICK_ENDS:
            return None
        return min(self._restart_s * float(2 ** (self._num_quick - 1)), max(MAX_PAUSE_S, self._restart_s))
