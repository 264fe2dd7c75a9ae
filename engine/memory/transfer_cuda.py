# mypy: allow-untyped-calls
"""Moves between the pools of GPUs and the host, on streams of their own beside the computing.

Host moves are batched on the copy engines; moves between GPUs are made by a small kernel over a list of
pages, which is faster for scattered pages (docs/benchmarks.md).

Why no page is read or written by two at once: the engine orders moves by what was reported, and a report is
made when the host has seen the end of the step or of the move. So a fetch's destination is touched by no step
in flight, and a slice that waits for a fetch is launched after the host has seen the fetch's end. A copy out
of the local pool waits, on its stream, for all steps launched before it as well: a page that is still being
filled is copied with everything that was launched by then.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from cuda.bindings import runtime

from engine.memory.cuda_calls import unwrap
from engine.memory.transfer import CompletedMove, MoveQueue, TransferError, extents
from engine.messages import Move

MovePages = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int], None]
"""Copy pages: source and destination pool int32 `[pages, words]`, page lists int32 `[n]`, and the number of
programs to use; on the current stream."""

# Programs of the move kernel: what they cost the compute beside them was measured (docs/benchmarks.md).
PUSH_PROGRAMS, PULL_PROGRAMS = 8, 32

# An urgent move overtakes what is not launched yet: launch about 20 ms of a link's time ahead.
AHEAD_PEER_BYTES, AHEAD_HOST_BYTES = 2**33, 2**30


@dataclass(frozen=True, slots=True)
class CudaPool:
    """A pool as mapped here: uint8 `[num_pages, page_bytes]`; a host pool's is pinned."""

    pages: torch.Tensor
    is_local: bool

    @property
    def is_host(self) -> bool:
        return self.pages.device.type == "cpu"


class Path(Enum):
    """Ways that have a stream each, so that they do not wait for one another."""

    HOST_IN = "host in"
    HOST_OUT = "host out"
    PEER_IN = "peer in"
    PEER_OUT = "peer out"


@dataclass(frozen=True, slots=True)
class Launched:
    """A move on its stream."""

    move: Move
    num_bytes: int
    start: torch.cuda.Event
    end: torch.cuda.Event


@dataclass(slots=True)
class Lane:
    """One path: moves waiting, and moves on its stream, which end in order."""

    stream: torch.cuda.Stream
    ahead_bytes: int
    queue: MoveQueue = field(default_factory=MoveQueue)
    launched: deque[Launched] = field(default_factory=deque)

    @property
    def has_room(self) -> bool:
        return sum(launched.num_bytes for launched in self.launched) < self.ahead_bytes


class CudaTransfers:
    """See `transfer.Transfers`. `compute` is the stream of the steps."""

    def __init__(
        self,
        device: torch.device,
        pools: Mapping[int, CudaPool],
        compute: torch.cuda.Stream,
        move_pages: MovePages,
    ) -> None:
        self._device = device
        self.pools = dict(pools)
        self._compute = compute
        self._move_pages = move_pages
        ahead = {Path.HOST_IN: AHEAD_HOST_BYTES, Path.HOST_OUT: AHEAD_HOST_BYTES}
        self._lanes = {
            path: Lane(torch.cuda.Stream(device), ahead.get(path, AHEAD_PEER_BYTES)) for path in Path
        }
        self._num_open = 0

    @property
    def num_open(self) -> int:
        return self._num_open

    def wake_descriptor(self) -> int | None:
        return None

    def submit(self, move: Move) -> None:
        for pool, pages in ((move.src_pool, move.src_pages), (move.dst_pool, move.dst_pages)):
            if pool not in self.pools or max(pages, default=0) >= len(self.pools[pool].pages):
                raise TransferError(f"move {move.move_id} is of pages that pool {pool} does not have")
        self._num_open += 1
        lane = self._lanes[self._path(move)]
        lane.queue.push(move)
        self._fill(lane)

    def completed(self) -> list[CompletedMove]:
        done = []
        for lane in self._lanes.values():
            while lane.launched and lane.launched[0].end.query():
                launched = lane.launched.popleft()
                duration_ns = round(launched.start.elapsed_time(launched.end) * 1e6)
                done.append(CompletedMove(launched.move.move_id, duration_ns))
            self._fill(lane)
        self._num_open -= len(done)
        return done

    def close(self) -> None:
        for lane in self._lanes.values():
            lane.queue.clear()
            lane.stream.synchronize()

    def _path(self, move: Move) -> Path:
        src, dst = self.pools[move.src_pool], self.pools[move.dst_pool]
        if src.is_host:
            return Path.HOST_IN
        if dst.is_host:
            return Path.HOST_OUT
        return Path.PEER_IN if dst.is_local else Path.PEER_OUT

    def _fill(self, lane: Lane) -> None:
        """Launch waiting moves as far as the lane may run ahead."""
        while len(lane.queue) and lane.has_room:
            move = lane.queue.pop()
            src, dst = self.pools[move.src_pool], self.pools[move.dst_pool]
            if src.is_local:
                lane.stream.wait_stream(self._compute)
            with torch.cuda.stream(lane.stream):
                start = torch.cuda.Event(enable_timing=True)
                start.record()
                if src.is_host or dst.is_host:
                    copy_batch(src.pages, dst.pages, move.src_pages, move.dst_pages, lane.stream)
                else:
                    self._copy_by_kernel(src, dst, move)
                end = torch.cuda.Event(enable_timing=True)
                end.record()
            num_bytes = len(move.src_pages) * src.pages.shape[1]
            lane.launched.append(Launched(move, num_bytes, start, end))

    def _copy_by_kernel(self, src: CudaPool, dst: CudaPool, move: Move) -> None:
        src_pages, dst_pages = self._upload(move.src_pages), self._upload(move.dst_pages)
        programs = PULL_PROGRAMS if dst.is_local else PUSH_PROGRAMS
        words = src.pages.view(torch.int32), dst.pages.view(torch.int32)
        self._move_pages(*words, src_pages, dst_pages, programs)

    def _upload(self, pages: Sequence[int]) -> torch.Tensor:
        listed = torch.tensor(pages, dtype=torch.int32).pin_memory()
        return listed.to(self._device, non_blocking=True)


def copy_batch(
    src: torch.Tensor,
    dst: torch.Tensor,
    src_pages: Sequence[int],
    dst_pages: Sequence[int],
    stream: torch.cuda.Stream,
) -> None:
    """Copy pages between pools uint8 `[num_pages, page_bytes]` by the copy engines, in one call.

    Both are in device or pinned memory. Raises CudaError.
    """
    page_bytes = src.shape[1]
    joined = list(extents(src_pages, dst_pages))
    if not joined:
        return
    attributes: Any = runtime.cudaMemcpyAttributes()
    attributes.srcAccessOrder = runtime.cudaMemcpySrcAccessOrder.cudaMemcpySrcAccessOrderStream
    attributes.flags = runtime.cudaMemcpyFlags.cudaMemcpyFlagPreferOverlapWithCompute.value
    result = runtime.cudaMemcpyBatchAsync(
        [dst.data_ptr() + page * page_bytes for _, page, _ in joined],
        [src.data_ptr() + page * page_bytes for page, _, _ in joined],
        [count * page_bytes for _, _, count in joined],
        len(joined),
        [attributes],
        [0],
        1,
        runtime.cudaStream_t(stream.cuda_stream),
    )
    unwrap("cudaMemcpyBatchAsync", result)
