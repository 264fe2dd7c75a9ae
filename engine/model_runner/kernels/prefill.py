# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Causal attention for prefill chunks over a paged prefix, tensor cores throughout.

A chunk is `count` new tokens of a row whose context already holds `start`. A program takes a tile of the
chunk's queries for one KV head, all query heads that share it packed into the tile's rows. It reads keys
before `start` from pages and the chunk's own keys from the fresh tensors, so a prompt computed in one chunk
touches no page table, and stores its tile's K and V to their pages for the steps to come. No program reads
what another one of the launch writes.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from engine.model_runner.kernels.paged import (
    LOG2E,
    Plane,
    capped,
    is_wide,
    rows_ok,
    score_arguments,
    sinks_log2,
    token_arguments,
    token_offset,
)
from engine.model_runner.kernels.store import store_tile

TILE_FIELDS = 8  # int32 of one tile: first token of the chunk in the batch, tile's offset, count, start, slot
TILE_ROWS = 64


def tile_tokens(group: int, rows: int = TILE_ROWS) -> int:
    """Queries of one tile of `rows` when `group` query heads share a KV head."""
    group_tile: int = triton.next_power_of_2(group)
    return rows // min(rows, group_tile)


def tiles_of(chunks: Sequence[tuple[int, int, int, int]], tokens: int) -> list[tuple[int, ...]]:
    """Cut chunks (first token in the batch, count, start, slot) into tiles, the longest contexts first, so
    that the last programs to start are short."""
    tiles: list[tuple[int, ...]] = [
        (first, offset, count, start, slot, 0, 0, 0)
        for first, count, start, slot in chunks
        for offset in range(0, count, tokens)
    ]
    tiles.sort(key=lambda tile: tile[1] + tile[3], reverse=True)
    return tiles


