"""The lines that the plots draw, computed from records: no drawing here."""

from collections.abc import Iterable, Sequence

from loadgen.fairness import deliveries
from loadgen.results import Outcome, RequestRecord

Curve = tuple[list[float], list[float]]  # x and y

_MAX_POINTS = 800  # finer than any screen shows


def thin(xs: Sequence[float], ys: Sequence[float]) -> Curve:
    """At most about `_MAX_POINTS` of the points, the last always among them."""
    step = max(1, len(xs) // _MAX_POINTS)
    if step == 1:
        return list(xs), list(ys)
    return [*xs[:-1:step], xs[-1]], [*ys[:-1:step], ys[-1]]


def cdf(values: Iterable[float], total: int | None = None) -> Curve:
    """The fraction at or below each value, of `total` if that is more: what failed stays above the curve,
    as if it had taken for ever."""
    ascending = sorted(values)
    count = max(total or 0, len(ascending))
    return thin(ascending, [(rank + 1) / count for rank in range(len(ascending))])


def finished_or_failed(records: Iterable[RequestRecord]) -> list[RequestRecord]:
    return [record for record in records if record.outcome is not Outcome.INTERRUPTED]


def step_curve(changes: Iterable[tuple[float, float]]) -> Curve:
    """The running sum of changes, as a staircase that starts at the first."""
    xs: list[float] = []
    ys: list[float] = []
    level = 0.0
    for when, change in sorted(changes):
        if xs and xs[-1] == when:
            level += change
            ys[-1] = level
            continue
        level += change
        xs.append(when)
        ys.append(level)
    return thin(xs, ys)


def waiting_curve(records: Iterable[RequestRecord]) -> Curve:
    """Requests that were sent and have no token yet, over time."""
    changes: list[tuple[float, float]] = []
    for record in records:
        until = record.first_s if record.first_s is not None else record.end_s
        changes += [(record.sent_s, 1.0), (until, -1.0)]
    return step_curve(changes)


def running_curve(records: Iterable[RequestRecord]) -> Curve:
    """Requests between their first token and their end, over time."""
    changes: list[tuple[float, float]] = []
    for record in records:
        if record.first_s is not None:
            changes += [(record.first_s, 1.0), (record.end_s, -1.0)]
    return step_curve(changes)


def tokens_curve(records: Sequence[RequestRecord], num_bins: int = 60) -> Curve:
    """Output tokens per second over time, each bin at its middle."""
    end_s = max((record.end_s for record in records), default=0.0)
    if end_s <= 0:
        return [], []
    width_s = end_s / num_bins
    counts = [0.0] * num_bins
    for record in records:
        if not record.chunk_s:
            continue
        scale = record.output_tokens / sum(record.chunk_tokens)
        for when, tokens in zip(record.chunk_s, record.chunk_tokens, strict=True):
            counts[min(num_bins - 1, int(when / width_s))] += tokens * scale
    return [(index + 0.5) * width_s for index in range(num_bins)], [count / width_s for count in counts]


def service_curve(records: Iterable[RequestRecord], tenant: str, weight: float) -> Curve:
    """Weighted service of one tenant, summed up over time."""
    return step_curve(
        (when, amount / weight)
        for record in records
        if record.tenant == tenant
        for when, amount in deliveries(record)
    )
