"""The executor on a GPU against transformers' `generate` on the CPU, both in fp32."""

from copy import deepcopy
from functools import partial

import pytest

pytest.importorskip("triton")

import torch
from transformers import PreTrainedModel

from engine.messages import Sampling
from engine.model_runner import device_step
from engine.model_runner.batch import Row, StepRow
from engine.model_runner.compiling import CompileChoices, compiled
from engine.model_runner.cuda_executor import CudaExecutor, StepOptions
from tests.engine.model_runner.tiny import (
    VOCAB,
    Context,
    Scheduler,
    generated,
    paged,
    tiny_config,
    tiny_model,
)

PROMPTS = [
    [(7 * i * i + 3 * length) % VOCAB for i in range(1, length + 1)] for length in (1, 3, 9, 17, 30, 41)
]
GREEDY = Sampling(max_tokens=16, temperature=0.0)
VARIED = [
    Sampling(max_tokens=12, temperature=0.9, seed=11, logprobs=2),
    Sampling(max_tokens=12, temperature=0.0, repetition_penalty=1.4, logit_bias={3: 4.0}),
    Sampling(max_tokens=12, temperature=1.1, seed=5, top_k=20, top_p=0.8, min_p=0.01),
    Sampling(max_tokens=12, temperature=1.0, seed=9, top_p=0.7, prompt_logprobs=1),
    Sampling(max_tokens=12, temperature=0.0),
    Sampling(max_tokens=12, temperature=0.7, seed=2),
]


class CudaScheduler(Scheduler):
    """Random mixed batches on the GPU."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        chunk: int | None,
        compiled: bool,
        capture: bool,
        seed: int = 0,
        deterministic: bool = False,
    ) -> None:
        super().__init__(deepcopy(model), chunk=chunk, seed=seed)  # its executor changes the model's layers
        self.pool = self.pool.cuda()
        options = StepOptions(
            max_batch=12,
            max_step_tokens=128,
            max_model_len=256,
            compile=compiled,
            deterministic=deterministic,
        )
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        self.executor = CudaExecutor(model.cuda(), self.layout, self.pool, options, stream=stream)
        self.executor.prepare(lambda stage, fraction: None, capture=capture)

    def _release(self, context: Context, ends: list[int]) -> None:
        super()._release(context, ends)
        torch.cuda.synchronize()  # pages are overwritten on another stream than the executor's


@pytest.mark.parametrize(
    ("family", "compiled", "capture"),
    [
        ("llama", False, False),
        ("llama", False, True),
        ("llama", True, True),
        ("qwen2-window", False, True),
        ("gemma3", False, True),
        ("gpt-oss", False, False),
    ],
)
def test_greedy_equals_generate_in_mixed_batches(family: str, compiled: bool, capture: bool) -> None:
    model = tiny_model(tiny_config(family))
    expected = [generated(model, prompt, 16) for prompt in PROMPTS]
    paged(model)
    scheduler = CudaScheduler(model, chunk=9, compiled=compiled, capture=capture)
    for _ in range(2):
        contexts = scheduler.run(PROMPTS, [GREEDY] * len(PROMPTS))
        assert [context.output for context in contexts] == expected


@pytest.mark.parametrize(
    ("family", "choices"),
    [
        ("llama", CompileChoices(keep_rows_early=True, add_in_products=False, one_pass_width=0)),
        ("llama", CompileChoices(keep_rows_early=False, add_in_products=True, one_pass_width=0)),
        ("llama", CompileChoices(keep_rows_early=False, add_in_products=False, one_pass_width=8192)),
        ("llama", CompileChoices()),
        ("gemma3", CompileChoices()),
    ],
)
def test_however_it_is_compiled(
    family: str, choices: CompileChoices, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tiny_config(family))
    expected = [generated(model, prompt, 16) for prompt in PROMPTS]
    paged(model)
    monkeypatch.setattr(device_step, "compiled", partial(compiled, choices=choices))
    scheduler = CudaScheduler(model, chunk=9, compiled=True, capture=True)
    contexts = scheduler.run(PROMPTS, [GREEDY] * len(PROMPTS))
    assert [context.output for context in contexts] == expected


def test_samples_what_the_cpu_samples() -> None:
    model = paged(tiny_model(tiny_config("llama")))
    expected = [
        context.output for context in Scheduler(deepcopy(model), chunk=9, seed=1).run(PROMPTS, VARIED)
    ]
    scheduler = CudaScheduler(model, chunk=9, compiled=False, capture=True, seed=2)
    assert [context.output for context in scheduler.run(PROMPTS, VARIED)] == expected


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(max_tokens=16, temperature=0.0, presence_penalty=1.5)])
def test_two_steps_in_flight(sampling: Sampling) -> None:
    model = paged(tiny_model(tiny_config("llama")))
    prompts = PROMPTS[3:]
    samplings = [sampling] * len(prompts)
    expected = [context.output for context in Scheduler(deepcopy(model), chunk=None).run(prompts, samplings)]
    scheduler = CudaScheduler(model, chunk=None, compiled=False, capture=True)
    executor = scheduler.executor
    each = scheduler.layout.num_pages(64)
    rows = [
        Row(slot, sampling, len(prompt), [list(range(1 + slot * each, 1 + (slot + 1) * each))], list(prompt))
        for slot, prompt in enumerate(prompts)
    ]
    outputs: list[list[int]] = [[] for _ in rows]
    fill = [
        StepRow(row, 0, len(prompt), prompt, sample=True) for row, prompt in zip(rows, prompts, strict=True)
    ]
    pending = [executor.launch(fill)]
    for i in range(sampling.max_tokens):
        if i + 1 < sampling.max_tokens:
            steps = [StepRow(row, row.num_prompt + i, 1, None, sample=True) for row in rows]
            pending.append(executor.launch(steps))
        result = pending.pop(0).result()
        assert result.step_ns > 0
        for row, output, token in zip(rows, outputs, result.tokens, strict=True):
            assert token is not None
            output.append(token)
            row.history.append(token)
    assert outputs == expected


def test_measures_what_steps_cost() -> None:
    model = paged(tiny_model(tiny_config("llama")))
    scheduler = CudaScheduler(model, chunk=None, compiled=False, capture=True)
    cost = scheduler.executor.measure_cost()
    assert cost.step_ns > 0
    assert cost.context_ns > 0


@pytest.mark.parametrize("family", ["llama", "qwen2-window", "opt"])
def test_a_deterministic_model_answers_as_it_should(family: str) -> None:
    model = tiny_model(tiny_config(family))
    expected = [generated(model, prompt, 16) for prompt in PROMPTS]
    paged(model)
    scheduler = CudaScheduler(model, chunk=9, compiled=True, capture=True, deterministic=True)
    contexts = scheduler.run(PROMPTS, [GREEDY] * len(PROMPTS))
    assert [context.output for context in contexts] == expected
