"""The messages that the code can print to operators, found in its source."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
GAP = "..."  # what is put in when the message is made
ERRORS = {
    *("BadModel", "CannotServe", "ConfigError", "DeviceError", "KeyFileError", "ModelNotFound"),
    *("PoolTooSmall", "PortError", "RegionError", "SelfTestFailed", "SocketTaken", "UnsupportedModel"),
    *("ResizeError", "UnsupportedTokenizerError"),
}
LOG_METHODS = {"warning", "error", "exception"}
MIN_LETTERS = 8  # of its own: a message with fewer only passes on another's


PREFIXES = ("fairslice: ", "fairslice api: ", "fairslice keys: ", "simulator: ")  # of what is passed on


@dataclass(frozen=True)
class Message:
    """`text` has GAP for whatever is put in."""

    where: str
    text: str


def operator_messages() -> list[Message]:
    """Texts of errors that end a start or a model, and of warnings and errors in the logs."""
    return [
        Message(f"{file.relative_to(ROOT)}:{node.lineno}", text)
        for package in ("api", "engine", "fairslice")
        for file in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        for text in _said_by(node)
        if text.removesuffix(GAP) not in PREFIXES
        and sum(map(str.isalpha, text.replace(GAP, ""))) >= MIN_LETTERS
    ]


def _said_by(call: ast.Call) -> Iterator[str]:
    match call.func:
        case ast.Name(id="_require"):
            yield _template(call.args[2])
        case ast.Name(id="_say"):  # the supervisor's: to standard error
            yield _template(call.args[0])
        case ast.Name(id=name) if name in ERRORS and call.args:
            yield _template(call.args[0])
        case ast.Attribute(value=ast.Name(id="log" | "logger"), attr=method) if method in LOG_METHODS:
            yield re.sub(r"%\.?\d*[sdfg]", GAP, _template(call.args[0]))
        case ast.Name(id="print") if any(keyword.arg == "file" for keyword in call.keywords):
            yield _template(call.args[0])


def _template(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in parts)
    return GAP
