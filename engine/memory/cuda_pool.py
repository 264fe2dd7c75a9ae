"""Device memory behind file descriptors, by the driver's virtual memory calls.

A pool is one range of addresses, backed by segments that are physical allocations of their own. Each segment
has a descriptor: who holds one keeps the memory alive, whatever becomes of the process that made it, and any
process may map it, on any GPU that has peer access. A descriptor can be held without CUDA.

Segments may be unmapped and mapped again, in place: the addresses stay reserved. Memory is free once nobody
has it mapped or holds its descriptor.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cuda.bindings import driver

from engine.memory.cuda_calls import CudaError, unwrap

_POSIX = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


@dataclass(slots=True)
class CudaRange:
    """Addresses from `address` for memory of GPU `owner`, until the process ends; GPUs `devices` may read and
    write there. All segments have `segment_bytes`; the last may be shorter. `mapped` are those that have
    memory."""

    owner: int
    address: int
    num_bytes: int
    segment_bytes: int
    devices: set[int]
    mapped: set[int] = field(default_factory=set)

    @property
    def num_segments(self) -> int:
        return num_segments(self.num_bytes, self.segment_bytes)

    def place(self, number: int) -> tuple[int, int]:
        """Address and size of a segment."""
        start = number * self.segment_bytes
        return self.address + start, min(self.segment_bytes, self.num_bytes - start)


def create_range(device: int, num_bytes: int, segment_bytes: int) -> tuple[CudaRange, list[int]]:
    """Allocate on GPU `device` at least `num_bytes`, in segments, and map them for it.

    Returns the range and a descriptor for each segment. Needs a current context. Raises CudaError, and leaves
    nothing behind then.
    """
    made = _reserve(device, device, num_bytes, segment_bytes)
    try:
        return made, create_segments(made, range(made.num_segments))
    except CudaError:
        _free(made)
        raise


def import_range(
    device: int,
    owner: int,
    num_bytes: int,
    segment_bytes: int,
    segments: dict[int, int],
) -> CudaRange:
    """Map for GPU `device` what `create_range` made on GPU `owner` with the same sizes: those segments that
    have memory now, by number, with their descriptors, which may be closed after. Raises CudaError."""
    made = _reserve(device, owner, num_bytes, segment_bytes)
    try:
        import_segments(made, segments)
    except CudaError:
        _free(made)
        raise
    return made


def create_segments(made: CudaRange, numbers: Iterable[int]) -> list[int]:
    """Allocate memory for segments that have none, on the GPU that owns the range; returns a descriptor for
    each. Raises CudaError, and leaves nothing behind then."""
    prop = _properties(made.owner)
    descriptors: list[int] = []

    def create(number: int) -> Any:
        handle = unwrap("cuMemCreate", driver.cuMemCreate(made.place(number)[1], prop, 0))
        try:
            exported = driver.cuMemExportToShareableHandle(handle, _POSIX, 0)
            descriptors.append(int(unwrap("cuMemExportToShareableHandle", exported)))
        except CudaError:
            unwrap("cuMemRelease", driver.cuMemRelease(handle))
            raise
        return handle

    try:
        _map(made, numbers, create)
    except CudaError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return descriptors


def import_segments(made: CudaRange, segments: dict[int, int]) -> None:
    """Map segments, by number, from their descriptors, which may be closed after; those that are mapped stay
    as they are. Raises CudaError, and leaves nothing behind then."""

    def take(number: int) -> Any:
        imported = driver.cuMemImportFromShareableHandle(segments[number], _POSIX)
        return unwrap("cuMemImportFromShareableHandle", imported)

    _map(made, sorted(segments.keys() - made.mapped), take)


def unmap_segments(made: CudaRange, numbers: Iterable[int]) -> None:
    """Nothing on the device uses these segments any more, as far as they are mapped. Raises CudaError."""
    for number in sorted(made.mapped.intersection(numbers)):
        address, num_bytes = made.place(number)
        unwrap("cuMemUnmap", driver.cuMemUnmap(driver.CUdeviceptr(address), num_bytes))
        made.mapped.discard(number)


def allow(made: CudaRange, device: int) -> None:
    """Let GPU `device`, which has peer access to the range's owner, read and write it too, what is mapped now
    and what will be. Raises CudaError."""
    if device not in made.devices:
        _set_access(made, made.mapped, {device})
        made.devices.add(device)


def num_segments(num_bytes: int, segment_bytes: int) -> int:
    """Segments, and descriptors, of a pool."""
    return -(-num_bytes // segment_bytes)


def rounded(num_bytes: int, segment_bytes: int, granularity: int) -> int:
    """The size of a range: only its last segment may be shorter than others, by whole granules."""
    assert segment_bytes % granularity == 0, f"segments have to be multiples of {granularity} bytes"
    return -(-num_bytes // granularity) * granularity


def _reserve(device: int, owner: int, num_bytes: int, segment_bytes: int) -> CudaRange:
    granularity = _granularity(_properties(owner))
    total = rounded(num_bytes, segment_bytes, granularity)
    reserved = driver.cuMemAddressReserve(total, granularity, driver.CUdeviceptr(0), 0)
    address = int(unwrap("cuMemAddressReserve", reserved))
    return CudaRange(owner, address, total, segment_bytes, {device})


def _free(made: CudaRange) -> None:
    """Give up a range of which nothing is mapped."""
    with suppress(CudaError):
        freed = driver.cuMemAddressFree(driver.CUdeviceptr(made.address), made.num_bytes)
        unwrap("cuMemAddressFree", freed)


def _map(made: CudaRange, numbers: Iterable[int], handle_of: Callable[[int], Any]) -> None:
    """Map an allocation to each of these segments, readable and writable for the range's devices, and let go
    of its handle. All or none."""
    mapped: list[int] = []  # by this call
    try:
        for number in numbers:
            address, num_bytes = made.place(number)
            handle = handle_of(number)
            try:
                done = driver.cuMemMap(driver.CUdeviceptr(address), num_bytes, 0, handle, 0)
                unwrap("cuMemMap", done)
                mapped.append(number)
                made.mapped.add(number)
            finally:
                unwrap("cuMemRelease", driver.cuMemRelease(handle))
        _set_access(made, mapped, made.devices)
    except CudaError:
        with suppress(CudaError):
            unmap_segments(made, mapped)
        raise


def _set_access(made: CudaRange, numbers: Iterable[int], devices: Iterable[int]) -> None:
    """Let GPUs read and write these segments, which are mapped."""
    descriptions = [_read_and_write(device) for device in sorted(devices)]
    for first, count in _runs(numbers):
        address, _ = made.place(first)
        num_bytes = sum(made.place(number)[1] for number in range(first, first + count))
        place = driver.CUdeviceptr(address)
        allowed = driver.cuMemSetAccess(place, num_bytes, descriptions, len(descriptions))
        unwrap("cuMemSetAccess", allowed)


def _read_and_write(device: int) -> Any:
    access = driver.CUmemAccessDesc()
    access.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    access.location.id = device
    access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    return access


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Neighbours joined: (first, how many)."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and sum(runs[-1]) == number:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs


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
