"""What a step costs on this machine, from a few timed steps."""

from statistics import median

from engine.memory.page import PageLayout
from engine.messages import CostModel, Sampling
from engine.model_runner.batch import Executor, StepRow
from engine.model_runner.scratch import Scratch

_MAX_ROWS = 8
_MAX_CONTEXT_TOKENS = 1024
_MAX_PREFILL_TOKENS = 64
_REPEATS = 3


def cost_scratch(layout: PageLayout, max_batch: int, max_model_len: int) -> Scratch:
    """The contexts that `fit_cost` uses."""
    return Scratch(layout, min(_MAX_ROWS, max_batch), min(_MAX_CONTEXT_TOKENS, max_model_len))


def fit_cost(executor: Executor, scratch: Scratch) -> CostModel:
    """Time steps of `executor` on the pages of `scratch` and fit the figures of the model.

    Each figure is the difference between a step that has more of something and one that has less, so that
    what the steps have in common cancels. Its contexts may hold anything but NaN.
    """
    sampling = Sampling(max_tokens=1, temperature=0.0)
    rows = [scratch.row(slot, sampling) for slot in range(scratch.num_rows)]

    def step_ns(steps: list[StepRow]) -> float:
        executor.launch(steps).result()
        return median(executor.launch(steps).result().step_ns for _ in range(_REPEATS))

    def decode(num_rows: int, start: int) -> float:
        return step_ns([StepRow(row, start, 1, [0], sample=True) for row in rows[:num_rows]])

    last = scratch.num_tokens - 1
    num_prefill = min(_MAX_PREFILL_TOKENS, scratch.num_tokens)
    one_ns = decode(1, 0)
    all_ns = decode(len(rows), 0)
    long_ns = decode(1, last)
    prefill_ns = step_ns([StepRow(rows[0], 0, num_prefill, [0] * num_prefill, sample=True)])
    decode_ns = max(1.0, (all_ns - one_ns) / max(1, len(rows) - 1))
    return CostModel(
        step_ns=max(0.0, one_ns - decode_ns),
        decode_ns=decode_ns,
        prefill_ns=max(1.0, (prefill_ns - one_ns) / max(1, num_prefill - 1)),
        context_ns=max(0.0, (long_ns - one_ns) / max(1, last)),
    )
