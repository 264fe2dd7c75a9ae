"""Steps of a model on a CUDA device.

Steps in which every row decodes, and short ones that compute chunks of prompts too, are replayed from CUDA
graphs; others run as compiled code. The next step is launched before the tokens of the last one reach the
host: rows go on from what the device remembers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedModel

from engine.memory.page import PageLayout
from engine.messages import CostModel, TokenLogprobs
from engine.model_runner.batch import StepResult, StepRow
from engine.model_runner.choosing import choose_tokens, is_edited, is_masked_at_most, to_messages
from engine.model_runner.cuda_cost import measure_cost
from engine.model_runner.device_clock import MakeMark, Mark, between_ns, cuda_mark
from engine.model_runner.device_step import DeviceStep, StepOptions
from engine.model_runner.graphs import GraphSet, Size, batch_sizes, padded_size
from engine.model_runner.kernels.mask import mask_logits
from engine.model_runner.kernels.to_host import to_host
from engine.model_runner.prompt_logprobs import PromptLogprobs, wants_prompt_logprobs
from engine.model_runner.sampler import Logprobs, logprobs_of
from engine.model_runner.slot_state import upload
from engine.model_runner.step_plan import (
    MixedShape,
    fitting,
    is_decode,
    known_tokens,
    mixed_shapes,
    plan_step,
)

if TYPE_CHECKING:
    from engine.model_runner.grammar import Grammars  # its parser is loaded only where grammars are served

OnProgress = Callable[[str, float | None], None]


@dataclass(slots=True)
class LaunchedStep:
    """A step on its way; see `batch.PendingStep`.

    `sampled` are the rows (and `slots` theirs) whose tokens are in `tokens`, a host tensor that is complete
    once `end` is passed, and so are `logprobs` (of the rows beside them).
    """

    num_rows: int
    sampled: Sequence[int]
    slots: Sequence[int]
    tokens: torch.Tensor
    start: Mark
    end: Mark
    previous_end: Mark | None
    logprobs: Sequence[tuple[list[int], Logprobs]] = ()
    prompt_logprobs: dict[int, list[TokenLogprobs | None]] = field(default_factory=dict)

    def done(self) -> bool:
        return self.end.query()

    def tokens_by_slot(self) -> dict[int, int]:
        """What was sampled; waits for the step."""
        self.end.synchronize()
        return dict(zip(self.slots, self.tokens.tolist(), strict=True))

    def result(self) -> StepResult:
        self.end.synchronize()
        tokens: list[int | None] = [None] * self.num_rows
        for i, token in zip(self.sampled, self.tokens.tolist(), strict=True):
            tokens[i] = token
        logprobs: dict[int, TokenLogprobs] = {}
        for rows, columns in self.logprobs:
            logprobs.update(zip(rows, to_messages(columns), strict=True))
        idle_ns = 0 if self.previous_end is None else between_ns(self.previous_end, self.start)
        return StepResult(
            tokens, between_ns(self.start, self.end), idle_ns, logprobs, prompt_logprobs=self.prompt_logprobs
        )


class CudaExecutor:
    """Runs a model whose attention is `attention.NAME` over a pool; see `batch.Executor`.

    `pool` is `[num_pages, layers_per_page, 2, page_tokens, kv_heads, head_dim]`, contiguous, in the model's
    dtype, on the model's device; it must stay where it is. All work goes to `stream`: what moves pages
    orders itself against it. Without a stream (on a CPU, under Triton's interpreter) nothing is captured.
    """

    depth = 2

    def __init__(
        self,
        model: PreTrainedModel,
        layout: PageLayout,
        pool: torch.Tensor,
        options: StepOptions,
        *,
        stream: torch.cuda.Stream | None,
        grammars: "Grammars | None" = None,
        make_mark: MakeMark = cuda_mark,
    ) -> None:
        self.stream = stream
        self._make_mark = make_mark
        self._grammars = grammars
        self._prompts = PromptLogprobs()
        self._layout = layout
        self._last: LaunchedStep | None = None
        self._sizes: Sequence[int] = batch_sizes(options.max_batch)
        self._shapes: Sequence[MixedShape] = ()
        self._greedy: GraphSet[int] | None = None
        self._logits: GraphSet[int] | None = None
        self._mixed: GraphSet[MixedShape] | None = None
        with self._on_stream(), torch.inference_mode():
            self._step = DeviceStep(model, layout, pool, options)

    def prepare(self, on_progress: OnProgress, *, capture: bool = True) -> None:
        """Compile and capture. Touches no page but page 0."""
        on_progress("compiling", None)
        with self._on_stream(), torch.inference_mode():
            self._step.trace()
        if capture:
            limits = self._step.limits
            shapes = mixed_shapes(limits.max_batch, limits.max_step_tokens)
            self.capture(on_progress, self._sizes, shapes)

    def capture(
        self, on_progress: OnProgress, sizes: Sequence[int], shapes: Sequence[MixedShape] = ()
    ) -> None:
        """Capture decode steps of `sizes` rows (ascending) and mixed steps of `shapes`, and replay no others
        from now on."""
        self._sizes, self._shapes = sizes, shapes
        if self.stream is None:
            return
        memory = torch.cuda.graph_pool_handle()
        greedy = GraphSet(self._step.decode_greedy, self.stream, memory)
        logits = GraphSet(self._step.decode_logits, self.stream, memory)
        mixed = GraphSet(self._step.mixed_logits, self.stream, memory)
        self.stream.synchronize()
        with torch.inference_mode():
            for done, shape in enumerate(reversed(shapes)):  # the largest first: the others fit its memory
                on_progress("capturing mixed steps", done / len(shapes))
                mixed.capture(shape)
            for done, size in enumerate(reversed(sizes)):
                on_progress("capturing decode steps", done / len(sizes))
                greedy.capture(size)
                logits.capture(size)
        self._greedy, self._logits, self._mixed = greedy, logits, mixed

    def launch(self, rows: Sequence[StepRow]) -> LaunchedStep:
        with self._on_stream(), torch.inference_mode():
            start = self._make_mark()
            self._step.state.update(rows)
            self._step.state.set_tokens(*known_tokens(rows))
            judged = [i for i, step in enumerate(rows) if wants_prompt_logprobs(step)]
            if is_decode(rows) and not judged:
                launched = self._launch_decode(rows, start)
            else:
                launched = self._launch_mixed(rows, judged, start)
        self._last = launched
        return launched

    def measure_cost(self) -> CostModel:
        return measure_cost(self, self._layout, self._step.limits, self._step.paged.pool)

    def _launch_decode(self, rows: Sequence[StepRow], start: Mark) -> LaunchedStep:
        step = self._step
        size = padded_size(self._sizes, len(rows))
        step.send_decode(rows, size)
        if all(_is_plain_greedy(row) for row in rows):
            _replay_or_run(self._greedy, step.decode_greedy, size)
            tokens = step.tokens[: len(rows)]
            return self._launched(rows, range(len(rows)), tokens, start)
        _replay_or_run(self._logits, step.decode_logits, size)
        logits = step.logits[: len(rows)]
        tokens = self._choose(logits, rows)
        return self._launched(rows, range(len(rows)), tokens, start, logits)

    def _launch_mixed(self, rows: Sequence[StepRow], judged: Sequence[int], start: Mark) -> LaunchedStep:
        step = self._step
        shape = None if judged else fitting(self._shapes, rows)
        plan = plan_step(rows, judged, step.state.padding_slot, shape)
        if shape is None:
            logits = step.mixed(plan)
        else:
            step.send_mixed(plan, shape)
            _replay_or_run(self._mixed, step.mixed_logits, shape)
            logits = step.logits
        sampling = [rows[i] for i in plan.sampled]
        tokens = torch.empty(0, dtype=torch.int64, device=logits.device)
        chosen = logits[: len(sampling)]
        if sampling:
            tokens = self._choose(chosen, sampling)
        prompt_logprobs = {}
        with logits.device:  # `judge` makes its index tensors where it finds itself
            for i, (first, end) in plan.prompt_logits.items():
                prompt_logprobs[i] = self._prompts.judge(rows[i], logits[first:end])
        launched = self._launched(rows, plan.sampled, tokens, start, chosen)
        launched.prompt_logprobs = prompt_logprobs
        return launched

    def _choose(self, logits: torch.Tensor, rows: Sequence[StepRow]) -> torch.Tensor:
        """Tokens of `rows`, which the device remembers as their last."""
        if any(is_edited(row) for row in rows):
            with self._whole_histories(rows):
                tokens = self._choose_edited(logits, rows)
        else:
            tokens = self._step.draw(logits, rows)
        self._step.remember(rows, tokens)
        return tokens

    @contextmanager
    def _whole_histories(self, rows: Sequence[StepRow]) -> Iterator[None]:
        """Lends the histories of `rows` what they sampled in the step before, which the host waits for while
        the device computes the logits of this one."""
        behind = [step.row for step in rows if step.ids is None and _lacks_last(step)]
        tokens = {}
        if behind:
            assert self._last is not None, "a row goes on from a step that never was"
            tokens = self._last.tokens_by_slot()
        for row in behind:
            row.history.append(tokens[row.slot])
        try:
            yield
        finally:
            for row in behind:
                row.history.pop()

    def _choose_edited(self, logits: torch.Tensor, rows: Sequence[StepRow]) -> torch.Tensor:
        """Where masks of grammars are all there is, the device never waits: they are computed and sent while
        it is busy with the logits."""
        if not all(is_masked_at_most(step) for step in rows):
            with logits.device:  # the sampler's tensors are made where the logits are
                return choose_tokens(logits, rows, self._grammar_bits)
        masked = [i for i, step in enumerate(rows) if step.row.sampling.grammar is not None]
        bits = self._grammar_bits([rows[i] for i in masked])
        logits = logits.clone()  # of what the model said, log-probabilities may be asked for
        mask_logits(logits, upload(np.array(masked, dtype=np.int64), logits.device), bits)
        return self._step.draw(logits, rows)

    def _grammar_bits(self, rows: Sequence[StepRow]) -> torch.Tensor:
        assert self._grammars is not None, "a row with a grammar was started without a tokenizer"
        bits = self._grammars.next_bits(rows, pinned=self._step.device.type == "cuda")
        return bits.to(self._step.device, non_blocking=True)

    def _launched(
        self,
        rows: Sequence[StepRow],
        sampled: Sequence[int],
        tokens: torch.Tensor,
        start: Mark,
        logits: torch.Tensor | None = None,
    ) -> LaunchedStep:
        """Send what was sampled to the host, and mark the end of the step."""
        logprobs = [] if logits is None else _send_logprobs(rows, sampled, logits, tokens)
        host_tokens = to_host(tokens)
        previous_end = None if self._last is None else self._last.end
        end = self._make_mark()
        slots = [rows[i].row.slot for i in sampled]
        return LaunchedStep(len(rows), sampled, slots, host_tokens, start, end, previous_end, logprobs)

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


def _is_plain_greedy(step: StepRow) -> bool:
    sampling = step.row.sampling
    return sampling.temperature == 0 and sampling.logprobs is None and not is_edited(step)


def _lacks_last(step: StepRow) -> bool:
    """Whether the row's history ends before the token that the step feeds."""
    return len(step.row.history) < step.start + step.count


def _replay_or_run(graphs: GraphSet[Size] | None, compute: Callable[[Size], None], size: Size) -> None:
    if graphs is None:
        compute(size)
    else:
        graphs.replay(size)


def _send_logprobs(
    rows: Sequence[StepRow], sampled: Sequence[int], logits: torch.Tensor, tokens: torch.Tensor
) -> list[tuple[list[int], Logprobs]]:
    """Log-probabilities of the rows that ask, on their way to the host, by number of alternatives."""
    members: dict[int, list[int]] = {}
    for place, i in enumerate(sampled):
        num_top = rows[i].row.sampling.logprobs
        if num_top is not None:
            members.setdefault(num_top, []).append(place)
    sent = []
    for num_top, places in members.items():
        found = logprobs_of(logits[places], tokens[places], num_top)
        columns = (found.logprob, found.rank, found.top_ids, found.top_logprobs)
        sent.append(([sampled[place] for place in places], Logprobs(*map(to_host, columns))))
    return sent
