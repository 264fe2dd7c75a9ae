"""What rows sample and report, through whole steps of a tiny model."""

import random

import pytest
import torch
from transformers import PreTrainedModel

from engine.messages import Sampling
from engine.model_runner.batch import Row, StepResult, StepRow
from engine.model_runner.cpu_executor import CpuExecutor
from engine.model_runner.families import layout
from engine.model_runner.scratch import Scratch
from tests.engine.model_runner.test_cpu_executor import prompts_of
from tests.engine.model_runner.tiny import PAGE_TOKENS, VOCAB, Scheduler, paged, tiny_config, tiny_model

PROMPT = prompts_of([12])[0]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return paged(tiny_model(tiny_config("llama", initializer_range=0.15)))


@pytest.fixture
def scratch(model: PreTrainedModel) -> Scratch:
    return Scratch(layout(model.config, PAGE_TOKENS, torch.float32), 4, 64)


@pytest.fixture
def executor(model: PreTrainedModel, scratch: Scratch) -> CpuExecutor:
    pool = scratch.pool(torch.float32, torch.device("cpu"))
    return CpuExecutor(model, scratch.layout, pool, max_batch=4, max_model_len=64)


def row_of(scratch: Scratch, sampling: Sampling, history: list[int], slot: int = 0) -> Row:
    row = scratch.row(slot, sampling)
    row.num_prompt = len(PROMPT)
    row.history = list(history)
    return row


def next_step(executor: CpuExecutor, scratch: Scratch, sampling: Sampling, ids: list[int]) -> StepResult:
    """The step that samples the token after `ids`."""
    row = row_of(scratch, sampling, ids)
    return executor.launch([StepRow(row, 0, len(ids), ids, sample=True)]).result()


def raw_logprobs(executor: CpuExecutor, scratch: Scratch, ids: list[int]) -> list[float]:
    sampling = Sampling(max_tokens=1, temperature=0.0, logprobs=VOCAB)
    return [logprob for _, logprob in sorted(next_step(executor, scratch, sampling, ids).logprobs[0].top)]


def test_seeded_samples_do_not_depend_on_the_batch_the_chunks_or_the_pages(model: PreTrainedModel) -> None:
    chooser = random.Random(5)
    variants = [{}, {"top_k": 9}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 30, "top_p": 0.9, "min_p": 0.02}]
    samplings = [
        Sampling(max_tokens=25, seed=chooser.getrandbits(63), temperature=0.5 + 0.1 * i, **variants[i % 5])
        for i in range(8)
    ] + [Sampling(max_tokens=25, temperature=0.0)]
    prompts = prompts_of([3 + 4 * i for i in range(9)], seed=3)
    together = [context.output for context in Scheduler(model, chunk=8).run(prompts, samplings)]
    for prompt, sampling, output in zip(prompts, samplings, together, strict=True):
        assert Scheduler(model, chunk=None, seed=9).run([prompt], [sampling])[0].output == output
    assert len({tuple(output) for output in together}) == 9


def test_another_seed_gives_other_tokens(model: PreTrainedModel) -> None:
    samplings = [Sampling(max_tokens=25, seed=seed) for seed in (1, 2)]
    first, second = Scheduler(model, chunk=None).run([PROMPT, PROMPT], samplings)
    assert first.output != second.output


def test_logprobs_are_those_of_the_model(
    model: PreTrainedModel, executor: CpuExecutor, scratch: Scratch
) -> None:
    sampling = Sampling(max_tokens=1, temperature=1.7, seed=4, logprobs=5, logit_bias={3: 50.0})
    result = next_step(executor, scratch, sampling, PROMPT)
    expected = raw_logprobs(executor, scratch, PROMPT)
    assert result.tokens == [3]
    found = result.logprobs[0]
    assert found.logprob == pytest.approx(expected[3], abs=1e-5)
    assert found.rank == 1 + sum(other > expected[3] for other in expected)
    likeliest = sorted(range(VOCAB), key=lambda token: -expected[token])[:5]
    assert [token for token, _ in found.top] == likeliest


def test_logprobs_of_the_sampled_token_alone_may_be_asked_for(
    executor: CpuExecutor, scratch: Scratch
) -> None:
    result = next_step(executor, scratch, Sampling(max_tokens=1, temperature=0.0, logprobs=0), PROMPT)
    assert result.logprobs[0].rank == 1
    assert result.logprobs[0].top == []


