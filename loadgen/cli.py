"""`loadgen run` and `loadgen compare`.

Exit status: 0 when every request that was sent finished, 1 when some failed, 2 when nothing was sent (bad
arguments, a bad trace, a folder that cannot be written), 130 when the run was interrupted.
"""

import argparse
import asyncio
import shlex
import sys
from datetime import datetime
from pathlib import Path

import uvloop
from rich.console import Console

from loadgen import options as command_line
from loadgen.compare import compare_runs
from loadgen.job import Done, carry_out, read_schedule
from loadgen.report import REPORT_FILE, write_report
from loadgen.results import LoadError, RunInfo
from loadgen.session import raise_file_limit
from loadgen.spec import SpecError
from loadgen.tables import print_lines
from loadgen.traces import TraceError

_OK, _FAILED, _UNUSABLE, _INTERRUPTED = 0, 1, 2, 130


def main(arguments: list[str] | None = None, prog: str = "loadgen") -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = command_line.parse(arguments, prog)
    try:
        return _compare(options) if options.command == "compare" else _run(options, arguments)
    except (TraceError, SpecError, LoadError) as error:
        print(f"loadgen: {error}", file=sys.stderr)
        return _UNUSABLE
    except KeyboardInterrupt:  # outside of the run itself, which ends on Ctrl-C with a report
        print("loadgen: interrupted", file=sys.stderr)
        return _INTERRUPTED


def _compare(options: argparse.Namespace) -> int:
    out = _make_folder(options.out)
    rows, missing = compare_runs(options.runs, out)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    _print_end(out, missing)
    return _OK


def _run(options: argparse.Namespace, arguments: list[str]) -> int:
    sendings = read_schedule(options)
    started = datetime.now().astimezone()
    name = options.name or (options.out.name if options.out else f"{started:%Y%m%d-%H%M%S}")
    out = _make_folder(options.out or Path("results") / name)
    raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        done = loop.run(carry_out(options, sendings, Console(stderr=True, highlight=False)))
    info = _describe(options, done, name, started, shown_command(arguments))
    summary, missing = write_report(out, info, done.result.records)
    print("\n".join(print_lines(info, summary)))
    _print_end(out, missing)
    if info.interrupted:
        return _INTERRUPTED
    return _FAILED if summary.failed else _OK


def _describe(options: argparse.Namespace, done: Done, name: str, started: datetime, command: str) -> RunInfo:
    start, stop = options.rows
    made = {
        "rows": f"{start} to {'the end' if stop is None else stop}",
        "inputs cut to": f"{options.max_input} tokens" if options.max_input else "",
        "outputs held to": "{} to {} tokens".format(*options.output_range) if options.output_range else "",
        "prompts": "token ids" if options.prompts == "ids" else "text",
        "temperature": "" if options.temperature is None else f"{options.temperature:g}",
        "end of text": "ignored" if options.ignore_eos else "ends an answer",
        "nothing sent after": f"{options.duration:g} s" if options.duration else "",
    }
    return RunInfo(
        name=name,
        started_at=started.isoformat(timespec="seconds"),
        url=done.url,
        model=done.model,
        trace=options.trace.text,
        arrivals=options.arrivals.describe(),
        tenants=options.tenants.describe(),
        seed=options.seed,
        num_planned=done.num_planned,
        tenant_weights={tenant: options.tenant_weights.get(tenant, 1.0) for tenant in options.tenants.names},
        options={label: value for label, value in made.items() if value},
        command=command,
        interrupted=done.result.interrupted,
        health=done.result.health,
    )


def shown_command(arguments: list[str]) -> str:
    """The command line for the report, without API keys."""
    shown = list(arguments)
    for index, argument in enumerate(arguments):
        if argument.startswith("--api-key="):
            shown[index] = "--api-key=..."
        elif index and arguments[index - 1] == "--api-key":
            shown[index] = "..."
    return shlex.join(["loadgen", *shown])


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"{folder}: {error.strerror}") from error
    return folder


def _print_end(out: Path, missing_plots: str | None) -> None:
    if missing_plots:
        print(missing_plots)
    print(f"report: {out / REPORT_FILE}")
