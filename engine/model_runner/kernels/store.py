# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""K and V of a step's tokens to their pages: by the kernel that attends, or in a launch of their own."""

import torch
import triton
import triton.language as tl

from engine.model_runner.kernels.paged import Plane, rows_ok, token_arguments, token_offset


@triton.jit
def store_tile(
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
    TOKEN_ELEMENTS: tl.constexpr,
    TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
):
    """K and V of a tile of `TOKENS` tokens of a chunk, for one KV head, to their pages."""
    d = tl.arange(0, DIM_TILE)
    own = offset + tl.arange(0, TOKENS)
    own_ok = own < count
    position = start + own
    page = tl.load(table + position // PAGE_TOKENS, mask=own_ok, other=0)
    token = token_offset(page, position, pool_page, PAGE_TOKENS, TOKEN_ELEMENTS)
    place = pages + token[:, None] + d[None, :]
    store_ok = rows_ok(own_ok, d, HEAD_DIM)
    k = tl.load(fresh_k + own[:, None] * k_row + d[None, :], mask=store_ok)
    v = tl.load(fresh_v + own[:, None] * v_row + d[None, :], mask=store_ok)
    tl.store(place, k, mask=store_ok)
    tl.store(place + PAGE_TOKENS * TOKEN_ELEMENTS, v, mask=store_ok)


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
    page = tl.load(tables_ptr + slot * tables_row + position // PAGE_TOKENS)
    row_elements: tl.constexpr = KV_HEADS * HEAD_DIM
    place = token_offset(page, position, pool_page, PAGE_TOKENS, row_elements) + plane_offset + element
    k = tl.load(k_ptr + token * k_row + head * k_head + d, mask=element_ok)
    v = tl.load(v_ptr + token * v_row + head * v_head + d, mask=element_ok)
    tl.store(pool_ptr + place, k, mask=element_ok)
    tl.store(pool_ptr + place + PAGE_TOKENS * row_elements, v, mask=element_ok)


def store_pages(
    key: torch.Tensor, value: torch.Tensor, plane: Plane, slots: torch.Tensor, positions: torch.Tensor
) -> None:
    """Store key and value [n, kv_heads, head_dim], unit stride in the last dim, in the pages of `plane` at
    `positions` of `slots`, both [n] (int64)."""
    num_tokens, kv_heads, head_dim = key.shape
    _store_kernel[(num_tokens,)](
        slots_ptr=slots,
        positions_ptr=positions,
        ELEMENTS=triton.next_power_of_2(kv_heads * head_dim),
        **plane.arguments(),
        **token_arguments(k=key, v=value),
    )
