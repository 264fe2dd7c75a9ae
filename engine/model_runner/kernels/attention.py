# mypy: allow-untyped-decorators, allow-untyped-defs, allow-untyped-calls
"""Paged attention of a step as one operator, so that a compiled model holds one opaque call a layer.

The operator stores the step's K and V and attends; its only visible effects are its output and the pool.
How the tokens divide into decoding rows and prefill tiles is in `counts`, a tensor on the host that the
operator reads when it runs: no number of the batch is ever part of a compiled graph.
"""

import torch
from torch import library

from engine.memory.page import PageLayout
from engine.model_runner.kernels.decode import decode_attention, decode_scratch
from engine.model_runner.kernels.decode_plan import WORK_FIELDS, SplitPolicy, plan_decode
from engine.model_runner.kernels.paged import PartScratch, Plane
from engine.model_runner.kernels.prefill import prefill_attention
from engine.model_runner.kernels.step_buffers import Scores, StepBuffers, StepLimits

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
    place = Plane(pool, plane, tables[group])
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if num_decoding:
        policy = SplitPolicy(key.shape[1])
        items = policy.max_items(num_decoding)
        decode_attention(
            query[:num_decoding],
            key,
            value,
            place,
            work.narrow(0, group * items, items),
            PartScratch(partial, stats, arrived),
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
            place,
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


class PagedKernels(StepBuffers):
    """The fast kernels: contexts of decoding rows are cut as keeps all programs busy."""

    def __init__(self, pool: torch.Tensor, layout: PageLayout, heads: int, limits: StepLimits) -> None:
        super().__init__(pool, layout, limits)
        self.policy = SplitPolicy(layout.kv_heads)
        items = self.policy.max_items(limits.rows)
        self.work = torch.zeros(
            len(layout.groups) * items, WORK_FIELDS, dtype=torch.int32, device=pool.device
        )
        scratch = decode_scratch(self.policy, limits.rows, heads, layout.head_dim, pool.device)
        self.partial, self.stats, self.arrived = scratch.partial, scratch.stats, scratch.arrived

    def _cut(self, num_decoding: int) -> None:
        groups = len(self.windows)
        items = self.policy.max_items(num_decoding)
        plan_decode(
            self.slots[:num_decoding],
            self.positions[:num_decoding],
            self.window_limits,
            self.work[: groups * items].view(groups, items, WORK_FIELDS),
            self.policy,
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
            scores.sinks,
            group,
            plane,
            self.windows[group],
            scores.scaling,
            scores.softcap,
        )
        return out
