"""A check at load: two prompts run mixed must answer as each does alone.

It finds models whose attention does not go over the pages, or not only: then a neighbour in the batch, a
chunk's border or a page table changes what comes out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from engine.memory.page import PageLayout
from engine.messages import Sampling
from engine.model_runner.batch import Executor, Row, StepRow
from engine.model_runner.scratch import Scratch

_PROMPT_TOKENS = (13, 22)
_NEW_TOKENS = 4
_NUM_TOP = 4
# Largest difference that rounding makes between two runs, as a part of how far the likeliest token stands
# out from a uniform guess.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}


class SelfTestFailed(RuntimeError):
    """The model answers differently in a batch, or not in numbers. The message names its family."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    row: Row
    ids: list[int]


@dataclass(frozen=True, slots=True)
class _Answer:
    """The token sampled, and the log-probabilities of the likeliest tokens, likeliest first."""

    token: int
    logprobs: list[float]


def self_test_scratch(layout: PageLayout) -> Scratch:
    """The contexts that `self_test` uses."""
    return Scratch(layout, len(_PROMPT_TOKENS), max(_PROMPT_TOKENS) + _NEW_TOKENS)


def self_test(
    executor: Executor, scratch: Scratch, *, family: str, vocab_size: int, dtype: torch.dtype
) -> None:
    """Run two prompts alone, then mixed and in chunks, on the pages of `scratch`. Raises `SelfTestFailed`."""
    sampling = Sampling(max_tokens=_NEW_TOKENS, temperature=0.0, logprobs=_NUM_TOP)
    prompts = [
        _Prompt(scratch.row(slot, sampling), [(7 * slot + 31 * i + 1) % vocab_size for i in range(length)])
        for slot, length in enumerate(_PROMPT_TOKENS)
    ]
    alone = [_run_alone(executor, prompt) for prompt in prompts]
    fed = [
        replace(prompt, ids=prompt.ids + [answer.token for answer in answers[:-1]])
        for prompt, answers in zip(prompts, alone, strict=True)
    ]
    mixed = _run_mixed(executor, fed)
    for before, after in zip(alone, mixed, strict=True):
        _compare(before, after, family, vocab_size, _TOLERANCE[dtype])


def _run_alone(executor: Executor, prompt: _Prompt) -> list[_Answer]:
    """Prefill at once, then decode greedily."""
    count = len(prompt.ids)
    answers = [_launch(executor, [StepRow(prompt.row, 0, count, prompt.ids, sample=True)])[0]]
    for start in range(count, count + _NEW_TOKENS - 1):
        answers += _launch(executor, [StepRow(prompt.row, start, 1, None, sample=True)]).values()
    return answers


def _run_mixed(executor: Executor, prompts: Sequence[_Prompt]) -> list[list[_Answer]]:
    """Feed both prompts and the tokens they sampled alone: the first prompt decodes while the second is
    still in prefill, in uneven chunks."""
    answers: list[list[_Answer]] = [[] for _ in prompts]
    starts = [0] * len(prompts)
    chunks = (_PROMPT_TOKENS[0], 9)
    while any(starts[i] < len(prompt.ids) for i, prompt in enumerate(prompts)):
        steps, members = [], []
        for i, prompt in enumerate(prompts):
            start = starts[i]
            num_prompt = _PROMPT_TOKENS[i]
            count = min(chunks[i], num_prompt - start) if start < num_prompt else 1
            if start == len(prompt.ids):
                continue
            ids = prompt.ids[start : start + count]
            steps.append(StepRow(prompt.row, start, count, ids, sample=start + count >= num_prompt))
            members.append(i)
            starts[i] += count
        for row, answer in _launch(executor, steps).items():
            answers[members[row]].append(answer)
    return answers


def _launch(executor: Executor, steps: Sequence[StepRow]) -> dict[int, _Answer]:
    """One step; what its rows sampled, by row."""
    result = executor.launch(steps).result()
    return {
        row: _Answer(token, [logprob for _, logprob in result.logprobs[row].top])
        for row, token in enumerate(result.tokens)
        if token is not None
    }


def _compare(
    alone: Sequence[_Answer],
    mixed: Sequence[_Answer],
    family: str,
    vocab_size: int,
    tolerance: float,
) -> None:
    for place, (before, after) in enumerate(zip(alone, mixed, strict=True)):
        expected, found = before.logprobs, after.logprobs
        if not all(math.isfinite(logprob) for logprob in (*expected, *found)):
            raise SelfTestFailed(f"{family}: the model answers with numbers that are not finite")
        height = expected[0] + math.log(vocab_size)
        difference = max(abs(a - b) for a, b in zip(expected, found, strict=True))
        if difference > tolerance * height:
            raise SelfTestFailed(
                f"{family}: token {place} has log-probability {found[0]:.4f} in a mixed batch and "
                f"{expected[0]:.4f} alone; the model cannot be served in batches"
            )
