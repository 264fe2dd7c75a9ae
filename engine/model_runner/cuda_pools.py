# mypy: allow-untyped-calls
"""The pools of a runner on a GPU: made, imported, pinned; and their memory, which comes and goes."""

import logging
from collections.abc import Sequence
from time import monotonic

import torch

from engine.memory.cuda_calls import CudaError
from engine.memory.cuda_host import pin
from engine.memory.cuda_pool import (
    CudaRange,
    create_range,
    create_segments,
    import_range,
    import_segments,
    num_segments,
    unmap_segments,
)
from engine.memory.cuda_senders import Senders
from engine.memory.transfer_paths import CudaPool
from engine.messages import PoolSpec
from engine.model_runner.devices import DeviceError, map_host_pools
from engine.model_runner.sources.progress import OnProgress

PIN_S_PER_GIB = 0.6
NOT_SHAREABLE = ("CUDA_ERROR_NOT_SUPPORTED", "CUDA_ERROR_NOT_PERMITTED")

log = logging.getLogger(__name__)


class CudaPools:
    """Of a process that computes on GPU `index`, on which it has a context."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._ranges: dict[int, CudaRange] = {}  # by pool
        self._senders = Senders(index)

    def make_local(self, spec: PoolSpec) -> tuple[CudaPool, list[int]]:
        """A pool of zeros on this GPU, and its descriptors: none, if the driver cannot share memory. Raises
        CudaError."""
        num_bytes = spec.num_pages * spec.page_bytes
        try:
            made, descriptors = create_range(self._index, num_bytes, spec.segment_bytes)
        except CudaError as error:
            if error.name not in NOT_SHAREABLE:
                raise
            log.warning("cuda:%d: the driver cannot share memory (%s): no leases here", self._index, error)
            shape = (spec.num_pages, spec.page_bytes)
            pages = torch.zeros(shape, dtype=torch.uint8, device=torch.device("cuda", self._index))
            return CudaPool(pages, self._index, is_local=True), []
        pool = self._add(spec, made, is_local=True)
        pool.pages.zero_()
        return pool, descriptors

    def import_local(self, spec: PoolSpec, descriptors: Sequence[int]) -> CudaPool:
        """The pool that another process made on this GPU. Raises DeviceError, CudaError."""
        return self._import(spec, descriptors, is_local=True)

    def import_peers(
        self, specs: Sequence[PoolSpec], descriptors: Sequence[int]
    ) -> tuple[dict[int, CudaPool], dict[int, str]]:
        """Pools that others made on GPUs; those that cannot be mapped, and why."""
        peers: dict[int, CudaPool] = {}
        unreachable: dict[int, str] = {}
        for spec in specs:
            try:
                peers[spec.pool] = self._import(spec, descriptors, is_local=False)
            except (CudaError, DeviceError) as error:
                unreachable[spec.pool] = str(error)
        return peers, unreachable

    def map_host(
        self, specs: Sequence[PoolSpec], descriptors: Sequence[int], on_progress: OnProgress
    ) -> dict[int, CudaPool]:
        """Pools in shared memory, pinned in this process, for copies at full speed. It can take minutes: says
        so before, and after how long it took. Raises DeviceError, RegionError, CudaError."""
        mapped = map_host_pools(specs, descriptors)
        for pages in mapped.values():
            if len(pages):  # the driver refuses to pin nothing
                amount = f"{pages.nbytes / 2**30:.1f} GiB of host memory"
                on_progress(f"pinning {amount}, {PIN_S_PER_GIB * pages.nbytes / 2**30:.0f} s or so", None)
                start_s = monotonic()
                pin(pages)
                on_progress(f"pinned {amount} in {monotonic() - start_s:.1f} s", None)
        return {pool: CudaPool(pages, None) for pool, pages in mapped.items()}

    def unmap(self, pool: int, segments: Sequence[int]) -> None:
        if pool in self._ranges:  # else out of reach
            for device in self._ranges[pool].devices:  # each may have copies under way
                torch.cuda.synchronize(device)
            unmap_segments(self._ranges[pool], segments)

    def remap(self, pool: int, segments: Sequence[int], descriptors: Sequence[int]) -> None:
        if pool in self._ranges:
            import_segments(self._ranges[pool], dict(zip(segments, descriptors, strict=True)))

    def make_segments(self, pool: int, segments: Sequence[int]) -> list[int]:
        made = self._ranges[pool]
        torch.cuda.empty_cache()
        descriptors = create_segments(made, segments)
        for number in segments:
            _as_tensor(made.place(number)[0], (1, made.place(number)[1])).zero_()
        torch.cuda.synchronize(self._index)
        return descriptors

    def _import(self, spec: PoolSpec, descriptors: Sequence[int], *, is_local: bool) -> CudaPool:
        """Map a pool of this GPU or of another. Raises DeviceError, CudaError."""
        owner = torch.device(spec.device).index or 0
        if owner >= torch.cuda.device_count():
            raise DeviceError(f"the runner of cuda:{self._index} does not see {spec.device}")
        if owner != self._index and not torch.cuda.can_device_access_peer(self._index, owner):
            raise DeviceError(f"cuda:{self._index} has no peer access to {spec.device}")
        if spec.region is None:
            raise DeviceError(f"pool {spec.pool} of {spec.device} came without its memory")
        num_bytes = spec.region_bytes or spec.num_pages * spec.page_bytes
        there = [n for n in range(num_segments(num_bytes, spec.segment_bytes)) if n not in spec.missing]
        own = dict(zip(there, descriptors[spec.region : spec.region + len(there)], strict=True))
        mapped = import_range(self._index, owner, num_bytes, spec.segment_bytes, own)
        return self._add(spec, mapped, is_local=is_local)

    def _add(self, spec: PoolSpec, mapped: CudaRange, *, is_local: bool) -> CudaPool:
        self._ranges[spec.pool] = mapped
        self._senders.add(mapped)
        pages = _as_tensor(mapped.address, (spec.num_pages, spec.page_bytes))
        return CudaPool(pages, mapped.owner, is_local=is_local, reached_by=mapped.devices)


class _DeviceBytes:
    """Names memory to torch by the CUDA array interface, version 3."""

    def __init__(self, address: int, shape: tuple[int, int]) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def _as_tensor(address: int, shape: tuple[int, int]) -> torch.Tensor:
    """Mapped memory as a tensor, uint8; torch finds out on which GPU it lies."""
    return torch.as_tensor(_DeviceBytes(address, shape))
