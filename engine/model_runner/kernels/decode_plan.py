# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""How the contexts of a decode step are cut into work items of about equal length.

The plan is made on the device, once a step and group, so that a captured graph serves any mix of lengths.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from engine.model_runner.kernels.parts import of_row, parts_of_rows

# int32 of one work item: row, first key, end key, first item of the row, items of the row, the row's slot and
# position, nothing
WORK_FIELDS = 8
SPLIT_KEYS = 64  # items are multiples of it


@dataclass(frozen=True, slots=True)
class SplitPolicy:
    """How contexts are cut: into parts of one length, which depends on all rows."""

    kv_heads: int
    programs: int = 512  # four an SM on an H100: enough for full bandwidth (measured), few enough to merge

    @property
    def max_splits(self) -> int:
        """Most items of one row; a power of two."""
        wanted: int = triton.next_power_of_2(self.programs // self.kv_heads)
        return min(128, max(16, wanted))

    def max_items(self, rows: int) -> int:
        """Bound on the items of a batch; the grid of `decode_attention`."""
        return rows + self.max_splits


@triton.jit
def _plan_kernel(
    work_ptr,
    slots_ptr,
    positions_ptr,
    windows_ptr,
    rows,
    max_items,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    FIELDS: tl.constexpr,
    BLOCK: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    """Program (i, g) writes items i * ITEMS and on of group g: `work[g, item]`."""
    group = tl.program_id(1)
    row = tl.arange(0, ROWS)
    here = row < rows
    slot = tl.load(slots_ptr + row, mask=here, other=0).to(tl.int32)
    end = tl.load(positions_ptr + row, mask=here, other=-1).to(tl.int32) + 1
    window = tl.load(windows_ptr + group)
    begin = tl.maximum(end - window, 0)
    span = end - begin
    even = tl.cdiv(tl.sum(span, axis=0), MAX_SPLITS)
    share = tl.maximum(tl.cdiv(even, BLOCK), 2) * BLOCK + tl.zeros([ROWS], tl.int32)
    splits = tl.cdiv(span, share)
    item = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    mine, first_of_row, used = parts_of_rows(splits, item)
    first = of_row(mine, first_of_row)
    length = of_row(mine, share)
    row_begin = of_row(mine, begin)
    row_end = of_row(mine, end)
    start = row_begin + (item - first) * length
    stop = tl.minimum(start + length, row_end)
    out = work_ptr + (group * max_items + item) * FIELDS
    written = item < max_items
    tl.store(out, of_row(mine, row), mask=written)
    tl.store(out + 1, start, mask=written)
    tl.store(out + 2, tl.where(item < used, stop, 0), mask=written)
    tl.store(out + 3, first, mask=written)
    tl.store(out + 4, of_row(mine, splits), mask=written)
    tl.store(out + 5, of_row(mine, slot), mask=written)
    tl.store(out + 6, row_end - 1, mask=written)


def plan_decode(
    slots: torch.Tensor,
    positions: torch.Tensor,
    windows: torch.Tensor,
    work: torch.Tensor,
    policy: SplitPolicy,
) -> None:
    """Fill `work[group, item, WORK_FIELDS]` (int32) for rows in `slots` at `positions`, both [rows] (int64).

    `windows` [groups] int32 (a group without a window: any number above all lengths). `work` has
    `policy.max_items(rows)` items a group; those past the last have end key 0.
    """
    rows = positions.shape[0]
    groups, max_items, _ = work.shape
    assert max_items == policy.max_items(rows), "work belongs to another batch size"
    items = 64
    _plan_kernel[(triton.cdiv(max_items, items), groups)](
        work,
        slots,
        positions,
        windows,
        rows,
        max_items,
        ROWS=triton.next_power_of_2(rows),
        ITEMS=items,
        FIELDS=WORK_FIELDS,
        BLOCK=SPLIT_KEYS,
        MAX_SPLITS=policy.max_splits,
        num_warps=8,
    )
