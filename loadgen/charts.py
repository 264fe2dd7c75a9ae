"""Which plots a report shows, for one run or for several laid over each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadgen.curves import (
    cdf,
    finished_or_failed,
    running_curve,
    service_curve,
    tokens_curve,
    waiting_curve,
)
from loadgen.plots import Line, Plot
from loadgen.results import Outcome, RequestRecord, RunInfo
from loadgen.stats import gaps_s, longest_wait_s

_MAX_TENANTS = 12


@dataclass(frozen=True, slots=True)
class Run:
    """A run with the name that it has in the report."""

    name: str
    info: RunInfo
    records: Sequence[RequestRecord]

    @property
    def finished(self) -> list[RequestRecord]:
        return [record for record in self.records if record.outcome is Outcome.OK]


def charts(runs: Sequence[Run]) -> list[Plot]:
    """The plots of a report. Runs differ by colour; within a run, lines differ by dash."""
    plots = [
        _cdf_plot(
            runs,
            "ttft",
            "Time to first token",
            lambda run: [record.ttft_s for record in run.finished if record.ttft_s is not None],
        ),
        _cdf_plot(
            runs,
            "completion",
            "Completion of a request",
            lambda run: [record.completion_s for record in run.finished],
        ),
        _gaps_plot(runs),
        _open_plot(runs),
        _tokens_plot(runs),
    ]
    if len(runs) == 1 and len(runs[0].info.tenant_weights) > 1:
        return [*plots, _service_plot(runs[0])]
    waits = _cdf_plot(
        runs,
        "wait",
        "Longest wait without a token",
        lambda run: [longest_wait_s(record) for record in run.finished],
    )
    return [*plots, waits]


def _cdf_plot(runs: Sequence[Run], name: str, title: str, values: Callable[[Run], list[float]]) -> Plot:
    return Plot(
        name=name,
        title=title,
        note="Requests within that time. If some failed, the curve ends below 100%.",
        x_label="",
        y_label="requests",
        lines=[
            Line(run.name, cdf(values(run), len(finished_or_failed(run.records))), colour)
            for colour, run in enumerate(runs)
        ],
        log_x=True,
        fractions=True,
    )


def _gaps_plot(runs: Sequence[Run]) -> Plot:
    lines = []
    for colour, run in enumerate(runs):
        gaps = [gaps_s(record) for record in run.finished]
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        every = cdf(gap for row in gaps for gap in row)
        longest = cdf(max(row) for row in gaps if row)
        if len(runs) == 1:
            lines.append(Line("every gap", every, 0))
            lines.append(Line("longest gap of a request", longest, 1))
        else:
            lines.append(Line(f"{prefix}longest", longest, colour))
            lines.append(Line(f"{prefix}every", every, colour, dash=2))
    return Plot(
        name="gaps",
        title="Gaps between tokens",
        note="Time between two deliveries of tokens, and the longest such time of each request.",
        x_label="",
        y_label="gaps, requests",
        lines=lines,
        log_x=True,
        fractions=True,
    )


def _open_plot(runs: Sequence[Run]) -> Plot:
    lines = []
    for colour, run in enumerate(runs):
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        other = colour if len(runs) > 1 else 1
        lines.append(Line(f"{prefix}running", running_curve(run.records), colour, steps=True))
        dash = 2 if len(runs) > 1 else 0
        lines.append(Line(f"{prefix}waiting", waiting_curve(run.records), other, dash=dash, steps=True))
    return Plot(
        name="open",
        title="Running and waiting",
        note="Requests that have their first token and are not done, and those that have no token yet.",
        x_label="seconds of the run",
        y_label="requests",
        lines=lines,
    )


def _tokens_plot(runs: Sequence[Run]) -> Plot:
    return Plot(
        name="tokens",
        title="Output tokens per second",
        note="Delivered, over the run.",
        x_label="seconds of the run",
        y_label="tokens/s",
        lines=[Line(run.name, tokens_curve(run.records), colour) for colour, run in enumerate(runs)],
    )


def _service_plot(run: Run) -> Plot:
    weights = list(run.info.tenant_weights.items())[:_MAX_TENANTS]
    return Plot(
        name="service",
        title="Service per tenant",
        note="Prompt tokens plus twice the output tokens, over the tenant's weight, summed up over the run.",
        x_label="seconds of the run",
        y_label="weighted service",
        lines=[
            Line(name, service_curve(run.records, name, weight), number, dash=number // 8, steps=True)
            for number, (name, weight) in enumerate(weights)
        ],
    )
