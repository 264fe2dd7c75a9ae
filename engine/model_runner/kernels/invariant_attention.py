# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Paged attention in which every token is rounded in the same way, whatever is computed beside it.

A token's answer is the same bits whether it was decoded or part of a prompt, in a chunk of any length that
starts anywhere, in any batch. Keys are taken from pages alone, in blocks at fixed positions of the context;
the step's own K and V are stored by a launch of their own before. Blocks are added up in segments at fixed
positions, and segments in their order. One kernel serves decoding rows and chunks, so that the same
instructions do it: a row that decodes fills a tile of as many rows as chunks do, most of them padding. The
segments of a row that decodes are computed by several programs, and whichever ends last adds them up.
"""

import torch
import triton
import triton.language as tl

from engine.model_runner.kernels.invariant_plan import Segments
from engine.model_runner.kernels.invariant_segments import attend_segment, fold, merge_parts
from engine.model_runner.kernels.paged import PartScratch, Plane, is_wide, score_arguments, token_arguments
from engine.model_runner.kernels.parts import is_last, keep_part
from engine.model_runner.kernels.prefill import TILE_FIELDS, tile_tokens

_PROGRAMS = 512  # of a launch, at most: a few for every multiprocessor


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
            part, part_total, part_top = attend_segment(
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
                acc, total, top = fold(acc, total, top, part, part_total, part_top)
            segment += 1

        if parts > 1:
            # Rows of the tile that decode are the first: one token's heads.
            mine = ((index * KV_HEADS + kv_head) * GROUP + m).to(tl.int64)
            keep_part(partial_ptr, stats_ptr, mine, row_ok, acc, total, top)
            if is_last(arrived_ptr + first * KV_HEADS + kv_head, parts):
                target = out_ptr + (first.to(tl.int64) * KV_HEADS + kv_head) * (GROUP * HEAD_DIM)
                merge_parts(
                    target,
                    partial_ptr,
                    stats_ptr,
                    first_part,
                    parts,
                    kv_head,
                    KV_HEADS,
                    GROUP,
                    GROUP_TILE,
                    HEAD_DIM,
                    DIM_TILE,
                )
        else:
            answer = (acc / tl.where(row_ok, total, 1.0)[:, None]).to(out_ptr.dtype.element_ty)
            out = ((first + query).to(tl.int64) * (KV_HEADS * GROUP) + head)[:, None] * HEAD_DIM
            tl.store(out_ptr + out + d[None, :], answer, mask=tile_ok)
        index += tl.num_programs(1)
        count = 0
        if index < num_tiles:
            count = tl.load(tiles_ptr + index * FIELDS + 2)


def _num_stages(query: torch.Tensor) -> int:
    """As many blocks of keys as fit a multiprocessor's shared memory beside the queries."""
    if query.shape[-1] * query.element_size() >= 1024:
        return 1
    return 2 if is_wide(query) else 3


def invariant_attention(
    query: torch.Tensor,
    plane: Plane,
    tiles: torch.Tensor,
    scratch: PartScratch,
    out: torch.Tensor,
    segments: Segments,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> None:
    """Attend from the tokens that `tiles` covers to keys in their pages of `plane`, their own included.

    query [n, heads, head_dim], unit stride in the last dim; out like query, contiguous. tiles
    [num_tiles, TILE_FIELDS] int32 on the device, from `plan_parts` or from `tiles_of`.
    """
    group = query.shape[1] // plane.kv_heads
    wide = is_wide(query)
    num_tiles = tiles.shape[0]
    _attention_kernel[(plane.kv_heads, min(num_tiles, max(1, _PROGRAMS // plane.kv_heads)))](
        out_ptr=out,
        tiles_ptr=tiles,
        window=window or 0,
        num_tiles=num_tiles,
        GROUP=group,
        GROUP_TILE=triton.next_power_of_2(group),
        TOKENS=tile_tokens(group),
        BLOCK=32 if wide else 64,
        SEGMENT=segments.keys,
        FIELDS=TILE_FIELDS,
        WINDOWED=window is not None,
        num_warps=8 if wide else 4,
        num_stages=_num_stages(query),
        **plane.arguments(),
        **token_arguments(q=query),
        **score_arguments(query, scale, softcap),
        **scratch.arguments(),
    )
