"""The small interface behind which devices differ, and the CPU as a device."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from engine.memory.machine import available_bytes
from engine.memory.page import PageLayout
from engine.memory.regions import map_region, require_available
from engine.memory.transfer import Transfers
from engine.memory.transfer_cpu import CpuTransfers
from engine.messages import Attach, Load, PoolSpec
from engine.model_runner.batch import Executor
from engine.model_runner.cpu_executor import CpuExecutor
from engine.model_runner.families import check_deterministic
from engine.model_runner.grammar import Grammars
from engine.model_runner.loading import LoadedModel
from engine.model_runner.scratch import Scratch
from engine.model_runner.sources.progress import OnProgress, ignore_progress


class DeviceError(Exception):
    """The device is not there or cannot do what the configuration asks; one line for a person."""


@dataclass(frozen=True, slots=True)
class Attached:
    """Pools as they are mapped here.

    `local` is the runner's own pool, uint8 `[num_pages, page_bytes]` on the device. `exported` are the
    descriptors of a local pool that was made here, for the engine to keep (none, if the driver cannot share).
    `unreachable` pools, with the reason, take part in no move here.
    """

    local: torch.Tensor
    transfers: Transfers
    exported: list[int] | None = None
    unreachable: dict[int, str] = field(default_factory=dict)


class Device(Protocol):
    """Where a runner computes."""

    @property
    def place(self) -> torch.device:
        """What torch calls it."""

    def free_bytes(self) -> int:
        """Memory left for pages."""

    def attach(
        self, attach: Attach, descriptors: Sequence[int], on_progress: OnProgress = ignore_progress
    ) -> Attached:
        """Map all pools. Raises DeviceError, RegionError."""

    def attach_more(self, attached: Attached, attach: Attach, descriptors: Sequence[int]) -> dict[int, str]:
        """Map further pools for the transfers of `attached`; the pools that cannot be reached, and why.
        Raises DeviceError, RegionError."""

    def unmap(self, pool: int, segments: Sequence[int]) -> None:
        """Let go of the memory of segments that nothing will touch until they are mapped again."""

    def remap(self, pool: int, segments: Sequence[int], descriptors: Sequence[int]) -> None:
        """Map segments of a pool again, where they were."""

    def make_segments(self, pool: int, segments: Sequence[int]) -> list[int]:
        """Have memory of zeros for segments of the local pool that have none; a descriptor for each, if they
        are not those that the engine has. Raises RegionError, or an error that `is_out_of_memory`."""

    def make_executor(
        self,
        loaded: LoadedModel,
        layout: PageLayout,
        pool: torch.Tensor,
        load: Load,
        grammars: Grammars | None,
        on_progress: OnProgress,
    ) -> Executor:
        """An executor over `pool`, a `page_view`, warmed up. Raises UnsupportedModel."""

    def make_test_executor(self, loaded: LoadedModel, layout: PageLayout, scratch: Scratch) -> Executor:
        """An executor for the self-test, over a pool of its own and not compiled."""

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
    number = int(index or 0)
    if not torch.cuda.is_available():
        raise DeviceError(f"{name}: torch finds no NVIDIA GPU here")
    if number >= torch.cuda.device_count():
        raise DeviceError(f"{name}: the machine has only {torch.cuda.device_count()} GPUs")
    from engine.model_runner.cuda_device import CudaDevice  # its libraries come with torch's CUDA build only

    return CudaDevice(number)


def page_view(pages: torch.Tensor, layout: PageLayout, dtype: torch.dtype) -> torch.Tensor:
    """Pool bytes, uint8 `[num_pages, page_bytes]`, as K and V:
    `[num_pages, layers_per_page, 2, page_tokens, kv_heads, head_dim]`."""
    shape = (layout.layers_per_page, 2, layout.page_tokens, layout.kv_heads, layout.head_dim)
    return pages.view(dtype).view(-1, *shape)


def map_host_pools(specs: Sequence[PoolSpec], descriptors: Sequence[int]) -> dict[int, torch.Tensor]:
    """Map pools in shared memory: by pool id, their bytes, uint8 `[num_pages, page_bytes]`.

    Raises DeviceError, RegionError.
    """
    regions = {spec.region for spec in specs if spec.region is not None}
    mapped = {region: map_region(descriptors[region]) for region in regions}
    pools = {}
    for spec in specs:
        num_bytes = spec.num_pages * spec.page_bytes
        if num_bytes == 0:
            pools[spec.pool] = torch.empty(0, spec.page_bytes, dtype=torch.uint8)
            continue
        if spec.region is None or num_bytes > len(mapped[spec.region]):
            raise DeviceError(f"pool {spec.pool} of {num_bytes} bytes came without memory of that size")
        flat = torch.frombuffer(mapped[spec.region], dtype=torch.uint8, count=num_bytes)
        pools[spec.pool] = flat.view(spec.num_pages, spec.page_bytes)
    return pools


def _on_gpus(attach: Attach) -> dict[int, str]:
    """Pools that a CPU cannot reach."""
    return {spec.pool: "a cpu device" for spec in attach.pools if spec.kind == "cuda"}


class CpuDevice:
    """A CPU, or one of several that stand for as many GPUs."""

    place = torch.device("cpu")

    def __init__(self) -> None:
        self._segment_bytes = 0  # of the local pool

    def free_bytes(self) -> int:
        return available_bytes()

    def attach(
        self, attach: Attach, descriptors: Sequence[int], on_progress: OnProgress = ignore_progress
    ) -> Attached:
        near = [spec for spec in attach.pools if spec.kind != "cuda"]
        self._segment_bytes = next(s.segment_bytes for s in attach.pools if s.pool == attach.local)
        pools = map_host_pools(near, descriptors)
        transfers = CpuTransfers({pool: pages.numpy() for pool, pages in pools.items()}, attach.links)
        return Attached(pools[attach.local], transfers, unreachable=_on_gpus(attach))

    def attach_more(self, attached: Attached, attach: Attach, descriptors: Sequence[int]) -> dict[int, str]:
        near = [spec for spec in attach.pools if spec.kind != "cuda"]
        pools = map_host_pools(near, descriptors)
        assert isinstance(attached.transfers, CpuTransfers)
        attached.transfers.add_pools({pool: pages.numpy() for pool, pages in pools.items()}, attach.links)
        return _on_gpus(attach)

    def unmap(self, pool: int, segments: Sequence[int]) -> None:
        """The engine punches a hole into the region, which all that have it mapped see."""

    def remap(self, pool: int, segments: Sequence[int], descriptors: Sequence[int]) -> None:
        """A region takes memory again as it is touched."""

    def make_segments(self, pool: int, segments: Sequence[int]) -> list[int]:
        require_available(len(segments) * self._segment_bytes, "memory to grow by")
        return []

    def make_executor(
        self,
        loaded: LoadedModel,
        layout: PageLayout,
        pool: torch.Tensor,
        load: Load,
        grammars: Grammars | None,
        on_progress: OnProgress,
    ) -> Executor:
        if load.deterministic:
            check_deterministic(loaded.config)
        return CpuExecutor(
            loaded.model,
            layout,
            pool,
            max_batch=load.max_batch,
            max_model_len=loaded.card.max_model_len,
            grammars=grammars,
        )

    def make_test_executor(self, loaded: LoadedModel, layout: PageLayout, scratch: Scratch) -> Executor:
        pool = scratch.pool(loaded.model.dtype, self.place)
        return CpuExecutor(
            loaded.model, layout, pool, max_batch=scratch.num_rows, max_model_len=loaded.card.max_model_len
        )

    def is_fault(self, error: BaseException) -> bool:
        return False

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
