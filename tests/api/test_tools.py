"""Tools in chat, as the official client uses them."""

import json
from typing import Any

import msgspec
import pytest

from api.chat_template import ChatTemplate
from api.schemas import ChatTurn, Function, Tool
from api.tool_parser import HERMES, LLAMA, MISTRAL
from api.tools import template_messages
from engine.messages import GrammarKind
from tests.api.fake_engine import say
from tests.api.harness import Api, run, running_api
from tests.api.test_bad_input import check_error
from tests.api.test_openai_client import MESSAGES, client_of

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "Now", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "time"}},
]
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Basel"}}</tool_call>'


def prompt_of(api: Api) -> str:
    return bytes(api.engine.submits[-1].prompts[0].input_ids[1:]).decode()


def test_one_call_where_parallel_ones_are_not_wanted() -> None:
    async def test() -> None:
        async with running_api(script=say(CALL + CALL)) as api, client_of(api) as client:
            for parallel, count in ((True, 2), (False, 1)):
                answer = await client.chat.completions.create(
                    model="fake", messages=MESSAGES, tools=TOOLS, parallel_tool_calls=parallel
                )
                assert len(answer.choices[0].message.tool_calls or []) == count
                stream = await client.chat.completions.create(
                    model="fake", messages=MESSAGES, tools=TOOLS, parallel_tool_calls=parallel, stream=True
                )
                chunks = [chunk.choices[0] async for chunk in stream]
                assert sum(len(chunk.delta.tool_calls or []) for chunk in chunks) == count
                assert "".join(chunk.delta.content or "" for chunk in chunks) == ""
                assert chunks[-1].finish_reason == "tool_calls"

    run(test())


def test_a_call_whole_and_streamed() -> None:
    async def test() -> None:
        async with running_api(script=say(f"Let me see. {CALL}")) as api, client_of(api) as client:
            answer = await client.chat.completions.create(model="fake", messages=MESSAGES, tools=TOOLS)
            (choice,) = answer.choices
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content == "Let me see. "
            assert choice.message.tool_calls is not None
            (call,) = choice.message.tool_calls
            assert (call.type, call.function.name) == ("function", "weather")
            assert json.loads(call.function.arguments) == {"city": "Basel"}
            assert '"name": "weather"' in prompt_of(api)
            assert api.engine.submits[-1].prompts[0].sampling.grammar is None

            text, calls, reasons = "", [], []
            stream = await client.chat.completions.create(
                model="fake", messages=MESSAGES, tools=TOOLS, stream=True, n=2
            )
            async for chunk in stream:
                if chunk.choices[0].index == 1:
                    text += chunk.choices[0].delta.content or ""
                    calls += chunk.choices[0].delta.tool_calls or []
                    reasons.append(chunk.choices[0].finish_reason)
            assert text == "Let me see. "
            (streamed,) = calls
            assert (streamed.index, streamed.function.name) == (0, "weather")
            assert json.loads(streamed.function.arguments) == {"city": "Basel"}
            assert reasons[-1] == "tool_calls"
            assert set(reasons[:-1]) == {None}

    run(test())


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=["required", "named"]
)
def test_a_demanded_call_is_held_to_by_a_grammar(choice: Any) -> None:
    async def test() -> None:
        said = '{"name": "weather", "arguments": {"city": "Bern"}}'
        async with running_api(script=say(said)) as api:
            for stream in (False, True):
                answer = await api.chat(tools=TOOLS, tool_choice=choice, stream=stream)
                assert answer.status == 200, answer.body
                if stream:
                    deltas = [event["choices"][0]["delta"] for event in answer.events[:-1]]
                    (call,) = [call for delta in deltas for call in delta.get("tool_calls", ())]
                else:
                    assert answer.json["choices"][0]["message"]["content"] is None
                    (call,) = answer.json["choices"][0]["message"]["tool_calls"]
                assert json.loads(call["function"]["arguments"]) == {"city": "Bern"}
            grammar = api.engine.submits[-1].prompts[0].sampling.grammar
            assert grammar is not None
            assert grammar.kind is GrammarKind.JSON_SCHEMA
            assert ("time" in grammar.source) == (choice == "required")
            assert ('"name": "time"' in prompt_of(api)) == (choice == "required")

    run(test())


