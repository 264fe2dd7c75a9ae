import random

import pytest

from engine.messages import Sampling
from tests.engine.model_runner.tiny import (
    FAMILIES,
    VOCAB,
    Scheduler,
    generated,
    paged,
    tiny_config,
    tiny_model,
)


def prompts_of(lengths: list[int], seed: int = 1) -> list[list[int]]:
    chooser = random.Random(seed)
    return [[chooser.randrange(1, VOCAB) for _ in range(length)] for length in lengths]


def greedy(num_new: int) -> Sampling:
    return Sampling(max_tokens=num_new, temperature=0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate_alone_mixed_and_chunked(family: str) -> None:
    model = tiny_model(tiny_config(family))
    prompts = prompts_of([1, 3, 9, 17, 30, 41])
    lengths = [24, 20, 16, 12, 30, 8]
    expected = [generated(model, prompt, n) for prompt, n in zip(prompts, lengths, strict=True)]
    assert len({tuple(tokens[:8]) for tokens in expected}) > 1, "the model should not repeat itself"
    samplings = [greedy(n) for n in lengths]
    paged(model)
    alone = Scheduler(model, chunk=None)
    for prompt, sampling, tokens in zip(prompts, samplings, expected, strict=True):
        assert alone.run([prompt], [sampling])[0].output == tokens
    for chunk, seed in ((None, 1), (7, 2), (16, 3)):
        mixed = Scheduler(model, chunk=chunk, seed=seed)
        assert [context.output for context in mixed.run(prompts, samplings)] == expected
