# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""How contexts are cut for `invariant_attention`: at positions that depend on nothing but the configuration.

The plan of the rows that decode is made on the device, once a step and group, so that a captured graph serves
any mix of lengths.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from engine.model_runner.kernels.parts import of_row, parts_of_rows
from engine.model_runner.kernels.prefill import TILE_FIELDS

_MAX_SEGMENTS = 32  # of a context as long as they come
_MIN_SEGMENT_KEYS = 512


@dataclass(frozen=True, slots=True)
class Segments:
    """How contexts are cut: into segments of `keys`, at most `most` of them."""

    keys: int
    most: int

    @classmethod
    def of(cls, max_model_len: int) -> "Segments":
        """By the longest context that there may be, and by nothing that changes from step to step."""
        keys = max(_MIN_SEGMENT_KEYS, triton.next_power_of_2(triton.cdiv(max_model_len, _MAX_SEGMENTS)))
        return cls(keys, triton.cdiv(max_model_len, keys))


@triton.jit
def _plan_kernel(
    work_ptr,
    slots_ptr,
    positions_ptr,
    windows_ptr,
    rows,
    max_parts,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    SEGMENT: tl.constexpr,
    FIELDS: tl.constexpr,
):
    """Program (i, g) writes parts i * PARTS and on of group g."""
    group = tl.program_id(1)
    row = tl.arange(0, ROWS)
    here = row < rows
    slot = tl.load(slots_ptr + row, mask=here, other=0).to(tl.int32)
    position = tl.load(positions_ptr + row, mask=here, other=0).to(tl.int32)
    low = tl.maximum(position + 1 - tl.load(windows_ptr + group), 0)
    first_segment = low // SEGMENT
    parts = tl.where(here, position // SEGMENT + 1 - first_segment, 0)
    part = tl.program_id(0) * PARTS + tl.arange(0, PARTS)
    mine, first_of_row, used = parts_of_rows(parts, part)
    first_part = of_row(mine, first_of_row)
    out = work_ptr + (group * max_parts + part) * FIELDS
    written = part < max_parts
    tl.store(out, of_row(mine, row), mask=written)
    tl.store(out + 1, tl.zeros([PARTS], tl.int32), mask=written)
    tl.store(out + 2, (part < used).to(tl.int32), mask=written)
    tl.store(out + 3, of_row(mine, position), mask=written)
    tl.store(out + 4, of_row(mine, slot), mask=written)
    tl.store(out + 5, of_row(mine, first_segment) + part - first_part, mask=written)
    tl.store(out + 6, first_part, mask=written)
    tl.store(out + 7, of_row(mine, parts), mask=written)


def plan_parts(
    slots: torch.Tensor,
    positions: torch.Tensor,
    windows: torch.Tensor,
    work: torch.Tensor,
    segments: Segments,
) -> None:
    """Fill `work[group, part, TILE_FIELDS]` (int32) for decoding rows in `slots` at `positions`, both [rows]
    (int64), the first of the batch: a tile for every segment of every row.

    `windows` [groups] int32 (a group without a window: any number above all lengths). `work` has
    `rows * segments.most` parts a group; those past the last are of no tokens.
    """
    rows = len(slots)
    groups, max_parts, _ = work.shape
    assert max_parts == rows * segments.most, "work belongs to another batch size"
    parts = 64
    _plan_kernel[(triton.cdiv(max_parts, parts), groups)](
        work,
        slots,
        positions,
        windows,
        rows,
        max_parts,
        ROWS=triton.next_power_of_2(rows),
        PARTS=parts,
        SEGMENT=segments.keys,
        FIELDS=TILE_FIELDS,
        num_warps=8,
    )
