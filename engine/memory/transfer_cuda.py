# mypy: allow-untyped-calls
"""Moves between the pools of GPUs and the host, on streams of their own beside the computing.

Copy engines make them: alone they are the fastest way for large pages, and they take nothing from the compute
but memory bandwidth. A kernel, however small, occupies multiprocessors for which steps wait whose kernels are
sized for the whole GPU: it is for small scattered pages between GPUs, while the compute stream has nothing to
do, and for pages that one lender passes on to another, which a copy engine here would carry at a quarter of
the links' speed, while somebody waits for the memory. docs/benchmarks.md has the figures.

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
from time import monotonic_ns

import numpy as np
import torch
from cuda.bindings import runtime

from engine.memory.cuda_calls import unwrap
from engine.memory.cuda_copy import BatchCopy
from engine.memory.transfer import CompletedMove, PageRuns, TransferError, page_runs
from engine.memory.transfer_lanes import Batch, Lane, ListedMove, Lookahead, PageList
from engine.messages import Move

MovePages = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int], None]
"""Copy pages: source and destination pool int32 `[pages, words]`, page lists int32 `[n]`, and the number of
programs to use; on the current stream."""

# A batch is known to be complete as a whole, and whatever else uses a copy engine may wait for one. It is
# about half a millisecond of its link.
BATCH_PEER_BYTES, BATCH_HOST_BYTES, BATCH_PAGES = 2**28, 2**25, 4096

# How far the device may be behind, at least and at most: a step of tens of milliseconds may pass between two
# looks of the runner's loop. Kernels for small pages are launched while nothing computes, when it looks
# often; few at a time, for a step may begin.
AHEAD_PEER_BYTES, AHEAD_HOST_BYTES, AHEAD_KERNEL_BYTES = (2**32, 2**34), (2**27, 2**31), 2**30

PEER_BYTES_PER_S, HOST_BYTES_PER_S = 2**39, 2**36  # a little more than links have

# Launched at one look, or little more, so that launching does not hold up the next step. A kernel takes the
# host as long as so many copies.
TURN_COPIES, KERNEL_COPIES = 2048, 256


@dataclass(frozen=True, slots=True)
class MoveTuning:
    """Who moves pages between GPUs: the kernel, with so many programs, if nothing computes and the copies of
    a batch would be of less than `engine_run_bytes` on the average; the kernel with `relay_programs` from
    lender to lender; else the copy engines.
    """

    engine_run_bytes: int = 2**19
    kernel_programs: int = 64
    relay_programs: int = 16


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


class Mover(Enum):
    """Who moves a batch."""

    ENGINES = "copy engines"
    IDLE_KERNEL = "the kernel, while nothing computes"
    RELAY = "the kernel, from lender to lender"


class Path(Enum):
    """Ways that do not wait for one another, those that slices wait for first."""

    PEER_IN = "peer in"
    HOST_IN = "host in"
    PEER_OUT = "peer out"  # also between lenders, and inside the local pool
    HOST_OUT = "host out"


@dataclass(slots=True)
class PathLane:
    """A lane, its stream, and in what amounts it is launched."""

    lane: Lane
    stream: torch.cuda.Stream
    lookahead: Lookahead
    batch_bytes: int

    def batch_pages(self, page_bytes: int) -> int:
        return max(1, min(self.batch_bytes // page_bytes, BATCH_PAGES))


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
        self._lanes = {path: _make_lane(path, device) for path in Path}
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
        room, now_ns = TURN_COPIES, monotonic_ns()
        for each in self._lanes.values():
            each.lookahead.look(now_ns)
            room -= self._fill(each, room)
        return done

    def close(self) -> None:
        for each in self._lanes.values():
            each.lane.clear()
            each.stream.synchronize()

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
            mover = self._mover(lane.peek())
            is_idle = mover is Mover.IDLE_KERNEL
            if lane.ahead_bytes >= (AHEAD_KERNEL_BYTES if is_idle else path_lane.lookahead.ahead_bytes):
                break
            page_bytes = self.pools[lane.peek().move.src_pool].page_bytes
            batch = lane.take(path_lane.batch_pages(page_bytes))
            num_bytes, pages = batch.num_pages * page_bytes, batch.page_lists()
            runs = page_runs(*pages)
            if is_idle and num_bytes >= self._tuning.engine_run_bytes * len(runs):
                mover = Mover.ENGINES
            with torch.cuda.stream(path_lane.stream):
                start = _mark()
                if mover is Mover.ENGINES:
                    self._copy(batch, runs, path_lane.stream)
                    num_copies += len(runs)
                else:
                    self._copy_by_kernel(batch, pages, mover)
                    num_copies += KERNEL_COPIES
                lane.launch(batch, num_bytes, start, _mark())
        return num_copies

    def _mover(self, listed: ListedMove) -> Mover:
        """Who is to move these pages, if they are far enough apart."""
        src, dst = (self.pools[pool] for pool in listed.pools)
        if src.is_host or dst.is_host:
            return Mover.ENGINES
        if not (src.is_local or dst.is_local) and self._tuning.relay_programs:
            return Mover.RELAY
        is_small = src.page_bytes < self._tuning.engine_run_bytes
        return Mover.IDLE_KERNEL if is_small and self._compute.query() else Mover.ENGINES

    def _copy(self, batch: Batch, runs: PageRuns, stream: torch.cuda.Stream) -> None:
        src, dst = (self.pools[pool] for pool in batch.pools)
        page_bytes = src.page_bytes
        self._copy_batch(
            (runs.dst * page_bytes + dst.pages.data_ptr()).astype(np.uint64),
            (runs.src * page_bytes + src.pages.data_ptr()).astype(np.uint64),
            (runs.counts * page_bytes).astype(np.uint64),
            stream.cuda_stream,
        )

    def _copy_by_kernel(self, batch: Batch, pages: tuple[PageList, PageList], mover: Mover) -> None:
        """The page lists on the device begin at multiples of 16 bytes: the kernel was compiled for that."""
        tuning = self._tuning
        programs = tuning.relay_programs if mover is Mover.RELAY else tuning.kernel_programs
        count = batch.num_pages
        lists = torch.empty(2, -(-count // 4) * 4, dtype=torch.int32, pin_memory=True)
        lists.numpy()[:, :count] = pages
        sent = lists.to(self._device, non_blocking=True)
        src, dst = (self.pools[pool].pages.view(torch.int32) for pool in batch.pools)
        self._move_pages(src, dst, sent[0, :count], sent[1, :count], programs)


def _make_lane(path: Path, device: torch.device) -> PathLane:
    if path in (Path.HOST_IN, Path.HOST_OUT):
        lookahead = Lookahead(HOST_BYTES_PER_S, *AHEAD_HOST_BYTES)
        return PathLane(Lane(), _own_stream(device), lookahead, BATCH_HOST_BYTES)
    lookahead = Lookahead(PEER_BYTES_PER_S, *AHEAD_PEER_BYTES)
    return PathLane(Lane(), _own_stream(device), lookahead, BATCH_PEER_BYTES)


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
