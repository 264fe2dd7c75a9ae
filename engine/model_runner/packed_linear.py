"""Linear layers with their weight in oneDNN's own order.

torch multiplies a bf16 weight on the CPU in the order it is stored in, at half the memory's speed or less.
Reordered once, the same product runs about twice as fast, for one row as for eight. In float32, where torch's
own product of two to eight rows takes twice to five times as long, it has another virtue: from two rows on, a
row's numbers are added up in the same order whatever the number of rows, so no bit of a row depends on the
others. So a single row is computed with one of zeros beside it.

oneDNN makes code for each number of rows that it meets, which takes a millisecond once and half a MiB for
good. So numbers of rows are rounded up to one of a few.
"""

import torch
from torch import nn
from torch.nn import functional as F

# BLAS has code of its own for a few rows, and may deal rows out to threads: multiples of this are safe.
_PLAIN_ROWS = 8
_PACKED_ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128)  # and multiples of the last


class PackedLinear(nn.Module):
    """Computes what `linear`, bf16 or float32, does; keeps a reordered copy of its weight, not the weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self._least_rows = 2 if linear.weight.dtype == torch.float32 else 1
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        padding = _packed_rows(max(len(rows), self._least_rows)) - len(rows)
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            _with_zeros(rows, padding), self._packed, self.bias, "none", [], ""
        )
        return out[: len(rows)].view(*x.shape[:-1], out.shape[1])


class PaddedLinear(nn.Module):
    """Computes what the float32 `linear` does, in products of a multiple of _PLAIN_ROWS rows."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = F.linear(_with_zeros(rows, -len(rows) % _PLAIN_ROWS), self.weight, self.bias)
        return out[: len(rows)].view(*x.shape[:-1], out.shape[1])


def _packed_rows(rows: int) -> int:
    """The number of rows with which `rows` are computed."""
    most = _PACKED_ROWS[-1]
    return next((size for size in _PACKED_ROWS if size >= rows), -(-rows // most) * most)


def _with_zeros(rows: torch.Tensor, padding: int) -> torch.Tensor:
    return F.pad(rows, (0, 0, 0, padding)) if padding else rows


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine and this torch have the reordered product for weights of this dtype."""
    if not torch._C._has_mkldnn:
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def pack_linears(model: nn.Module) -> None:
    """Replace the linear layers of a CPU model, in place: those that can be packed, and float32 ones in any
    case, for the sake of their bits; a second call is free.

    A weight that other layers share (a tied embedding) stays in memory beside its copy.
    """
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is not nn.Linear:
                continue
            if can_pack(child.weight.dtype):
                setattr(parent, name, PackedLinear(child))
            elif child.weight.dtype == torch.float32:
                setattr(parent, name, PaddedLinear(child))
