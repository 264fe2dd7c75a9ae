"""Writes a run to its folder, and the page that shows it."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import msgspec

from loadgen.charts import Run, charts
from loadgen.page import card, figure, page, table, tile, tiles
from loadgen.plots import Plot, PlotsMissingError, draw, standalone
from loadgen.results import RequestRecord, RunInfo, save_run
from loadgen.stats import Summary, summarize
from loadgen.tables import (
    MEASURES,
    QUANTILES,
    TENANT_COLUMNS,
    distributions,
    number,
    quantile,
    quantiles,
    seconds,
    tenant_rows,
    warnings,
)

REPORT_FILE = "report.html"
SUMMARY_FILE = "summary.json"
PLOTS_FOLDER = "plots"

_METHOD = (
    "Times start when a request is sent and so hold connecting. Latencies are of finished requests; failed "
    "ones are counted apart. Percentiles interpolate linearly between the closest ranks. A gap is the time "
    "between two deliveries of tokens, a delivery being what one read of the socket brought. Tokens are "
    "counted by the server's usage where it sends one, else as one per event. Service is prompt tokens plus "
    "twice the output tokens (as in VTC, OSDI 2024), divided by the tenant's weight; a tenant is backlogged "
    "while it has a request open."
)


def write_report(folder: Path, info: RunInfo, records: list[RequestRecord]) -> tuple[Summary, str | None]:
    """Write everything about a run to an existing folder. Returns the summary, and one line that says why
    there are no plots, if so."""
    save_run(folder, info, records)
    summary = summarize(info, records)
    (folder / SUMMARY_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(summary)) + b"\n")
    drawings, missing = draw_all(folder, charts([Run(info.name, info, records)]))
    (folder / REPORT_FILE).write_text(_run_page(info, summary, drawings, missing))
    return summary, missing


def draw_all(folder: Path, plots: Sequence[Plot]) -> tuple[list[tuple[Plot, str]], str | None]:
    """Each plot with its SVG, saved as a file too; or no plots and the reason."""
    try:
        drawings = [(plot, draw(plot)) for plot in plots]
    except PlotsMissingError as error:
        return [], str(error)
    (folder / PLOTS_FOLDER).mkdir(exist_ok=True)
    for plot, svg in drawings:
        (folder / PLOTS_FOLDER / f"{plot.name}.svg").write_text(standalone(svg))
    return drawings, None


def _run_page(
    info: RunInfo, summary: Summary, drawings: Sequence[tuple[Plot, str]], missing: str | None
) -> str:
    latencies = summary.latencies
    notes = [*warnings(info, summary), *([missing] if missing else [])]
    parts = [
        tiles(
            tile("TTFT p50", quantile(latencies.ttft, "p50")),
            tile("TTFT p99", quantile(latencies.ttft, "p99")),
            tile("longest gap p99", quantile(latencies.longest_gap, "p99")),
            tile("completion p50", quantile(latencies.completion, "p50")),
            tile("output tokens/s", number(summary.output_tokens_per_s)),
            tile("failed", number(summary.failed), bad=summary.failed > 0),
        ),
        "".join(f'<p class="note">{escape(note)}</p>' for note in notes),
        '<div class="plots">' + "".join(figure(plot, svg) for plot, svg in drawings) + "</div>",
        card("Latency", latency_table(summary)),
    ]
    if len(summary.tenants) > 1:
        parts.append(card("Tenants", table(TENANT_COLUMNS, tenant_rows(summary)), info.tenants))
    parts.append(
        '<div class="pair">'
        + card("Run", table(("", ""), [(measure.label, measure.value(summary)) for measure in MEASURES]))
        + card("How it was made", table(("", ""), made_rows(info)))
        + "</div>"
    )
    parts.append(f'<p class="method">{escape(_METHOD)}</p>')
    return page(info.name, f"{info.model} · {info.trace} · {info.arrivals} · {info.started_at}", parts)


def latency_table(summary: Summary) -> str:
    rows = [
        (label, number(distribution.count if distribution else 0), *quantiles(distribution))
        for label, distribution in distributions(summary.latencies)
    ]
    return table(("", "count", *QUANTILES), rows)


def made_rows(info: RunInfo) -> list[tuple[str, str]]:
    rows = [
        ("server", info.url),
        ("model", info.model),
        ("trace", info.trace),
        ("arrivals", info.arrivals),
        ("tenants", info.tenants),
        ("seed", str(info.seed)),
        *info.options.items(),
    ]
    if info.health:
        rows += [
            ("sent late, p99 and most", _pair(info.health.lateness_p99_s, info.health.lateness_max_s)),
            ("event loop lag, p99 and most", _pair(info.health.loop_lag_p99_s, info.health.loop_lag_max_s)),
            ("client's core busy", f"{info.health.cpu_fraction:.0%}"),
        ]
        if info.health.cpu_wait_fraction is not None:
            rows.append(("client kept from a core", f"{info.health.cpu_wait_fraction:.0%}"))
    if info.command:
        rows.append(("command", info.command))
    return rows


def _pair(p99_s: float, max_s: float) -> str:
    return f"{seconds(p99_s)}, {seconds(max_s)}"
