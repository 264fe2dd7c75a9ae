"""When to launch the next step while one runs: late, for whoever arrives until then has a place in it.

A step that is launched as soon as the one before it begins is a whole step old when its own time comes: what
the engine answers to a report would wait for two. Launched a little before the end, it has everything that
has arrived by then, and the device still finds it in time.
"""

from engine.model_runner.batch import StepRow

_LEARNING = 0.2  # of the difference between a step's time and what was expected
_FIRST_LEAD_NS = 2_000_000
_MIN_LEAD_NS = 300_000
_MAX_LEAD_NS = 50_000_000
_DECAY = 1 / 64  # of the lead, at each step that was not late
_IDLE_NS = 50_000  # between two steps whatever is done


class LaunchPace:
    """Expects a step to take as long as the last ones that only decoded, and as much more per token of
    prefill as the last ones that had some. The lead is learnt from the time that the device stood idle: it
    grows by that time at once, and shrinks slowly. Steps with prefill take the host longer to launch, and
    have a lead of their own.
    """

    def __init__(self) -> None:
        self._decode_ns: float | None = None
        self._prefill_token_ns: float | None = None
        self._lead_ns = {False: float(_FIRST_LEAD_NS), True: float(_FIRST_LEAD_NS)}

    def launch_at_ns(self, began_ns: int, rows: list[StepRow], *, next_prefills: bool) -> int:
        """When to launch the step that follows one of these rows, which began at `began_ns`. As long as too
        little is known, at once."""
        num_prefilled = _num_prefilled(rows)
        if self._decode_ns is None or (num_prefilled and self._prefill_token_ns is None):
            return began_ns
        step_ns = self._decode_ns + num_prefilled * (self._prefill_token_ns or 0.0)
        return began_ns + max(0, round(step_ns - self._lead_ns[next_prefills]))

    def observe(self, rows: list[StepRow], step_ns: int, idle_ns: int, *, was_ahead: bool) -> None:
        """A step of these rows took `step_ns`, after the device had been idle for `idle_ns`. `was_ahead`: it
        was launched before the step before it ended, so that the idle time is the pace's fault."""
        num_prefilled = _num_prefilled(rows)
        if not num_prefilled:
            self._decode_ns = _learn(self._decode_ns, step_ns)
        elif self._decode_ns is not None:
            token_ns = max(0.0, step_ns - self._decode_ns) / num_prefilled
            self._prefill_token_ns = _learn(self._prefill_token_ns, token_ns)
        if was_ahead:
            lead_ns = self._lead_ns[bool(num_prefilled)]
            lead_ns += idle_ns if idle_ns > _IDLE_NS else -_DECAY * lead_ns
            self._lead_ns[bool(num_prefilled)] = min(max(lead_ns, _MIN_LEAD_NS), _MAX_LEAD_NS)


def _num_prefilled(rows: list[StepRow]) -> int:
    return sum(row.count for row in rows if row.count > 1)


def _learn(known: float | None, seen: float) -> float:
    return seen if known is None else known + _LEARNING * (seen - known)
