# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Paged attention for decoding: one new token a row, its K and V stored on the way.

A program takes one work item of `decode_plan` for one KV head, with the query heads that share it packed into
one tile. A row cut into several items is put together by whichever of its programs ends last (counted by an
atomic), so there is no second launch.
"""

import torch
import triton
import triton.language as tl

from engine.model_runner.kernels.chain import can_chain, chained, launch_next, prefetch, wait_previous
from engine.model_runner.kernels.decode_plan import WORK_FIELDS, SplitPolicy
from engine.model_runner.kernels.paged import (
    PartScratch,
    Plane,
    dim_tile,
    rows_ok,
    score_arguments,
    scores_log2,
    sinks_log2,
    token_arguments,
    token_offset,
)
from engine.model_runner.kernels.parts import is_last, keep_part

_MERGED_NUMBERS = 8192  # of partial results that a program holds at once: 128 registers a thread
_STAGED_BYTES = 96 * 1024  # of K and V on their way to a program: two programs fit an SM
_CHAINED_ROWS = 64  # a longer launch loses more by fetching ahead than it gains by starting early (measured)


@triton.jit
def _prefetch_block(tokens, HEAD_DIM: tl.constexpr, DIM_TILE: tl.constexpr):
    """Fetch a block of K or V to the L2 cache; `tokens` is where each of them begins."""
    bits: tl.constexpr = tokens.dtype.element_ty.primitive_bitwidth
    line = tl.arange(0, (DIM_TILE * bits + 1023) // 1024)
    prefetch(tokens[:, None] + tl.minimum(line * (1024 // bits), HEAD_DIM - 1)[None, :])


@triton.jit
def _merge_parts(
    target,
    partial_ptr,
    stats_ptr,
    sinks_ptr,
    first_item,
    splits,
    kv_head,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_MERGED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    MERGED_AT_ONCE: tl.constexpr,
    SINKS: tl.constexpr,
):
    """Put a row's items together for one KV head, and store them where its first query head's answer lies."""
    h = tl.arange(0, GROUP_MERGED)
    d = tl.arange(0, DIM_TILE)
    part = tl.arange(0, MAX_SPLITS)
    stats = stats_ptr + (((first_item + part) * KV_HEADS + kv_head) * GROUP)[:, None] * 2 + h[None, :] * 2
    stats_ok = (part < splits)[:, None] & (h < GROUP)[None, :]
    tops = tl.load(stats, mask=stats_ok, other=-1.0e30, cache_modifier=".cg")
    totals = tl.load(stats + 1, mask=stats_ok, other=0.0, cache_modifier=".cg")
    peak = tl.max(tops, axis=0)
    denominator = tl.sum(totals * tl.exp2(tops - peak[None, :]), axis=0)
    if SINKS:
        denominator += tl.exp2(sinks_log2(sinks_ptr, kv_head * GROUP + h, h < GROUP) - peak)
    denominator = tl.where(h < GROUP, denominator, 1.0)
    merged = tl.zeros([GROUP_MERGED, DIM_TILE], tl.float32)
    for base in range(0, splits, MERGED_AT_ONCE):
        some = base + tl.arange(0, MERGED_AT_ONCE)
        index = (((first_item + some) * KV_HEADS + kv_head) * GROUP)[:, None] + h[None, :]
        index_ok = (some < splits)[:, None] & (h < GROUP)[None, :]
        some_tops = tl.load(stats_ptr + index * 2, mask=index_ok, other=-1.0e30, cache_modifier=".cg")
        accs = tl.load(
            partial_ptr + index[:, :, None] * DIM_TILE + d[None, None, :],
            mask=index_ok[:, :, None],
            other=0.0,
            cache_modifier=".cg",
        )
        merged += tl.sum(accs * tl.exp2(some_tops - peak[None, :])[:, :, None], axis=0)
    merged_ok = (h < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    answer = (merged / denominator[:, None]).to(target.dtype.element_ty)
    tl.store(target + h[:, None] * HEAD_DIM + d[None, :], answer, mask=merged_ok)


@triton.jit
def _decode_kernel(
    out_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    pool_ptr,
    tables_ptr,
    work_ptr,
    partial_ptr,
    stats_ptr,
    arrived_ptr,
    sinks_ptr,
    scale,
    softcap,
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
    GROUP_MERGED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    MERGED_AT_ONCE: tl.constexpr,
    FIELDS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    CHAIN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    kv_head = tl.program_id(0)
    item = tl.program_id(1)
    work = work_ptr + item * FIELDS
    stop = tl.load(work + 2, cache_modifier=".cg")
    if stop == 0:
        return
    row = tl.load(work, cache_modifier=".cg")
    start = tl.load(work + 1, cache_modifier=".cg")
    first_item = tl.load(work + 3, cache_modifier=".cg")
    splits = tl.load(work + 4, cache_modifier=".cg")
    slot = tl.load(work + 5, cache_modifier=".cg").to(tl.int64)
    position = tl.load(work + 6, cache_modifier=".cg")
    table = tables_ptr + slot * tables_row

    g = tl.arange(0, GROUP_TILE)
    d = tl.arange(0, DIM_TILE)
    dim_ok = d < HEAD_DIM
    heads_ok = g < GROUP
    tile_ok = heads_ok[:, None] & dim_ok[None, :]
    head = kv_head * GROUP + g
    token_elements: tl.constexpr = KV_HEADS * HEAD_DIM
    v_offset: tl.constexpr = PAGE_TOKENS * token_elements
    pages = pool_ptr + (plane_offset + kv_head * HEAD_DIM)
    first_keys = start + tl.arange(0, BLOCK)
    first_ok = first_keys < stop
    page = tl.load(table + first_keys // PAGE_TOKENS, mask=first_ok, other=0, cache_modifier=".cg")
    if CHAIN:
        # What was computed in earlier steps is there already.
        tokens = pages + token_offset(page, first_keys, pool_page, PAGE_TOKENS, token_elements)
        _prefetch_block(tokens, HEAD_DIM, DIM_TILE)
        _prefetch_block(tokens + v_offset, HEAD_DIM, DIM_TILE)
        wait_previous()
    q = tl.load(q_ptr + row * q_row + head[:, None] * q_head + d[None, :], mask=tile_ok, other=0.0)

    if stop == position + 1:
        # The last item owns the new token: it goes to its page, and starts the softmax.
        new_k = tl.load(k_ptr + row * k_row + kv_head * k_head + d, mask=dim_ok, other=0.0)
        new_v = tl.load(v_ptr + row * v_row + kv_head * v_head + d, mask=dim_ok, other=0.0)
        own_page = tl.load(table + position // PAGE_TOKENS)
        place = pages + token_offset(own_page, position, pool_page, PAGE_TOKENS, token_elements) + d
        tl.store(place, new_k, mask=dim_ok)
        tl.store(place + v_offset, new_v, mask=dim_ok)
        dots = tl.sum(q.to(tl.float32) * new_k.to(tl.float32)[None, :], axis=1)
        top = scores_log2(dots, scale, softcap, SOFTCAP)
        total = tl.full([GROUP_TILE], 1.0, tl.float32)
        acc = tl.zeros([GROUP_TILE, DIM_TILE], tl.float32) + new_v.to(tl.float32)[None, :]
        stop = position
    else:
        top = tl.full([GROUP_TILE], -1.0e30, tl.float32)
        total = tl.zeros([GROUP_TILE], tl.float32)
        acc = tl.zeros([GROUP_TILE, DIM_TILE], tl.float32)

    for base in range(start, stop, BLOCK):
        key = base + tl.arange(0, BLOCK)
        key_ok = key < stop
        token = token_offset(page, key, pool_page, PAGE_TOKENS, token_elements)
        later = key + BLOCK  # pages of the next block are known before it is computed
        page = tl.load(table + later // PAGE_TOKENS, mask=later < stop, other=0)
        tile = pages + token[:, None] + d[None, :]
        load_ok = rows_ok(key_ok, d, HEAD_DIM)
        k = tl.load(tile, mask=load_ok, other=0.0)
        dots = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores = tl.where(key_ok[None, :], scores_log2(dots, scale, softcap, SOFTCAP), -1.0e30)
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        v = tl.load(tile + v_offset, mask=load_ok, other=0.0)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        total = total * shrink + tl.sum(weights, axis=1)
        top = new_top
    if CHAIN:
        launch_next()

    out = out_ptr + (row * KV_HEADS * GROUP + head[:, None]).to(tl.int64) * HEAD_DIM + d[None, :]
    if splits == 1:
        if SINKS:
            total += tl.exp2(sinks_log2(sinks_ptr, head, heads_ok) - top)
        tl.store(out, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=tile_ok)
        return

    place = (item * KV_HEADS + kv_head) * GROUP + g
    keep_part(partial_ptr, stats_ptr, place, heads_ok, acc, total, top)
    if is_last(arrived_ptr + row * KV_HEADS + kv_head, splits):
        target = out_ptr + (row * KV_HEADS * GROUP + kv_head * GROUP).to(tl.int64) * HEAD_DIM
        _merge_parts(
            target,
            partial_ptr,
            stats_ptr,
            sinks_ptr,
            first_item,
            splits,
            kv_head,
            KV_HEADS,
            GROUP,
            GROUP_MERGED,
            HEAD_DIM,
            DIM_TILE,
            MAX_SPLITS,
            MERGED_AT_ONCE,
            SINKS,
        )


def decode_scratch(
    policy: SplitPolicy, max_rows: int, heads: int, head_dim: int, device: torch.device
) -> PartScratch:
    """For decode launches of up to `max_rows` rows."""
    return PartScratch.make(policy.max_items(max_rows), max_rows, heads, policy.kv_heads, head_dim, device)


def decode_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plane: Plane,
    work: torch.Tensor,
    scratch: PartScratch,
    out: torch.Tensor,
    policy: SplitPolicy,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    block: int = 32,
    warps: int = 2,
    stages: int = 4,
    chain: bool | None = None,
) -> None:
    """Store the rows' new K and V in their pages of `plane`, and attend from the new tokens.

    query [rows, heads, head_dim], key and value [rows, kv_heads, head_dim], unit stride in the last dim; out
    like query, contiguous. work [items, WORK_FIELDS] of the plane's group as `plan_decode` filled it (a
    window is in it). sinks [heads]: logits that only join the denominator (GPT-OSS). The launch parameters
    are the best of those measured on an H100 at every size.
    """
    rows, heads, head_dim = query.shape
    chain = can_chain(query.device) and rows <= _CHAINED_ROWS if chain is None else chain
    group = heads // plane.kv_heads
    group_merged = triton.next_power_of_2(group)
    merged_elements = dim_tile(head_dim) * group_merged
    stage_bytes = 2 * block * dim_tile(head_dim) * query.element_size()
    _decode_kernel[(plane.kv_heads, work.shape[0])](
        out_ptr=out,
        work_ptr=work,
        sinks_ptr=query if sinks is None else sinks,
        GROUP=group,
        GROUP_TILE=max(16, group_merged),
        GROUP_MERGED=group_merged,
        BLOCK=block,
        MAX_SPLITS=policy.max_splits,
        MERGED_AT_ONCE=min(policy.max_splits, max(1, _MERGED_NUMBERS // merged_elements)),
        FIELDS=WORK_FIELDS,
        SINKS=sinks is not None,
        CHAIN=chain,
        num_warps=warps,
        num_stages=max(1, min(stages, _STAGED_BYTES // stage_bytes)),
        **plane.arguments(),
        **token_arguments(q=query, k=key, v=value),
        **score_arguments(query, scale, softcap),
        **scratch.arguments(),
        **chained(chain),
    )
