"""Copies on the copy engines, many with one call of the driver.

The call is made through its address: the bindings look at every element of its lists, which takes longer than
the call itself.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.memory.cuda_calls import CudaError, unwrap

Words = npt.NDArray[np.uint64]
"""Addresses or sizes in bytes, uint64 `[n]`, contiguous."""

BatchCall = Callable[[int, int, int, int, int, int, int, int, int], int]
"""cuMemcpyBatchAsync as of CUDA 12.8: addresses of the destinations, sources and sizes, their number; address
of the attributes and of the index from which each holds, their number; where to write which copy failed; the
stream. Returns a CUresult."""

# Drivers keep the signature that a symbol had in the version asked for.
_SYMBOL, _VERSION = b"cuMemcpyBatchAsync", 12080

_pointer, _size = ctypes.c_void_p, ctypes.c_size_t
PROTOTYPE = ctypes.CFUNCTYPE(
    ctypes.c_int, _pointer, _pointer, _pointer, _size, _pointer, _pointer, _size, _pointer, _pointer
)


class BatchCopy:
    """Copies memory of devices, also that of a peer mapped here, and pinned memory of the host.

    `attributes` is the address of one CUmemcpyAttributes, which has to stay.
    """

    def __init__(self, call: BatchCall, attributes: int) -> None:
        self._call = call
        self._attributes = attributes

    def __call__(self, dst: Words, src: Words, sizes: Words, stream: int) -> None:
        """Copy `sizes[i]` bytes from `src[i]` to `dst[i]`, in no order, after what `stream` (a handle, not
        that of the legacy default stream) has to do; returns without waiting. Raises CudaError."""
        if not len(sizes):
            return
        holds_from, failed = ctypes.c_size_t(0), ctypes.c_size_t(0)
        status = self._call(
            dst.ctypes.data,
            src.ctypes.data,
            sizes.ctypes.data,
            len(sizes),
            self._attributes,
            ctypes.addressof(holds_from),
            1,
            ctypes.addressof(failed),
            stream,
        )
        if status:
            raise CudaError("cuMemcpyBatchAsync", _name_of(status))


@cache
def driver_batch_copy() -> BatchCopy:
    """The driver's. Raises CudaError: the driver is older than CUDA 12.8."""
    from cuda.bindings import driver

    what = "cuGetProcAddress(cuMemcpyBatchAsync)"
    address = unwrap(what, driver.cuGetProcAddress(_SYMBOL, _VERSION, 0))
    if not address:
        raise CudaError(what, driver.CUresult.CUDA_ERROR_NOT_FOUND)
    return BatchCopy(PROTOTYPE(address), _overlapping().getPtr())


@cache
def _overlapping() -> Any:
    """Attributes of copies that are read in the order of the stream and leave the multiprocessors alone."""
    from cuda.bindings import driver

    attributes: Any = driver.CUmemcpyAttributes()
    attributes.srcAccessOrder = driver.CUmemcpySrcAccessOrder.CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
    attributes.flags = driver.CUmemcpyFlags.CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE.value
    return attributes


def _name_of(status: int) -> Any:
    from cuda.bindings import driver

    return driver.CUresult(status)
