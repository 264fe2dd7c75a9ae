# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Grammar masks applied to logits in one pass that reads the masks and writes only what they forbid."""

import torch
import triton
import triton.language as tl

_BLOCK = 4096


@triton.jit
def _mask_kernel(
    logits_ptr, rows_ptr, bits_ptr, vocab, logits_row: tl.int64, bits_row: tl.int64, BLOCK: tl.constexpr
):
    row = tl.load(rows_ptr + tl.program_id(0))
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = token < vocab
    words = tl.load(bits_ptr + tl.program_id(0) * bits_row + token // 32, mask=here, other=-1)
    forbidden = ((words >> (token % 32)) & 1) == 0
    tl.store(logits_ptr + row * logits_row + token, float("-inf"), mask=here & forbidden)


def mask_logits(logits: torch.Tensor, rows: torch.Tensor, bits: torch.Tensor) -> None:
    """Forbid, in place, what `bits` int32 `[k, ceil(vocab / 32)]` (lowest bit first) has zeros for, in `rows`
    int64 `[k]` of `logits` `[n, vocab]`. Both have unit stride in the last dim."""
    vocab = logits.shape[1]
    _mask_kernel[(len(rows), triton.cdiv(vocab, _BLOCK))](
        logits, rows, bits, vocab, logits.stride(0), bits.stride(0), BLOCK=_BLOCK, num_warps=4
    )
