# mypy: allow-untyped-decorators, allow-untyped-defs, allow-untyped-calls
"""Paged attention of a step as one operator, so that a compiled model holds one opaque call a layer.

The operator stores the step's K and V and attends; its only visible effects are its output and the pool.
How the tokens divide into decoding rows and prefill tiles is in `counts`, a tensor on the host that the
operator reads when it runs: no number of the batch is ever part of a compiled graph.
"""

from dataclasses import dataclass

import torch
from torch import library

from engine.memory.page import PageLayout
from engine.model_runner.kernels.decode import DecodeScratch, decode_attention
from engine.model_runner.kernels.decode_plan import WORK_FIELDS, SplitPolicy, plan_decode
from engine.model_runner.kernels.prefill import TILE_FIELDS, prefill_attention
from engine.model_runner.step_plan import MIN_TOKENS

NO_WINDOW = 2**30  # a window above all lengths

_library = library.Library("fairslice", "FRAGMENT")
_library.define(
    "paged_attention(Tensor query, Tensor key, Tensor value, Tensor(a!) pool, Tensor tables, "
    "Tensor work, Tensor tiles, Tensor counts, Tensor partial, Tensor stats, "
    "Tensor arrived, Tensor? sinks, int group, int plane, int? window, float scale, "
    "float? softcap) -> Tensor"
)


def _paged_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pool: torch.Tensor,
    tables: torch.Tensor,
    work: torch.Tensor,
    tiles: torch.Tensor,
    counts: torch.Tensor,
    partial: torch.Tensor,
    stats: torch.Tensor,
    arrived: torch.Tensor,
    sinks: torch.Tensor | None,
    group: int,
    plane: int,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Decoding rows come first in the batch, then the tokens that `tiles` covers; what is left is padding."""
    num_decoding, num_tiles = counts.tolist()
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if num_decoding:
        policy = SplitPolicy(key.shape[1])
        items = policy.max_items(num_decoding)
        decode_attention(
            query[:num_decoding],
            key,
            value,
            pool,
            plane,
            tables[group],
            work.narrow(0, group * items, items),
            DecodeScratch(partial, stats, arrived),
            out,
            policy,
            scale=scale,
            softcap=softcap,
            sinks=sinks,
        )
    if num_tiles:
        prefill_attention(
            query,
            key,
            value,
            pool,
            plane,
            tables[group],
            tiles[:num_tiles],
            out,
            scale=scale,
            window=window,
            softcap=softcap,
            sinks=sinks,
        )
    return out


def _paged_attention_shape(query: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


_library.impl("paged_attention", _paged_attention, "CompositeExplicitAutograd")
library.register_fake("fairslice::paged_attention", _paged_attention_shape, lib=_library)


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


class StepBuffers:
    """What a step's attention is told, in buffers that live as long as this does, so that captured graphs and
    compiled code may refer to them. Slot `max_batch` belongs to padding: its page table is all page 0.

    `slots` and `positions` are of the step's tokens, the decoding rows first; `tiles` cut the others.
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
        self.place_of_layer = {
            layer: (index, plane)
            for index, group in enumerate(layout.groups)
            for plane, layer in enumerate(group.layers)
        }

    def plan(self, num_decoding: int, num_tiles: int) -> None:
        """Say what the step's tokens are: `num_decoding` rows at `slots` and `positions`, then `num_tiles`
        tiles. Comes after those buffers are written and before the model runs, on the same stream."""
        raise NotImplementedError


class PagedKernels(StepBuffers):
    """Attention over the pages of a device; see `attention.PagedAttention`."""

    def __init__(self, pool: torch.Tensor, layout: PageLayout, heads: int, limits: StepLimits) -> None:
        super().__init__(pool, layout, limits)
        self.policy = SplitPolicy(layout.kv_heads)
        items = self.policy.max_items(limits.rows)
        self.work = torch.zeros(
            len(layout.groups) * items, WORK_FIELDS, dtype=torch.int32, device=pool.device
        )
        scratch = DecodeScratch.make(self.policy, limits.rows, heads, layout.head_dim, pool.device)
        self.partial, self.stats, self.arrived = scratch.partial, scratch.stats, scratch.arrived

    def plan(self, num_decoding: int, num_tiles: int) -> None:
        """See `StepBuffers.plan`."""
        self.counts[0] = num_decoding
        self.counts[1] = num_tiles
        if num_decoding:
            groups = len(self.windows)
            items = self.policy.max_items(num_decoding)
            work = self.work[: groups * items].view(groups, items, WORK_FIELDS)
            plan_decode(
                self.slots[:num_decoding],
                self.positions[:num_decoding],
                self.window_limits,
                work,
                self.policy,
            )

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
        group, plane = self.place_of_layer[layer]
        out: torch.Tensor = torch.ops.fairslice.paged_attention(
            query,
            key,
            value,
            self.pool,
            self.tables,
            self.work,
            self.tiles,
            self.counts,
            self.partial,
            self.stats,
            self.arrived,
            sinks,
            group,
            plane,
            self.windows[group],
            scaling,
            softcap,
        )
        return out
