"""Log-probabilities of a prompt's own tokens, over chunks."""

import torch

from engine.messages import TokenLogprobs
from engine.model_runner.batch import Row, StepRow
from engine.model_runner.choosing import token_logprobs


def wants_prompt_logprobs(step: StepRow) -> bool:
    """Whether the step computes prompt positions whose log-probabilities were asked for."""
    return step.row.sampling.prompt_logprobs is not None and step.start < step.row.num_prompt


class PromptLogprobs:
    """Log-probabilities of prompt positions, one list per chunk.

    A position is judged by the logits of the position before, so the last logits of a chunk are carried to
    the next chunk of the same row.
    """

    def __init__(self) -> None:
        self._carried: dict[int, tuple[Row, int, torch.Tensor]] = {}

    def judge(self, step: StepRow, logits: torch.Tensor) -> list[TokenLogprobs | None]:
        """One entry for each prompt position in the chunk, from its `logits` `[count, vocab]`.

        None where the position before is not known: at position 0, and at the start of a row that does not
        begin there.
        """
        row = step.row
        assert step.ids is not None
        assert row.sampling.prompt_logprobs is not None
        ids = list(step.ids)[: row.num_prompt - step.start]
        carried_row, position, carried = self._carried.pop(row.slot, (None, 0, logits))
        is_known = carried_row is row and position == step.start
        judging = torch.cat([carried, logits[: len(ids) - 1]]) if is_known else logits[: len(ids) - 1]
        judged = ids if is_known else ids[1:]
        if step.start + step.count < row.num_prompt:
            self._carried[row.slot] = (row, step.start + step.count, logits[-1:].clone())
        entries = token_logprobs(
            judging, torch.tensor(judged, dtype=torch.int64), row.sampling.prompt_logprobs
        )
        return [*entries] if is_known else [None, *entries]
