# mypy: allow-untyped-calls
"""Moves between the pools of GPUs and the host, on streams of their own beside the computing.

Copy engines make them wherever they are fast enough, because they take nothing from the compute but memory
bandwidth. A kernel, however small, occupies multiprocessors for which steps wait whose kernels are sized for
the whole GPU: it is for times in which the compute stream has nothing to do, when it is the faster one, and
for pages too small for the copy engines. Host moves belong to the copy engines always. docs/benchmarks.md has
the figures.

No page is read before its move is complete, and none is written or freed while anything may read it:

- A move is complete when the host has seen its last event (`completed`). Only then does the runner start the
  slices that wait for it, and the engine count the pages as copies: what reads a page is launched after its
  bytes have arrived.
- The engine gives a page to a move as destination when it is nobody's. A page of a context becomes nobody's
  when the end of its slice was reported, which the runner does after it has taken the results of all steps
  that had the page in their tables; or, behind a sliding window, when the position that left it behind was
  reported, and steps launched since start at later ones.
- Sources are bytes whose end was reported: `Context.computed` counts positions of steps whose results were
  taken. A running context may write on into the last page of a mirror that travels: to positions that the
  copy does not count, so that it does not matter in which state they arrive.
- Pages of a move in flight are given up by nobody (`store`, rule 2) until it is reported or its runner ends.

So moves need no event of the compute stream, and a mirror does not wait for the steps that are in flight.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from cuda.bindings import runtime

from engine.memory.cuda_calls import unwrap
from engine.memory.cuda_copy import BatchCopy
from engine.memory.transfer import CompletedMove, PageRuns, TransferError, page_runs
from engine.memory.transfer_lanes import Batch, Lane
from engine.messages import Move

MovePages = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int], None]
"""Copy pages: source and destination pool int32 `[pages, words]`, page lists int32 `[n]`, and the number of
programs to use; on the current stream."""

# A batch is known to be complete as a whole: a millisecond of a link between GPUs, two of that to the host.
BATCH_PEER_BYTES, BATCH_HOST_BYTES, BATCH_PAGES = 2**28, 2**27, 4096

# How far the device may be behind: a step of tens of milliseconds passes between two looks of the runner's
# loop. Kernels are launched while nothing computes, when the loop looks often; few, for a step may begin.
AHEAD_PEER_BYTES, AHEAD_HOST_BYTES, AHEAD_KERNEL_BYTES = 2**34, 2**31, 2**29

TURN_COPIES = 2048  # launched at one look, or little more, so that launching does not hold up the next step


@dataclass(frozen=True, slots=True)
class MoveTuning:
    """Who moves pages between GPUs.

    While something computes, the copy engines, unless their copies would be of less than `engine_run_bytes`
    on the average; then the kernel, with `busy_programs`. While nothing does, the kernel with
    `idle_programs`; if that is None, as while something does. A path's copies are spread over `copy_streams`.
    """

    engine_run_bytes: int = 2**19
    busy_programs: int = 4
    idle_programs: int | None = 32
    copy_streams: int = 1


@dataclass(frozen=True, slots=True)
class CudaPool:
    """A pool as mapped here: uint8 `[num_pages, page_bytes]`; a host pool's is pinned."""

    pages: torch.Tensor
    is_local: bool

    @property
    def is_host(self) -> bool:
        return self.pages.device.type == "cpu"

    @property
    def page_bytes(self) -> int:
        return self.pages.shape[1]


class Path(Enum):
    """Ways that do not wait for one another, those that slices wait for first."""

    PEER_IN = "peer in"
    HOST_IN = "host in"
    PEER_OUT = "peer out"  # also between lenders, and inside the local pool
    HOST_OUT = "host out"


@dataclass(slots=True)
class PathLane:
    """A lane and its streams: copies take turns on them, kernels are all on the first."""

    lane: Lane
    streams: list[torch.cuda.Stream]
    is_host: bool
    num_copies: int = 0

    @property
    def ahead_bytes(self) -> int:
        return AHEAD_HOST_BYTES if self.is_host else AHEAD_PEER_BYTES

    @property
    def batch_bytes(self) -> int:
        return BATCH_HOST_BYTES if self.is_host else BATCH_PEER_BYTES

    def next_stream(self) -> torch.cuda.Stream:
        self.num_copies += 1
        return self.streams[self.num_copies % len(self.streams)]


