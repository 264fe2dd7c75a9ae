# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""The segments of a context for `invariant_attention`: computed, added to each other, put together."""

import triton
import triton.language as tl

from engine.model_runner.kernels.paged import rows_ok, scores_log2, token_offset


@triton.jit
def attend_segment(
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
        page = tl.load(table + key // PAGE_TOKENS, mask=key_ok, other=0)
        token = token_offset(page, key, pool_page, PAGE_TOKENS, TOKEN_ELEMENTS)
        block = pages + token[:, None] + d[None, :]
        load_ok = rows_ok(key_ok, d, HEAD_DIM)
        k = tl.load(block, mask=load_ok, other=0.0)
        dots = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        seen = key[None, :] <= position[:, None]
        if WINDOWED:
            seen = seen & (key[None, :] > (position - window)[:, None])
        scores = tl.where(seen, scores_log2(dots, scale, softcap, SOFTCAP), float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, axis=1)
        v = tl.load(block + PAGE_TOKENS * TOKEN_ELEMENTS, mask=load_ok, other=0.0)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        top = new_top
    return acc, total, top


@triton.jit
def fold(acc, total, top, part, part_total, part_top):
    """Add a segment to those before it, with no choice left to the compiler how to round."""
    new_top = tl.maximum(top, part_top)
    shrink = tl.exp2(top - new_top)
    part_shrink = tl.exp2(part_top - new_top)
    acc = tl.fma(acc, tl.broadcast_to(shrink[:, None], acc.shape), part * part_shrink[:, None])
    total = tl.fma(total, shrink, part_total * part_shrink)
    return acc, total, new_top


@triton.jit
def merge_parts(
    target,
    partial_ptr,
    stats_ptr,
    first_part,
    parts,
    kv_head,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_TILE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
):
    """Put the segments of a row together for one KV head, in their order, and store them where its first
    query head's answer lies."""
    h = tl.arange(0, GROUP_TILE)
    d = tl.arange(0, DIM_TILE)
    h_ok = h < GROUP
    top = tl.full([GROUP_TILE], -1.0e30, tl.float32)
    total = tl.zeros([GROUP_TILE], tl.float32)
    acc = tl.zeros([GROUP_TILE, DIM_TILE], tl.float32)
    for i in range(parts):
        of = (((first_part + i) * KV_HEADS + kv_head) * GROUP + h).to(tl.int64)
        part_top = tl.load(stats_ptr + of * 2, mask=h_ok, other=-1.0e30, cache_modifier=".cg")
        part_total = tl.load(stats_ptr + of * 2 + 1, mask=h_ok, other=1.0, cache_modifier=".cg")
        part = tl.load(
            partial_ptr + of[:, None] * DIM_TILE + d[None, :],
            mask=h_ok[:, None],
            other=0.0,
            cache_modifier=".cg",
        )
        acc, total, top = fold(acc, total, top, part, part_total, part_top)
    answer = (acc / total[:, None]).to(target.dtype.element_ty)
    tl.store(target + h[:, None] * HEAD_DIM + d[None, :], answer, mask=rows_ok(h_ok, d, HEAD_DIM))
