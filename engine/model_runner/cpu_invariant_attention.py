"""Paged attention on the CPU in float32, of which no bit depends on the batch or on how a prompt was cut.

What a sum of float32 rounds to depends on the order of its parts, and libraries choose the order by the shape
of a call. So keys are taken in blocks of `KEY_BLOCK` that begin at fixed positions of the context. Scores and
values of a block are products of one shape but for the number of query rows, a multiple of `QUERY_ROWS`: for
those MKL rounds a row alike, and for one row, or two, it has other code. What the blocks give is added up one
after another. A block that a query may not see, or that is there for the sake of a longer neighbour, adds
zeros, which change nothing.

Only positions that a row may attend to are ever read, as in `cpu_attention`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from engine.model_runner.batch import StepRow
from engine.model_runner.cpu_attention import CpuPool, Slots, split_by_length

KEY_BLOCK = 64
QUERY_ROWS = 4
_SLICE_TOKENS = 32  # queries of a chunk that attend at once: bounds what their scores take


@dataclass(frozen=True, slots=True)
class QuerySlice:
    """Queries that attend at once: `count` tokens of each row of a `RowBlock`, over its first `num_blocks`
    blocks of keys.

    `tokens` `[rows * count]` are their places in the flattened batch; `mask` `[rows, num_blocks, count,
    KEY_BLOCK]` is added to the scores.
    """

    count: int
    num_blocks: int
    tokens: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Rows whose keys are gathered together: `keys` `[rows * blocks * kv_heads * KEY_BLOCK]` are the places
    in a plane where K or V of one token and one head are."""

    num_rows: int
    keys: torch.Tensor
    slices: tuple[QuerySlice, ...]


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """What one layer group does in a step: where new K and V go, and who attends to what."""

    slots: torch.Tensor
    blocks: tuple[RowBlock, ...]