class CudaTransfers:
    """See `transfer.Transfers`. `compute` is the stream of the steps."""

    def __init__(
        self,
        device: torch.device,
        pools: Mapping[int, CudaPool],
        compute: torch.cuda.Stream,
        move_pages: MovePages,
        copy_batch: BatchCopy,
        tuning: MoveTuning | None = None,
    ) -> None:
        self._device = device
        self.pools = dict(pools)
        self._compute = compute
        self._move_pages = move_pages
        self._copy_batch = copy_batch
        self._tuning = tuning or MoveTuning()
        self._lanes = {path: self._make_lane(path) for path in Path}
        self._num_open = 0

    @property
    def num_open(self) -> int:
        return self._num_open

    def wake_descriptor(self) -> int | None:
        return None

    def submit(self, move: Move) -> None:
        """Queue a move; `completed` launches it."""
        for pool, pages in ((move.src_pool, move.src_pages), (move.dst_pool, move.dst_pages)):
            if pool not in self.pools or max(pages, default=0) >= len(self.pools[pool].pages):
                raise TransferError(f"move {move.move_id} is of pages that pool {pool} does not have")
        self._num_open += 1
        self._lanes[self._path(move)].lane.push(move)

    def completed(self) -> list[CompletedMove]:
        """Take what has arrived, then launch what is waiting."""
        done = [move for each in self._lanes.values() for move in each.lane.completed()]
        self._num_open -= len(done)
        room = TURN_COPIES
        for each in self._lanes.values():
            room -= self._fill(each, room)
        return done

    def close(self) -> None:
        for each in self._lanes.values():
            each.lane.clear()
            for stream in each.streams:
                stream.synchronize()

    def _make_lane(self, path: Path) -> PathLane:
        is_host = path in (Path.HOST_IN, Path.HOST_OUT)
        num_streams = 1 if is_host else self._tuning.copy_streams
        streams = [_own_stream(self._device) for _ in range(num_streams)]
        return PathLane(Lane(), streams, is_host)

    def _path(self, move: Move) -> Path:
        src, dst = self.pools[move.src_pool], self.pools[move.dst_pool]
        if src.is_host:
            return Path.HOST_IN
        if dst.is_host:
            return Path.HOST_OUT
        return Path.PEER_IN if dst.is_local and not src.is_local else Path.PEER_OUT

    def _fill(self, path_lane: PathLane, room: int) -> int:
        """Launch batches until the lane is ahead enough, or they are `room` copies; how many they were."""
        lane, num_copies = path_lane.lane, 0
        while num_copies < room and lane.has_waiting:
            is_idle = (
                not path_lane.is_host and self._tuning.idle_programs is not None and self._compute.query()
            )
            if lane.ahead_bytes >= (AHEAD_KERNEL_BYTES if is_idle else path_lane.ahead_bytes):
                break
            page_bytes = self.pools[lane.peek().src_pool].page_bytes
            batch = lane.take(max(1, min(path_lane.batch_bytes // page_bytes, BATCH_PAGES)))
            pages = batch.page_lists()
            runs = page_runs(*pages)
            programs = self._tuning.idle_programs
            if not is_idle:
                run_bytes = batch.num_pages * page_bytes // len(runs)
                is_short = not path_lane.is_host and run_bytes < self._tuning.engine_run_bytes
                programs = self._tuning.busy_programs if is_short else None
            stream = path_lane.next_stream() if programs is None else path_lane.streams[0]
            with torch.cuda.stream(stream):
                start = _mark()
                if programs is None:
                    self._copy(batch, runs, stream)
                    num_copies += len(runs)
                else:
                    self._copy_by_kernel(batch, pages, programs)
                lane.launch(batch, batch.num_pages * page_bytes, start, _mark())
        return num_copies

    def _copy(self, batch: Batch, runs: PageRuns, stream: torch.cuda.Stream) -> None:
        src, dst = (self.pools[pool] for pool in batch.pools)
        page_bytes = src.page_bytes
        self._copy_batch(
            (runs.dst * page_bytes + dst.pages.data_ptr()).astype(np.uint64),
            (runs.src * page_bytes + src.pages.data_ptr()).astype(np.uint64),
            (runs.counts * page_bytes).astype(np.uint64),
            stream.cuda_stream,
        )

    def _copy_by_kernel(self, batch: Batch, pages: tuple[list[int], list[int]], programs: int) -> None:
        """The page lists on the device begin at multiples of 16 bytes: the kernel was compiled for that."""
        count = batch.num_pages
        lists = np.zeros((2, -(-count // 4) * 4), dtype=np.int32)
        lists[:, :count] = pages
        sent = torch.from_numpy(lists).pin_memory().to(self._device, non_blocking=True)
        src, dst = (self.pools[pool].pages.view(torch.int32) for pool in batch.pools)
        self._move_pages(src, dst, sent[0, :count], sent[1, :count], programs)


def _mark() -> torch.cuda.Event:
    """A mark on the current stream."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _own_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream that nobody else is on, to the end of the process; torch's own are given out in turn."""
    with torch.cuda.device(device):
        created = runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking)
        handle = unwrap("cudaStreamCreateWithFlags", created)
    return torch.cuda.ExternalStream(int(handle), device=device)
