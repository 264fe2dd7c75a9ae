"""Calls of functions in a model's text, in the form that its chat template taught it.

    Hermes, Qwen   <tool_call>{"name": ..., "arguments": {...}}</tool_call>
    Mistral        [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...], or [TOOL_CALLS]name{...}
    Llama 3        {"name": ..., "parameters": {...}} as the whole answer, or after <|python_tag|>

What is not such a call, or calls a function that was not offered, stays text.
"""

import json
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolStyle:
    """How calls are marked. Without `closing` a call goes on to the end of the text; with `bare` a text that
    begins with a brace is one, too."""

    opening: str
    closing: str | None = None
    bare: bool = False

    @property
    def markers(self) -> frozenset[str]:
        """Special tokens that must be seen in the text for it to be understood."""
        return frozenset({self.opening, self.closing or self.opening, "[ARGS]", "[CALL_ID]"})


HERMES = ToolStyle("<tool_call>", "</tool_call>")
MISTRAL = ToolStyle("[TOOL_CALLS]")
LLAMA = ToolStyle("<|python_tag|>", bare=True)
STYLES = (HERMES, MISTRAL, LLAMA)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is JSON."""

    id: str
    name: str
    arguments: str

    def encode(self) -> dict[str, object]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(slots=True)
class Parsed:
    """What became clear of a text: some of it, and calls that came after."""

    text: str
    calls: list[ToolCall]


class ToolParser:
    """Reads one answer piece by piece. A call is given out once it is complete."""

    def __init__(self, style: ToolStyle, names: Collection[str]) -> None:
        self._style = style
        self._names = names
        self._buffer = ""
        self._opened_by: str | None = None  # what began the call that is being read; None: text is
        self._searched = 0  # characters of the buffer that the end of the call is not in
        self._at_start = True  # of the answer, or after a call: space does not count

    def feed(self, text: str) -> Parsed:
        """More of the answer."""
        self._buffer += text
        parsed = Parsed("", [])
        while self._take_call(parsed) if self._opened_by is not None else self._take_text(parsed):
            pass
        return parsed

    def finish(self) -> Parsed:
        """The rest, once the answer has ended."""
        rest, self._buffer = self._buffer, ""
        if self._opened_by is None:
            return Parsed("" if self._at_start and not rest.strip() else rest, [])
        calls = read_calls(rest, self._names)
        return Parsed("" if calls else self._opened_by + rest, calls)

    def _take_text(self, parsed: Parsed) -> bool:
        """Give out text up to a call. Whether a call begins."""
        opening = self._style.opening
        if self._at_start:
            self._buffer = self._buffer.lstrip()
            if self._style.bare and self._buffer.startswith("{"):
                self._begin_call("")
                return True
        before, found, after = self._buffer.partition(opening)
        if found:
            self._show(parsed, before)
            self._buffer = after
            self._begin_call(opening)
            return True
        held = _overlap(self._buffer, opening)
        cut = len(self._buffer) - held
        self._show(parsed, self._buffer[:cut])
        self._buffer = self._buffer[cut:]
        return False

    def _begin_call(self, opened_by: str) -> None:
        self._opened_by = opened_by
        self._searched = 0
        self._at_start = False

    def _take_call(self, parsed: Parsed) -> bool:
        """Give out a call that is complete. Whether there was one."""
        closing = self._style.closing
        if closing is None:
            return False
        end = self._buffer.find(closing, self._searched)
        if end < 0:
            self._searched = max(0, len(self._buffer) - len(closing))
            return False
        assert self._opened_by is not None
        inside, self._buffer = self._buffer[:end], self._buffer[end + len(closing) :]
        calls = read_calls(inside, self._names)
        parsed.calls += calls
        self._at_start = bool(calls)
        if not calls:
            parsed.text += self._opened_by + inside + closing
        self._opened_by = None
        return True

    def _show(self, parsed: Parsed, text: str) -> None:
        parsed.text += text
        self._at_start = self._at_start and not text


_NAME_FIRST = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*(?:\[CALL_ID\][^\[]*)?(?:\[ARGS\])?\s*(?=\{)")
_BETWEEN = re.compile(r"(?:[\s;,]|\[TOOL_CALLS\])*")
_decode = json.JSONDecoder().raw_decode


def read_calls(text: str, names: Collection[str]) -> list[ToolCall]:
    """The calls that a text consists of; none if it has anything else in it."""
    calls: list[ToolCall] = []
    position = _skip(text, 0)
    try:
        while position < len(text):
            named = _NAME_FIRST.match(text, position)
            value, position = _decode(text, named.end() if named else position)
            entries = value if isinstance(value, list) and not named else [value]
            for entry in entries:
                call = _call(named[1], entry, names) if named else _call_of(entry, names)
                if call is None:
                    return []
                calls.append(call)
            position = _skip(text, position)
    except (ValueError, RecursionError):
        return []
    return calls


def _call_of(entry: object, names: Collection[str]) -> ToolCall | None:
    """A call as an object with its name."""
    if not isinstance(entry, dict):
        return None
    arguments = entry.get("arguments", entry.get("parameters", {}))
    return _call(entry.get("name"), arguments, names)


def _call(name: object, arguments: object, names: Collection[str]) -> ToolCall | None:
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
        return None
    return ToolCall(f"call_{secrets.token_hex(12)}", name, json.dumps(arguments, ensure_ascii=False))


def _skip(text: str, position: int) -> int:
    match = _BETWEEN.match(text, position)
    assert match is not None
    return match.end()


def _overlap(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the beginning of `marker`."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0
