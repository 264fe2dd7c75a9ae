"""Paged attention on the CPU: gather the live tokens of each row, then torch's own attention.

All indices of a step are made once per layer group and shared by its layers. Only positions that a row may
attend to are ever read: what else a page holds (or a page that was given away) may be anything, NaN included.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from engine.memory.page import PageLayout
from engine.model_runner.batch import StepRow

Slots = npt.NDArray[np.int64]

# Rows decode in one block if padding them to the longest costs less than another call would.
_CHEAP_PADDING_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that attend in one call: each has `count` queries and `keys` slots padded to one length.

    `queries` selects the rows' tokens in the flattened batch, row after row; `mask`
    `[rows, 1, count, length]` is added to the scores.
    """

    num_rows: int
    count: int
    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """What one layer group does in a step: where new K and V go, and who attends to what."""

    slots: torch.Tensor
    blocks: tuple[Block, ...]


class CpuPool:
    """A pool `[num_pages, layers_per_page, 2, page_tokens, kv_heads, head_dim]` as rows of one token each.

    The slot of a token is the row of its K in plane 0. `planes[p]` are K and V of plane p, shifted so that
    the same slot addresses the token in every plane.
    """

    def __init__(self, pool: torch.Tensor, layout: PageLayout) -> None:
        self.layout = layout
        self.page_slots = layout.layers_per_page * 2 * layout.page_tokens
        self.dtype = pool.dtype
        rows = pool.view(-1, layout.kv_heads * layout.head_dim)
        self.planes = [
            (rows[2 * plane * layout.page_tokens :], rows[(2 * plane + 1) * layout.page_tokens :])
            for plane in range(layout.layers_per_page)
        ]
        self.plane_of_layer = layout.places()

    def slots(self, table: Sequence[int], first: int, end: int) -> Slots:
        """Slots of the positions `first` to `end` (exclusive) of a context with this page table."""
        page_tokens = self.layout.page_tokens
        first_page = first // page_tokens
        pages = np.array(table[first_page : self.layout.num_pages(end)], dtype=np.int64)
        grid = pages[:, None] * self.page_slots + np.arange(page_tokens)
        return grid.reshape(-1)[first - first_page * page_tokens : end - first_page * page_tokens]


class CpuAttention:
    """Attention of one step; see `attention.PagedAttention`."""

    def __init__(self, pool: CpuPool, rows: Sequence[StepRow]) -> None:
        self._pool = pool
        starts = np.cumsum([0, *(row.count for row in rows)]).tolist()
        self._plans = [_plan_group(pool, group, rows, starts) for group in range(len(pool.layout.groups))]

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
        group, plane = self._pool.plane_of_layer[layer]
        plan = self._plans[group]
        keys, values = self._pool.planes[plane]
        num_tokens, kv_heads = key.shape[:2]
        keys.index_copy_(0, plan.slots, key.reshape(num_tokens, -1))
        values.index_copy_(0, plan.slots, value.reshape(num_tokens, -1))

        def attend_block(block: Block, queries: torch.Tensor) -> torch.Tensor:
            shape = (block.num_rows, -1, kv_heads, key.shape[2])
            block_keys = keys.index_select(0, block.keys).view(shape).transpose(1, 2)
            block_values = values.index_select(0, block.keys).view(shape).transpose(1, 2)
            grouped = _group_heads(queries, block, kv_heads)
            if softcap is None and sinks is None:
                out = _fused(grouped, block_keys, block_values, block, scaling)
            else:
                out = _explicit(grouped, block_keys, block_values, block, scaling, softcap, sinks)
            return out.permute(0, 3, 1, 2, 4).reshape(queries.shape)

        if len(plan.blocks) == 1:
            return attend_block(plan.blocks[0], query)
        out = torch.empty_like(query)
        for block in plan.blocks:
            out[block.queries] = attend_block(block, query[block.queries])
        return out


def _group_heads(queries: torch.Tensor, block: Block, kv_heads: int) -> torch.Tensor:
    """`[tokens, heads, head_dim]` as `[rows, kv_heads, heads / kv_heads, count, head_dim]`."""
    head_dim = queries.shape[2]
    return queries.reshape(block.num_rows, block.count, kv_heads, -1, head_dim).permute(0, 2, 3, 1, 4)


