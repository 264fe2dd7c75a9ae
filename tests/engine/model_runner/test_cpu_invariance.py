"""In float32 what a prompt gets is the same bits whatever is beside it and however it was computed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from engine.messages import Sampling, TokenLogprobs
from engine.model_runner.batch import StepRow
from engine.model_runner.cpu_executor import CpuExecutor
from engine.model_runner.families import layout as layout_of
from engine.model_runner.scratch import Scratch
from tests.engine.model_runner.tiny import PAGE_TOKENS, VOCAB, paged, tiny_config, tiny_model

PROMPT_TOKENS, NEW_TOKENS, SAID_AGAIN = 130, 6, 4
MAX_BATCH = 64
FAMILIES = ("llama", "qwen2-window", "opt", "gemma2", "gemma3")

Answer = list[tuple[int | None, TokenLogprobs]]


@dataclass(frozen=True)
class Rig:
    """An executor and contexts for a full batch."""

    executor: CpuExecutor
    scratch: Scratch

    def answer(
        self, ids: Sequence[int], sizes: Sequence[int], num_beside: int, sampling: Sampling, num_new: int
    ) -> Answer:
        """What follows `ids`, computed in chunks of `sizes` while others decode."""
        row = self.scratch.row(0, sampling)
        others = [(self.scratch.row(slot, sampling), 3 * slot % 120) for slot in range(1, num_beside + 1)]
        answers: Answer = []
        start = 0
        for i in range(len(sizes) + num_new - 1):
            count = sizes[i] if i < len(sizes) else 1
            chunk = list(ids[start : start + count]) if i < len(sizes) else None
            is_said = i >= len(sizes) - 1
            steps = [StepRow(other, first + i, 1, [5], sample=True) for other, first in others]
            place = len(steps) // 2
            steps.insert(place, StepRow(row, start, count, chunk, sample=is_said))
            result = self.executor.launch(steps).result()
            start += count
            if is_said:
                answers.append((result.tokens[place], result.logprobs[place]))
        return answers


def make_rig(family: str) -> Rig:
    model = paged(tiny_model(tiny_config(family)))
    scratch = Scratch(layout_of(model.config, PAGE_TOKENS, torch.float32), MAX_BATCH, 160)
    pool = scratch.pool(torch.float32, torch.device("cpu"))
    return Rig(
        CpuExecutor(model, scratch.layout, pool, max_batch=MAX_BATCH, max_model_len=256),
        scratch,
    )


def random_sizes(source: random.Random, total: int) -> list[int]:
    sizes = []
    while total:
        sizes.append(min(total, source.choice((1, source.randrange(2, 9), source.randrange(9, 80)))))
        total -= sizes[-1]
    return sizes


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_the_same_bits_in_any_batch_in_any_chunks_and_computed_again(family: str) -> None:
    rig = make_rig(family)
    source = random.Random(3)
    ids = [source.randrange(1, VOCAB) for _ in range(PROMPT_TOKENS)]
    for sampling in (
        Sampling(max_tokens=NEW_TOKENS, temperature=0.0, logprobs=20),
        Sampling(max_tokens=NEW_TOKENS, temperature=1.3, top_p=0.9, seed=7, logprobs=20),
    ):
        alone = rig.answer(ids, [PROMPT_TOKENS], 0, sampling, NEW_TOKENS)
        for batch in (2, 5, 17, MAX_BATCH):
            assert rig.answer(ids, [PROMPT_TOKENS], batch - 1, sampling, NEW_TOKENS) == alone, batch
        said = [token for token, _ in alone[:SAID_AGAIN] if token is not None]
        for beside in (0, 11):
            sizes = random_sizes(source, PROMPT_TOKENS)
            assert rig.answer(ids, sizes, beside, sampling, NEW_TOKENS) == alone, sizes
            sizes = random_sizes(source, PROMPT_TOKENS + SAID_AGAIN)
            again = rig.answer(ids + said, sizes, beside, sampling, NEW_TOKENS - SAID_AGAIN)
            assert again == alone[SAID_AGAIN:], sizes
