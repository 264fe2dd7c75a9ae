"""Moves beside compute, on two GPUs: interference, a rotation of batches, and reclaim.

    python -m bench.moves [--pool-gib 72] [--peer-gib 96] [--host-gib 32]

GPU 0 runs decode steps of a dummy Llama-3.1-8B; the last GPU lends, through `engine.model_runner.lender`. The
rates of moves alone, beside one large copy, are `bench.check_pools`; their limits here are one large copy of
the same run. Compute waits and idle time are those between the end of a step and the start of the next, by
CUDA events on the compute stream (`StepResult.idle_ns`). On the host, all contexts lie in the same pages, so
that pinning takes seconds: what is moved and how fast is the same. With a third GPU, reclaim goes there too.
"""

import argparse
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

import torch
from cuda.bindings import runtime

from bench.gpu import Rig, attempt, compiled_rig, machine
from engine.memory.cuda_calls import unwrap
from engine.memory.regions import create_region, receive_descriptors
from engine.memory.transfer_cuda import CudaPool, CudaTransfers
from engine.messages import Attach, Move, PoolSpec
from engine.model_runner.batch import PendingStep, Row, StepResult, StepRow
from engine.model_runner.cuda_device import CudaDevice, _move
from engine.model_runner.device_step import StepOptions

LOCAL, PEER, HOST, OTHER_PEER, SCRATCH = 1, 2, 3, 4, 5
BATCH, CONTEXT, SLICE_S, NUM_SLICES = 64, 4096, 0.25, 12
MOVE_PAGES = 256
SEGMENT_BYTES = 2**28
RECLAIM_BYTES = 20 * 2**30