@triton.jit
def _softmax_step(
    q,
    k,
    v,
    acc,
    total,
    top,
    seen,
    scale,
    softcap,
    MASKED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of keys folded into the running softmax; `seen` says which scores count, if `MASKED`."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if SOFTCAP:
        scores = capped(scores * scale, softcap)
        factor = LOG2E
    else:
        factor = scale * LOG2E
    if MASKED:
        # A row may see no key of a block, and minus infinity keeps its weights at 0. A large finite number
        # does not: times `factor` it is rounded in `new_top`, but not in the fused product below.
        scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, axis=1) * factor)
    weights = tl.exp2(scores * factor - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(weights, axis=1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return acc, total, new_top


@triton.jit
def _prefill_kernel(
    out_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    pool_ptr,
    tables_ptr,
    tiles_ptr,
    sinks_ptr,
    scale,
    softcap,
    window,
    q_row: tl.int64,
    q_head: tl.int64,
    k_row: tl.int64,
    k_head: tl.int64,
    v_row: tl.int64,
    v_head: tl.int64,
    pool_page: tl.int64,
    plane_offset: tl.int64,
    tables_row: tl.int64,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_TILE: tl.constexpr,
    TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    FIELDS: tl.constexpr,
    WINDOWED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    kv_head = tl.program_id(0)
    tile = tiles_ptr + tl.program_id(1) * FIELDS
    first = tl.load(tile)
    offset = tl.load(tile + 1)
    count = tl.load(tile + 2)
    if count == 0:  # padding of a captured step
        return
    start = tl.load(tile + 3)
    slot = tl.load(tile + 4).to(tl.int64)
    table = tables_ptr + slot * tables_row

    d = tl.arange(0, DIM_TILE)
    dim_ok = d < HEAD_DIM
    token_elements: tl.constexpr = KV_HEADS * HEAD_DIM
    v_offset: tl.constexpr = PAGE_TOKENS * token_elements
    pages = pool_ptr + plane_offset + kv_head * HEAD_DIM
    fresh_k = k_ptr + first * k_row + kv_head * k_head
    fresh_v = v_ptr + first * v_row + kv_head * v_head

    m = tl.arange(0, TOKENS * GROUP_TILE)
    query = offset + m // GROUP_TILE  # index in the chunk
    head = kv_head * GROUP + m % GROUP_TILE
    tile_ok = ((m % GROUP_TILE < GROUP) & (query < count))[:, None] & dim_ok[None, :]
    q_place = (first + query)[:, None] * q_row + head[:, None] * q_head + d[None, :]
    q = tl.load(q_ptr + q_place, mask=tile_ok, other=0.0)

    top = tl.full([TOKENS * GROUP_TILE], -1.0e30, tl.float32)
    total = tl.zeros([TOKENS * GROUP_TILE], tl.float32)
    acc = tl.zeros([TOKENS * GROUP_TILE, DIM_TILE], tl.float32)
    key_index = tl.arange(0, BLOCK)

    # Keys before the chunk, from pages.
    begin = 0
    if WINDOWED:
        begin = tl.maximum(start + offset + 1 - window, 0)
    for base in range(begin, start, BLOCK):
        key = base + key_index
        key_ok = key < start
        page = tl.load(table + key // PAGE_TOKENS, mask=key_ok, other=0)
        token = token_offset(page, key, pool_page, PAGE_TOKENS, token_elements)
        block = pages + token[:, None] + d[None, :]
        load_ok = rows_ok(key_ok, d, HEAD_DIM)
        k = tl.load(block, mask=load_ok, other=0.0)
        v = tl.load(block + v_offset, mask=load_ok, other=0.0)
        if WINDOWED:
            seen = key_ok[None, :] & (key[None, :] > (start + query - window)[:, None])
        else:
            seen = key_ok[None, :]
        acc, total, top = _softmax_step(
            q, k, v, acc, total, top, seen, scale, softcap, True, SOFTCAP, PRECISION
        )

    # The chunk's own keys: whole blocks that every query of the tile sees, then the diagonal.
    begin = 0
    if WINDOWED:
        begin = tl.maximum(offset + 1 - window, 0)
        whole_end = begin
    else:
        whole_end = (offset // BLOCK) * BLOCK
    k_block = fresh_k + key_index[:, None] * k_row + d[None, :]
    v_block = fresh_v + key_index[:, None] * v_row + d[None, :]
    for base in range(begin, whole_end, BLOCK):
        if HEAD_DIM == DIM_TILE:
            k = tl.load(k_block + base * k_row)
            v = tl.load(v_block + base * v_row)
        else:
            k = tl.load(k_block + base * k_row, mask=dim_ok[None, :], other=0.0)
            v = tl.load(v_block + base * v_row, mask=dim_ok[None, :], other=0.0)
        acc, total, top = _softmax_step(
            q, k, v, acc, total, top, True, scale, softcap, False, SOFTCAP, PRECISION
        )
    end = tl.minimum(offset + TOKENS, count)
    for base in range(whole_end, end, BLOCK):
        key = base + key_index
        load_ok = rows_ok(key < end, d, HEAD_DIM)
        k = tl.load(k_block + base * k_row, mask=load_ok, other=0.0)
        v = tl.load(v_block + base * v_row, mask=load_ok, other=0.0)
        if WINDOWED:
            seen = (key[None, :] <= query[:, None]) & (key[None, :] > (query - window)[:, None])
        else:
            seen = key[None, :] <= query[:, None]
        acc, total, top = _softmax_step(
            q, k, v, acc, total, top, seen, scale, softcap, True, SOFTCAP, PRECISION
        )

    # Last, because every key above waits for nothing of it.
    store_tile(
        fresh_k,
        fresh_v,
        pages,
        table,
        start,
        offset,
        count,
        k_row,
        v_row,
        pool_page,
        token_elements,
        TOKENS,
        HEAD_DIM,
        DIM_TILE,
        PAGE_TOKENS,
    )
    if SINKS:
        total += tl.exp2(sinks_log2(sinks_ptr, head, m % GROUP_TILE < GROUP) - top)
    out_place = ((first + query).to(tl.int64) * (KV_HEADS * GROUP) + head)[:, None] * HEAD_DIM + d[None, :]
    tl.store(out_ptr + out_place, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=tile_ok)


def prefill_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plane: Plane,
    tiles: torch.Tensor,
    out: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    rows: int = TILE_ROWS,
    block: int = 64,
    warps: int = 4,
    stages: int = 3,
) -> None:
    """Attend from the tokens that `tiles` covers; their K and V are stored in their pages of `plane`.

    query [n, heads, head_dim], key and value [n, kv_heads, head_dim], unit stride in the last dim; out like
    query, contiguous. tiles [num_tiles, TILE_FIELDS] int32 on the device, from `tiles_of`.
    """
    group = query.shape[1] // plane.kv_heads
    wide = is_wide(query)
    _prefill_kernel[(plane.kv_heads, tiles.shape[0])](
        out_ptr=out,
        tiles_ptr=tiles,
        sinks_ptr=query if sinks is None else sinks,
        window=window or 0,
        GROUP=group,
        GROUP_TILE=triton.next_power_of_2(group),
        TOKENS=tile_tokens(group, rows),
        BLOCK=min(block, 32) if wide else block,
        FIELDS=TILE_FIELDS,
        WINDOWED=window is not None,
        SINKS=sinks is not None,
        num_warps=warps,
        num_stages=min(stages, 2) if wide else stages,
        **plane.arguments(),
        **token_arguments(q=query, k=key, v=value),
        **score_arguments(query, scale, softcap),
    )
