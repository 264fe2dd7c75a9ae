"""BurstGPT traces: a CSV of Timestamp (seconds), Model, Request tokens, Response tokens, and more.

Rows with no response tokens are requests that failed at the traced service; they are left out.
"""

from collections.abc import Iterator
from pathlib import Path

from loadgen.traces.row import TraceRow, from_first_arrival
from loadgen.traces.table import read_table

COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def read_burstgpt(path: Path) -> Iterator[TraceRow]:
    """`key` is the Session ID in the releases that have one, else the Model."""
    served = (row for row in _rows(path) if row.output_tokens)
    return from_first_arrival(path, served)


def _rows(path: Path) -> Iterator[TraceRow]:
    for line in read_table(path, COLUMNS):
        yield TraceRow(
            line=line.number,
            arrival_s=line.seconds("Timestamp"),
            input_tokens=line.count("Request tokens"),
            output_tokens=line.count("Response tokens"),
            key=line.optional("Session ID") or line.optional("Model"),
        )
