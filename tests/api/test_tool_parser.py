"""Calls in a model's text, however it is cut into pieces."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.tool_parser import HERMES, LLAMA, MISTRAL, ToolParser, ToolStyle, read_calls

NAMES = {"get", "put"}
GET = '{"name": "get", "arguments": {"x": "</tool> é"}}'
PUT = '{"name": "put", "parameters": {}}'
Calls = list[tuple[str, object]]

CASES: list[tuple[ToolStyle, str, str, Calls]] = [
    (HERMES, "just text < and <tool", "just text < and <tool", []),
    (HERMES, f"<tool_call>\n{GET}\n</tool_call>", "", [("get", {"x": "</tool> é"})]),
    (
        HERMES,
        f"Well. <tool_call>{GET}</tool_call>\n<tool_call>{PUT}</tool_call>\n",
        "Well. ",
        [("get", {"x": "</tool> é"}), ("put", {})],
    ),
    (HERMES, f"<tool_call>{GET}", "", [("get", {"x": "</tool> é"})]),
    (HERMES, "<tool_call>{broken</tool_call> x", "<tool_call>{broken</tool_call> x", []),
    (HERMES, '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
     '<tool_call>{"name": "rm", "arguments": {}}</tool_call>', []),
    (HERMES, '<tool_call>{"name": "get", "arguments": [1]}</tool_call>',
     '<tool_call>{"name": "get", "arguments": [1]}</tool_call>', []),
    (HERMES, GET, GET, []),
    (MISTRAL, f"[TOOL_CALLS][{GET}, {PUT}]", "", [("get", {"x": "</tool> é"}), ("put", {})]),
    (MISTRAL, '[TOOL_CALLS]get{"a": 1}[TOOL_CALLS]put[ARGS]{}', "", [("get", {"a": 1}), ("put", {})]),
    (MISTRAL, "[TOOL_CALLSx", "[TOOL_CALLSx", []),
    (LLAMA, f" {PUT}", "", [("put", {})]),
    (LLAMA, f"<|python_tag|>{PUT}; {GET}", "", [("put", {}), ("get", {"x": "</tool> é"})]),
    (LLAMA, '{"an": "object"}', '{"an": "object"}', []),
    (LLAMA, f"text {PUT}", f"text {PUT}", []),
    (HERMES, "<tool_call>" + "[" * 100_000, "<tool_call>" + "[" * 100_000, []),
]  # fmt: skip


def parse(style: ToolStyle, pieces: list[str]) -> tuple[str, Calls]:
    parser = ToolParser(style, NAMES)
    parts = [*(parser.feed(piece) for piece in pieces), parser.finish()]
    calls = [call for part in parts for call in part.calls]
    assert len({call.id for call in calls}) == len(calls)
    return "".join(part.text for part in parts), [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize(("style", "answer", "text", "calls"), CASES)
def test_what_is_text_and_what_is_a_call(style: ToolStyle, answer: str, text: str, calls: Calls) -> None:
    assert parse(style, [answer]) == (text, calls)
    if len(answer) < 1000:
        assert parse(style, list(answer)) == (text, calls)


@given(
    st.sampled_from([HERMES, MISTRAL, LLAMA]),
    st.lists(
        st.sampled_from([*"ab {}[]<>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", GET])
    ),
)
def test_pieces_make_no_difference_and_text_without_calls_is_kept(style: ToolStyle, parts: list[str]) -> None:
    answer = "".join(parts)
    text, calls = parse(style, [answer])
    assert parse(style, parts) == (text, calls)
    assert parse(style, list(answer)) == (text, calls)
    if not calls:
        assert text == answer.lstrip()


def test_arguments_may_be_written_as_text() -> None:
    (call,) = read_calls('{"name": "get", "arguments": "{\\"x\\": 1}"}', NAMES)
    assert json.loads(call.arguments) == {"x": 1}