def _fused(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, block: Block, scaling: float
) -> torch.Tensor:
    """torch's attention. Queries and answer are grouped, `keys` are `[rows, kv_heads, length, head_dim]`."""
    if block.count == 1:
        # The queries of a group of heads share their K: as if they were tokens of one head.
        out = F.scaled_dot_product_attention(
            query.squeeze(3), keys, values, attn_mask=block.mask, scale=scaling
        )
        return out.unsqueeze(3)
    out = F.scaled_dot_product_attention(
        query.flatten(1, 2), keys, values, attn_mask=block.mask, scale=scaling, enable_gqa=True
    )
    return out.view(query.shape)


def _explicit(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block: Block,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """The same, written out, with capped scores and sinks; the softmax is in fp32."""
    rows, kv_heads, group, count, head_dim = query.shape
    scores = query.reshape(rows, kv_heads, group * count, head_dim) @ keys.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.view(rows, kv_heads, group, count, -1)
    if block.mask is not None:
        scores = scores + block.mask.unsqueeze(2)
    if sinks is not None:
        sink = sinks.to(scores.dtype).view(1, kv_heads, group, 1, 1).expand(rows, -1, -1, count, 1)
        scores = torch.cat([scores, sink], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    out = weights.reshape(rows, kv_heads, group * count, -1) @ values
    return out.view(query.shape)


def _plan_group(pool: CpuPool, group: int, rows: Sequence[StepRow], starts: Sequence[int]) -> GroupPlan:
    window = pool.layout.groups[group].window
    writes: list[Slots] = []
    live: list[Slots] = []
    for row in rows:
        table = row.row.page_tables[group]
        end = row.start + row.count
        first = 0 if window is None else max(0, row.start - window + 1)
        live.append(pool.slots(table, first, end))
        writes.append(live[-1][row.start - first :])
    blocks = [
        _prefill_block(rows[i], starts[i], live[i], window, pool.dtype)
        for i in range(len(rows))
        if rows[i].count > 1
    ]
    decoding = [i for i in range(len(rows)) if rows[i].count == 1]
    blocks += [
        _decode_block(members, starts, live, pool.dtype) for members in split_by_length(decoding, live)
    ]
    return GroupPlan(torch.from_numpy(np.concatenate(writes)), tuple(blocks))


def split_by_length(decoding: Sequence[int], live: Sequence[Slots]) -> list[list[int]]:
    """Rows in blocks in which padding never doubles a long row's work."""
    blocks: list[list[int]] = []
    for i in sorted(decoding, key=lambda i: -len(live[i])):
        longest = len(live[blocks[-1][0]]) if blocks else 0
        if blocks and longest <= max(2 * len(live[i]), _CHEAP_PADDING_TOKENS):
            blocks[-1].append(i)
        else:
            blocks.append([i])
    return [sorted(block) for block in blocks]


def _decode_block(
    members: Sequence[int], starts: Sequence[int], live: Sequence[Slots], dtype: torch.dtype
) -> Block:
    lengths = np.array([len(live[i]) for i in members])
    length = int(lengths.max())
    keys = np.empty((len(members), length), dtype=np.int64)
    for row, i in enumerate(members):
        keys[row, : lengths[row]] = live[i]
        keys[row, lengths[row] :] = live[i][-1]  # a slot of its own that is surely written
    mask = None
    if lengths.min() < length:
        padding = torch.from_numpy(np.arange(length) >= lengths[:, None])
        mask = torch.zeros(padding.shape, dtype=dtype).masked_fill_(padding, -torch.inf)[:, None, None, :]
    queries = torch.tensor([starts[i] for i in members])
    return Block(len(members), 1, queries, torch.from_numpy(keys.reshape(-1)), mask)


def _prefill_block(row: StepRow, start: int, live: Slots, window: int | None, dtype: torch.dtype) -> Block:
    end = row.start + row.count
    positions = torch.arange(end - len(live), end)
    ahead = positions - torch.arange(row.start, end)[:, None]
    hidden = ahead > 0
    if window is not None:
        hidden |= ahead <= -window
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)[None, None]
    queries = torch.arange(start, start + row.count)
    return Block(1, row.count, queries, torch.from_numpy(live), mask)
