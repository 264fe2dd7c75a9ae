"""One request of a trace, and what can be wrong with a trace."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK_TOKENS = 512  # prompt tokens that one hash id of a row stands for (Mooncake's block)


class TraceError(Exception):
    """The trace cannot be used. The message is one line that names the file and the line."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(f"{path}:{line}: {reason}")


@dataclass(frozen=True, slots=True)
class TraceRow:
    """What one request of the trace asked for.

    `arrival_s` counts from the first row; None in a trace without times. `hash_ids[i]` names the content of
    prompt tokens `i * BLOCK_TOKENS` and on: rows that begin with equal ids share a prefix. `text` is the
    prompt itself where the trace has it. `key` is what tells conversations apart, where the trace says.
    """

    line: int
    arrival_s: float | None
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()
    text: str | None = None
    key: str | None = None


def from_first_arrival(path: Path, rows: Iterator[TraceRow]) -> Iterator[TraceRow]:
    """The same rows with times counted from the first one; raises `TraceError` where time runs backwards."""
    first_s: float | None = None
    last_s = -math.inf
    for row in rows:
        assert row.arrival_s is not None
        if row.arrival_s < last_s:
            raise TraceError(
                path,
                row.line,
                f"times out of order: this row is {last_s - row.arrival_s:g} s before the row above it",
            )
        last_s = row.arrival_s
        first_s = last_s if first_s is None else first_s
        yield TraceRow(
            line=row.line,
            arrival_s=last_s - first_s,
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            hash_ids=row.hash_ids,
            text=row.text,
            key=row.key,
        )
