"""ShareGPT conversations: a JSON array of {id, conversations: [{from, value}, ...]}.

The first thing a person says is the prompt, and the reply to it tells how many tokens to ask for. Lengths
are estimated from characters: the trace has text, and loadgen has no tokenizer. There are no times.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import msgspec

from loadgen.traces.row import TraceError, TraceRow

CHARS_PER_TOKEN = 4.0  # English prose under a byte-pair vocabulary, roughly
_PEOPLE = ("human", "user")


class _Turn(msgspec.Struct):
    value: str
    speaker: str = msgspec.field(name="from")


class _Entry(msgspec.Struct):
    conversations: list[_Turn]
    id: str | int | None = None


def read_sharegpt(path: Path) -> Iterator[TraceRow]:
    """Entries that do not start with a person's words and a reply are left out."""
    for line, value in _entries(path):
        try:
            entry = msgspec.convert(value, _Entry)
        except msgspec.ValidationError as error:
            raise TraceError(path, line, str(error)) from error
        turns = entry.conversations
        if len(turns) < 2 or turns[0].speaker not in _PEOPLE or not turns[0].value or not turns[1].value:
            continue
        yield TraceRow(
            line=line,
            arrival_s=None,
            input_tokens=math.ceil(len(turns[0].value) / CHARS_PER_TOKEN),
            output_tokens=math.ceil(len(turns[1].value) / CHARS_PER_TOKEN),
            text=turns[0].value,
            key=None if entry.id is None else str(entry.id),
        )


def _entries(path: Path) -> Iterator[tuple[int, object]]:
    """Elements of the array with the line each begins on, decoded one by one as they are asked for."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    decoder = json.JSONDecoder()
    position, line = _skip_space(text, 0), 1 + text.count("\n", 0, _skip_space(text, 0))
    if text[position : position + 1] != "[":
        raise TraceError(path, line, "must be a JSON array of conversations")
    closing = "]"  # an empty array may close at once; after a comma it may not
    while True:
        start = _skip_space(text, position + 1)
        line += text.count("\n", position, start)
        if text[start : start + 1] == closing:
            return
        try:
            value, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise TraceError(path, error.lineno, error.msg) from error
        yield line, value
        position = _skip_space(text, end)
        line += text.count("\n", start, position)
        if text[position : position + 1] == "]":
            return
        if text[position : position + 1] != ",":
            raise TraceError(path, line, "expected ',' or ']' after a conversation")
        closing = ""


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position
