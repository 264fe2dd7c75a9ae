"""The numbers of runs as rows of text, for the terminal and for the report alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadgen.results import RunInfo
from loadgen.stats import Distribution, Latencies, Summary

Row = tuple[str, ...]
QUANTILES = ("mean", "p50", "p90", "p99", "max")
_COMPARED = ("p50", "p90", "p99")


@dataclass(frozen=True, slots=True)
class Measure:
    label: str
    value: Callable[[Summary], str]


def seconds(value_s: float | None) -> str:
    if value_s is None:
        return "-"
    return f"{value_s * 1000:.1f} ms" if value_s < 1 else f"{value_s:,.2f} s"


def number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _errors(summary: Summary) -> str:
    return ", ".join(f"{kind}: {count}" for kind, count in summary.errors.items()) or "none"


def _starvation(summary: Summary) -> str:
    worst = summary.starvation
    return f"{seconds(worst.wait_s)} (request {worst.index}, {worst.tenant})" if worst else "-"


def _difference(summary: Summary) -> str:
    fairness = summary.fairness
    if fairness.between is None:
        return "-"
    return f"{number(fairness.service_difference)} ({' and '.join(fairness.between)})"


MEASURES = (
    Measure("requests sent", lambda s: f"{s.sent:,} of {s.planned:,}"),
    Measure("finished", lambda s: number(s.finished)),
    Measure("failed", lambda s: number(s.failed)),
    Measure("errors", _errors),
    Measure("interrupted", lambda s: number(s.interrupted)),
    Measure("shorter than asked", lambda s: number(s.num_short)),
    Measure("duration", lambda s: seconds(s.duration_s)),
    Measure("requests/s sent", lambda s: number(s.sent_per_s, 2)),
    Measure("most open at once", lambda s: number(s.max_in_flight)),
    Measure("input tokens", lambda s: number(s.input_tokens)),
    Measure("output tokens", lambda s: number(s.output_tokens)),
    Measure("output tokens/s", lambda s: number(s.output_tokens_per_s)),
    Measure("longest wait without a token", _starvation),
    Measure("Jain's index, whole run", lambda s: number(s.fairness.jain, 4)),
    Measure("Jain's index, all backlogged", lambda s: number(s.fairness.jain_backlogged, 4)),
    Measure("largest service difference", _difference),
)


def distributions(latencies: Latencies) -> list[tuple[str, Distribution | None]]:
    return [
        ("time to first token", latencies.ttft),
        ("completion", latencies.completion),
        ("gap between tokens", latencies.gap),
        ("longest gap of a request", latencies.longest_gap),
        ("time per output token", latencies.per_token),
    ]


def quantile(distribution: Distribution | None, name: str) -> str:
    """One of `QUANTILES`, as text."""
    return seconds(getattr(distribution, name) if distribution else None)


def quantiles(distribution: Distribution | None) -> list[str]:
    """All of `QUANTILES`, as text."""
    return [quantile(distribution, name) for name in QUANTILES]


TENANT_COLUMNS = (
    *("tenant", "weight", "sent", "finished", "failed", "output tokens", "service / weight"),
    *("TTFT p50", "TTFT p99", "completion p50", "longest gap p99", "longest wait"),
)


def tenant_rows(summary: Summary) -> list[Row]:
    rows: list[Row] = []
    for name, tenant in summary.tenants.items():
        latencies = tenant.latencies
        rows.append(
            (
                name,
                f"{tenant.weight:g}",
                number(tenant.sent),
                number(tenant.finished),
                number(tenant.failed),
                number(tenant.output_tokens),
                number(tenant.service / tenant.weight),
                quantile(latencies.ttft, "p50"),
                quantile(latencies.ttft, "p99"),
                quantile(latencies.completion, "p50"),
                quantile(latencies.longest_gap, "p99"),
                seconds(tenant.longest_wait_s),
            )
        )
    return rows


def warnings(info: RunInfo, summary: Summary) -> list[str]:
    """What a reader must know before believing the numbers."""
    lines = []
    if info.interrupted:
        lines.append(f"The run was interrupted: {summary.not_sent:,} planned requests were not sent.")
    if summary.failed:
        lines.append(
            f"{summary.failed:,} of {summary.sent:,} requests failed ({_errors(summary)}); "
            "latencies and tokens are of the others."
        )
    if summary.num_short:
        lines.append(f"{summary.num_short:,} answers ended before the number of tokens asked for.")
    if info.health:
        lines += [f"The client was saturated: {sign}." for sign in info.health.saturated]
    if summary.num_without_usage:
        lines.append(
            f"{summary.num_without_usage:,} answers came without usage: each event counts as one token."
        )
    return lines


def print_lines(info: RunInfo, summary: Summary) -> list[str]:
    """The run for a terminal."""
    lines = [f"{measure.label:<30}{measure.value(summary)}" for measure in MEASURES]
    lines.append(f"{'':<30}" + "".join(f"{name:>12}" for name in QUANTILES))
    for label, distribution in distributions(summary.latencies):
        lines.append(f"{label:<30}" + "".join(f"{cell:>12}" for cell in quantiles(distribution)))
    return lines + [f"! {line}" for line in warnings(info, summary)]


def comparison(summaries: Sequence[Summary]) -> list[list[str]]:
    """What is measured of several runs, a row each: its name, then its value for each run."""
    rows = [[measure.label, *(measure.value(summary) for summary in summaries)] for measure in MEASURES]
    per_run: list[list[tuple[str, Distribution | None]]]
    per_run = [distributions(summary.latencies) for summary in summaries]
    for column in zip(*per_run, strict=True):
        for name in _COMPARED:
            cells = [quantile(distribution, name) for _, distribution in column]
            rows.append([f"{column[0][0]} {name}", *cells])
    return rows