def test_none_offers_nothing_and_reads_no_calls() -> None:
    async def test() -> None:
        async with running_api(script=say(CALL)) as api:
            answer = await api.chat(tools=TOOLS, tool_choice="none")
            assert answer.json["choices"][0]["message"]["content"] == CALL
            assert "weather" not in prompt_of(api)

    run(test())


def test_results_of_calls_come_back_as_turns() -> None:
    async def test() -> None:
        async with running_api() as api:
            called = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
            messages = [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": None, "tool_calls": [called]},
                {"role": "tool", "tool_call_id": "1", "content": "rain"},
            ]
            answer = await api.post(
                "/v1/chat/completions", {"model": "fake", "messages": messages, "tools": TOOLS}
            )
            assert answer.status == 200
            prompt = prompt_of(api)
            assert prompt.startswith("System: Be brief.\n\nYou may call")
            assert '<tool_call>{"name": "weather", "arguments": {}}</tool_call>' in prompt
            assert "<tool_response>rain</tool_response>" in prompt

    run(test())


USER = {"role": "user", "content": "x"}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name"),
    ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "some"}, "tool_choice"),
    (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "tool_choice.function.name",
    ),
    ({"tools": TOOLS, "tool_choice": "required", "guided_regex": "a"}, "guided_regex"),
    (
        {
            "tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "bogus"}}}],
            "tool_choice": "required",
        },
        "tool_choice",
    ),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"messages": [USER | {"tool_call_id": "1"}]}, "messages[0].tool_call_id"),
    (
        {"messages": [USER | {"tool_calls": [{"id": "1", "function": {"name": "x", "arguments": ""}}]}]},
        "messages[0].tool_calls",
    ),
]


def test_bad_tools() -> None:
    async def test() -> None:
        async with running_api() as api:
            for fields, param in BAD:
                body = {"model": "fake", "messages": [USER]} | fields
                check_error(await api.post("/v1/chat/completions", body), 400, param)
            assert not api.engine.submits

    run(test())


QWEN = "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}<tool_call>{% endif %}{{ messages }}"


def test_the_style_is_the_templates_own() -> None:
    assert ChatTemplate(QWEN, {}).tool_style is HERMES
    assert ChatTemplate("{{ tools }}[AVAILABLE_TOOLS][TOOL_CALLS]", {}).tool_style is MISTRAL
    assert ChatTemplate('{{ tools }}{"name": x, "parameters": y}', {}).tool_style is LLAMA
    assert ChatTemplate("{{ messages }}", {}).tool_style is None
    assert ChatTemplate("<tool_call>{{ messages }}", {}).tool_style is None


def test_a_template_that_knows_tools_gets_them_as_values() -> None:
    template = ChatTemplate(QWEN, {})
    called = {"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}
    turns = [
        ChatTurn(role="user", content="x"),
        _turn({"role": "assistant", "tool_calls": [called]}),
        ChatTurn(role="tool", tool_call_id="1", content="y"),
    ]
    tools = [Tool(type="function", function=Function(name="f"))]
    messages = template_messages(turns, tools, template)
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    (call,) = messages[1]["tool_calls"]  # type: ignore[misc]
    assert call["function"]["arguments"] == {"a": 1}
    assert messages[2]["tool_call_id"] == "1"


@pytest.mark.parametrize("source", ["{{ messages }}", QWEN, None])
def test_what_a_developer_says_is_the_systems_where_the_template_knows_no_developers(
    source: str | None,
) -> None:
    turns = [ChatTurn(role="developer", content="Be brief."), ChatTurn(role="user", content="x")]
    template = None if source is None else ChatTemplate(source, {})
    messages = template_messages(turns, [], template)
    assert messages[0] == {"role": "system", "content": "Be brief."}
    knowing = ChatTemplate("developer {{ messages }}", {})
    assert template_messages(turns, [], knowing)[0]["role"] == "developer"


def _turn(value: dict[str, Any]) -> ChatTurn:
    return msgspec.convert(value, ChatTurn)
