"""Azure LLM inference traces (2023 and 2024): a CSV of TIMESTAMP, ContextTokens, GeneratedTokens."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from loadgen.traces.row import TraceRow, from_first_arrival
from loadgen.traces.table import Line, read_table

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_azure(path: Path) -> Iterator[TraceRow]:
    return from_first_arrival(path, _rows(path))


def _rows(path: Path) -> Iterator[TraceRow]:
    epoch: datetime | None = None
    for line in read_table(path, COLUMNS):
        moment = _moment(line)
        epoch = epoch or moment
        if (moment.tzinfo is None) != (epoch.tzinfo is None):
            raise line.error("TIMESTAMP has a time zone on some lines and none on others")
        yield TraceRow(
            line=line.number,
            arrival_s=(moment - epoch).total_seconds(),
            input_tokens=line.count("ContextTokens"),
            output_tokens=line.count("GeneratedTokens"),
        )


def _moment(line: Line) -> datetime:
    text = line.text("TIMESTAMP")
    try:
        return datetime.fromisoformat(text)  # the trace's seventh decimal is dropped
    except ValueError:
        raise line.error(f"TIMESTAMP must be a date and time, not {text!r}") from None