class CpuInvariantAttention:
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
        planes = self._pool.planes[plane]
        num_tokens, kv_heads, head_dim = key.shape
        for all_tokens, new in zip(planes, (key, value), strict=True):
            all_tokens.index_copy_(0, plan.slots, new.reshape(num_tokens, -1))
        grouped = (query * scaling).view(num_tokens, kv_heads, -1, head_dim)
        out = torch.empty_like(grouped)
        for block in plan.blocks:
            shape = (block.num_rows, -1, kv_heads, KEY_BLOCK, head_dim)
            keys, values = (
                all_tokens.view(-1, head_dim).index_select(0, block.keys).view(shape) for all_tokens in planes
            )
            for part in block.slices:
                queries = grouped[part.tokens].view(block.num_rows, part.count, *grouped.shape[1:])
                near = slice(part.num_blocks)
                answer = _attend(queries, keys[:, near], values[:, near], part.mask, softcap, sinks)
                out[part.tokens] = answer.flatten(0, 1)
        return out.view(query.shape)


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Queries and answer are `[rows, count, kv_heads, group, head_dim]`, keys and values
    `[rows, blocks, kv_heads, KEY_BLOCK, head_dim]`."""
    rows, count, kv_heads, group, head_dim = query.shape
    num_blocks = keys.shape[1]
    num_queries = count * group
    padded = _padded(query.transpose(1, 2).reshape(rows, 1, kv_heads, num_queries, head_dim))
    batched = padded.expand(-1, num_blocks, -1, -1, -1).flatten(0, 2)
    scores = torch.bmm(batched, keys.flatten(0, 2).transpose(1, 2))
    scores = scores.view(rows, num_blocks, kv_heads, -1, KEY_BLOCK)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    seen = scores[:, :, :, :num_queries].view(rows, num_blocks, kv_heads, count, group, KEY_BLOCK)
    seen += mask[:, :, None, :, None]
    peak = scores.amax(dim=(1, 4), keepdim=True)
    if sinks is not None:
        sink = sinks.view(1, 1, kv_heads, 1, group).expand(-1, -1, -1, count, -1)
        sink = _padded(sink.reshape(1, 1, kv_heads, num_queries, 1))
        peak = torch.maximum(peak, sink)
    weights = scores.sub_(peak).exp_()
    total = _sum_in_order(weights.sum(dim=-1, keepdim=True))
    if sinks is not None:
        total += (sink - peak).exp_().squeeze(1)
    parts = torch.bmm(weights.flatten(0, 2), values.flatten(0, 2))
    out = _sum_in_order(parts.view(rows, num_blocks, kv_heads, -1, head_dim)).div_(total)
    return out[:, :, :num_queries].view(rows, kv_heads, count, group, head_dim).transpose(1, 2)


def _padded(queries: torch.Tensor) -> torch.Tensor:
    """With rows of zeros up to a multiple of QUERY_ROWS in the dimension before the last."""
    return F.pad(queries, (0, 0, 0, -queries.shape[-2] % QUERY_ROWS))


def _sum_in_order(parts: torch.Tensor) -> torch.Tensor:
    """The sum over dimension 1, from first to last; `parts` are overwritten."""
    total = parts[:, 0]
    for block in range(1, parts.shape[1]):
        total += parts[:, block]
    return total


def _plan_group(pool: CpuPool, group: int, rows: Sequence[StepRow], starts: Sequence[int]) -> GroupPlan:
    window = pool.layout.groups[group].window
    writes: list[Slots] = []
    live: list[Slots] = []  # from the beginning of a key block; what is not to be read is a slot that may be
    for row in rows:
        table = row.row.page_tables[group]
        end = row.start + row.count
        first = 0 if window is None else max(0, row.start - window + 1)
        slots = pool.slots(table, first, end)
        writes.append(slots[row.start - first :])
        live.append(np.pad(slots, (first % KEY_BLOCK, -end % KEY_BLOCK), mode="edge"))
    blocks = [
        _row_block(pool, [live[i]], _chunk_slices(rows[i], starts[i], window))
        for i in range(len(rows))
        if rows[i].count > 1
    ]
    decoding = [i for i in range(len(rows)) if rows[i].count == 1]
    for members in split_by_length(decoding, live):
        queries = [(rows[i].start, starts[i]) for i in members]
        blocks.append(_row_block(pool, [live[i] for i in members], [_decode_slice(queries, window)]))
    return GroupPlan(torch.from_numpy(np.concatenate(writes)), tuple(blocks))


def _row_block(pool: CpuPool, live: Sequence[Slots], slices: Iterable[QuerySlice]) -> RowBlock:
    length = max(len(slots) for slots in live)
    kv_heads = pool.layout.kv_heads
    grid = np.stack([np.pad(slots, (0, length - len(slots)), mode="edge") for slots in live])
    grid = grid.reshape(len(live), -1, 1, KEY_BLOCK) * kv_heads + np.arange(kv_heads)[:, None]
    return RowBlock(len(live), torch.from_numpy(grid.reshape(-1)), tuple(slices))


def _chunk_slices(row: StepRow, start: int, window: int | None) -> Iterator[QuerySlice]:
    for first in range(0, row.count, _SLICE_TOKENS):
        end = min(first + _SLICE_TOKENS, row.count)
        positions = np.arange(row.start + first, row.start + end)
        firsts = np.array([_first_block(row.start, window)])
        yield _slice(positions[None], firsts, positions - row.start + start, window)


def _decode_slice(queries: Sequence[tuple[int, int]], window: int | None) -> QuerySlice:
    """`queries` are (position, place in the flattened batch)."""
    positions = np.array([position for position, _ in queries])
    firsts = np.array([_first_block(position, window) for position, _ in queries])
    return _slice(positions[:, None], firsts, np.array([place for _, place in queries]), window)


def _slice(positions: Slots, firsts: Slots, places: Slots, window: int | None) -> QuerySlice:
    """`positions` `[rows, count]` of the queries; `firsts` `[rows]`, each row's first key block."""
    num_blocks = int((positions[:, -1] // KEY_BLOCK - firsts).max()) + 1
    keys = firsts[:, None] * KEY_BLOCK + np.arange(num_blocks * KEY_BLOCK)
    ahead = keys.reshape(-1, num_blocks, 1, KEY_BLOCK) - positions[:, None, :, None]
    hidden = ahead > 0
    if window is not None:
        hidden |= ahead <= -window
    mask = torch.zeros(hidden.shape).masked_fill_(torch.from_numpy(hidden), -torch.inf)
    return QuerySlice(positions.shape[1], num_blocks, torch.from_numpy(places), mask)


def _first_block(start: int, window: int | None) -> int:
    """Of the keys that a row sees whose first query is at `start`."""
    return 0 if window is None else max(0, start - window + 1) // KEY_BLOCK
