"""Grammars that are made beside everything else: reading a large tokenizer for them takes seconds."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.messages import NO_GRAMMARS, Grammar, ModelCard
from engine.model_runner.batch import StepRow
from engine.model_runner.grammar import BadGrammar, Grammars
from engine.model_runner.sources.errors import one_line


class PendingGrammars(Grammars):
    """The grammars of a model that has a tokenizer; who needs them before they are made waits. `on_problem`
    is told, in a thread of its own, why there are none, if so."""

    def __init__(self, card: ModelCard, on_problem: Callable[[str], None]) -> None:
        self._made: Future[Grammars] = Future()
        self._on_problem = on_problem
        threading.Thread(target=self._make, args=(card,), name="grammars", daemon=True).start()

    def check(self, grammar: Grammar) -> None:
        self._made.result().check(grammar)

    def next_bits(self, rows: Sequence[StepRow], *, pinned: bool = False) -> torch.Tensor:
        return self._made.result().next_bits(rows, pinned=pinned)

    def _make(self, card: ModelCard) -> None:
        try:
            tokenizer = AutoTokenizer.from_pretrained(card.tokenizer)
            if not isinstance(tokenizer, PreTrainedTokenizerFast):
                raise TypeError(f"it is a {type(tokenizer).__name__}")
            self._made.set_result(Grammars(tokenizer, card.vocab_size, card.eos_token_ids))
        except Exception as error:  # a prompt that wants a grammar fails, not the runner
            reason = f"{NO_GRAMMARS}: {one_line(error)}"
            self._made.set_exception(BadGrammar(reason))
            self._on_problem(reason)
