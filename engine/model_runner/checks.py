"""What a slice may ask of the model: a prompt that cannot be served fails alone, before it reaches a step."""

from engine.messages import BAD_GRAMMAR, NO_GRAMMARS, Slice
from engine.model_runner.grammar import BadGrammar, Grammars


class SliceCheck:
    """Says why a slice cannot be run, if so. `grammars` is None for a tokenizer that has none."""

    def __init__(self, *, vocab_size: int, max_model_len: int, grammars: Grammars | None) -> None:
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._grammars = grammars

    def __call__(self, one_slice: Slice) -> str | None:
        if not one_slice.ids:
            return "a slice without ids to compute"
        sampling = one_slice.sampling
        for ids in (one_slice.ids, sampling.stop_token_ids, sampling.logit_bias):
            if ids and not 0 <= min(ids) <= max(ids) < self._vocab_size:
                return f"token ids must be from 0 to {self._vocab_size - 1}, got {min(ids)} to {max(ids)}"
        if one_slice.start + len(one_slice.ids) > self._max_model_len:
            return f"the context is longer than the model's {self._max_model_len} positions"
        if sampling.grammar is None:
            return None
        if self._grammars is None:
            return f"{BAD_GRAMMAR}: {NO_GRAMMARS}"
        try:
            self._grammars.check(sampling.grammar)
        except BadGrammar as error:
            return f"{BAD_GRAMMAR}: {' '.join(str(error).split())}"
        return None
