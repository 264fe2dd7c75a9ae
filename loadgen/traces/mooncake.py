"""Mooncake traces: a JSON object per line with timestamp (ms), input_length, output_length, hash_ids."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from loadgen.traces.row import TraceError, TraceRow, from_first_arrival

Count = Annotated[int, msgspec.Meta(ge=0)]


class _Line(msgspec.Struct):
    timestamp: float
    input_length: Count
    output_length: Count
    hash_ids: list[Count]


def read_mooncake(path: Path) -> Iterator[TraceRow]:
    """`key` is the second block's id: the first is a system prompt that most conversations share."""
    return from_first_arrival(path, _rows(path))


def _rows(path: Path) -> Iterator[TraceRow]:
    decoder = msgspec.json.Decoder(_Line)
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                line = decoder.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise TraceError(path, number, str(error)) from error
            yield TraceRow(
                line=number,
                arrival_s=line.timestamp / 1000,
                input_tokens=line.input_length,
                output_tokens=line.output_length,
                hash_ids=tuple(line.hash_ids),
                key=str(line.hash_ids[min(1, len(line.hash_ids) - 1)]) if line.hash_ids else None,
            )
