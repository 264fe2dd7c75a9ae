"""Steps of a model on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from time import perf_counter_ns

import torch
from transformers import PreTrainedModel

from engine.memory.page import PageLayout
from engine.messages import CostModel, TokenLogprobs
from engine.model_runner.batch import StepResult, StepRow
from engine.model_runner.choosing import choose_tokens, token_logprobs
from engine.model_runner.cost import cost_scratch, fit_cost
from engine.model_runner.cpu_attention import CpuAttention, CpuPool
from engine.model_runner.cpu_invariant_attention import CpuInvariantAttention
from engine.model_runner.grammar import Grammars
from engine.model_runner.invariant_activations import replace_activations
from engine.model_runner.packed_linear import pack_linears
from engine.model_runner.prompt_logprobs import PromptLogprobs, wants_prompt_logprobs


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """A step whose result is there: on the CPU, launching a step computes it."""

    step: StepResult

    def done(self) -> bool:
        return True

    def result(self) -> StepResult:
        return self.step


class CpuExecutor:
    """Runs a model whose attention is `attention.NAME` over a pool; see `batch.Executor`.

    `pool` is `[num_pages, layers_per_page, 2, page_tokens, kv_heads, head_dim]`, contiguous, in the model's
    dtype. Rows with a grammar need `grammars`. The model's linear layers are replaced by packed ones. In
    float32 a row's logits are the same bits whatever else is in the batch and however its tokens were cut
    into chunks, for which its activation functions are replaced, too; mixtures of experts fall short of it.
    """

    depth = 1

    def __init__(
        self,
        model: PreTrainedModel,
        layout: PageLayout,
        pool: torch.Tensor,
        *,
        max_batch: int,
        max_model_len: int,
        grammars: Grammars | None = None,
    ) -> None:
        pack_linears(model)
        if pool.dtype == torch.float32:
            replace_activations(model)
        self._attention = CpuInvariantAttention if pool.dtype == torch.float32 else CpuAttention
        self._model = model
        self._layout = layout
        self._max_batch = max_batch
        self._max_model_len = max_model_len
        self._pool = CpuPool(pool, layout)
        self._sampled: list[int | None] = [None] * max_batch  # by slot
        self._prompts = PromptLogprobs()
        self._grammars = grammars

    def launch(self, rows: Sequence[StepRow]) -> FinishedStep:
        start_ns = perf_counter_ns()
        with torch.inference_mode():
            tokens, logprobs, prompt_logprobs = self._compute(rows)
        step_ns = perf_counter_ns() - start_ns
        return FinishedStep(StepResult(tokens, step_ns, logprobs=logprobs, prompt_logprobs=prompt_logprobs))

    def measure_cost(self) -> CostModel:
        scratch = cost_scratch(self._layout, self._max_batch, self._max_model_len)
        executor = CpuExecutor(
            self._model,
            self._layout,
            scratch.pool(self._pool.dtype, torch.device("cpu")),
            max_batch=self._max_batch,
            max_model_len=self._max_model_len,
        )
        return fit_cost(executor, scratch)

    def _compute(
        self, rows: Sequence[StepRow]
    ) -> tuple[list[int | None], dict[int, TokenLogprobs], dict[int, list[TokenLogprobs | None]]]:
        ends = list(accumulate(step.count for step in rows))
        sampling = [i for i, step in enumerate(rows) if step.sample]
        judged = [i for i, step in enumerate(rows) if wants_prompt_logprobs(step)]
        wanted = [ends[i] - 1 for i in sampling]
        for i in judged:
            wanted += range(ends[i] - rows[i].count, ends[i])
        logits = self._forward(rows, wanted)

        tokens, logprobs = self._choose(rows, sampling, logits[: len(sampling)])
        prompt_logprobs = {}
        first = len(sampling)
        for i in judged:
            end = first + rows[i].count
            prompt_logprobs[i] = self._prompts.judge(rows[i], logits[first:end])
            first = end
        return tokens, logprobs, prompt_logprobs

    def _choose(
        self, rows: Sequence[StepRow], sampling: Sequence[int], logits: torch.Tensor
    ) -> tuple[list[int | None], dict[int, TokenLogprobs]]:
        """Tokens for the rows `sampling` of the batch, and the log-probabilities asked for, by row."""
        tokens: list[int | None] = [None] * len(rows)
        logprobs: dict[int, TokenLogprobs] = {}
        if not sampling:
            return tokens, logprobs
        chosen = choose_tokens(logits, [rows[i] for i in sampling], self._grammar_bits)
        for j, (i, token) in enumerate(zip(sampling, chosen.tolist(), strict=True)):
            row = rows[i].row
            tokens[i] = self._sampled[row.slot] = token
            num_top = row.sampling.logprobs
            if num_top is not None:
                (logprobs[i],) = token_logprobs(logits[j : j + 1], chosen[j : j + 1], num_top)
        return tokens, logprobs

    def _grammar_bits(self, rows: Sequence[StepRow]) -> torch.Tensor:
        assert self._grammars is not None, "a row with a grammar was started without a tokenizer"
        return self._grammars.next_bits(rows)

    def _last(self, step: StepRow) -> int:
        token = self._sampled[step.row.slot]
        assert token is not None, "the row sampled nothing in the step before"
        return token

    def _forward(self, rows: Sequence[StepRow], wanted: Sequence[int]) -> torch.Tensor:
        """Logits `[wanted, vocab]` of tokens by index in the flattened batch."""
        ids: list[int] = []
        positions: list[int] = []
        for step in rows:
            ids += [self._last(step)] if step.ids is None else step.ids
            positions += range(step.start, step.start + step.count)
        output = self._model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.tensor([positions]),
            use_cache=False,
            logits_to_keep=torch.tensor(wanted, dtype=torch.int64),
            paged=self._attention(self._pool, rows),
        )
        logits: torch.Tensor = output.logits[0]
        return logits
