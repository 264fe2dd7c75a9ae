# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Small results to the host by stores of a kernel, past the copy engines.

A copy engine serves its queue in order: eight bytes a row would wait behind pages that are on their way to
host memory, and the step behind them.
"""

import torch
import triton
import triton.language as tl

_BLOCK = 256


@triton.jit
def _store_kernel(host_ptr, device_ptr, count, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = index < count
    tl.store(host_ptr + index, tl.load(device_ptr + index, mask=here), mask=here)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in pinned host memory, complete when the current stream has come this far, and to be kept until
    then: torch does not know that the kernel writes there, and would give the memory to another.

    A tensor that is not on a GPU is copied at once.
    """
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    if not tensor.is_cuda:
        return host.copy_(tensor)
    if tensor.numel():
        blocks = triton.cdiv(tensor.numel(), _BLOCK)
        _store_kernel[(blocks,)](host, tensor.contiguous(), tensor.numel(), BLOCK=_BLOCK, num_warps=4)
    return host
