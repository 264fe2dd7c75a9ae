# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
"""Kernels that start before the one in front of them in the stream has ended.

Programmatic dependent launch (compute capability 9.0 and later): a kernel launched with `chained` options may
start once every program of the kernel before it has called `launch_next` or ended. Until its `wait_previous`
it may read only what no recent kernel writes, and it may write nothing. A kernel calls `launch_next` after
`wait_previous`, so whoever runs knows that all kernels but the last one are complete.
"""

from functools import cache

import torch
import triton
import triton.language as tl

_CAPABILITY = 9


@cache
def _has_chains(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device)[0] >= _CAPABILITY


def can_chain(device: torch.device) -> bool:
    """Whether kernels on the device may be launched with `chained` options."""
    return device.type == "cuda" and _has_chains(device)


def chained(chain: bool) -> dict[str, bool]:
    """Launch options of a kernel that calls `wait_previous`, if `chain`."""
    return {"launch_pdl": True} if chain else {}


@triton.jit
def wait_previous():
    """Wait for the kernels before this one and their writes."""
    tl.extra.cuda.gdc_wait()


@triton.jit
def launch_next():
    """Let the next kernel start once all programs of this one have come here."""
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def prefetch(pointers):
    """Have the lines that `pointers` (a block) lie in brought to the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [pointers.to(tl.uint64, bitcast=True)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def prefetch_rows(rows, begin, end, ELEMENTS: tl.constexpr):
    """Have `ELEMENTS` elements of each of `rows` (a block of pointers) from `begin` on, none from `end` on,
    brought to the L2 cache."""
    line_elements: tl.constexpr = 1024 // rows.dtype.element_ty.primitive_bitwidth
    line = begin + tl.arange(0, ELEMENTS // line_elements) * line_elements
    prefetch(rows + tl.minimum(line, end - 1)[None, :])
