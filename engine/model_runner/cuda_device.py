# mypy: allow-untyped-calls
"""A GPU as a device."""

from collections.abc import Sequence

import torch

from engine.memory.cuda_calls import CudaError
from engine.memory.cuda_copy import driver_batch_copy
from engine.memory.cuda_stream import CudaMoveStream
from engine.memory.page import PageLayout
from engine.memory.transfer_cuda import CudaTransfers
from engine.messages import Attach, Load
from engine.model_runner.batch import Executor
from engine.model_runner.compile_cache import use_compile_cache
from engine.model_runner.cuda_executor import CudaExecutor
from engine.model_runner.cuda_pools import CudaPools
from engine.model_runner.device_step import StepOptions
from engine.model_runner.devices import Attached
from engine.model_runner.families import check_deterministic
from engine.model_runner.grammar import Grammars
from engine.model_runner.kernels.moves import move_pages
from engine.model_runner.loading import LoadedModel
from engine.model_runner.scratch import Scratch
from engine.model_runner.sources.cache import cache_root
from engine.model_runner.sources.progress import OnProgress, ignore_progress

OUT_OF_MEMORY = ("CUDA_ERROR_OUT_OF_MEMORY", "cudaErrorMemoryAllocation")
FAULT_MARKS = ("CUDA error", "Triton Error [CUDA]")  # in errors of torch and of Triton's launcher


class CudaDevice:
    """GPU `index`, which is there."""

    def __init__(self, index: int) -> None:
        torch.cuda.set_device(index)
        self._index = index
        self._compute = torch.cuda.Stream(index)  # also makes the context that the driver's calls need
        self._pools = CudaPools(index)

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
        [local_spec] = [spec for spec in attach.pools if spec.pool == attach.local]
        host_specs = [spec for spec in attach.pools if spec.kind != "cuda"]
        peer_specs = [spec for spec in attach.pools if spec.kind == "cuda" and spec is not local_spec]
        pools = self._pools.map_host(host_specs, descriptors, on_progress)
        exported: list[int] | None = None
        if local_spec.region is None:
            local, exported = self._pools.make_local(local_spec)
        else:
            local = self._pools.import_local(local_spec, descriptors)
        peers, unreachable = self._pools.import_peers(peer_specs, descriptors)
        if peer_specs:
            self._compile_moves(local.page_bytes)
        torch.cuda.synchronize(self.place)  # the pool's zeros were not written on the compute stream
        pools |= peers | {attach.local: local}
        transfers = CudaTransfers(self._index, pools, self._compute, move_stream)
        return Attached(local.pages, transfers, exported, unreachable)

    def attach_more(self, attached: Attached, attach: Attach, descriptors: Sequence[int]) -> dict[int, str]:
        peer_specs = [spec for spec in attach.pools if spec.kind == "cuda"]
        host_specs = [spec for spec in attach.pools if spec.kind != "cuda"]
        peers, unreachable = self._pools.import_peers(peer_specs, descriptors)
        if peers:
            self._compile_moves(attached.local.shape[1])
        assert isinstance(attached.transfers, CudaTransfers)
        hosts = self._pools.map_host(host_specs, descriptors, ignore_progress)
        attached.transfers.pools.update(peers | hosts)
        return unreachable

    def unmap(self, pool: int, segments: Sequence[int]) -> None:
        self._pools.unmap(pool, segments)

    def remap(self, pool: int, segments: Sequence[int], descriptors: Sequence[int]) -> None:
        self._pools.remap(pool, segments, descriptors)

    def make_segments(self, pool: int, segments: Sequence[int]) -> list[int]:
        return self._pools.make_segments(pool, segments)

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

    def _compile_moves(self, page_bytes: int) -> None:
        """Have the move kernel compiled before the first move: it is compiled for the number of its blocks
        being one, a multiple of 16, or neither."""
        scratch = torch.zeros(2, page_bytes // 4, dtype=torch.int32, device=self.place)
        for count in (1, 3, 16):
            pages = torch.zeros(count, dtype=torch.int32, device=self.place)
            move(scratch, scratch, pages, pages + 1, 1)


def move(
    src: torch.Tensor, dst: torch.Tensor, src_pages: torch.Tensor, dst_pages: torch.Tensor, programs: int
) -> None:
    """What streams have pages moved by."""
    move_pages(src, dst, src_pages, dst_pages, programs=programs)


def move_stream(device: int) -> CudaMoveStream:
    """What `CudaTransfers` launches moves on."""
    return CudaMoveStream(device, driver_batch_copy(), move)
