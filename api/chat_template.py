"""From chat messages to the text that a model is prompted with."""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from api.tool_parser import LLAMA, STYLES

ChatMessage = dict[str, object]

OWN_VARIABLES = frozenset(
    {"messages", "tools", "add_generation_prompt"}
)  # and special tokens: eos_token, ...
PLAIN_STOPS = ("\nUser:", "\nSystem:")
_PLAIN_LABELS = {"user": "User", "assistant": "Assistant", "tool": "Tool"}


_FAILURES = (  # what a template's own code may raise over values that a client chose
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


class ChatTemplateError(Exception):
    """The messages do not fit the model's template; the message is the template's own."""


class ChatTemplate:
    """A model's own template, in the dialect of Jinja that Hugging Face tokenizers use. `tool_style` is how
    it has functions called; None if it knows of none."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        self._template = environment.from_string(source)
        taught = "tools" in source
        self.tool_style = next((style for style in STYLES if taught and style.opening in source), None)
        if taught and self.tool_style is None and '"parameters"' in source:
            self.tool_style = LLAMA  # some of its templates do not name the tag
        self.knows_developers = "developer" in source
        self._special_tokens = special_tokens

    def render(
        self,
        messages: list[ChatMessage],
        tools: list[dict[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt, up to where the assistant is to answer. Raises ChatTemplateError."""
        own = {"messages": messages, "add_generation_prompt": True, "tools": tools or None}
        try:
            return self._template.render({**(variables or {}), **self._special_tokens, **own})
        except _FAILURES as error:
            raise ChatTemplateError(str(error)) from None


def render_plain(messages: list[ChatMessage]) -> str:
    """The prompt for a model without a template: a transcript that the model is to continue.

    Generation ends where the model begins the next turn: see `PLAIN_STOPS`.
    """
    turns = [f"{_PLAIN_LABELS.get(str(turn['role']), 'System')}: {turn['content']}" for turn in messages]
    return "\n".join([*turns, "Assistant:"])


def read_chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> ChatTemplate | None:
    """The template of a tokenizer folder: `chat_template.jinja`, else the entry of tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.exists() else tokenizer_config.get("chat_template")
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    return ChatTemplate(source, special_tokens(tokenizer_config))


def special_tokens(tokenizer_config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and the like by name."""
    found = {}
    for key, value in tokenizer_config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            found[key] = content
    return found


def _to_json(value: object, indent: int | None = None, **_: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
