# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Rows that several programs compute in parts: how a plan numbers the parts, and how the program that ends
last learns that it is the one to put them together."""

import triton
import triton.language as tl


@triton.jit
def parts_of_rows(counts, part):
    """Number the parts of rows one after another, `counts` of each row: which of `part` belong to which row
    [parts, rows], the first part of each row, and how many there are in all."""
    upto = tl.cumsum(counts, axis=0)
    first = upto - counts
    mine = (first[None, :] <= part[:, None]) & (part[:, None] < upto[None, :])
    return mine, first, tl.max(upto, axis=0)


@triton.jit
def of_row(mine, values):
    """For each part, its row's value; 0 for a part of no row."""
    return tl.sum(tl.where(mine, values[None, :], 0), axis=1)


@triton.jit
def keep_part(partial_ptr, stats_ptr, place, ok, acc, total, top):
    """Keep a part of a softmax for whoever puts the row together; `place` says where, by query head."""
    d = tl.arange(0, acc.shape[1])
    tl.store(partial_ptr + place[:, None] * acc.shape[1] + d[None, :], acc, mask=ok[:, None])
    tl.store(stats_ptr + place * 2, top, mask=ok)
    tl.store(stats_ptr + place * 2 + 1, total, mask=ok)


@triton.jit
def is_last(counter, parts):
    """Whether the other parts of a row are all kept, and may be read past the L1 cache. Then the counter is 0
    again."""
    tl.debug_barrier()  # all threads' partial results before the one thread's release below
    last = tl.atomic_add(counter, 1, sem="acq_rel") == parts - 1
    if last:
        tl.store(counter, 0)
    return last
