"""What a step's attention is told, whichever kernels compute it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from engine.memory.page import PageLayout
from engine.model_runner.kernels.prefill import TILE_FIELDS
from engine.model_runner.step_plan import MIN_TOKENS

NO_WINDOW = 2**30  # a window above all lengths


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What buffers are sized for."""

    max_batch: int
    max_step_tokens: int
    max_pages: int  # of one context, in one group

    @property
    def rows(self) -> int:
        """Decoding rows of a step, padding included."""
        return max(self.max_batch, MIN_TOKENS)

    @property
    def tokens(self) -> int:
        """Tokens of a step, padding included."""
        return max(self.max_step_tokens, self.rows)


@dataclass(frozen=True, slots=True)
class Scores:
    """How scores are made of products of queries and keys; `sinks` [heads] join the denominator alone."""

    scaling: float
    softcap: float | None
    sinks: torch.Tensor | None


class StepBuffers(ABC):
    """Attention over the pages of a device (see `attention.PagedAttention`), and what it is told of a step.

    The buffers live as long as this does, so that captured graphs and compiled code may refer to them. Slot
    `max_batch` belongs to padding: its page table is all page 0. `slots` and `positions` are of the step's
    tokens, the decoding rows first; `tiles` cut the others.
    """

    def __init__(self, pool: torch.Tensor, layout: PageLayout, limits: StepLimits) -> None:
        device = pool.device
        self.pool = pool
        self.tables = torch.zeros(
            len(layout.groups), limits.max_batch + 1, limits.max_pages, dtype=torch.int32, device=device
        )
        self.slots = torch.full((limits.tokens,), limits.max_batch, dtype=torch.int64, device=device)
        self.positions = torch.zeros(limits.tokens, dtype=torch.int64, device=device)
        self.tiles = torch.zeros(limits.tokens, TILE_FIELDS, dtype=torch.int32, device=device)
        self.counts = torch.zeros(2, dtype=torch.int64)
        self.windows = tuple(group.window for group in layout.groups)
        self.window_limits = torch.tensor(
            [NO_WINDOW if window is None else window for window in self.windows],
            dtype=torch.int32,
            device=device,
        )
        self.place_of_layer = layout.places()

    def plan(self, num_decoding: int, num_tiles: int) -> None:
        """Say what the step's tokens are: `num_decoding` rows at `slots` and `positions`, then `num_tiles`
        tiles. Comes after those buffers are written and before the model runs, on the same stream."""
        self.counts[0] = num_decoding
        self.counts[1] = num_tiles
        if num_decoding:
            self._cut(num_decoding)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        layer: int,
        scaling: float,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """See `attention.PagedAttention`."""
        group, plane = self.place_of_layer[layer]
        return self._attend(query, key, value, group, plane, Scores(scaling, softcap, sinks))

    @abstractmethod
    def _cut(self, num_decoding: int) -> None:
        """Cut the contexts of the rows that decode into work for several programs, on the device."""

    @abstractmethod
    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        group: int,
        plane: int,
        scores: Scores,
    ) -> torch.Tensor:
        """Store the step's K and V in `plane` of the pages of layer group `group`, and attend."""
