"""The CUDA executor without CUDA: kernels in Triton's interpreter, nothing captured, marks from the host."""

import os
import time

import pytest

pytest.importorskip("triton")

import torch
from transformers import PreTrainedModel

from engine.messages import Grammar, GrammarKind, Sampling
from engine.model_runner.batch import Row, StepRow
from engine.model_runner.cuda_executor import CudaExecutor, StepOptions
from engine.model_runner.device_clock import Mark
from tests.engine.model_runner.tiny import (
    VOCAB,
    Scheduler,
    generated,
    paged,
    tiny_config,
    tiny_model,
)

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in Triton's interpreter only"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]


class HostMark:
    """A mark of a device that has always done everything."""

    def __init__(self) -> None:
        self.at_s = time.perf_counter()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end_event: Mark) -> float:
        assert isinstance(end_event, HostMark)
        return (end_event.at_s - self.at_s) * 1e3


class InterpretedScheduler(Scheduler):
    """Steps of `step_tokens`: with 128, mixed ones are padded to the size of a graph; with 64, none is."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        chunk: int | None,
        seed: int = 0,
        step_tokens: int = 64,
        deterministic: bool = False,
        grammars: "TurnsOfParity | None" = None,
    ) -> None:
        super().__init__(model, num_pages=200, chunk=chunk, seed=seed)
        options = StepOptions(
            max_batch=5,
            max_step_tokens=step_tokens,
            max_model_len=256,
            compile=False,
            deterministic=deterministic,
        )
        self.executor = CudaExecutor(
            model, self.layout, self.pool, options, stream=None, make_mark=HostMark, grammars=grammars
        )
        self.executor.prepare(lambda stage, fraction: None)


class TurnsOfParity:
    """Stands in for `grammar.Grammars`: after an even number of tokens an even one must come, else an odd."""

    def next_bits(self, rows: list[StepRow], *, pinned: bool) -> torch.Tensor:
        bits = torch.zeros(len(rows), -(-VOCAB // 32), dtype=torch.int32)
        for i, step in enumerate(rows):
            is_odd = (len(step.row.history) - step.row.num_prompt) % 2
            bits[i] = ~0x55555555 if is_odd else 0x55555555
        return bits


PROMPTS = [[(7 * i * i + 3 * length) % VOCAB for i in range(1, length + 1)] for length in (1, 3, 17, 30)]
VARIED = [
    Sampling(max_tokens=6, temperature=0.9, seed=11, logprobs=2),
    Sampling(max_tokens=6, temperature=0.0, repetition_penalty=1.4, logit_bias={3: 4.0}),
    Sampling(max_tokens=6, temperature=1.1, seed=5, top_k=20, top_p=0.8, min_p=0.01),
    Sampling(max_tokens=6, temperature=1.0, seed=9, top_p=0.7, prompt_logprobs=1),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "step_tokens"),
    [("llama", 64), ("llama", 128), ("qwen2-window", 64), ("gemma3", 64), ("opt", 64)],
)
def test_greedy_equals_generate_in_mixed_batches(family: str, step_tokens: int) -> None:
    model = tiny_model(tiny_config(family))
    expected = [generated(model, prompt, 6) for prompt in PROMPTS]
    paged(model)
    scheduler = InterpretedScheduler(model, chunk=9, step_tokens=step_tokens)
    contexts = scheduler.run(PROMPTS, [Sampling(max_tokens=6, temperature=0.0)] * len(PROMPTS))
    assert [context.output for context in contexts] == expected


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2-window", "opt"])
def test_a_deterministic_model_answers_as_it_should(family: str) -> None:
    model = tiny_model(tiny_config(family))
    expected = [generated(model, prompt, 4) for prompt in PROMPTS]
    paged(model)
    scheduler = InterpretedScheduler(model, chunk=9, step_tokens=128, deterministic=True)
    contexts = scheduler.run(PROMPTS, [Sampling(max_tokens=4, temperature=0.0)] * len(PROMPTS))
    assert [context.output for context in contexts] == expected


@pytest.mark.slow
def test_samples_what_the_cpu_samples() -> None:
    model = paged(tiny_model(tiny_config("llama")))
    expected = [context.output for context in Scheduler(model, chunk=9, seed=1).run(PROMPTS, VARIED)]
    contexts = InterpretedScheduler(model, chunk=9, seed=2).run(PROMPTS, VARIED)
    assert [context.output for context in contexts] == expected


@pytest.mark.parametrize("bias", [{}, {5: -100.0}], ids=["masks alone", "with a bias beside them"])
def test_grammars_hold_the_rows_that_have_one(bias: dict[int, float]) -> None:
    model = paged(tiny_model(tiny_config("llama")))
    held = Sampling(
        max_tokens=6, temperature=0.0, logprobs=1, grammar=Grammar(kind=GrammarKind.REGEX, source="x")
    )
    samplings = [held, Sampling(max_tokens=6, temperature=0.0, logit_bias=bias), held]
    free = Scheduler(model, chunk=None).run(PROMPTS[:3], [samplings[1]] * 3)
    scheduler = InterpretedScheduler(model, chunk=None, grammars=TurnsOfParity())
    contexts = scheduler.run(PROMPTS[:3], samplings)
    assert contexts[1].output == free[1].output
    for context in (contexts[0], contexts[2]):
        assert [token % 2 for token in context.output] == [0, 1, 0, 1, 0, 1]
    assert any(context.output != alone.output for context, alone in zip(contexts, free, strict=True))


def test_the_next_step_is_launched_before_the_host_has_the_tokens() -> None:
    model = paged(tiny_model(tiny_config("llama")))
    penalized = Sampling(max_tokens=6, temperature=0.0, presence_penalty=1.5)
    (alone,) = Scheduler(model, chunk=None).run(PROMPTS[2:3], [penalized])
    scheduler = InterpretedScheduler(model, chunk=None)
    executor, prompt = scheduler.executor, PROMPTS[2]
    pages = list(range(1, 1 + scheduler.layout.num_pages(len(prompt) + 6)))
    row = Row(0, penalized, len(prompt), [pages], list(prompt))
    pending = [executor.launch([StepRow(row, 0, len(prompt), prompt, sample=True)])]
    tokens = []
    for i in range(6):
        if i < 5:
            pending.append(executor.launch([StepRow(row, len(prompt) + i, 1, None, sample=True)]))
        result = pending.pop(0).result()
        tokens += result.tokens
        row.history += result.tokens
    assert tokens == alone.output
