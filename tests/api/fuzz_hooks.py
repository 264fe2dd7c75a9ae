"""Loaded by Schemathesis for cases that are to be served: bodies are made to agree with themselves.

Fields exclude and demand each other in ways that a JSON schema does not say: nearly every body that is made
from the schema alone is refused, rightly, and nothing behind the checks is tried. So the rules are met here.
"""

from typing import Any
from zlib import crc32

import schemathesis

REQUIRED = {"model", "prompt", "messages", "input", "tokens"}
MAX_OPTIONAL = 3
NEEDS = {"top_logprobs": "logprobs", "tool_choice": "tools", "stream_options": "stream"}

Body = dict[str, Any]


@schemathesis.hook
def map_body(_context: object, body: Any) -> Any:
    """The same body with at most MAX_OPTIONAL fields that nothing asks for, and without contradictions."""
    if not isinstance(body, dict):
        return body
    text = repr(body)  # decides which: the same body always loses the same
    optional = sorted(body.keys() - REQUIRED, key=lambda name: crc32(f"{name} {text}".encode()))
    kept = {name: value for name, value in body.items() if name not in optional[MAX_OPTIONAL:]}
    kept = {name: value for name, value in kept.items() if name not in NEEDS or kept.get(NEEDS[name])}
    if "prompt" in kept:
        kept["prompt"] = _prompt(kept["prompt"])
        kept.pop("messages", None)
    if isinstance(turns := kept.get("messages"), list):
        kept["messages"] = [_turn(turn) if isinstance(turn, dict) else turn for turn in turns]
    return kept


def _prompt(prompt: Any) -> Any:
    """Of one kind, and not empty."""
    if not isinstance(prompt, list):
        return prompt or "x"
    parts = [part for part in prompt if part not in ("", [])]
    if not parts:
        return "x"
    if isinstance(parts[0], str):
        return [part for part in parts if isinstance(part, str)]
    if isinstance(parts[0], list):
        return [[token % 256 for token in part] for part in parts if isinstance(part, list)]
    return [part % 256 for part in parts if isinstance(part, int)]


def _turn(turn: Body) -> Body:
    """With the content, calls and ids that its role has."""
    role = turn.get("role")
    turn = {name: value for name, value in turn.items() if name not in ("tool_calls", "tool_call_id")}
    if role == "tool":
        turn["tool_call_id"] = "call-1"
    return turn if turn.get("content") else turn | {"content": "x"}
