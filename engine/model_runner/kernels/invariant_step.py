# mypy: allow-untyped-decorators, allow-untyped-defs, allow-untyped-calls
"""Batch-invariant attention of a step as one operator; what `attention` is for the fast kernels."""

import torch
from torch import library

from engine.memory.page import PageLayout
from engine.model_runner.kernels.invariant_attention import invariant_attention
from engine.model_runner.kernels.invariant_plan import Segments, plan_parts
from engine.model_runner.kernels.paged import PartScratch, Plane
from engine.model_runner.kernels.prefill import TILE_FIELDS
from engine.model_runner.kernels.step_buffers import Scores, StepBuffers, StepLimits
from engine.model_runner.kernels.store import store_pages

_library = library.Library("fairslice", "FRAGMENT")
_library.define(
    "invariant_attention(Tensor query, Tensor key, Tensor value, Tensor(a!) pool, Tensor tables, "
    "Tensor slots, Tensor positions, Tensor work, Tensor tiles, Tensor counts, Tensor partial, Tensor stats, "
    "Tensor arrived, int group, int plane, int? window, int segment_keys, int most_segments, float scale, "
    "float? softcap) -> Tensor"
)


def _invariant_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pool: torch.Tensor,
    tables: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    work: torch.Tensor,
    tiles: torch.Tensor,
    counts: torch.Tensor,
    partial: torch.Tensor,
    stats: torch.Tensor,
    arrived: torch.Tensor,
    group: int,
    plane: int,
    window: int | None,
    segment_keys: int,
    most_segments: int,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Decoding rows come first in the batch, then the tokens that `tiles` covers; what is left is padding."""
    num_decoding, num_tiles = counts.tolist()
    num_tokens = len(query)
    segments = Segments(segment_keys, most_segments)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    place = Plane(pool, plane, tables[group])
    store_pages(key, value, place, slots[:num_tokens], positions[:num_tokens])
    num_parts = num_decoding * most_segments
    for part_tiles in (work.narrow(0, group * num_parts, num_parts), tiles[:num_tiles]):
        if len(part_tiles):
            invariant_attention(
                query,
                place,
                part_tiles,
                PartScratch(partial, stats, arrived),
                out,
                segments,
                scale=scale,
                window=window,
                softcap=softcap,
            )
    return out


def _invariant_attention_shape(query: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


_library.impl("invariant_attention", _invariant_attention, "CompositeExplicitAutograd")
library.register_fake("fairslice::invariant_attention", _invariant_attention_shape, lib=_library)


class InvariantKernels(StepBuffers):
    """Kernels that round every token alike in any batch."""

    def __init__(
        self, pool: torch.Tensor, layout: PageLayout, heads: int, limits: StepLimits, max_model_len: int
    ) -> None:
        super().__init__(pool, layout, limits)
        self.segments = Segments.of(max_model_len)
        max_parts = limits.rows * self.segments.most
        self.work = torch.zeros(
            len(layout.groups) * max_parts, TILE_FIELDS, dtype=torch.int32, device=pool.device
        )
        scratch = PartScratch.make(
            max_parts, limits.rows, heads, layout.kv_heads, layout.head_dim, pool.device
        )
        self.partial, self.stats, self.arrived = scratch.partial, scratch.stats, scratch.arrived

    def _cut(self, num_decoding: int) -> None:
        groups = len(self.windows)
        num_parts = num_decoding * self.segments.most
        plan_parts(
            self.slots[:num_decoding],
            self.positions[:num_decoding],
            self.window_limits,
            self.work[: groups * num_parts].view(groups, num_parts, TILE_FIELDS),
            self.segments,
        )

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        group: int,
        plane: int,
        scores: Scores,
    ) -> torch.Tensor:
        assert scores.sinks is None, "no family that is served batch-invariant has attention sinks"
        out: torch.Tensor = torch.ops.fairslice.invariant_attention(
            query,
            key,
            value,
            self.pool,
            self.tables,
            self.slots,
            self.positions,
            self.work,
            self.tiles,
            self.counts,
            self.partial,
            self.stats,
            self.arrived,
            group,
            plane,
            self.windows[group],
            self.segments.keys,
            self.segments.most,
            scores.scaling,
            scores.softcap,
        )
        return out
