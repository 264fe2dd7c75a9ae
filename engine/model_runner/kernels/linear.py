# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Products of a few rows with a large weight, at the speed of memory.

In a decode step a linear layer is as fast as its weight can be read. A program multiplies a strip of
the weight's rows by all rows of the input; where that makes too few programs to fill the GPU, the width
is split among several, and whichever ends last adds up their partial sums, in order. The weight is the left
operand, so that it goes from memory to the matrix units without passing through registers, and its first
blocks are fetched to the L2 cache while the kernel before is still running.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import library
from torch.nn import functional as F

from engine.model_runner.kernels.chain import can_chain, chained, launch_next, prefetch_rows, wait_previous
from engine.model_runner.kernels.paged import precision
from engine.model_runner.kernels.parts import is_last

MAX_ROWS = 64  # more rows make a product that the vendor's library does better
_MAX_SPLITS = 16
_PREFETCHED_BLOCKS = 4
_TWO_AN_SM = 264


@dataclass(frozen=True, slots=True)
class Tiling:
    """A program's share: `features` rows of the weight, in blocks of `width` columns.

    The width is split until there are `programs` of them."""

    features: int = 64
    width: int = 128
    programs: int = 256
    warps: int = 4
    stages: int = 4

    def splits(self, weight: torch.Tensor) -> int | None:
        """Programs that share a strip of the weight; None if it does not divide into such blocks."""
        num_features, width = weight.shape
        if num_features % self.features or width % self.width or not weight.is_contiguous():
            return None
        strips, blocks, splits = num_features // self.features, width // self.width, 1
        while strips * splits < self.programs and splits < _MAX_SPLITS and blocks % (4 * splits) == 0:
            splits *= 2
        return splits


@dataclass(frozen=True, slots=True)
class LinearScratch:
    """Memory that products of one stream share; `arrived` is all zero between launches."""

    partial: torch.Tensor
    arrived: torch.Tensor

    @classmethod
    def make(cls, device: torch.device) -> "LinearScratch":
        """For tilings of up to 1,024 programs and 128 features."""
        return cls(
            torch.empty(2 * 1024 * 64 * MAX_ROWS, dtype=torch.float32, device=device),
            torch.zeros(1024, dtype=torch.int32, device=device),
        )


@triton.jit
def _put(out, product, row_ok, ADD: tl.constexpr):
    """Store a product [FEATURES, ROWS] at `out` [ROWS, FEATURES], or add it to what is there."""
    product = tl.trans(product)
    if ADD:
        product += tl.load(out, mask=row_ok[:, None], other=0.0).to(tl.float32)
    tl.store(out, product.to(out.dtype.element_ty), mask=row_ok[:, None])


@triton.jit
def _linear_kernel(
    out_ptr,
    x_ptr,
    weight_ptr,
    partial_ptr,
    arrived_ptr,
    rows,
    num_features,
    width,
    split_width,
    x_row: tl.int64,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
    ADD: tl.constexpr,
    PREFETCHED: tl.constexpr,
    CHAIN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    strip = tl.program_id(0)
    split = tl.program_id(1)
    feature = strip * FEATURES + tl.arange(0, FEATURES)
    row = tl.arange(0, ROWS)
    row_ok = row < rows
    begin = split * split_width
    strip_rows = weight_ptr + feature.to(tl.int64)[:, None] * width
    if CHAIN:
        prefetch_rows(strip_rows, begin, begin + split_width, PREFETCHED * WIDTH)
        wait_previous()
    column = begin + tl.arange(0, WIDTH)
    weights = strip_rows + column[None, :]
    inputs = x_ptr + row[:, None] * x_row + column[None, :]
    acc = tl.zeros([FEATURES, ROWS], tl.float32)
    for _ in range(0, split_width, WIDTH):
        w = tl.load(weights, eviction_policy="evict_first")
        x = tl.load(inputs, mask=row_ok[:, None], other=0.0)
        acc = tl.dot(w, tl.trans(x), acc, input_precision=PRECISION)
        weights += WIDTH
        inputs += WIDTH
    if CHAIN:
        launch_next()

    out = out_ptr + row[:, None] * num_features + feature[None, :]
    if SPLITS == 1:
        _put(out, acc, row_ok, ADD)
    else:
        inside = tl.arange(0, FEATURES)[:, None] * ROWS + row[None, :]
        partial = partial_ptr + strip * (SPLITS * FEATURES * ROWS) + inside
        tl.store(partial + split * (FEATURES * ROWS), acc, mask=row_ok[None, :])
        if is_last(arrived_ptr + strip, SPLITS):
            total = tl.zeros([FEATURES, ROWS], tl.float32)
            for i in tl.static_range(SPLITS):
                part = partial + i * (FEATURES * ROWS)
                total += tl.load(part, mask=row_ok[None, :], other=0.0, cache_modifier=".cg")
            _put(out, total, row_ok, ADD)


def few_rows_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scratch: LinearScratch,
    tiling: Tiling,
    *,
    added_to: torch.Tensor | None = None,
    chain: bool | None = None,
) -> torch.Tensor:
    """`x @ weight.T` for x [rows, width], rows <= MAX_ROWS, unit stride in the last dim, and a weight
    [features, width] that divides into the blocks of `tiling`. With `added_to` [rows, features], contiguous,
    that is what the product is added to, in place, and what is returned."""
    rows, width = x.shape
    num_features = weight.shape[0]
    splits = tiling.splits(weight)
    assert splits is not None, "the weight does not divide into the tiling's blocks"
    strips = num_features // tiling.features
    tile_rows = max(16, triton.next_power_of_2(rows))
    assert splits == 1 or strips <= len(scratch.arrived), "more strips than the scratch has counters for"
    assert splits == 1 or strips * splits * tiling.features * tile_rows <= len(scratch.partial)
    chain = can_chain(x.device) if chain is None else chain
    out = torch.empty(rows, num_features, dtype=x.dtype, device=x.device) if added_to is None else added_to
    assert out.is_contiguous(), "the product is added to rows that lie one after another"
    _linear_kernel[(strips, splits)](
        out,
        x,
        weight,
        scratch.partial,
        scratch.arrived,
        rows,
        num_features,
        width,
        width // splits,
        x.stride(0),
        ROWS=tile_rows,
        FEATURES=tiling.features,
        WIDTH=tiling.width,
        SPLITS=splits,
        ADD=added_to is not None,
        PREFETCHED=_PREFETCHED_BLOCKS,
        CHAIN=chain,
        PRECISION=precision(x.dtype),
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        **chained(chain),
    )
    return out


