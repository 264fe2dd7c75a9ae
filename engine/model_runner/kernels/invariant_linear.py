# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Products whose every element is rounded in the same way, whatever the number of rows.

The vendor's library chooses among kernels by the number of rows, and they add up in different orders. Here
the width of an element is summed by one program, from its start to its end, in steps of the matrix
instruction. Rows and features are only divided differently. The weight is the left operand, so that a tile
has 64 features or a multiple of that: on Hopper one matrix instruction takes 64 rows on the left and 16 of
the width. Rows of the input are the instruction's columns, whose number changes nothing in the sum of each;
few rows are padded to 16. Nothing is split along the width, and that is what this costs: a narrow weight,
read for few rows, keeps fewer multiprocessors busy.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import library

from engine.model_runner.kernels.chain import can_chain, chained, launch_next, prefetch_rows, wait_previous
from engine.model_runner.kernels.paged import precision

_WIDTH = 64  # columns of a block, in every tile
_CHAINED_ROWS = 64  # up to here weights are what the time goes into, and are worth fetching ahead
_PREFETCHED_BLOCKS = 8
_STRIPS_TOGETHER = 8  # strips of the weight that are in use at once, for the L2 cache's sake


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes: `features` rows of the weight times `rows` of the input."""

    features: int
    rows: int
    warps: int
    stages: int

    def stages_within(self, memory_bytes: int, element_bytes: int) -> int:
        """Stages of which shared memory has room for."""
        stage_bytes = (self.features + self.rows) * _WIDTH * element_bytes
        return max(1, min(self.stages, memory_bytes // stage_bytes))


_TILES = (
    Tile(features=64, rows=16, warps=4, stages=8),
    Tile(features=64, rows=32, warps=4, stages=8),
    Tile(features=64, rows=64, warps=4, stages=6),
    Tile(features=64, rows=128, warps=4, stages=4),
)
_TILE_OF_HUNDREDS = Tile(features=128, rows=128, warps=8, stages=3)
_TILE_OF_MANY = Tile(features=128, rows=256, warps=8, stages=3)
_HUNDREDS, _MANY = 256, 1024  # rows above which these tiles are taken


def tile_for(rows: int, element_bytes: int) -> Tile:
    """Which tile `rows` of input are cut into."""
    if rows > _HUNDREDS and element_bytes <= 2:
        return _TILE_OF_MANY if rows > _MANY else _TILE_OF_HUNDREDS
    return next((tile for tile in _TILES if rows <= tile.rows), _TILES[-1])


@triton.jit(do_not_specialize=["rows"])
def _invariant_linear_kernel(
    out_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    rows,
    num_features,
    width,
    x_row: tl.int64,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    WIDTH: tl.constexpr,
    TOGETHER: tl.constexpr,
    PREFETCHED: tl.constexpr,
    WHOLE_BLOCKS: tl.constexpr,
    BIAS: tl.constexpr,
    CHAIN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Neighbouring programs take `TOGETHER` strips of the weight by all tiles of rows.
    num_strips = tl.cdiv(num_features, FEATURES)
    per_group = TOGETHER * tl.cdiv(rows, ROWS)
    first_strip = tl.program_id(0) // per_group * TOGETHER
    strips = tl.minimum(num_strips - first_strip, TOGETHER)
    inside = tl.program_id(0) % per_group
    feature = (first_strip + inside % strips) * FEATURES + tl.arange(0, FEATURES)
    row = inside // strips * ROWS + tl.arange(0, ROWS)

    # What lies outside is computed with the first feature or row, and not stored.
    strip = weight_ptr + tl.where(feature < num_features, feature, 0).to(tl.int64)[:, None] * width
    if CHAIN:
        prefetch_rows(strip, 0, width, PREFETCHED * WIDTH)
        wait_previous()
    column = tl.arange(0, WIDTH)
    weights = strip + column[None, :]
    inputs = x_ptr + tl.where(row < rows, row, 0)[:, None] * x_row + column[None, :]
    acc = tl.zeros([FEATURES, ROWS], tl.float32)
    for base in range(0, width, WIDTH):
        if WHOLE_BLOCKS:
            w = tl.load(weights)
            x = tl.load(inputs)
        else:
            column_ok = (base + column < width)[None, :]
            w = tl.load(weights, mask=column_ok, other=0.0)
            x = tl.load(inputs, mask=column_ok, other=0.0)
        acc = tl.dot(w, tl.trans(x), acc, input_precision=PRECISION)
        weights += WIDTH
        inputs += WIDTH
    if CHAIN:
        launch_next()

    if BIAS:
        acc += tl.load(bias_ptr + feature, mask=feature < num_features, other=0.0).to(tl.float32)[:, None]
    out = out_ptr + row.to(tl.int64)[:, None] * num_features + feature[None, :]
    out_ok = (row < rows)[:, None] & (feature < num_features)[None, :]
    tl.store(out, tl.trans(acc.to(out_ptr.dtype.element_ty)), mask=out_ok)


def invariant_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    tile: Tile | None = None,
    chain: bool | None = None,
) -> torch.Tensor:
    """`x @ weight.T + bias` for x [rows, width], unit stride in the last dim, weight [features, width]
    contiguous and bias [features]; one rounding to x's dtype at the end."""
    rows, width = x.shape
    num_features = weight.shape[0]
    assert weight.is_contiguous(), "the weight's rows have to lie one after another"
    if tile is None:
        tile = tile_for(rows, x.element_size())
    if chain is None:
        chain = rows <= _CHAINED_ROWS and can_chain(x.device)
    out = torch.empty(rows, num_features, dtype=x.dtype, device=x.device)
    grid = triton.cdiv(num_features, tile.features) * triton.cdiv(rows, tile.rows)
    _invariant_linear_kernel[(grid,)](
        out,
        x,
        weight,
        weight if bias is None else bias,
        rows,
        num_features,
        width,
        x.stride(0),
        ROWS=tile.rows,
        FEATURES=tile.features,
        WIDTH=_WIDTH,
        TOGETHER=_STRIPS_TOGETHER,
        PREFETCHED=_PREFETCHED_BLOCKS,
        WHOLE_BLOCKS=width % _WIDTH == 0,
        BIAS=bias is not None,
        CHAIN=chain,
        PRECISION=precision(x.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages_within(_shared_memory(x.device), x.element_size()),
        **chained(chain),
    )
    return out


_LEAST_SHARED_MEMORY = 48 * 1024  # what every device has
_KEPT_SHARED_MEMORY = 2 * 1024  # for the compiler's own use


@cache
def _shared_memory(device: torch.device) -> int:
    """Bytes of it that a program may stage its operands in."""
    if device.type != "cuda":
        return _LEAST_SHARED_MEMORY
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    return int(properties["max_shared_mem"]) - _KEPT_SHARED_MEMORY


_library = library.Library("fairslice", "FRAGMENT")
_library.define("invariant_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    out = invariant_linear(x.reshape(-1, x.shape[-1]), weight, bias)
    return out.view(*x.shape[:-1], -1)


def _linear_shape(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.empty(*x.shape[:-1], weight.shape[0], dtype=x.dtype, device=x.device)


_library.impl("invariant_linear", _linear, "CompositeExplicitAutograd")
library.register_fake("fairslice::invariant_linear", _linear_shape, lib=_library)


def invariant_product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Linear layers; what `shared_linear.share_linears` takes as `product`."""
    out: torch.Tensor = torch.ops.fairslice.invariant_linear(x, weight, bias)
    return out
