# mypy: allow-untyped-calls
"""A GPU as a device."""

import logging
from collections.abc import Mapping, Sequence
from time import monotonic

import torch

from engine.memory.cuda_calls import CudaError
from engine.memory.cuda_copy import driver_batch_copy
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
from engine.memory.page import PageLayout
from engine.memory.transfer_cuda import CudaPool, CudaTransfers
from engine.messages import Attach, Load, PoolSpec
from engine.model_runner.batch import Executor
from engine.model_runner.compile_cache import use_compile_cache
from engine.model_runner.cuda_executor import CudaExecutor
from engine.model_runner.device_step import StepOptions
from engine.model_runner.devices import Attached, DeviceError, map_host_pools
from engine.model_runner.families import check_deterministic
from engine.model_runner.grammar import Grammars
from engine.model_runner.kernels.moves import move_pages
from engine.model_runner.loading import LoadedModel
from engine.model_runner.scratch import Scratch
from engine.model_runner.sources.cache import cache_root
from engine.model_runner.sources.progress import OnProgress, ignore_progress

OUT_OF_MEMORY = ("CUDA_ERROR_OUT_OF_MEMORY", "cudaErrorMemoryAllocation")
FAULT_MARKS = ("CUDA error", "Triton Error [CUDA]")  # in errors of torch and of Triton's launcher
PIN_S_PER_GIB = 0.6
NOT_SHAREABLE = ("CUDA_ERROR_NOT_SUPPORTED", "CUDA_ERROR_NOT_PERMITTED")

log = logging.getLogger(__name__)


