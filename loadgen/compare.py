"""Lays several runs over each other."""

from collections.abc import Sequence
from pathlib import Path

from loadgen.charts import Run, charts
from loadgen.page import card, figure, page, table
from loadgen.report import REPORT_FILE, draw_all
from loadgen.results import load_run
from loadgen.stats import summarize
from loadgen.tables import comparison, warnings


def compare_runs(folders: Sequence[Path], out: Path) -> tuple[list[list[str]], str | None]:
    """Write the report of several runs to an existing folder. Returns its table, the head first, and one
    line that says why there are no plots, if so. Raises `LoadError`."""
    runs = [Run(name, *load_run(folder)) for name, folder in zip(_names(folders), folders, strict=True)]
    summaries = [summarize(run.info, run.records) for run in runs]
    rows = comparison(summaries)
    head = ["", *(run.name for run in runs)]
    drawings, missing = draw_all(out, charts(runs))
    parts = ['<div class="plots">' + "".join(figure(plot, svg) for plot, svg in drawings) + "</div>"]
    for run, summary in zip(runs, summaries, strict=True):
        parts += [card(run.name, "", warning) for warning in warnings(run.info, summary)]
    parts.append(card("Side by side", table(head, rows), missing or ""))
    made = [
        (run.name, run.info.trace, run.info.arrivals, run.info.tenants, run.info.model, run.info.url)
        for run in runs
    ]
    parts.append(card("Runs", table(("run", "trace", "arrivals", "tenants", "model", "server"), made)))
    (out / REPORT_FILE).write_text(page("Runs compared", " · ".join(run.name for run in runs), parts))
    return [head, *(list(row) for row in rows)], missing


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, or their whole paths where those do not tell them apart."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