class Bench:
    """A rig on GPU 0, transfers between its pool, lenders and the host, and the rows of the table."""

    def __init__(self, pool_gib: float, peer_gib: float, host_gib: float) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self.rig: Rig = compiled_rig(
            StepOptions(max_batch=BATCH, max_step_tokens=2048, max_model_len=8192), _pages(pool_gib)
        )
        pool = self.rig.executor._step.paged.pool
        self.page_bytes = self.rig.layout.page_bytes
        local = pool.view(torch.uint8).view(pool.shape[0], self.page_bytes)
        specs, descriptors = [self.spec(SCRATCH, "cuda", "cuda:0", 128)], []
        lenders = {PEER: torch.cuda.device_count() - 1}
        if torch.cuda.device_count() > 2:
            lenders[OTHER_PEER] = torch.cuda.device_count() - 2
        for pool_id, index in lenders.items():
            made = lend(index, int((peer_gib if pool_id == PEER else 24) * 2**30))
            num_pages = len(made) * SEGMENT_BYTES // self.page_bytes
            specs.append(self.spec(pool_id, "cuda", f"cuda:{index}", num_pages, len(descriptors)))
            descriptors += made
        host_pages = int(host_gib * 2**30) // self.page_bytes
        specs.append(self.spec(HOST, "host", "host", host_pages, len(descriptors)))
        descriptors.append(create_region("host", host_pages * self.page_bytes))
        attached = CudaDevice(0).attach(Attach(local=SCRATCH, pools=specs), descriptors)
        assert not attached.unreachable, attached.unreachable
        assert isinstance(attached.transfers, CudaTransfers)
        stream = self.rig.executor.stream
        assert stream is not None
        self.pools = {**attached.transfers.pools, LOCAL: CudaPool(local, is_local=True)}
        self.transfers = CudaTransfers(torch.device("cuda", 0), self.pools, stream, _move)
        self.num_moves = 0
        self.in_flight: set[int] = set()

    def spec(self, pool: int, kind: str, device: str, num_pages: int, region: int | None = None) -> PoolSpec:
        return PoolSpec(
            pool=pool,
            kind=kind,
            device=device,
            num_pages=num_pages,
            page_bytes=self.page_bytes,
            region=region,
            segment_bytes=SEGMENT_BYTES,
        )

    # ------------------------------------------------------------------ moves and steps

    def submit(self, src: int, dst: int, src_pages: Sequence[int], dst_pages: Sequence[int]) -> set[int]:
        """Queue moves of a few hundred pages each; their ids."""
        first = self.num_moves + 1
        for start in range(0, len(src_pages), MOVE_PAGES):
            self.num_moves += 1
            part = slice(start, start + MOVE_PAGES)
            move = Move(
                move_id=self.num_moves,
                src_pool=src,
                dst_pool=dst,
                src_pages=list(src_pages[part]),
                dst_pages=list(dst_pages[part]),
                urgent=True,
            )
            self.transfers.submit(move)
        ids = set(range(first, self.num_moves + 1))
        self.in_flight |= ids
        return ids

    def take(self) -> bool:
        """Note which moves are complete; whether any was."""
        done = self.transfers.completed()
        self.in_flight.difference_update(move.move_id for move in done)
        return bool(done)

    def finish(self, wanted: set[int] | None = None) -> float | None:
        """Wait for these moves, or all; the time of the first end seen, if there was one."""
        first = None
        while self.in_flight if wanted is None else self.in_flight & wanted:
            if self.take() and first is None:
                first = time.perf_counter()
        return first

    def pages_of(self, pool: int, count: int) -> list[int]:
        """Random pages; of a pool with fewer, the same again."""
        size = len(self.pools[pool].pages)
        pages = torch.randperm(size).tolist()
        return (pages * -(-count // size))[:count]

    def large_copy_rate(self, src: int, dst: int) -> float:
        """Bytes per second of one copy of 4 GiB between the pools, nothing else running."""
        num_bytes = 4 * 2**30
        stream = torch.cuda.Stream(0)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            result = runtime.cudaMemcpyAsync(
                self.pools[dst].pages.data_ptr(),
                self.pools[src].pages.data_ptr(),
                num_bytes,
                runtime.cudaMemcpyKind.cudaMemcpyDefault,
                runtime.cudaStream_t(stream.cuda_stream),
            )
            unwrap("cudaMemcpyAsync", result)
            stream.synchronize()
            times.append(time.perf_counter() - start)
        return num_bytes / min(times)

    def decode(self, rows: list[Row], start: int, go_on: Callable[[int], bool]) -> list[StepResult]:
        """Decode from position `start` while `go_on`, taking completed moves between steps."""
        pending: deque[PendingStep] = deque()
        results: list[StepResult] = []
        count = 0
        while go_on(count):
            ids = [7] if count == 0 else None
            pending.append(
                self.rig.executor.launch([StepRow(row, start + count, 1, ids, sample=True) for row in rows])
            )
            count += 1
            self.take()
            if len(pending) == self.rig.executor.depth:
                results.append(pending.popleft().result())
        results += [step.result() for step in pending]
        return results

    # ------------------------------------------------------------------ stages

    def interference(self, name: str, src: int, dst: int, most: float) -> None:
        """Decode at batch 64 and context 1,024, alone and beside moves that do not end."""
        num_steps, rows = 96, self.rig.rows(BATCH, 1024 + 128)
        used = BATCH * self.rig.layout.num_pages(1024 + 128)
        free = self.rig.pages[used:]
        self.decode(rows, 1024, lambda count: count < 16)
        alone_ms = _step_ms(self.decode(rows, 1024, lambda count: count < num_steps))
        count = min(len(free), len(self.pools[PEER].pages), 16_384)
        pages = {LOCAL: free[:count], **{p: self.pages_of(p, count) for p in (PEER, HOST)}}
        began = time.perf_counter()
        self.submit(src, dst, pages[src], pages[dst])
        beside: list[StepResult] = []
        while self.transfers.num_open > count // MOVE_PAGES // 8:
            beside += self.decode(rows, 1024, lambda count: count < 16)
        self.finish()
        rate = count * self.page_bytes / (time.perf_counter() - began)
        limit = self.large_copy_rate(src, dst)
        beside_ms = _step_ms(beside)
        self.rows += [
            (f"{name}: share of one large copy", f"{rate / limit:.2f}", f"0.85 ({limit / 1e9:.0f} GB/s)"),
            (f"{name}: steps slow by", f"{beside_ms / alone_ms - 1:.1%}", f"{most:.0%} ({alone_ms:.2f} ms)"),
        ]

    def rotation(self, tier: int, name: str, limit: str) -> None:
        """Three batches take turns; the pages of the next come while one runs."""
        each = self.rig.layout.num_pages(CONTEXT)
        per_batch = BATCH * each
        regions = [self.rig.pages[:per_batch], self.rig.pages[per_batch : 2 * per_batch]]
        spare = self.rig.pages[2 * per_batch :]
        own = len(spare) // (2 * BATCH)  # pages that a row grows into
        mirrors = [self.pages_of(tier, 3 * per_batch)[i * per_batch : (i + 1) * per_batch] for i in range(3)]
        self.submit(tier, LOCAL, mirrors[0], regions[0])
        self.finish()
        idle_ns, busy_ns, began = 0, 0, time.perf_counter()
        for number in range(NUM_SLICES):
            side = number % 2
            fetches = self.submit(tier, LOCAL, mirrors[(number + 1) % 3], regions[1 - side])
            tables = [
                regions[side][row * each : (row + 1) * each]
                + spare[(side * BATCH + row) * own : (side * BATCH + row + 1) * own]
                for row in range(BATCH)
            ]
            like = self.rig.rows(BATCH, 16)
            rows = [Row(r.slot, r.sampling, CONTEXT, [t]) for r, t in zip(like, tables, strict=True)]
            end = time.perf_counter() + SLICE_S
            room = own * self.rig.layout.page_tokens - 1
            steps = self.decode(rows, CONTEXT, lambda n, e=end, r=room: n < r and time.perf_counter() < e)
            grown = [page for table in tables for page in table[each : each + 2]]
            self.submit(LOCAL, tier, grown, mirrors[number % 3][: len(grown)])
            self.finish(fetches)
            idle_ns += sum(step.idle_ns for step in steps[number == 0 :])
            busy_ns += sum(step.step_ns for step in steps)
        wall_s = time.perf_counter() - began
        self.finish()
        share = idle_ns / (idle_ns + busy_ns)
        moved = NUM_SLICES * per_batch * self.page_bytes / wall_s / 1e9
        text = f"{share:.2%} ({busy_ns / 1e9:.2f} of {wall_s:.2f} s busy, {moved:.0f} GB/s fetched)"
        self.rows.append((f"rotation over {name}: compute waits", text, limit))

    def reclaim(self, dst: int, name: str, limit: str) -> None:
        """Move 20 GiB out of the lender, as the borrower's runner does when it wants them back."""
        count = RECLAIM_BYTES // self.page_bytes
        totals, firsts = [], []
        for _ in range(3):
            src_pages, dst_pages = self.pages_of(PEER, count), self.pages_of(dst, count)
            began = time.perf_counter()
            self.submit(PEER, dst, src_pages, dst_pages)
            first = self.finish()
            totals.append(time.perf_counter() - began)
            firsts.append((first or began) - began)
        text = f"{median(totals) * 1e3:.0f} ms, first pages after {median(firsts) * 1e3:.1f} ms"
        self.rows.append((f"reclaim of 20 GiB to {name}", text, limit))

    def print_table(self) -> None:
        print(f"\n{machine()}\n\n| what | measured | limit |\n| --- | --- | --- |")
        for row in self.rows:
            print("| " + " | ".join(row) + " |")


def lend(index: int, num_bytes: int) -> list[int]:
    """Descriptors of a pool on GPU `index`, made by a process that has ended."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "engine.model_runner.lender", "--index", str(index)]
    command += ["--num-bytes", str(num_bytes), "--segment-bytes", str(SEGMENT_BYTES)]
    command += ["--pools-fd", str(theirs.fileno())]
    with ours, subprocess.Popen(command, pass_fds=(theirs.fileno(),)) as child:
        theirs.close()
        descriptors = receive_descriptors(ours)
        assert child.wait() == 0
    return descriptors


def _pages(gib: float) -> int:
    return int(gib * 2**30) // 2**21


def _step_ms(steps: list[StepResult]) -> float:
    return median(step.step_ns for step in steps) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool-gib", type=float, default=72.0)
    parser.add_argument("--peer-gib", type=float, default=96.0)
    parser.add_argument("--host-gib", type=float, default=32.0)
    options = parser.parse_args()
    assert torch.cuda.device_count() > 1, "two GPUs are needed"
    bench = Bench(options.pool_gib, options.peer_gib, options.host_gib)
    for name, src, dst, most in (
        ("fetch from peer", PEER, LOCAL, 0.12),
        ("mirror to peer", LOCAL, PEER, 0.12),
        ("fetch from host", HOST, LOCAL, 0.04),
        ("mirror to host", LOCAL, HOST, 0.04),
    ):
        attempt(name, lambda n=name, s=src, d=dst, m=most: bench.interference(n, s, d, m))
    attempt("rotation, peer", lambda: bench.rotation(PEER, "peer HBM", "1%"))
    attempt("rotation, host", lambda: bench.rotation(HOST, "host DRAM", "beside"))
    attempt("reclaim to host", lambda: bench.reclaim(HOST, "DRAM", "500 ms, 5 ms"))
    if OTHER_PEER in bench.pools:
        attempt("reclaim to lender", lambda: bench.reclaim(OTHER_PEER, "another lender", "100 ms, 5 ms"))
    bench.print_table()


if __name__ == "__main__":
    main()
