"""What the benchmarks of moves share: transfers that count what arrives, and their limit, one large copy."""

import socket
import subprocess
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from statistics import median

import torch
from cuda.bindings import runtime

from engine.memory.cuda_calls import unwrap
from engine.memory.regions import receive_descriptors
from engine.memory.transfer_cuda import CudaTransfers, MoveTuning
from engine.memory.transfer_paths import CudaPool, sender_of
from engine.messages import Move
from engine.model_runner.cuda_device import move_stream

Pools = Mapping[int, CudaPool]
Ways = Sequence[tuple[int, int]]
"""(source pool, destination pool) of moves that go at once."""


ENGINES = MoveTuning(engine_run_bytes=0, relay_programs=0)
"""All moves on the copy engines."""


def kernel(programs: int) -> MoveTuning:
    """All moves between GPUs by a kernel of so many programs, if nothing computes."""
    return MoveTuning(engine_run_bytes=2**62, kernel_programs=programs, relay_programs=programs)


class Mover:
    """Transfers of GPU 0; the bytes that they were seen to have moved, and the device's time for them."""

    def __init__(
        self,
        pools: Pools,
        compute: torch.cuda.Stream,
        tuning: MoveTuning | None = None,
    ) -> None:
        self._transfers = CudaTransfers(0, pools, compute, move_stream, tuning)
        self._pools = pools
        self._num_moves = 0
        self.open: dict[int, Move] = {}
        self.moved_bytes: Counter[tuple[int, int]] = Counter()
        self.moving_ns: Counter[tuple[int, int]] = Counter()

    def submit(
        self, way: tuple[int, int], src_pages: Sequence[int], dst_pages: Sequence[int], pages_each: int
    ) -> set[int]:
        """Queue moves of `pages_each` pages; their ids."""
        ids = set()
        for start in range(0, len(src_pages), pages_each):
            self._num_moves += 1
            part = slice(start, start + pages_each)
            move = Move(
                move_id=self._num_moves,
                src_pool=way[0],
                dst_pool=way[1],
                src_pages=array("i", src_pages[part]),
                dst_pages=array("i", dst_pages[part]),
            )
            self._transfers.submit(move)
            self.open[move.move_id] = move
            ids.add(move.move_id)
        return ids

    def num_open(self, way: tuple[int, int]) -> int:
        return sum((move.src_pool, move.dst_pool) == way for move in self.open.values())

    def take(self) -> list[Move]:
        """Go on, as the runner does at each turn of its loop; the moves that are complete."""
        done = []
        for each in self._transfers.completed():
            move = self.open.pop(each.move_id)
            way = move.src_pool, move.dst_pool
            self.moved_bytes[way] += len(move.src_pages) * self._pools[move.src_pool].page_bytes
            self.moving_ns[way] += each.duration_ns
            done.append(move)
        return done

    def finish(self, wanted: set[int] | None = None) -> float | None:
        """Wait for these moves, or all; the time at which the first end was seen, if one was."""
        first = None
        while self.open if wanted is None else self.open.keys() & wanted:
            if self.take() and first is None:
                first = time.perf_counter()
        return first

    def close(self) -> None:
        self.finish()
        self._transfers.close()


class Feed:
    """Moves of some pages over and over, so that a way always has `ahead` moves of `pages_each` to make."""

    def __init__(
        self,
        mover: Mover,
        way: tuple[int, int],
        pages: tuple[Sequence[int], Sequence[int]],
        pages_each: int,
        ahead: int,
    ) -> None:
        src_pages, dst_pages = (array("i", each) for each in pages)
        starts = range(0, len(src_pages) - pages_each + 1, pages_each)
        assert len(starts) > ahead, "a page would be in two moves at once"
        self._parts = cycle((src_pages[s : s + pages_each], dst_pages[s : s + pages_each]) for s in starts)
        self._mover, self._way, self._pages_each, self._ahead = mover, way, pages_each, ahead

    def top_up(self) -> None:
        for _ in range(self._ahead - self._mover.num_open(self._way)):
            self._mover.submit(self._way, *next(self._parts), self._pages_each)


def split(pages: Sequence[int], scale: int) -> list[int]:
    """The pages that `pages` are when pages are `scale` times smaller, those far from one another first."""
    return [page * scale + part for part in range(scale) for page in pages]


def lend(index: int, num_bytes: int, segment_bytes: int) -> list[int]:
    """Descriptors of a pool on GPU `index`, made by a process that has ended."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "engine.model_runner.lender", "--index", str(index)]
    command += ["--num-bytes", str(num_bytes), "--segment-bytes", str(segment_bytes)]
    command += ["--pools-fd", str(theirs.fileno())]
    with ours, subprocess.Popen(command, pass_fds=(theirs.fileno(),)) as child:
        theirs.close()
        descriptors = receive_descriptors(ours)
        assert child.wait() == 0
    return descriptors


def issued_here(pools: Pools) -> dict[int, CudaPool]:
    """The same pools, for which GPU 0 issues all copies."""
    return {pool: replace(each, reached_by=frozenset()) for pool, each in pools.items()}


def large_rate(pools: Pools, ways: Ways, num_bytes: int, repeats: int = 5) -> float:
    """Bytes per second of one copy per way, `num_bytes` in all, nothing else running, issued by the GPUs that
    would send pages. Median of some runs."""
    senders = [sender_of(pools[src], pools[dst], 0) for src, dst in ways]
    streams = [torch.cuda.Stream(sender) for sender in senders]  # two of torch's pool in a row differ
    each = num_bytes // len(ways)
    times = []
    for _ in range(1 + repeats):
        synchronize(senders)
        start = time.perf_counter()
        for i, (src, dst) in enumerate(ways):
            with torch.cuda.device(senders[i]):
                result = runtime.cudaMemcpyAsync(
                    pools[dst].pages.data_ptr() + i * each,
                    pools[src].pages.data_ptr() + i * each,
                    each,
                    runtime.cudaMemcpyKind.cudaMemcpyDefault,
                    runtime.cudaStream_t(streams[i].cuda_stream),
                )
            unwrap("cudaMemcpyAsync", result)
        synchronize(senders)
        times.append(time.perf_counter() - start)
    return num_bytes / median(times[1:])


def synchronize(devices: Iterable[int]) -> None:
    """Wait for GPU 0 and these."""
    for device in {0, *devices}:
        torch.cuda.synchronize(device)
