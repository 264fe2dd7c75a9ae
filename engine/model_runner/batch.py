"""What one step computes, as the runner hands it to an executor (CPU or CUDA)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine.messages import CostModel, Sampling, TokenLogprobs


@dataclass(slots=True)
class Row:
    """A prompt that is running: the state that outlives a step.

    `slot` (0 <= slot < max_batch) is its alone while it runs. `page_tables[g]` only ever grows at its end
    while the row runs. `history` holds all ids of the context known to the host, only if
    `sampling` needs it (penalties, grammar); tokens are appended when they reach the host.
    """

    slot: int
    sampling: Sampling
    num_prompt: int
    page_tables: list[list[int]]
    history: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StepRow:
    """What one row does in one step: compute `count` tokens from position `start`.

    `ids` are their token ids; None means the one token that the step before sampled for this row, which may
    not have reached the host yet (then `count` is 1). `sample`: choose the token at `start + count`.
    """

    row: Row
    start: int
    count: int
    ids: Sequence[int] | None
    sample: bool


@dataclass(frozen=True, slots=True)
class StepResult:
    """`tokens[i]` is the id sampled for row i of the batch, None where none was asked for."""

    tokens: list[int | None]
    step_ns: int  # device time of the step
    idle_ns: int = 0  # device idle before it since the step before ended
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TokenLogprobs | None]] = field(default_factory=dict)


class PendingStep(Protocol):
    """A step that was launched."""

    def done(self) -> bool:
        """Whether `result` would return without waiting."""

    def result(self) -> StepResult:
        """Wait for the step and take its tokens."""


class Executor(Protocol):
    """Runs steps of one model on one device. Not thread-safe."""

    depth: int  # steps that may be in flight before the oldest result is taken: 1 on CPU, 2 on CUDA

    def launch(self, rows: Sequence[StepRow]) -> PendingStep:
        """Start a step. Rows that prefill and rows that decode may be mixed. A row whose `ids` is None was
        in the step launched before, with `sample` set."""

    def measure_cost(self) -> CostModel:
        """Time a few steps on scratch pages and fit what a step costs."""