@pytest.mark.parametrize("chunks", [[12], [5, 7], [1, 1, 10], [11, 1]])
def test_prompt_logprobs_are_the_same_over_any_chunks(
    executor: CpuExecutor, scratch: Scratch, chunks: list[int]
) -> None:
    row = row_of(scratch, Sampling(max_tokens=1, temperature=0.0, prompt_logprobs=2), PROMPT)
    entries, start = [], 0
    for count in chunks:
        ids = PROMPT[start : start + count]
        end = start + count
        result = executor.launch([StepRow(row, start, count, ids, sample=end == len(PROMPT))]).result()
        assert len(result.prompt_logprobs[0]) == count
        entries += result.prompt_logprobs[0]
        start = end
    assert entries[0] is None
    for position in range(1, len(PROMPT)):
        expected = raw_logprobs(executor, scratch, PROMPT[:position])
        assert entries[position].logprob == pytest.approx(expected[PROMPT[position]], abs=1e-4)
        assert len(entries[position].top) == 2
    after = executor.launch([StepRow(row, len(PROMPT), 1, None, sample=True)]).result()
    assert after.prompt_logprobs == {}


def test_a_row_that_starts_inside_its_prompt_does_not_know_its_first_logprob(
    executor: CpuExecutor, scratch: Scratch
) -> None:
    sampling = Sampling(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    executor.launch([StepRow(row_of(scratch, sampling, PROMPT), 0, 6, PROMPT[:6], sample=False)])
    resumed = StepRow(row_of(scratch, sampling, PROMPT), 6, 6, PROMPT[6:], sample=True)
    entries = executor.launch([resumed]).result().prompt_logprobs[0]
    assert [entry is None for entry in entries] == [True, False, False, False, False, False]


def test_stop_tokens_are_not_sampled_before_min_tokens(executor: CpuExecutor, scratch: Scratch) -> None:
    greedy = Sampling(max_tokens=9, temperature=0.0)
    (likeliest,) = next_step(executor, scratch, greedy, PROMPT).tokens
    stops = Sampling(max_tokens=9, temperature=0.0, min_tokens=2, stop_token_ids=(likeliest,))
    assert next_step(executor, scratch, stops, PROMPT).tokens != [likeliest]
    ids = [*PROMPT, 5, 6]
    (likeliest,) = next_step(executor, scratch, greedy, ids).tokens
    stops = Sampling(max_tokens=9, temperature=0.0, min_tokens=2, stop_token_ids=(likeliest,))
    assert next_step(executor, scratch, stops, ids).tokens == [likeliest]


def test_bias_and_penalties_move_the_choice(executor: CpuExecutor, scratch: Scratch) -> None:
    ids = [*PROMPT, 5, 6, 6]
    logits = torch.tensor(raw_logprobs(executor, scratch, ids))
    biased = Sampling(max_tokens=9, temperature=0.0, logit_bias={17: 100.0})
    assert next_step(executor, scratch, biased, ids).tokens == [17]
    present = Sampling(max_tokens=9, temperature=0.0, presence_penalty=-100.0)
    assert next_step(executor, scratch, present, ids).tokens == [max((5, 6), key=lambda token: logits[token])]
    frequent = Sampling(max_tokens=9, temperature=0.0, frequency_penalty=-100.0)
    assert next_step(executor, scratch, frequent, ids).tokens == [6]
    fresh = Sampling(max_tokens=9, temperature=0.0, presence_penalty=100.0, repetition_penalty=1.5)
    assert next_step(executor, scratch, fresh, ids).tokens[0] not in (5, 6)


def test_edits_of_one_row_leave_the_others_alone(executor: CpuExecutor, scratch: Scratch) -> None:
    plain = Sampling(max_tokens=9, seed=8)
    edited = Sampling(max_tokens=9, seed=8, repetition_penalty=3.0, logit_bias={4: -9.0}, top_p=0.5)
    expected = next_step(executor, scratch, plain, PROMPT).tokens[0]
    rows = [row_of(scratch, sampling, PROMPT, slot) for slot, sampling in enumerate((edited, plain))]
    result = executor.launch([StepRow(row, 0, len(PROMPT), PROMPT, sample=True) for row in rows]).result()
    assert result.tokens[1] == expected


def test_the_cost_of_a_step_is_fitted_without_touching_the_pool(
    executor: CpuExecutor, model: PreTrainedModel, scratch: Scratch
) -> None:
    cost = executor.measure_cost()
    assert min(cost.step_ns, cost.context_ns) >= 0
    assert min(cost.decode_ns, cost.prefill_ns) >= 1
