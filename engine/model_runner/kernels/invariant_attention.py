# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Paged attention in which every token is rounded in the same way, whatever is computed beside it.

A token's answer is the same bits whether it was decoded or part of a prompt, in a chunk of any length that
starts anywhere, in any batch. Keys are taken from pages alone, in blocks at fixed positions of the context;
the step's own K and V are stored by a launch of their own before. Blocks are added up in segments at fixed
positions, and segments in their order. One kernel serves decoding rows and chunks, so that the same
instructions do it: a row that decodes fills a tile of as many rows as chunks do, most of them padding. The
segments of a row that decodes are computed by several programs, and whichever ends last adds them up.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from engine.model_runner.kernels.invariant_plan import Segments
from engine.model_runner.kernels.prefill import TILE_FIELDS, tile_tokens

_PROGRAMS = 512  # of a launch, at most: a few for every multiprocessor


@triton.jit
def _store_kernel(
    k_ptr,
    v_ptr,
    pool_ptr,
    tables_ptr,
    slots_ptr,
    positions_ptr,
    k_row: tl.int64,
    k_head: tl.int64,
    v_row: tl.int64,
    v_head: tl.int64,
    pool_page: tl.int64,
    plane_offset: tl.int64,
    tables_row: tl.int64,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """K and V of one token to their page."""
    token = tl.program_id(0)
    element = tl.arange(0, ELEMENTS)
    element_ok = element < KV_HEADS * HEAD_DIM
    head = element // HEAD_DIM
    d = element % HEAD_DIM
    slot = tl.load(slots_ptr + token)
    position = tl.load(positions_ptr + token)
    page = tl.load(tables_ptr + slot * tables_row + position // PAGE_TOKENS).to(tl.int64)
    row_elements: tl.constexpr = KV_HEADS * HEAD_DIM
    place = page * pool_page + plane_offset + (position % PAGE_TOKENS) * row_elements + element
    k = tl.load(k_ptr + token * k_row + head * k_head + d, mask=element_ok)
    v = tl.load(v_ptr + token * v_row + head * v_head + d, mask=element_ok)
    tl.store(pool_ptr + place, k, mask=element_ok)
    tl.store(pool_ptr + place + PAGE_TOKENS * row_elements, v, mask=element_ok)


@triton.jit
def _attend_segment(
    q,
    pages,
    table,
    position,
    begin,
    end,
    low,
    scale,
    softcap,
    window,
    pool_page,
    TOKEN_ELEMENTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOWED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Softmax over the keys of one segment: weighted values, sum of weights, largest score, all in units of
    log2. `begin` is where a block begins, keys before `low` are not there."""
    rows: tl.constexpr = q.shape[0]
    d = tl.arange(0, q.shape[1])
    top = tl.full([rows], -1.0e30, tl.float32)
    total = tl.zeros([rows], tl.float32)
    acc = tl.zeros([rows, q.shape[1]], tl.float32)
    for base in range(begin, end, BLOCK):
        key = base + tl.arange(0, BLOCK)
        key_ok = (key >= low) & (key < end)
        page = tl.load(table + key // PAGE_TOKENS, mask=key_ok, other=0).to(tl.int64)
        token = page * pool_page + (key % PAGE_TOKENS) * TOKEN_ELEMENTS
        block = pages + token[:, None] + d[None, :]
        load_ok = key_ok[:, None]
        if q.shape[1] != HEAD_DIM:
            load_ok = load_ok & (d < HEAD_DIM)[None, :]
        k = tl.load(block, mask=load_ok, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        if SOFTCAP:
            # tanh(x) = 1 - 2 / (exp(2x) + 1)
            grown = tl.exp2(scores * (2.0 * 1.4426950408889634) / softcap)
            scores = softcap * (1.0 - 2.0 / (grown + 1.0))
        seen = key[None, :] <= position[:, None]
        if WINDOWED:
            seen = seen & (key[None, :] > (position - window)[:, None])
        scores = tl.where(seen, scores * 1.4426950408889634, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, axis=1)
        v = tl.load(block + PAGE_TOKENS * TOKEN_ELEMENTS, mask=load_ok, other=0.0)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        top = new_top
    return acc, total, top


@triton.jit
def _fold(acc, total, top, part, part_total, part_top):
    """Add a segment to those before it, with no choice left to the compiler how to round."""
    new_top = tl.maximum(top, part_top)
    shrink = tl.exp2(top - new_top)
    part_shrink = tl.exp2(part_top - new_top)
    acc = tl.fma(acc, tl.broadcast_to(shrink[:, None], acc.shape), part * part_shrink[:, None])
    total = tl.fma(total, shrink, part_total * part_shrink)
    return acc, total, new_top


@triton.jit(do_not_specialize=["num_tiles"])  # one compiled kernel for decoding and chunks
def _attention_kernel(
    out_ptr,
    q_ptr,
    pool_ptr,
    tables_ptr,
    tiles_ptr,
    partial_ptr,
    stats_ptr,
    arrived_ptr,
    scale,
    softcap,
    window,
    num_tiles,
    q_row: tl.int64,
    q_head: tl.int64,
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
    SEGMENT: tl.constexpr,
    FIELDS: tl.constexpr,
    WINDOWED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Tiles i, i + programs, ... for one KV head, up to the first of no tokens. Fields as `tiles_of` writes
    them, and then: segment, first part of the row, parts of the row; 0 parts: the tile has all segments."""
    kv_head = tl.program_id(0)
    index = tl.program_id(1)
    d = tl.arange(0, DIM_TILE)
    dim_ok = d < HEAD_DIM
    pages = pool_ptr + plane_offset + kv_head * HEAD_DIM
    m = tl.arange(0, TOKENS * GROUP_TILE)
    group_head = m % GROUP_TILE
    head = kv_head * GROUP + group_head

    count = tl.load(tiles_ptr + index * FIELDS + 2)
    while count > 0:
        tile = tiles_ptr + index * FIELDS
        first = tl.load(tile)
        offset = tl.load(tile + 1)
        start = tl.load(tile + 3)
        table = tables_ptr + tl.load(tile + 4).to(tl.int64) * tables_row
        segment = tl.load(tile + 5)
        first_part = tl.load(tile + 6)
        parts = tl.load(tile + 7)

        query = offset + m // GROUP_TILE  # index in the chunk
        position = start + query
        row_ok = (group_head < GROUP) & (query < count)
        tile_ok = row_ok[:, None] & dim_ok[None, :]
        place = (first + query).to(tl.int64)[:, None] * q_row + head[:, None] * q_head + d[None, :]
        q = tl.load(q_ptr + place, mask=tile_ok, other=0.0)
        low = 0  # keys before are seen by no query of the tile
        if WINDOWED:
            low = tl.maximum(start + offset + 1 - window, 0)
        end = start + tl.minimum(offset + TOKENS, count)
        segment_end = tl.cdiv(end, SEGMENT)
        if parts > 1:
            segment_end = segment + 1
        elif WINDOWED:
            segment = low // SEGMENT
        else:
            segment = 0

        top = tl.full([TOKENS * GROUP_TILE], -1.0e30, tl.float32)
        total = tl.zeros([TOKENS * GROUP_TILE], tl.float32)
        acc = tl.zeros([TOKENS * GROUP_TILE, DIM_TILE], tl.float32)
        while segment < segment_end:
            part, part_total, part_top = _attend_segment(
                q,
                pages,
                table,
                position,
                tl.maximum(segment * SEGMENT, low // BLOCK * BLOCK),
                tl.minimum((segment + 1) * SEGMENT, end),
                low,
                scale,
                softcap,
                window,
                pool_page,
                TOKEN_ELEMENTS=KV_HEADS * HEAD_DIM,
                HEAD_DIM=HEAD_DIM,
                PAGE_TOKENS=PAGE_TOKENS,
                BLOCK=BLOCK,
                WINDOWED=WINDOWED,
                SOFTCAP=SOFTCAP,
                PRECISION=PRECISION,
            )
            if parts > 1:
                acc, total, top = part, part_total, part_top
            else:
                acc, total, top = _fold(acc, total, top, part, part_total, part_top)
            segment += 1

        if parts > 1:
            # Rows of the tile that decode are the first: one token's heads.
            mine = ((index * KV_HEADS + kv_head) * GROUP + m).to(tl.int64)
            tl.store(partial_ptr + mine[:, None] * DIM_TILE + d[None, :], acc, mask=row_ok[:, None])
            tl.store(stats_ptr + mine * 2, top, mask=row_ok)
            tl.store(stats_ptr + mine * 2 + 1, total, mask=row_ok)
            tl.debug_barrier()  # all threads' partial results before the one thread's release below
            counter = arrived_ptr + first * KV_HEADS + kv_head
            if tl.atomic_add(counter, 1, sem="acq_rel") == parts - 1:
                tl.store(counter, 0)
                h = tl.arange(0, GROUP_TILE)
                h_ok = h < GROUP
                all_top = tl.full([GROUP_TILE], -1.0e30, tl.float32)
                all_total = tl.zeros([GROUP_TILE], tl.float32)
                whole = tl.zeros([GROUP_TILE, DIM_TILE], tl.float32)
                for i in range(parts):
                    of = (((first_part + i) * KV_HEADS + kv_head) * GROUP + h).to(tl.int64)
                    some_top = tl.load(stats_ptr + of * 2, mask=h_ok, other=-1.0e30, cache_modifier=".cg")
                    some_total = tl.load(stats_ptr + of * 2 + 1, mask=h_ok, other=1.0, cache_modifier=".cg")
                    some = tl.load(
                        partial_ptr + of[:, None] * DIM_TILE + d[None, :],
                        mask=h_ok[:, None],
                        other=0.0,
                        cache_modifier=".cg",
                    )
                    whole, all_total, all_top = _fold(whole, all_total, all_top, some, some_total, some_top)
                target = first.to(tl.int64) * (KV_HEADS * GROUP) + kv_head * GROUP + h
                answer = (whole / all_total[:, None]).to(out_ptr.dtype.element_ty)
                whole_ok = h_ok[:, None] & dim_ok[None, :]
                tl.store(out_ptr + target[:, None] * HEAD_DIM + d[None, :], answer, mask=whole_ok)
        else:
            answer = (acc / tl.where(row_ok, total, 1.0)[:, None]).to(out_ptr.dtype.element_ty)
            out = ((first + query).to(tl.int64) * (KV_HEADS * GROUP) + head)[:, None] * HEAD_DIM
            tl.store(out_ptr + out + d[None, :], answer, mask=tile_ok)
        index += tl.num_programs(1)
        count = 0
        if index < num_tiles:
            count = tl.load(tiles_ptr + index * FIELDS + 2)


@dataclass(frozen=True, slots=True)
class PartScratch:
    """Memory that launches of one stream share; `arrived` is all zero between launches."""

    partial: torch.Tensor
    stats: torch.Tensor
    arrived: torch.Tensor

    @classmethod
    def make(
        cls, segments: Segments, max_rows: int, heads: int, kv_heads: int, head_dim: int, device: torch.device
    ) -> "PartScratch":
        parts = max_rows * segments.most * heads
        return cls(
            torch.empty(parts * _dim_tile(head_dim), dtype=torch.float32, device=device),
            torch.empty(parts * 2, dtype=torch.float32, device=device),
            torch.zeros(max_rows * kv_heads, dtype=torch.int32, device=device),
        )


def store_pages(
    key: torch.Tensor,
    value: torch.Tensor,
    pool: torch.Tensor,
    plane: int,
    tables: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
) -> None:
    """Store key and value [n, kv_heads, head_dim], unit stride in the last dim, in plane `plane` of the pages
    at `positions` of `slots`, both [n] (int64)."""
    num_tokens, kv_heads, head_dim = key.shape
    _store_kernel[(num_tokens,)](
        key,
        value,
        pool,
        tables,
        slots,
        positions,
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        pool.stride(0),
        plane * pool.stride(1),
        tables.stride(0),
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        PAGE_TOKENS=pool.shape[3],
        ELEMENTS=triton.next_power_of_2(kv_heads * head_dim),
    )


def invariant_attention(
    query: torch.Tensor,
    pool: torch.Tensor,
    plane: int,
    tables: torch.Tensor,
    tiles: torch.Tensor,
    scratch: PartScratch,
    out: torch.Tensor,
    segments: Segments,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> None:
    """Attend from the tokens that `tiles` covers to keys in plane `plane` of their pages, their own included.

    query [n, heads, head_dim], unit stride in the last dim; out like query, contiguous. tiles
    [num_tiles, TILE_FIELDS] int32 on the device, from `plan_parts` or from `tiles_of`.
    """
    _, heads, head_dim = query.shape
    _, _, _, page_tokens, kv_heads, _ = pool.shape
    group = heads // kv_heads
    dim_tile = _dim_tile(head_dim)
    wide = dim_tile * query.element_size() > 256  # fits shared memory and registers with smaller blocks only
    num_tiles = tiles.shape[0]
    _attention_kernel[(kv_heads, min(num_tiles, max(1, _PROGRAMS // kv_heads)))](
        out,
        query,
        pool,
        tables,
        tiles,
        scratch.partial,
        scratch.stats,
        scratch.arrived,
        scale,
        softcap or 0.0,
        window or 0,
        num_tiles,
        query.stride(0),
        query.stride(1),
        pool.stride(0),
        plane * pool.stride(1),
        tables.stride(0),
        KV_HEADS=kv_heads,
        GROUP=group,
        GROUP_TILE=triton.next_power_of_2(group),
        TOKENS=tile_tokens(group),
        HEAD_DIM=head_dim,
        DIM_TILE=dim_tile,
        PAGE_TOKENS=page_tokens,
        BLOCK=32 if wide else 64,
        SEGMENT=segments.keys,
        FIELDS=TILE_FIELDS,
        WINDOWED=window is not None,
        SOFTCAP=softcap is not None,
        PRECISION="tf32x3" if query.dtype == torch.float32 else "tf32",
        num_warps=8 if wide else 4,
        num_stages=2 if wide else 3,
    )


def _dim_tile(head_dim: int) -> int:
    tile: int = triton.next_power_of_2(head_dim)
    return max(16, tile)
