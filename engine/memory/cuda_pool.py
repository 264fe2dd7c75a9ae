"""Device memory behind file descriptors, by the driver's virtual memory calls.

A pool is one range of addresses, backed by segments that are physical allocations of their own. Each segment
has a descriptor: who holds one keeps the memory alive, whatever becomes of the process that made it, and any
process may map it, on any GPU that has peer access. A descriptor can be held without CUDA.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cuda.bindings import driver

from engine.memory.cuda_calls import CudaError, unwrap

_POSIX = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


@dataclass(frozen=True, slots=True)
class CudaRange:
    """`num_bytes` of device memory from `address`, mapped until the process ends."""

    address: int
    num_bytes: int


def create_range(device: int, num_bytes: int, segment_bytes: int) -> tuple[CudaRange, list[int]]:
    """Allocate on GPU `device` at least `num_bytes`, in segments, and map them for it.

    Returns the range and a descriptor for each segment. Needs a current context. Raises CudaError, and leaves
    nothing behind then.
    """
    prop = _properties(device)
    sizes = segment_sizes(num_bytes, segment_bytes, _granularity(prop))
    descriptors: list[int] = []

    def handles() -> Iterator[Any]:
        for size in sizes:
            handle = unwrap("cuMemCreate", driver.cuMemCreate(size, prop, 0))
            exported = driver.cuMemExportToShareableHandle(handle, _POSIX, 0)
            descriptors.append(int(unwrap("cuMemExportToShareableHandle", exported)))
            yield handle

    try:
        return _map(device, sizes, handles(), _granularity(prop)), descriptors
    except CudaError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def import_range(
    device: int, owner: int, num_bytes: int, segment_bytes: int, descriptors: Sequence[int]
) -> CudaRange:
    """Map for GPU `device` what `create_range` made on GPU `owner` with the same sizes.

    The descriptors may be closed after. Raises CudaError.
    """
    granularity = _granularity(_properties(owner))
    sizes = segment_sizes(num_bytes, segment_bytes, granularity)
    assert len(sizes) == len(descriptors), f"{len(descriptors)} descriptors for {len(sizes)} segments"

    def handles() -> Iterator[Any]:
        for descriptor in descriptors:
            imported = driver.cuMemImportFromShareableHandle(descriptor, _POSIX)
            yield unwrap("cuMemImportFromShareableHandle", imported)

    return _map(device, sizes, handles(), granularity)


def num_segments(num_bytes: int, segment_bytes: int) -> int:
    """Segments, and descriptors, of a pool."""
    return -(-num_bytes // segment_bytes)


def segment_sizes(num_bytes: int, segment_bytes: int, granularity: int) -> list[int]:
    """Sizes of the segments of a pool: all `segment_bytes` but the last, which is rounded up."""
    assert segment_bytes % granularity == 0, f"segments have to be multiples of {granularity} bytes"
    num_whole, rest = divmod(num_bytes, segment_bytes)
    sizes = [segment_bytes] * num_whole
    if rest:
        sizes.append(-(-rest // granularity) * granularity)
    return sizes


def _map(device: int, sizes: Sequence[int], handles: Iterator[Any], granularity: int) -> CudaRange:
    """Map allocations side by side, readable and writable for `device`; lets go of the handles."""
    total = sum(sizes)
    reserved = driver.cuMemAddressReserve(total, granularity, driver.CUdeviceptr(0), 0)
    first = int(unwrap("cuMemAddressReserve", reserved))
    num_mapped = 0
    try:
        for size, handle in zip(sizes, handles, strict=True):
            try:
                mapped = driver.cuMemMap(driver.CUdeviceptr(first + num_mapped), size, 0, handle, 0)
                unwrap("cuMemMap", mapped)
                num_mapped += size
            finally:
                unwrap("cuMemRelease", driver.cuMemRelease(handle))
        access = driver.CUmemAccessDesc()
        access.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        access.location.id = device
        access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        allowed = driver.cuMemSetAccess(driver.CUdeviceptr(first), total, [access], 1)
        unwrap("cuMemSetAccess", allowed)
    except CudaError:
        with suppress(CudaError):
            if num_mapped:
                unwrap("cuMemUnmap", driver.cuMemUnmap(driver.CUdeviceptr(first), num_mapped))
            unwrap("cuMemAddressFree", driver.cuMemAddressFree(driver.CUdeviceptr(first), total))
        raise
    return CudaRange(first, total)


def _properties(device: int) -> Any:
    prop = driver.CUmemAllocationProp()
    prop.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    prop.requestedHandleTypes = _POSIX
    prop.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    prop.location.id = device
    return prop


def _granularity(prop: Any) -> int:
    option = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
    found = driver.cuMemGetAllocationGranularity(prop, option)
    return int(unwrap("cuMemGetAllocationGranularity", found))
