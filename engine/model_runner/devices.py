"""The small interface behind which devices differ, and the CPU as a device."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from engine.memory.page import PageLayout
from engine.memory.regions import available_bytes, map_region
from engine.memory.transfer import Transfers
from engine.memory.transfer_cpu import CpuTransfers
from engine.messages import Attach, Load, PoolSpec
from engine.model_runner.batch import Executor
from engine.model_runner.cpu_executor import CpuExecutor
from engine.model_runner.grammar import Grammars
from engine.model_runner.loading import LoadedModel


class DeviceError(Exception):
    """The device is not there or cannot do what the configuration asks; one line for a person."""


@dataclass(frozen=True, slots=True)
class Attached:
    """Pools as they are mapped here.

    `local` is the runner's own pool, uint8 `[num_pages, page_bytes]` on the device. `exported` are the
    descriptors of a local pool that was made here, for the engine to keep (none, if the driver cannot share).
    """

    local: torch.Tensor
    transfers: Transfers
    exported: tuple[int, ...] | None = None


class Device(Protocol):
    """Where a runner computes."""

    @property
    def place(self) -> torch.device:
        """What torch calls it."""

    def free_bytes(self) -> int:
        """Memory left for pages."""

    def attach(self, attach: Attach, descriptors: Sequence[int]) -> Attached:
        """Map all pools. Raises DeviceError, RegionError."""

    def make_executor(
        self,
        loaded: LoadedModel,
        layout: PageLayout,
        pool: torch.Tensor,
        load: Load,
        grammars: Grammars | None,
    ) -> Executor:
        """An executor over `pool`, a `page_view`."""

    def is_fault(self, error: BaseException) -> bool:
        """Whether the device failed, so that what its pool holds is not to be trusted."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether the device had too little memory for what it was asked."""


def open_device(name: str, *, threads: int | None) -> Device:
    """The device that the configuration calls `name`. Raises DeviceError."""
    kind, _, index = name.partition(":")
    torch.set_num_threads(threads or os.cpu_count() or 1)
    if kind == "cpu":
        return CpuDevice()
    from engine.model_runner.cuda_device import CudaDevice  # its libraries come with torch's CUDA build only

    return CudaDevice(int(index or 0))


def page_view(pages: torch.Tensor, layout: PageLayout, dtype: torch.dtype) -> torch.Tensor:
    """Pool bytes, uint8 `[num_pages, page_bytes]`, as K and V:
    `[num_pages, layers_per_page, 2, page_tokens, kv_heads, head_dim]`."""
    shape = (layout.layers_per_page, 2, layout.page_tokens, layout.kv_heads, layout.head_dim)
    return pages.view(dtype).view(-1, *shape)


def map_host_pools(
    specs: Sequence[PoolSpec], descriptors: Sequence[int]
) -> Mapping[int, np.ndarray[tuple[int, int], np.dtype[np.uint8]]]:
    """Map pools in shared memory: by pool id, their bytes `[num_pages, page_bytes]`.

    Raises DeviceError, RegionError.
    """
    regions = {spec.region: spec for spec in specs if spec.region is not None}
    mapped = {region: map_region(descriptors[region]) for region in regions}
    pools = {}
    for spec in specs:
        num_bytes = spec.num_pages * spec.page_bytes
        if spec.region is None or spec.offset_bytes + num_bytes > len(mapped[spec.region]):
            raise DeviceError(f"pool {spec.pool} of {num_bytes} bytes came without memory of that size")
        flat = np.frombuffer(mapped[spec.region], np.uint8, num_bytes, spec.offset_bytes)
        pools[spec.pool] = flat.reshape(spec.num_pages, spec.page_bytes)
    return pools


class CpuDevice:
    """A CPU, or one of several that stand for as many GPUs."""

    place = torch.device("cpu")

    def free_bytes(self) -> int:
        return available_bytes()

    def attach(self, attach: Attach, descriptors: Sequence[int]) -> Attached:
        foreign = [spec.pool for spec in attach.pools if spec.kind == "cuda"]
        if foreign:
            raise DeviceError(f"a cpu device cannot reach the cuda pools {foreign}")
        pools = map_host_pools(attach.pools, descriptors)
        return Attached(torch.from_numpy(pools[attach.local]), CpuTransfers(pools, attach.links))

    def make_executor(
        self,
        loaded: LoadedModel,
        layout: PageLayout,
        pool: torch.Tensor,
        load: Load,
        grammars: Grammars | None,
    ) -> Executor:
        return CpuExecutor(
            loaded.model,
            layout,
            pool,
            max_batch=load.max_batch,
            max_model_len=loaded.card.max_model_len,
            grammars=grammars,
        )

    def is_fault(self, error: BaseException) -> bool:
        return False

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
