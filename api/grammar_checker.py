"""The process in which clients' grammars are looked at first: one that costs too much, or that the library
does not survive, ends this process and no other.

    python -m api.grammar_checker --cpu-s=SECONDS

Writes an empty line once it is ready; then reads grammars from standard input and writes what is wrong with
each, one JSON value a line. A grammar that costs more CPU time than that ends it.
"""

import argparse
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

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


def _serve(cpu_s: float) -> None:
    decoder = msgspec.json.Decoder(Grammar)
    _say(b"")
    for line in sys.stdin.buffer:
        try:
            with _ended_after(cpu_s):
                problem = problem_with(decoder.decode(line))
        except MemoryError:
            os.abort()
        _say(msgspec.json.encode(problem))


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


@contextmanager
def _ended_after(cpu_s: float) -> Iterator[None]:
    """Have the kernel end the process once the block has used so much CPU time: SIGPROF comes whatever the
    library is doing, and kills."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m api.grammar_checker")
    parser.add_argument("--cpu-s", type=float, required=True)
    cpu_s: float = parser.parse_args().cpu_s
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK_BYTES)
    server = threading.Thread(target=_serve, args=(cpu_s,))
    server.start()
    server.join()


if __name__ == "__main__":
    main()
