# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Rotary position embedding of queries and keys in one kernel, which reads each element once.

Element i of a head and the one half a head further are a pair: (a, b) becomes (a cos_i - b sin_i,
b cos_j + a sin_j) with j = i + half (Su et al., RoFormer, in the layout of halves that transformers uses).
"""

import torch
import triton
import triton.language as tl
from torch import library

_TOKENS, _MAX_HEADS = 4, 8  # of a program


@triton.jit
def _rotate_kernel(
    query_out_ptr,
    key_out_ptr,
    query_ptr,
    key_ptr,
    cos_ptr,
    sin_ptr,
    num_tokens,
    query_row: tl.int64,
    query_head: tl.int64,
    key_row: tl.int64,
    key_head: tl.int64,
    cos_row: tl.int64,
    sin_row: tl.int64,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_TILE: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    r = tl.arange(0, TOKENS * BLOCK)
    token = (tl.program_id(0) * TOKENS + r // BLOCK).to(tl.int64)
    i = tl.arange(0, HALF_TILE)
    here = (token < num_tokens)[:, None] & (i < HALF)[None, :]
    head = tl.program_id(1) * BLOCK + r % BLOCK
    is_key = tl.program_id(1) * BLOCK >= HEADS
    if is_key:
        head -= HEADS
        src = key_ptr + token * key_row + head * key_head
        dst = key_out_ptr + (token * KV_HEADS + head) * (2 * HALF)
    else:
        src = query_ptr + token * query_row + head * query_head
        dst = query_out_ptr + (token * HEADS + head) * (2 * HALF)
    a_place, cos_place, sin_place = (
        src[:, None] + i[None, :],
        cos_ptr + (token * cos_row)[:, None] + i[None, :],
        sin_ptr + (token * sin_row)[:, None] + i[None, :],
    )
    a = tl.load(a_place, mask=here).to(tl.float32)
    b = tl.load(a_place + HALF, mask=here).to(tl.float32)
    cos_a = tl.load(cos_place, mask=here).to(tl.float32)
    sin_a = tl.load(sin_place, mask=here).to(tl.float32)
    cos_b = tl.load(cos_place + HALF, mask=here).to(tl.float32)
    sin_b = tl.load(sin_place + HALF, mask=here).to(tl.float32)
    place = dst[:, None] + i[None, :]
    kind = query_out_ptr.dtype.element_ty
    tl.store(place, (a * cos_a - b * sin_a).to(kind), mask=here)
    tl.store(place + HALF, (b * cos_b + a * sin_b).to(kind), mask=here)


_library = library.Library("fairslice", "FRAGMENT")
_library.define("rotate(Tensor query, Tensor key, Tensor cos, Tensor sin) -> (Tensor, Tensor)")


def _rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """query [1, heads, n, dim], key [1, kv_heads, n, dim], cos and sin [1, n, dim], unit stride in the last
    dim; the results lie token by token."""
    query_out, key_out = _rotate_shape(query, key)
    _, heads, num_tokens, dim = query.shape
    kv_heads = key.shape[1]
    block = next(size for size in (8, 4, 2, 1) if size <= _MAX_HEADS and not heads % size | kv_heads % size)
    _rotate_kernel[(triton.cdiv(num_tokens, _TOKENS), (heads + kv_heads) // block)](
        query_out,
        key_out,
        query,
        key,
        cos,
        sin,
        num_tokens,
        query.stride(2),
        query.stride(1),
        key.stride(2),
        key.stride(1),
        cos.stride(1),
        sin.stride(1),
        HEADS=heads,
        KV_HEADS=kv_heads,
        HALF=dim // 2,
        HALF_TILE=triton.next_power_of_2(dim // 2),
        TOKENS=_TOKENS,
        BLOCK=block,
        num_warps=4,
    )
    return query_out, key_out


def _rotate_shape(
    query: torch.Tensor, key: torch.Tensor, *_: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    def like(x: torch.Tensor) -> torch.Tensor:
        one, heads, num_tokens, dim = x.shape
        return x.new_empty(one, num_tokens, heads, dim).transpose(1, 2)

    return like(query), like(key)


_library.impl("rotate", _rotate, "CompositeExplicitAutograd")
library.register_fake("fairslice::rotate", _rotate_shape, lib=_library)


def rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys [1, heads, n, dim] turned by the angles of cos and sin [1, n, dim]."""
    turned: tuple[torch.Tensor, torch.Tensor] = torch.ops.fairslice.rotate(query, key, cos, sin)
    return turned
