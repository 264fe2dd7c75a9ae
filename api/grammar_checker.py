"""The process in which clients' grammars are looked at first: one that costs too much, or that the library
does not survive, ends this process and no other.

Reads grammars from standard input and writes what is wrong with each, one JSON value a line.
"""

import resource
import sys
import threading

import msgspec
from llguidance import LLMatcher, LLTokenizer

from engine.messages import Grammar, GrammarKind

MEMORY_BYTES = 1 << 30
STACK_BYTES = 1 << 20  # an eighth of what a runner has: what passes here does not overflow there
MAX_PROBLEM_CHARS = 500
NOTHING_FITS = "nothing fits it, or its first step costs too much"

_COMPILERS = {
    GrammarKind.JSON_SCHEMA: LLMatcher.grammar_from_json_schema,
    GrammarKind.REGEX: LLMatcher.grammar_from_regex,
    GrammarKind.LARK: LLMatcher.grammar_from_lark,
}


def problem_with(grammar: Grammar) -> str:
    """What llguidance says against the grammar; nothing if it can be used."""
    try:
        compiled = _COMPILERS[grammar.kind](grammar.source)
        problem: str = LLMatcher.validate_grammar(compiled) or _first_problem(compiled)
    except ValueError as error:
        problem = str(error)
    return problem[:MAX_PROBLEM_CHARS]


def _first_problem(compiled: str) -> str:
    """What shows only when tokens are to be found: single bytes here, whatever the model's are."""
    matcher = LLMatcher(LLTokenizer("byte"), compiled, log_level=0)
    if matcher.is_error():
        problem: str = matcher.get_error()
        return problem
    matcher.compute_bitmask()
    return NOTHING_FITS if matcher.is_error() else ""


def _serve() -> None:
    decoder = msgspec.json.Decoder(Grammar)
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(msgspec.json.encode(problem_with(decoder.decode(line))) + b"\n")
        sys.stdout.buffer.flush()


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK_BYTES)
    server = threading.Thread(target=_serve)
    server.start()
    server.join()


if __name__ == "__main__":
    main()
