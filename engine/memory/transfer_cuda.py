"""Moves between the pools of GPUs and the host, on streams of their own beside the computing.

Copy engines make them: alone they are the fastest way for large pages, and they take nothing from the compute
but memory bandwidth. Between GPUs they are those of the GPU whose memory is the source: so both ways of a
link are used at once, and what one lender passes on to another takes their own link (`cuda_senders`).

A kernel, however small, occupies multiprocessors for which steps wait whose kernels are sized for the whole
GPU: it is for small scattered pages between GPUs, while the compute stream has nothing to do, and for pages
from lender to lender that are small, or whose GPU cannot send for us: a copy engine here would carry them at
a quarter of the links' speed, while somebody waits for the memory. docs/benchmarks.md has the figures.

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

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from time import monotonic_ns
from typing import Protocol

import numpy as np

from engine.memory.transfer import CompletedMove, PageRuns, TransferError, page_runs
from engine.memory.transfer_lanes import Batch, ListedMove, PageList
from engine.memory.transfer_paths import CudaPool, MoveStream, Path, PathLane, make_lane, path_of, sender_of
from engine.messages import Move

# How far the device may be behind with a kernel for small pages: it is launched while nothing computes, when
# the runner's loop looks often, and a step may begin.
AHEAD_KERNEL_BYTES = 2**30

# Of a large move that finds its path idle, launched as it is queued: it lasts while a hundred more are. A
# small one waits for the look that follows, and goes together with others.
LARGE_MOVE_BYTES, BEGIN_BYTES = 2**24, 2**27

# Launched at one look, or little more, so that launching does not hold up the next step. A kernel takes the
# host as long as so many copies.
TURN_COPIES, KERNEL_COPIES = 2048, 256


@dataclass(frozen=True, slots=True)
class MoveTuning:
    """Who moves pages between GPUs: the kernel, with so many programs, if nothing computes and the copies of
    a batch would be of less than `engine_run_bytes` on the average; the kernel with `relay_programs` from
    lender to lender, if they would or the source cannot send; else the copy engines.
    """

    engine_run_bytes: int = 2**19
    kernel_programs: int = 64
    relay_programs: int = 16


class ComputeStream(Protocol):
    """The stream of the steps."""

    def query(self) -> bool:
        """Whether it has nothing to do."""


class Mover(Enum):
    """Who moves a batch."""

    ENGINES = "copy engines"
    IDLE_KERNEL = "the kernel, while nothing computes"
    RELAY = "the kernel, from lender to lender"


class CudaTransfers:
    """See `transfer.Transfers`. `device` is the GPU of `compute`, the stream of the steps; `make_stream`
    makes streams of any GPU that is said to reach a pool."""

    def __init__(
        self,
        device: int,
        pools: Mapping[int, CudaPool],
        compute: ComputeStream,
        make_stream: Callable[[int], MoveStream],
        tuning: MoveTuning | None = None,
    ) -> None:
        self._device = device
        self.pools = dict(pools)
        self._compute = compute
        self._make_stream = make_stream
        self._tuning = tuning or MoveTuning()
        self._lanes: dict[Path, dict[int, PathLane]] = {path: {} for path in Path}  # by sender
        self._num_open = 0

    @property
    def num_open(self) -> int:
        return self._num_open

    def wake_descriptor(self) -> int | None:
        return None

    def submit(self, move: Move) -> None:
        """Queue a move; `completed` launches it, but a large one that finds its path idle begins at once.
        Raises TransferError, CudaError."""
        for pool in (move.src_pool, move.dst_pool):
            if pool not in self.pools:
                raise TransferError(f"move {move.move_id} is of pool {pool}, which is not mapped")
        self._num_open += 1
        path_lane = self._lane_of(move)
        was_idle = path_lane.lane.is_idle
        path_lane.lane.push(move)
        num_bytes = len(move.src_pages) * self.pools[move.src_pool].page_bytes
        if was_idle and num_bytes >= LARGE_MOVE_BYTES:
            while path_lane.lane.ahead_bytes < BEGIN_BYTES and self._launch(path_lane):
                pass

    def completed(self) -> list[CompletedMove]:
        """Take what has arrived, then launch what is waiting. Of lanes that had nothing to do, the first that
        arrives is told before the rest is launched. Raises TransferError, CudaError."""
        room, now_ns = TURN_COPIES, monotonic_ns()
        for each in self._all_lanes():
            each.lookahead.look(now_ns)
        starting = [each for each in self._all_lanes() if each.is_starting]
        first = self._take_arrived(starting)
        done = first + self._take_arrived(self._all_lanes())

        def has_news() -> bool:
            return bool(first) or any(each.lane.has_arrived for each in starting)

        for lanes in self._lanes.values():
            room -= self._fill(lanes.values(), room, has_news)
        return done + self._take_arrived(self._all_lanes())

    def close(self) -> None:
        for each in self._all_lanes():
            each.lane.clear()
            each.copies.synchronize()
            each.kernels.synchronize()

    def _take_arrived(self, lanes: Iterable[PathLane]) -> list[CompletedMove]:
        done = [move for each in lanes for move in each.lane.completed()]
        self._num_open -= len(done)
        return done

    def _all_lanes(self) -> Iterator[PathLane]:
        for lanes in self._lanes.values():
            yield from lanes.values()

    # ------------------------------------------------------------------ which way

    def _lane_of(self, move: Move) -> PathLane:
        src, dst = self.pools[move.src_pool], self.pools[move.dst_pool]
        path, sender = path_of(src, dst), sender_of(src, dst, self._device)
        if sender not in self._lanes[path]:
            self._lanes[path][sender] = make_lane(path, sender, self._device, self._make_stream)
        return self._lanes[path][sender]

    # ------------------------------------------------------------------ launching

    def _fill(self, lanes: Iterable[PathLane], room: int, has_news: Callable[[], bool]) -> int:
        """Launch batches of lanes in turn, until all are ahead enough, it is `room` copies, or one was
        launched and there is news to tell; how many copies it was."""
        num_copies, waiting = 0, deque(lanes)
        while waiting and num_copies < room:
            each = waiting.popleft()
            launched = self._launch(each)
            if launched:
                num_copies += launched
                waiting.append(each)
                if has_news():
                    break
        return num_copies

    def _launch(self, path_lane: PathLane) -> int:
        """Launch the next batch, if there is one and the lane is not ahead enough; how many copies it is."""
        lane = path_lane.lane
        if not lane.has_waiting:
            return 0
        mover = self._mover(lane.peek(), path_lane)
        is_idle = mover is Mover.IDLE_KERNEL
        if lane.ahead_bytes >= (AHEAD_KERNEL_BYTES if is_idle else path_lane.lookahead.ahead_bytes):
            return 0
        page_bytes = self.pools[lane.peek().move.src_pool].page_bytes
        batch = lane.take(path_lane.batch_pages(page_bytes))
        num_bytes, pages = batch.num_pages * page_bytes, self._checked_pages(batch)
        runs = page_runs(*pages)
        by_copies = mover is Mover.ENGINES or (
            num_bytes >= self._tuning.engine_run_bytes * len(runs) and (is_idle or path_lane.is_remote)
        )
        stream = path_lane.copies if by_copies else path_lane.kernels
        start = stream.mark()
        if by_copies:
            self._copy(batch, runs, stream)
        else:
            self._copy_by_kernel(batch, pages, mover, stream)
        lane.launch(batch, num_bytes, start, stream.mark())
        return len(runs) if by_copies else KERNEL_COPIES

    def _checked_pages(self, batch: Batch) -> tuple[PageList, PageList]:
        """Source and destination pages. Raises TransferError."""
        lists = batch.page_lists()
        for pool, pages in zip(batch.pools, lists, strict=True):
            if pages.max() >= len(self.pools[pool].pages):
                raise TransferError(f"page {pages.max()} of pool {pool} is not there, but to be moved")
        return lists

    def _mover(self, listed: ListedMove, path_lane: PathLane) -> Mover:
        """Who is to move these pages, if they are far enough apart."""
        src, dst = (self.pools[pool] for pool in listed.pools)
        if src.is_host or dst.is_host:
            return Mover.ENGINES
        is_small = src.page_bytes < self._tuning.engine_run_bytes
        if not (src.is_local or dst.is_local) and self._tuning.relay_programs:
            return Mover.RELAY if is_small or not path_lane.is_remote else Mover.ENGINES
        return Mover.IDLE_KERNEL if is_small and self._compute.query() else Mover.ENGINES

    def _copy(self, batch: Batch, runs: PageRuns, stream: MoveStream) -> None:
        src, dst = (self.pools[pool] for pool in batch.pools)
        page_bytes = src.page_bytes
        stream.copy(
            (runs.dst * page_bytes + dst.pages.data_ptr()).astype(np.uint64),
            (runs.src * page_bytes + src.pages.data_ptr()).astype(np.uint64),
            (runs.counts * page_bytes).astype(np.uint64),
        )

    def _copy_by_kernel(
        self, batch: Batch, pages: tuple[PageList, PageList], mover: Mover, stream: MoveStream
    ) -> None:
        tuning = self._tuning
        programs = tuning.relay_programs if mover is Mover.RELAY else tuning.kernel_programs
        src, dst = (self.pools[pool].pages for pool in batch.pools)
        stream.move_pages(src, dst, pages, programs)
