"""Counts kept while a run is going on, for whoever watches it."""

from collections import Counter, deque
from dataclasses import dataclass, field

from loadgen.results import Outcome, RequestRecord

_WINDOW = 2048  # latest values that live percentiles are taken over


def _window() -> deque[float]:
    return deque(maxlen=_WINDOW)


@dataclass(slots=True)
class Tally:
    """What has happened so far, in all or to one tenant."""

    sent: int = 0
    waiting: int = 0  # sent, no token yet
    running: int = 0  # between first token and end
    finished: int = 0
    failed: int = 0
    tokens: int = 0
    ttft_s: deque[float] = field(default_factory=_window)
    gap_s: deque[float] = field(default_factory=_window)

    @property
    def in_flight(self) -> int:
        return self.waiting + self.running


class Monitor:
    """Told by the client what happens, as it happens."""

    def __init__(self, num_planned: int, tenants: list[str]) -> None:
        self.num_planned = num_planned
        self.total = Tally()
        self.tenants = {name: Tally() for name in tenants}
        self.errors: Counter[str] = Counter()
        self.max_in_flight = 0
        self.loop_lag_s = _window()
        self.lateness_s = _window()

    def on_sent(self, tenant: str) -> None:
        for tally in (self.total, self.tenants[tenant]):
            tally.sent += 1
            tally.waiting += 1
        self.max_in_flight = max(self.max_in_flight, self.total.in_flight)

    def on_first(self, tenant: str, ttft_s: float, num_tokens: int) -> None:
        for tally in (self.total, self.tenants[tenant]):
            tally.waiting -= 1
            tally.running += 1
            tally.tokens += num_tokens
            tally.ttft_s.append(ttft_s)

    def on_tokens(self, tenant: str, gap_s: float, num_tokens: int) -> None:
        for tally in (self.total, self.tenants[tenant]):
            tally.tokens += num_tokens
            tally.gap_s.append(gap_s)

    def on_end(self, record: RequestRecord) -> None:
        for tally in (self.total, self.tenants[record.tenant]):
            if record.chunk_s:
                tally.running -= 1
            else:
                tally.waiting -= 1
            tally.finished += record.outcome is Outcome.OK
            tally.failed += record.outcome is Outcome.FAILED
        if record.error_label:
            self.errors[record.error_label] += 1
