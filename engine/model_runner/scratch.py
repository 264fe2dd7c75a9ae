"""Rows on pages of a pool that no context uses yet, for measuring and for the self-test."""

from dataclasses import dataclass

import torch

from engine.memory.page import PageLayout
from engine.messages import Sampling
from engine.model_runner.batch import Row


@dataclass(frozen=True, slots=True)
class Scratch:
    """Contexts of at most `num_tokens` tokens for `num_rows` rows, on pages from 1 (page 0 takes padding)."""

    layout: PageLayout
    num_rows: int
    num_tokens: int

    @property
    def num_pages(self) -> int:
        """Pages of the pool, page 0 included."""
        return 1 + self.num_rows * len(self.layout.groups) * self.layout.num_pages(self.num_tokens)

    def pool(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A pool for these rows, `[num_pages, layers_per_page, 2, page_tokens, kv_heads, head_dim]`."""
        layout = self.layout
        planes = (self.num_pages, layout.layers_per_page, 2)
        return torch.zeros(
            *planes, layout.page_tokens, layout.kv_heads, layout.head_dim, dtype=dtype, device=device
        )

    def row(self, slot: int, sampling: Sampling) -> Row:
        """The row of a slot below `num_rows`, on the slot's own pages."""
        per_group = self.layout.num_pages(self.num_tokens)
        num_groups = len(self.layout.groups)
        tables = []
        for group in range(num_groups):
            first = 1 + (slot * num_groups + group) * per_group
            tables.append(list(range(first, first + per_group)))
        return Row(slot, sampling, num_prompt=self.num_tokens, page_tables=tables)
