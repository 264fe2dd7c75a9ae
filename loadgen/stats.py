"""Latency and throughput of a run.

Percentiles interpolate linearly between the two closest ranks: percentile q of n sorted values is read at
rank q / 100 * (n - 1), counted from 0. Latencies are of requests that finished; those that failed are
counted apart and enter no latency, and neither do interrupted ones.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from loadgen.fairness import Fairness, measure_fairness
from loadgen.results import Counting, Outcome, RequestRecord, RunInfo


def percentile(ascending: Sequence[float], q: float) -> float:
    """Percentile q (0 to 100) of at least one value, sorted ascending."""
    rank = q / 100 * (len(ascending) - 1)
    low = math.floor(rank)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (ascending[high] - ascending[low]) * (rank - low)


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Of values in seconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values_s: Iterable[float]) -> "Distribution | None":
        """None if there are no values."""
        ascending = sorted(values_s)
        if not ascending:
            return None
        return cls(
            count=len(ascending),
            mean=math.fsum(ascending) / len(ascending),
            p50=percentile(ascending, 50),
            p90=percentile(ascending, 90),
            p99=percentile(ascending, 99),
            max=ascending[-1],
        )


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    """Of the finished requests of a run or of a tenant; None where there is nothing to measure.

    All start when the request is sent, so they hold connecting. `gap` is the time between two deliveries of
    tokens: tokens that come together have none between them. `per_token` is the time from the first to the
    last token over the tokens after the first.
    """

    ttft: Distribution | None
    completion: Distribution | None
    gap: Distribution | None
    longest_gap: Distribution | None
    per_token: Distribution | None


class TenantSummary(msgspec.Struct, frozen=True, kw_only=True):
    """As in `Summary`; `service` is what was delivered, to failed requests too."""

    weight: float
    sent: int
    finished: int
    failed: int
    interrupted: int
    output_tokens: int
    service: float
    longest_wait_s: float
    latencies: Latencies


class Starvation(msgspec.Struct, frozen=True, kw_only=True):
    """The longest time that any request spent without a token: before its first, between two, or before it
    failed or was interrupted."""

    wait_s: float
    index: int
    tenant: str


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A run in numbers.

    `duration_s` goes from the first sending to the last end. `output_tokens` leaves out failed requests,
    `num_short` counts finished ones that ended before the tokens they asked for. `sent_per_s` is the rate
    between the first sending and the last.
    """

    planned: int
    sent: int
    finished: int
    failed: int
    interrupted: int
    not_sent: int
    errors: dict[str, int]
    num_short: int
    num_without_usage: int
    duration_s: float
    sent_per_s: float
    input_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    max_in_flight: int
    latencies: Latencies
    starvation: Starvation | None
    fairness: Fairness
    tenants: dict[str, TenantSummary]


def gaps_s(record: RequestRecord) -> list[float]:
    """Times between successive deliveries of tokens."""
    return [after - before for before, after in pairwise(record.chunk_s)]


def longest_wait_s(record: RequestRecord) -> float:
    """The longest time the request spent without a token."""
    moments = [record.sent_s, *record.chunk_s]
    if record.outcome is not Outcome.OK:
        moments.append(record.end_s)
    return max((after - before for before, after in pairwise(moments)), default=0.0)


def _latencies(records: Iterable[RequestRecord]) -> Latencies:
    finished = [record for record in records if record.outcome is Outcome.OK]
    gaps = [gaps_s(record) for record in finished]
    per_token = (
        (record.chunk_s[-1] - record.chunk_s[0]) / (record.output_tokens - 1)
        for record in finished
        if len(record.chunk_s) > 1 and record.output_tokens > 1
    )
    return Latencies(
        ttft=Distribution.of(record.ttft_s for record in finished if record.ttft_s is not None),
        completion=Distribution.of(record.completion_s for record in finished),
        gap=Distribution.of(gap for row in gaps for gap in row),
        longest_gap=Distribution.of(max(row) for row in gaps if row),
        per_token=Distribution.of(per_token),
    )


def max_in_flight(records: Iterable[RequestRecord]) -> int:
    """The most requests that were open at one time."""
    changes = sorted(change for record in records for change in ((record.sent_s, 1), (record.end_s, -1)))
    most = now = 0
    for _, step in changes:
        now += step
        most = max(most, now)
    return most


def summarize(info: RunInfo, records: Sequence[RequestRecord]) -> Summary:
    outcomes = Counter(record.outcome for record in records)
    start_s = min((record.sent_s for record in records), default=0.0)
    duration_s = max((record.end_s for record in records), default=0.0) - start_s
    sending_s = max((record.sent_s for record in records), default=0.0) - start_s
    kept = [record for record in records if record.outcome is not Outcome.FAILED]
    output_tokens = sum(record.output_tokens for record in kept)
    fairness, service = measure_fairness(records, info.tenant_weights)
    waits = ((longest_wait_s(record), record.index, record.tenant) for record in records)
    worst = max(waits, default=None)
    return Summary(
        planned=info.num_planned,
        sent=len(records),
        finished=outcomes[Outcome.OK],
        failed=outcomes[Outcome.FAILED],
        interrupted=outcomes[Outcome.INTERRUPTED],
        not_sent=info.num_planned - len(records),
        errors=dict(Counter(label for record in records if (label := record.error_label)).most_common()),
        num_short=sum(
            record.outcome is Outcome.OK and record.output_tokens < record.asked_output_tokens
            for record in records
        ),
        num_without_usage=sum(
            record.outcome is Outcome.OK and record.counted_by is Counting.EVENTS for record in records
        ),
        duration_s=duration_s,
        sent_per_s=(len(records) - 1) / sending_s if sending_s else 0.0,
        input_tokens=sum(record.input_tokens for record in kept),
        output_tokens=output_tokens,
        output_tokens_per_s=output_tokens / duration_s if duration_s else 0.0,
        max_in_flight=max_in_flight(records),
        latencies=_latencies(records),
        starvation=Starvation(wait_s=worst[0], index=worst[1], tenant=worst[2]) if worst else None,
        fairness=fairness,
        tenants={
            name: _tenant([record for record in records if record.tenant == name], weight, service[name])
            for name, weight in info.tenant_weights.items()
        },
    )


def _tenant(records: list[RequestRecord], weight: float, service: float) -> TenantSummary:
    outcomes = Counter(record.outcome for record in records)
    kept = [record for record in records if record.outcome is not Outcome.FAILED]
    return TenantSummary(
        weight=weight,
        sent=len(records),
        finished=outcomes[Outcome.OK],
        failed=outcomes[Outcome.FAILED],
        interrupted=outcomes[Outcome.INTERRUPTED],
        output_tokens=sum(record.output_tokens for record in kept),
        service=service,
        longest_wait_s=max(map(longest_wait_s, records), default=0.0),
        latencies=_latencies(records),
    )
