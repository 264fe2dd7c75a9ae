"""Structured output: which tokens may come next under a grammar (llguidance's)."""

from collections.abc import Sequence
from dataclasses import dataclass

import llguidance
import llguidance.hf
import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from engine.messages import Grammar, GrammarKind
from engine.model_runner.batch import Row, StepRow


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
        self._matchers: dict[int, _Matcher] = {}  # by slot

    def check(self, grammar: Grammar) -> None:
        """Raise `BadGrammar` unless the grammar compiles."""
        self._compile(grammar)

    def next_bits(self, rows: Sequence[StepRow]) -> torch.Tensor:
        """Tokens that may come next in each row: int32 `[rows, ceil(vocab / 32)]`, lowest bit first.

        A grammar that is complete, or that the output has left, allows the end tokens alone.
        """
        bits = np.zeros((len(rows), self._num_words), dtype=np.int32)
        for i, step in enumerate(rows):
            matcher = self._advanced(step.row)
            mask = matcher.compute_bitmask()
            bits[i] = np.frombuffer(mask, dtype=np.int32)[: self._num_words]
        return torch.from_numpy(bits)

    def _advanced(self, row: Row) -> llguidance.LLMatcher:
        state = self._matchers.get(row.slot)
        if state is None or state.row is not row:
            assert row.sampling.grammar is not None
            state = _Matcher(row, self._compile(row.sampling.grammar))
            self._matchers[row.slot] = state
        output = row.history[row.num_prompt + state.num_consumed :]
        state.matcher.consume_tokens(output)
        state.num_consumed += len(output)
        return state.matcher

    def _compile(self, grammar: Grammar) -> llguidance.LLMatcher:
        sources = {
            GrammarKind.JSON_SCHEMA: llguidance.LLMatcher.grammar_from_json_schema,
            GrammarKind.REGEX: llguidance.LLMatcher.grammar_from_regex,
            GrammarKind.LARK: llguidance.LLMatcher.grammar_from_lark,
        }
        try:
            matcher = llguidance.LLMatcher(self._tokenizer, sources[grammar.kind](grammar.source))
        except ValueError as error:
            raise BadGrammar(str(error)) from error
        if matcher.is_error():
            raise BadGrammar(matcher.get_error())
        return matcher
