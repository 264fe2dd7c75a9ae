"""Who got how much, as a client sees it.

Service is counted as the Virtual Token Counter does (Sheng et al., OSDI 2024): 1 for a prompt token and 2
for an output token, a prompt's share when its first token arrives. Weighted service is service divided by
the tenant's weight. A tenant is backlogged while it has a request open.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import msgspec

from loadgen.results import RequestRecord

INPUT_SERVICE = 1.0
OUTPUT_SERVICE = 2.0

Interval = tuple[float, float]
Delivery = tuple[float, float]  # (when, service)


class Fairness(msgspec.Struct, frozen=True, kw_only=True):
    """None where there are fewer than two tenants, or never a time when they were backlogged together.

    `jain` is Jain's index over the weighted service of the whole run, `jain_backlogged` over that of the
    times when all tenants were backlogged. `service_difference` is the largest difference in weighted
    service that two tenants built up while both were backlogged without a break (`between` names them).
    """

    jain: float | None
    jain_backlogged: float | None
    backlogged_s: float
    service_difference: float | None
    between: tuple[str, str] | None


def jain_index(shares: Sequence[float]) -> float | None:
    """(sum x)^2 / (n * sum x^2): 1 when all are equal, 1/n when one has everything. None for no service."""
    largest = max(shares, default=0.0)
    if largest <= 0:
        return None
    scaled = [share / largest for share in shares]  # squares of tiny shares would vanish
    return sum(scaled) ** 2 / (len(scaled) * sum(share * share for share in scaled))


def deliveries(record: RequestRecord) -> list[Delivery]:
    """When the request was served how much. Output tokens that the server counted and no chunk shows are
    spread over the chunks."""
    if not record.chunk_s:
        return []
    per_token = OUTPUT_SERVICE * record.output_tokens / sum(record.chunk_tokens)
    served = [
        (when, tokens * per_token) for when, tokens in zip(record.chunk_s, record.chunk_tokens, strict=True)
    ]
    first_s, first = served[0]
    served[0] = (first_s, first + INPUT_SERVICE * record.input_tokens)
    return served


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Disjoint intervals that cover the same times, ascending. Intervals that touch become one."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def intersection(left: Sequence[Interval], right: Sequence[Interval]) -> list[Interval]:
    """Times in both of two lists of disjoint ascending intervals."""
    both: list[Interval] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < end:
            both.append((start, end))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return both


def largest_difference(
    left: Sequence[Delivery], right: Sequence[Delivery], together: Sequence[Interval]
) -> float:
    """The most by which one side was served more than the other within any stretch of time inside one of
    the intervals: the range of the running difference. Deliveries and intervals ascend."""
    steps = sorted([*left, *((when, -amount) for when, amount in right)])
    worst, position = 0.0, 0
    for start, end in together:
        while position < len(steps) and steps[position][0] < start:
            position += 1
        running = low = high = 0.0
        while position < len(steps) and steps[position][0] <= end:
            now = steps[position][0]
            while position < len(steps) and steps[position][0] == now:  # one moment, one change
                running += steps[position][1]
                position += 1
            low, high = min(low, running), max(high, running)
        worst = max(worst, high - low)
    return worst


def measure_fairness(
    records: Sequence[RequestRecord], weights: Mapping[str, float]
) -> tuple[Fairness, dict[str, float]]:
    """The fairness of a run among the tenants in `weights`, and each one's service (not weighted)."""
    open_times: dict[str, list[Interval]] = {name: [] for name in weights}
    served: dict[str, list[Delivery]] = {name: [] for name in weights}
    for record in records:
        weight = weights[record.tenant]
        open_times[record.tenant].append((record.sent_s, record.end_s))
        served[record.tenant] += ((when, amount / weight) for when, amount in deliveries(record))
    backlogged = {name: union(times) for name, times in open_times.items()}
    totals = {name: sum(amount for _, amount in parts) for name, parts in served.items()}
    service = {name: total * weights[name] for name, total in totals.items()}
    if len(weights) < 2:
        alone = Fairness(
            jain=None, jain_backlogged=None, backlogged_s=0.0, service_difference=None, between=None
        )
        return alone, service
    for parts in served.values():
        parts.sort()
    together = next(iter(backlogged.values()))
    for times in backlogged.values():
        together = intersection(together, times)
    worst = max(
        (
            (largest_difference(served[one], served[other], both), (one, other))
            for one, other in combinations(weights, 2)
            if (both := intersection(backlogged[one], backlogged[other]))
        ),
        default=None,
    )
    fairness = Fairness(
        jain=jain_index(list(totals.values())),
        jain_backlogged=jain_index([_within(parts, together) for parts in served.values()]),
        backlogged_s=sum(end - start for start, end in together),
        service_difference=worst[0] if worst else None,
        between=worst[1] if worst else None,
    )
    return fairness, service


def _within(parts: Sequence[Delivery], intervals: Sequence[Interval]) -> float:
    """Service delivered inside the intervals; both ascend."""
    total, position = 0.0, 0
    for start, end in intervals:
        while position < len(parts) and parts[position][0] < start:
            position += 1
        while position < len(parts) and parts[position][0] <= end:
            total += parts[position][1]
            position += 1
    return total
