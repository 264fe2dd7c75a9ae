# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""What the kernels of paged attention share: where K and V lie, how scores are made of dot products, what a
launch is told of both, and memory for the parts of rows that several programs compute.

The pool is `[pages, planes, 2, page_tokens, kv_heads, head_dim]`; a row's page table is `tables[slot]`.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)  # softmax is computed in powers of two


@triton.jit
def capped(scores, softcap):
    """softcap * tanh(scores / softcap), by tanh(x) = 1 - 2 / (exp(2x) + 1)."""
    return softcap * (1.0 - 2.0 / (tl.exp2(scores * (2.0 * LOG2E) / softcap) + 1.0))


@triton.jit
def scores_log2(dots, scale, softcap, SOFTCAP: tl.constexpr):
    """Attention scores in units of log2, from raw products of q and k."""
    scores = dots * scale
    if SOFTCAP:
        scores = capped(scores, softcap)
    return scores * LOG2E


@triton.jit
def sinks_log2(sinks_ptr, head, head_ok):
    """Scores of attention sinks, in units of log2."""
    return tl.load(sinks_ptr + head, mask=head_ok, other=0.0).to(tl.float32) * LOG2E


@triton.jit
def token_offset(page, position, pool_page, PAGE_TOKENS: tl.constexpr, TOKEN_ELEMENTS: tl.constexpr):
    """Where in the pool the token at `position` of a context begins, which is in `page`."""
    return page.to(tl.int64) * pool_page + (position % PAGE_TOKENS) * TOKEN_ELEMENTS


@triton.jit
def rows_ok(row_ok, d, HEAD_DIM: tl.constexpr):
    """Mask of a block of rows, `d` of their elements wide; whole rows need none for their elements."""
    mask = row_ok[:, None]
    if d.shape[0] != HEAD_DIM:
        mask = mask & (d < HEAD_DIM)[None, :]
    return mask


def dim_tile(head_dim: int) -> int:
    """Elements of a block that holds a head: a power of two, and enough for the matrix units."""
    tile: int = triton.next_power_of_2(head_dim)
    return max(16, tile)


def is_wide(query: torch.Tensor) -> bool:
    """Whether heads fit shared memory and registers with smaller blocks of keys only."""
    return dim_tile(query.shape[-1]) * query.element_size() > 256


def precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: fp32 as exactly as tests hold it to."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


@dataclass(frozen=True, slots=True)
class Plane:
    """One layer's K and V: a plane of the pool, and the page tables `[slots, max_pages]` (int32) of its
    group."""

    pool: torch.Tensor
    index: int
    tables: torch.Tensor

    @property
    def kv_heads(self) -> int:
        return self.pool.shape[4]

    def arguments(self) -> dict[str, Any]:
        """What a kernel is told of where pages are."""
        *_, page_tokens, kv_heads, head_dim = self.pool.shape
        return {
            "pool_ptr": self.pool,
            "tables_ptr": self.tables,
            "pool_page": self.pool.stride(0),
            "plane_offset": self.index * self.pool.stride(1),
            "tables_row": self.tables.stride(0),
            "KV_HEADS": kv_heads,
            "HEAD_DIM": head_dim,
            "PAGE_TOKENS": page_tokens,
        }


def token_arguments(**tensors: torch.Tensor) -> dict[str, Any]:
    """What a kernel is told of tensors `[n, heads, head_dim]` with unit stride in the last dim, by name."""
    arguments: dict[str, Any] = {}
    for name, tensor in tensors.items():
        arguments[f"{name}_ptr"] = tensor
        arguments[f"{name}_row"], arguments[f"{name}_head"] = tensor.stride(0), tensor.stride(1)
    return arguments


def score_arguments(query: torch.Tensor, scale: float, softcap: float | None) -> dict[str, Any]:
    """What a kernel is told of how `query` `[n, heads, head_dim]` is multiplied with keys."""
    return {
        "scale": scale,
        "softcap": softcap or 0.0,
        "DIM_TILE": dim_tile(query.shape[2]),
        "SOFTCAP": softcap is not None,
        "PRECISION": precision(query.dtype),
    }


@dataclass(frozen=True, slots=True)
class PartScratch:
    """Memory for rows that several programs compute in parts, shared by the launches of one stream; `arrived`
    is all zero between launches."""

    partial: torch.Tensor
    stats: torch.Tensor
    arrived: torch.Tensor

    @classmethod
    def make(
        cls, parts: int, rows: int, heads: int, kv_heads: int, head_dim: int, device: torch.device
    ) -> "PartScratch":
        """For up to `rows` rows, in up to `parts` parts together."""
        return cls(
            torch.empty(parts * heads * dim_tile(head_dim), dtype=torch.float32, device=device),
            torch.empty(parts * heads * 2, dtype=torch.float32, device=device),
            torch.zeros(rows * kv_heads, dtype=torch.int32, device=device),
        )

    def arguments(self) -> dict[str, Any]:
        return {"partial_ptr": self.partial, "stats_ptr": self.stats, "arrived_ptr": self.arrived}