def tiling_for(rows: int, weight: torch.Tensor) -> Tiling | None:
    """How a Hopper GPU of 132 SMs multiplies `rows` (up to MAX_ROWS) with `weight`, as measured on an H100;
    None: as the vendor's library does."""
    tiling = Tiling()
    splits = tiling.splits(weight)
    if splits is None:
        return None
    programs = weight.shape[0] // tiling.features * splits
    if splits == 1:
        # Programs come and go: one an SM with much on the way, or two where the input takes much of a stage.
        return replace(tiling, stages=6 if rows <= 32 else 3)
    if rows > 32:
        return None
    if programs <= _TWO_AN_SM:
        return tiling
    # Three an SM at once leave room for three stages, and too little on the way unless the rows fill a tile.
    return replace(tiling, stages=3) if 8 < rows <= 16 else None


_library = library.Library("fairslice", "FRAGMENT")
_library.define("linear(Tensor x, Tensor weight, Tensor partial, Tensor arrived) -> Tensor")
_library.define(
    "linear_add_(Tensor x, Tensor weight, Tensor partial, Tensor arrived, Tensor(a!) residual) -> ()"
)


def _tiling_of(x: torch.Tensor, rows: int, weight: torch.Tensor) -> Tiling | None:
    usable = rows <= MAX_ROWS and x.dtype.itemsize == 2 and can_chain(x.device)
    return tiling_for(rows, weight) if usable else None


def _linear(
    x: torch.Tensor, weight: torch.Tensor, partial: torch.Tensor, arrived: torch.Tensor
) -> torch.Tensor:
    rows = x.numel() // x.shape[-1]
    tiling = _tiling_of(x, rows, weight)
    if tiling is None:
        return F.linear(x, weight)
    out = few_rows_linear(x.reshape(rows, -1), weight, LinearScratch(partial, arrived), tiling)
    return out.view(*x.shape[:-1], -1)


def _linear_shape(x: torch.Tensor, weight: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty(*x.shape[:-1], weight.shape[0], dtype=x.dtype, device=x.device)


def _linear_add_(
    x: torch.Tensor,
    weight: torch.Tensor,
    partial: torch.Tensor,
    arrived: torch.Tensor,
    residual: torch.Tensor,
) -> None:
    """Add the product to `residual` [..., features], contiguous, with one rounding."""
    rows = x.numel() // x.shape[-1]
    tiling = _tiling_of(x, rows, weight)
    inputs, target = x.reshape(rows, -1), residual.view(rows, -1)
    if tiling is None:
        target.addmm_(inputs, weight.T)
    else:
        few_rows_linear(inputs, weight, LinearScratch(partial, arrived), tiling, added_to=target)


_library.impl("linear", _linear, "CompositeExplicitAutograd")
_library.impl("linear_add_", _linear_add_, "CompositeExplicitAutograd")
library.register_fake("fairslice::linear", _linear_shape, lib=_library)
library.register_fake("fairslice::linear_add_", lambda *_: None, lib=_library)

PRODUCT = torch.ops.fairslice.linear.default
PRODUCT_ADDED = torch.ops.fairslice.linear_add_.default


class LinearProduct:
    """Linear layers; what `shared_linear.share_linears` takes as `product`. With a bias they are left to the
    vendor's library."""

    def __init__(self, device: torch.device) -> None:
        scratch = LinearScratch.make(device)
        self.partial, self.arrived = scratch.partial, scratch.arrived

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        if bias is not None:
            return F.linear(x, weight, bias)
        out: torch.Tensor = PRODUCT(x, weight, self.partial, self.arrived)
        return out
