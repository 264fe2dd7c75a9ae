"""Offering functions to a model: in its own template's words, or in ours where it has none."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from api.chat_template import ChatMessage, ChatTemplate
from api.errors import bad_request
from api.schemas import ChatRequest, ChatTurn, NamedTool, Tool
from api.tool_parser import HERMES, ToolStyle
from engine.messages import Grammar, GrammarKind

_OFFER = """You may call these functions:
{tools}
To call one, answer with nothing but this, and then stop:
<tool_call>{{"name": FUNCTION, "arguments": {{...}}}}</tool_call>"""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What of tools concerns the answer to one request."""

    style: ToolStyle
    names: frozenset[str]
    max_calls: int | None  # of one choice; None: as many as the model makes
    grammar: Grammar | None  # set if a call is demanded: the answer is one, and nothing else


def offered_tools(body: ChatRequest) -> list[Tool]:
    """The functions that the model is told of. Raises ApiError."""
    tools = body.tools or []
    if not tools and body.tool_choice not in (None, "none", "auto"):
        raise bad_request("tool_choice", "tool_choice asks for a call, but there are no tools")
    if isinstance(body.tool_choice, NamedTool):
        name = body.tool_choice.function.name
        tools = [tool for tool in tools if tool.function.name == name]
        if not tools:
            raise bad_request("tool_choice.function.name", f"tool_choice: no tool is named {name!r}")
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise bad_request("tools", "tools: two functions have the same name")
    return [] if body.tool_choice == "none" else tools


def tool_use(body: ChatRequest, tools: Sequence[Tool], template: ChatTemplate | None) -> ToolUse | None:
    """None where no function is offered."""
    if not tools:
        return None
    demanded = body.tool_choice not in (None, "auto")
    style = HERMES if template is None else template.tool_style or HERMES
    if demanded:
        style = ToolStyle(style.opening, bare=True)
    names = frozenset(tool.function.name for tool in tools)
    max_calls = 1 if body.parallel_tool_calls is False else None
    return ToolUse(style, names, max_calls, _demand(tools) if demanded else None)


def template_messages(
    turns: Sequence[ChatTurn], tools: Sequence[Tool], template: ChatTemplate | None
) -> list[ChatMessage]:
    """The conversation as a template takes it; one that knows nothing of tools gets them as text. What a
    developer says is the system's for one that knows none, and might leave it out without a word."""
    if template is None or not template.knows_developers:
        turns = [_without_developer(turn) for turn in turns]
    if template is not None and template.tool_style is not None:
        return [_message(turn) for turn in turns]
    messages = [_plain_message(turn) for turn in turns]
    if tools:
        offer = _OFFER.format(tools="\n".join(json.dumps(tool_value(tool)) for tool in tools))
        if messages and messages[0]["role"] == "system":
            messages[0] = {"role": "system", "content": f"{messages[0]['content']}\n\n{offer}"}
        else:
            messages.insert(0, {"role": "system", "content": offer})
    return messages


def tool_value(tool: Tool) -> dict[str, object]:
    """A tool as templates expect it."""
    function = tool.function
    return {
        "type": "function",
        "function": {
            "name": function.name,
            "description": function.description or "",
            "parameters": function.parameters or {"type": "object", "properties": {}},
        },
    }


def _without_developer(turn: ChatTurn) -> ChatTurn:
    return msgspec.structs.replace(turn, role="system") if turn.role == "developer" else turn


def _message(turn: ChatTurn) -> ChatMessage:
    message: ChatMessage = {"role": turn.role, "content": turn.text}
    if turn.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": value}}
            for call in turn.tool_calls
            for value in [_arguments(call.function.arguments)]
        ]
    if turn.tool_call_id is not None:
        message |= {"tool_call_id": turn.tool_call_id, "name": turn.name or ""}
    return message


def _plain_message(turn: ChatTurn) -> ChatMessage:
    if turn.role == "tool":
        return {"role": "user", "content": f"<tool_response>{turn.text}</tool_response>"}
    calls = [
        HERMES.opening
        + json.dumps({"name": call.function.name, "arguments": _arguments(call.function.arguments)})
        + f"{HERMES.closing}"
        for call in turn.tool_calls or ()
    ]
    return {"role": turn.role, "content": "\n".join([turn.text, *calls] if turn.text else calls or [""])}


def _arguments(source: str) -> object:
    """Templates want arguments as a value; what is no JSON stays text."""
    try:
        return json.loads(source)
    except (ValueError, RecursionError):
        return source


def _demand(tools: Sequence[Tool]) -> Grammar:
    """One call, as JSON."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": tool.function.parameters or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return Grammar(kind=GrammarKind.JSON_SCHEMA, source=msgspec.json.encode(schema).decode())
