"""Structured output: which tokens may come next under a grammar (llguidance's)."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import llguidance
import llguidance.hf
import torch
from llguidance.numpy import fill_next_token_bitmask_par
from transformers import PreTrainedTokenizerFast

from engine.messages import Grammar, GrammarKind
from engine.model_runner.batch import Row, StepRow

MAX_THREADS = 8  # a batch of 64 masks then takes a fraction of a step
MAX_REMEMBERED = 16  # compiled grammars: programs use the same few again and again


class BadGrammar(ValueError):
    """The grammar cannot be compiled; the message says why."""


@dataclass(slots=True)
class _Matcher:
    """The state of one row's grammar after the first `num_consumed` tokens of its output."""

    row: Row
    matcher: llguidance.LLMatcher
    num_consumed: int = 0


class Grammars:
    """Matchers for the rows of a model; its tokenizer is read once, here (about a second)."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        self._num_words = -(-vocab_size // 32)
        self._tokenizer = llguidance.hf.from_tokenizer(
            tokenizer, n_vocab=vocab_size, eos_token=list(eos_token_ids) or None
        )
        self._threads = llguidance.LLExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0))))
        self._matchers: dict[int, _Matcher] = {}  # by slot
        self._compiled: OrderedDict[Grammar, llguidance.LLMatcher] = OrderedDict()  # at their starts

    def check(self, grammar: Grammar) -> None:
        """Raise `BadGrammar` unless the grammar compiles."""
        self._matcher(grammar)

    def next_bits(self, rows: Sequence[StepRow], *, pinned: bool = False) -> torch.Tensor:
        """Tokens that may come next in each row: int32 `[rows, ceil(vocab / 32)]`, lowest bit first, in host
        memory, from which a GPU can read it at once if it is `pinned`.

        A grammar that is complete, or that the output has left, allows the end tokens alone.
        """
        bits = torch.empty(len(rows), self._num_words, dtype=torch.int32, pin_memory=pinned)
        found = bits.numpy()
        found.fill(0)
        matchers = [(self._advanced(step.row), i) for i, step in enumerate(rows)]
        fill_next_token_bitmask_par(self._threads, matchers, found)
        return bits

    def _advanced(self, row: Row) -> llguidance.LLMatcher:
        state = self._matchers.get(row.slot)
        if state is None or state.row is not row:
            assert row.sampling.grammar is not None
            state = _Matcher(row, self._matcher(row.sampling.grammar))
            self._matchers[row.slot] = state
        output = row.history[row.num_prompt + state.num_consumed :]
        state.matcher.consume_tokens(output)
        state.num_consumed += len(output)
        return state.matcher

    def _matcher(self, grammar: Grammar) -> llguidance.LLMatcher:
        """One at the start of the grammar, for the caller alone. Raises BadGrammar."""
        matcher = self._compiled.get(grammar)
        if matcher is None:
            matcher = self._compiled[grammar] = self._compile(grammar)
            if len(self._compiled) > MAX_REMEMBERED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return matcher.deep_copy()

    def _compile(self, grammar: Grammar) -> llguidance.LLMatcher:
        sources = {
            GrammarKind.JSON_SCHEMA: llguidance.LLMatcher.grammar_from_json_schema,
            GrammarKind.REGEX: llguidance.LLMatcher.grammar_from_regex,
            GrammarKind.LARK: llguidance.LLMatcher.grammar_from_lark,
        }
        try:
            matcher = llguidance.LLMatcher(
                self._tokenizer, sources[grammar.kind](grammar.source), log_level=0
            )
        except ValueError as error:
            raise BadGrammar(str(error)) from error
        if matcher.is_error():
            raise BadGrammar(matcher.get_error())
        return matcher