class CudaDevice:
    """GPU `index`, which is there."""

    def __init__(self, index: int) -> None:
        torch.cuda.set_device(index)
        self._index = index
        self._compute = torch.cuda.Stream(index)  # also makes the context that the driver's calls need
        self._ranges: dict[int, CudaRange] = {}  # by pool

    @property
    def place(self) -> torch.device:
        return torch.device("cuda", self._index)

    def free_bytes(self) -> int:
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self._index)
        return free

    def attach(
        self, attach: Attach, descriptors: Sequence[int], on_progress: OnProgress = ignore_progress
    ) -> Attached:
        host_specs = [spec for spec in attach.pools if spec.kind != "cuda"]
        pools = self._pin(map_host_pools(host_specs, descriptors), on_progress)
        exported: list[int] | None = None
        for spec in attach.pools:
            if spec.pool == attach.local:
                if spec.region is None:
                    local, exported = self._make_local(spec)
                else:
                    local = self._import(spec, descriptors)
                pools[spec.pool] = CudaPool(local, is_local=True)
        peers, unreachable = self._import_peers(attach, descriptors)
        pools |= peers
        if any(spec.kind == "cuda" for spec in attach.pools if spec.pool != attach.local):
            self._compile_moves(pools[attach.local].pages.shape[1])
        torch.cuda.synchronize(self.place)  # the pool's zeros were not written on the compute stream
        transfers = CudaTransfers(self.place, pools, self._compute, move, driver_batch_copy())
        return Attached(pools[attach.local].pages, transfers, exported, unreachable)

    def attach_more(self, attached: Attached, attach: Attach, descriptors: Sequence[int]) -> dict[int, str]:
        peers, unreachable = self._import_peers(attach, descriptors)
        if peers:
            self._compile_moves(attached.local.shape[1])
        assert isinstance(attached.transfers, CudaTransfers)
        host_specs = [spec for spec in attach.pools if spec.kind != "cuda"]
        attached.transfers.pools.update(
            peers | self._pin(map_host_pools(host_specs, descriptors), ignore_progress)
        )
        return unreachable

    def unmap(self, pool: int, segments: Sequence[int]) -> None:
        if pool in self._ranges:  # else out of reach
            torch.cuda.synchronize(self.place)
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
        torch.cuda.synchronize(self.place)
        return descriptors

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
        use_compile_cache(cache_root(load.cache_dir))
        options = StepOptions(
            max_batch=load.max_batch,
            max_step_tokens=max(load.max_step_tokens, load.max_batch),
            max_model_len=loaded.card.max_model_len,
            deterministic=load.deterministic,
        )
        executor = CudaExecutor(loaded.model, layout, pool, options, stream=self._compute, grammars=grammars)
        executor.prepare(on_progress)
        return executor

    def make_test_executor(self, loaded: LoadedModel, layout: PageLayout, scratch: Scratch) -> Executor:
        options = StepOptions(
            max_batch=scratch.num_rows,
            max_step_tokens=scratch.num_rows * scratch.num_tokens,
            max_model_len=scratch.num_tokens,
            compile=False,
        )
        pool = scratch.pool(loaded.model.dtype, self.place)
        torch.cuda.synchronize(self.place)  # weights and pool were not made on the compute stream
        return CudaExecutor(loaded.model, layout, pool, options, stream=self._compute)

    def is_fault(self, error: BaseException) -> bool:
        told = any(mark in str(error) for mark in FAULT_MARKS)
        return told or isinstance(error, torch.AcceleratorError | CudaError)

    def is_out_of_memory(self, error: BaseException) -> bool:
        if isinstance(error, CudaError):
            return error.name in OUT_OF_MEMORY
        return isinstance(error, torch.OutOfMemoryError)

    def _import_peers(
        self, attach: Attach, descriptors: Sequence[int]
    ) -> tuple[dict[int, CudaPool], dict[int, str]]:
        """Map the pools that others made on GPUs; those that cannot be, and why."""
        peers: dict[int, CudaPool] = {}
        unreachable: dict[int, str] = {}
        for spec in attach.pools:
            if spec.kind == "cuda" and spec.pool != attach.local:
                try:
                    peers[spec.pool] = CudaPool(self._import(spec, descriptors), is_local=False)
                except (CudaError, DeviceError) as error:
                    unreachable[spec.pool] = str(error)
        return peers, unreachable

    def _pin(self, mapped: Mapping[int, torch.Tensor], on_progress: OnProgress) -> dict[int, CudaPool]:
        """Pin shared memory in this process, for copies at full speed. It can take minutes: say so before,
        and after how long it took."""
        for pages in mapped.values():
            if len(pages):  # the driver refuses to pin nothing
                amount = f"{pages.nbytes / 2**30:.1f} GiB of host memory"
                on_progress(f"pinning {amount}, {PIN_S_PER_GIB * pages.nbytes / 2**30:.0f} s or so", None)
                start_s = monotonic()
                pin(pages)
                on_progress(f"pinned {amount} in {monotonic() - start_s:.1f} s", None)
        return {pool: CudaPool(pages, is_local=False) for pool, pages in mapped.items()}

    def _compile_moves(self, page_bytes: int) -> None:
        """Have the move kernel compiled before the first move: it is compiled for the number of its blocks
        being one, a multiple of 16, or neither."""
        scratch = torch.zeros(2, page_bytes // 4, dtype=torch.int32, device=self.place)
        for count in (1, 3, 16):
            pages = torch.zeros(count, dtype=torch.int32, device=self.place)
            move(scratch, scratch, pages, pages + 1, 1)

    def _make_local(self, spec: PoolSpec) -> tuple[torch.Tensor, list[int]]:
        """A pool of zeros on this GPU, and its descriptors."""
        num_bytes = spec.num_pages * spec.page_bytes
        try:
            made, descriptors = create_range(self._index, num_bytes, spec.segment_bytes)
        except CudaError as error:
            if error.name not in NOT_SHAREABLE:
                raise
            log.warning("cuda:%d: the driver cannot share memory (%s): no leases here", self._index, error)
            shape = (spec.num_pages, spec.page_bytes)
            return torch.zeros(shape, dtype=torch.uint8, device=self.place), []
        self._ranges[spec.pool] = made
        return _as_tensor(made.address, (spec.num_pages, spec.page_bytes)).zero_(), descriptors

    def _import(self, spec: PoolSpec, descriptors: Sequence[int]) -> torch.Tensor:
        """Map a pool of this GPU or of another. Raises DeviceError, CudaError."""
        owner = torch.device(spec.device).index or 0
        if owner != self._index and not torch.cuda.can_device_access_peer(self._index, owner):
            raise DeviceError(f"cuda:{self._index} has no peer access to {spec.device}")
        if spec.region is None:
            raise DeviceError(f"pool {spec.pool} of {spec.device} came without its memory")
        num_bytes = spec.region_bytes or spec.num_pages * spec.page_bytes
        there = [n for n in range(num_segments(num_bytes, spec.segment_bytes)) if n not in spec.missing]
        own = dict(zip(there, descriptors[spec.region : spec.region + len(there)], strict=True))
        mapped = import_range(self._index, owner, num_bytes, spec.segment_bytes, own)
        self._ranges[spec.pool] = mapped
        return _as_tensor(mapped.address, (spec.num_pages, spec.page_bytes))


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


def move(
    src: torch.Tensor, dst: torch.Tensor, src_pages: torch.Tensor, dst_pages: torch.Tensor, programs: int
) -> None:
    """What `CudaTransfers` has pages moved by."""
    move_pages(src, dst, src_pages, dst_pages, programs=programs)
