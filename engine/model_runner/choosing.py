"""From the sampling parameters of a step's rows to the sampler's tensors, and back to messages."""

from collections.abc import Callable, Sequence

import torch

from engine.messages import Sampling, TokenLogprobs
from engine.model_runner.batch import StepRow
from engine.model_runner.sampler import (
    MAX_SHORT_TOP_K,
    Draw,
    Logprobs,
    Penalties,
    Truncation,
    logprobs_of,
    mask_by_bits,
    penalize,
    sample,
)

GrammarBits = Callable[[Sequence[StepRow]], torch.Tensor]
"""Masks for the next tokens of rows with a grammar: int32 `[rows, ceil(vocab / 32)]`."""


def choose_tokens(logits: torch.Tensor, rows: Sequence[StepRow], grammar_bits: GrammarBits) -> torch.Tensor:
    """Sample a token int64 for each of `rows` from `logits` `[rows, vocab]`, which are left as they are."""
    samplings = [step.row.sampling for step in rows]
    edits = [is_edited(step) for step in rows]
    if not any(edits) and all(sampling.temperature == 0 for sampling in samplings):
        return logits.argmax(dim=-1)
    logits = logits.float()
    if any(edits):
        logits = logits.clone()
        _edit(logits, rows, grammar_bits)
    if all(sampling.temperature == 0 for sampling in samplings):
        return logits.argmax(dim=-1)
    return sample(logits, _draw(rows))


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor, num_top: int) -> list[TokenLogprobs]:
    """What is reported of `tokens` `[n]` under raw `logits` `[n, vocab]`."""
    return to_messages(logprobs_of(logits, tokens, num_top))


def to_messages(logprobs: Logprobs) -> list[TokenLogprobs]:
    columns = (logprobs.logprob, logprobs.rank, logprobs.top_ids, logprobs.top_logprobs)
    return [
        TokenLogprobs(logprob=logprob, rank=rank, top=list(zip(top_ids, top_logprobs, strict=True)))
        for logprob, rank, top_ids, top_logprobs in zip(*(column.tolist() for column in columns), strict=True)
    ]


def output_index(step: StepRow) -> int:
    """Index in the prompt's output of the token that the row samples."""
    return step.start + step.count - step.row.num_prompt


def _has_penalty(sampling: Sampling) -> bool:
    return (
        sampling.presence_penalty != 0 or sampling.frequency_penalty != 0 or sampling.repetition_penalty != 1
    )


def _must_not_stop(step: StepRow) -> bool:
    """Whether `min_tokens` forbids the stop tokens; a grammar decides itself when its text may end."""
    sampling = step.row.sampling
    if not sampling.stop_token_ids or sampling.grammar is not None:
        return False
    return output_index(step) < sampling.min_tokens


def is_edited(step: StepRow) -> bool:
    """Whether the row's logits are changed by penalties, bias or masks before its token is drawn."""
    sampling = step.row.sampling
    has_edits = bool(sampling.logit_bias) or sampling.grammar is not None
    return has_edits or _has_penalty(sampling) or _must_not_stop(step)


def is_masked_at_most(step: StepRow) -> bool:
    """Whether a grammar's mask is all that may change the row's logits."""
    sampling = step.row.sampling
    return not (sampling.logit_bias or _has_penalty(sampling) or _must_not_stop(step))


def _edit(logits: torch.Tensor, rows: Sequence[StepRow], grammar_bits: GrammarBits) -> None:
    """Apply penalties, bias and masks in place."""
    penalized = [i for i, step in enumerate(rows) if _has_penalty(step.row.sampling)]
    if penalized:
        penalize(logits, _penalties(rows, penalized, logits.shape[1], logits.device))
    constrained = [i for i, step in enumerate(rows) if step.row.sampling.grammar is not None]
    if constrained:
        bits = grammar_bits([rows[i] for i in constrained])
        mask_by_bits(logits, torch.tensor(constrained, device=logits.device), bits)
    for i, step in enumerate(rows):
        bias = step.row.sampling.logit_bias
        if bias:
            logits[i, list(bias)] += torch.tensor(list(bias.values()), device=logits.device)
        if _must_not_stop(step):
            logits[i, list(step.row.sampling.stop_token_ids)] = -torch.inf


def _penalties(
    rows: Sequence[StepRow], members: Sequence[int], vocab: int, device: torch.device
) -> Penalties:
    outputs, seens = [], []
    for i in members:
        row = rows[i].row
        output = torch.tensor(row.history[row.num_prompt :], dtype=torch.int64)
        outputs.append(torch.bincount(output, minlength=vocab))
        seens.append(torch.bincount(torch.tensor(row.history, dtype=torch.int64), minlength=vocab) > 0)
    samplings = [rows[i].row.sampling for i in members]
    return Penalties(
        rows=torch.tensor(members, device=device),
        output_counts=torch.stack(outputs).to(device),
        seen=torch.stack(seens).to(device),
        presence=torch.tensor([sampling.presence_penalty for sampling in samplings], device=device),
        frequency=torch.tensor([sampling.frequency_penalty for sampling in samplings], device=device),
        repetition=torch.tensor([sampling.repetition_penalty for sampling in samplings], device=device),
    )


def _draw(rows: Sequence[StepRow]) -> Draw:
    samplings = [step.row.sampling for step in rows]
    cut = [
        i
        for i, sampling in enumerate(samplings)
        if sampling.temperature > 0 and (sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0)
    ]
    # Which of the two ways a row takes depends on the row alone: rounding must not depend on its neighbours.
    short = [i for i in cut if 0 < samplings[i].top_k <= MAX_SHORT_TOP_K]
    long = [i for i in cut if not 0 < samplings[i].top_k <= MAX_SHORT_TOP_K]
    return Draw(
        temperature=torch.tensor([sampling.temperature for sampling in samplings]),
        seeds=torch.tensor([sampling.seed for sampling in samplings]),
        positions=torch.tensor([step.start + step.count for step in rows]),
        truncations=tuple(
            Truncation(
                rows=torch.tensor(members),
                top_k=torch.tensor([samplings[i].top_k for i in members]),
                top_p=torch.tensor([samplings[i].top_p for i in members]),
                min_p=torch.tensor([samplings[i].min_p for i in members]),
                is_short=members is short,
            )
            for members in (short, long)
            if members
        ),
    )
