"""When a process that ended by itself is started again, and when it is given up."""

MAX_QUICK_ENDS = 5  # in a row, before it is given up
MAX_FAILED_STARTS = 3  # of a runner in a row, before it is given up
QUICK_S = 10.0
MAX_PAUSE_S = 30.0


class Pauses:
    """How long to wait before the next start of one process."""

    def __init__(self, restart_s: float) -> None:
        self.num_quick = 0  # ends in a row soon after the start
        self._restart_s = restart_s

    def after(self, lasted_s: float) -> float:
        """After a process that ended by itself after `lasted_s`: twice as long with each in a row that ended
        quickly."""
        if lasted_s >= QUICK_S:
            self.num_quick = 0
            return self._restart_s
        self.num_quick += 1
        longest_s = max(MAX_PAUSE_S, self._restart_s)
        return min(self._restart_s * 2.0 ** min(self.num_quick - 1, 32), longest_s)


class Restarts:
    """Of a process without which there is nothing to serve with: it is given up if it never lasts."""

    def __init__(self, restart_s: float) -> None:
        self._pauses = Pauses(restart_s)

    def next_pause_s(self, lasted_s: float) -> float | None:
        """After a process that ended by itself after `lasted_s`. None: that was one quick end too many."""
        pause_s = self._pauses.after(lasted_s)
        return None if self._pauses.num_quick == MAX_QUICK_ENDS else pause_s


class RunnerRestarts:
    """Of the runner of one device. One that could serve once is started again for ever, as long as others of
    its model serve; nobody's configuration is at fault when it cannot start any more."""

    def __init__(self, restart_s: float) -> None:
        self._pauses = Pauses(restart_s)
        self._num_failed_starts = 0
        self._was_ready = False

    def next_pause_s(self, ready_s: float | None, *, was_refused: bool, others_serve: bool) -> float | None:
        """After a runner that was ready for `ready_s`, None if it never was; `was_refused`: it said that it
        cannot serve. None: it is given up."""
        self._was_ready |= ready_s is not None
        self._num_failed_starts = 0 if ready_s is not None else self._num_failed_starts + 1
        pause_s = self._pauses.after(ready_s or 0.0)
        if self._was_ready and others_serve:
            return pause_s
        is_hopeless = was_refused and not self._was_ready
        return None if is_hopeless or self._num_failed_starts >= MAX_FAILED_STARTS else pause_s
