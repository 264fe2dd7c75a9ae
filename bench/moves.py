"""Moves alone and beside compute: rates, interference, a rotation of batches, and reclaim.

    python -m bench.moves [--only PART...] [--out FOLDER] [--peer-gib 96] [--host-gib 8]

Parts: `alone` is `bench.check_pools`. In the others GPU 0 runs decode steps of a dummy Llama-3.1-8B. `host`
moves from and to host memory beside them, for which one GPU is enough. In `peer`, `small` (pages of 64 KiB),
`rotation` and `reclaim` the last GPU lends, through `engine.model_runner.lender`; reclaim goes to the host,
and to another lender, the GPU before it. Where there are but two, that is a second pool on GPU 0: the same
sender and link.

Limits are large copies of the same run, each issued by the GPU that has its source, as moves are. A step's
time is between its own CUDA events; with the gap, to the end of the step before it: so it counts what moves
cost the runner's loop too. Compute waits are the time between the end of a step and the start of the next, by
CUDA events on the compute stream (`StepResult.idle_ns`). On the host, all contexts of a rotation lie in the
same pages, so that pinning takes seconds: what is moved is as much.
"""

import argparse
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from bench.gpu import attempt
from bench.move_rig import BATCH, DOWN, FETCH, HOST, LOCAL, MIRROR, OTHER_PEER, PEER, UP, MoveRig
from bench.movers import Feed, Mover, Pools, Ways, issued_here, kernel, split
from engine.messages import Sampling
from engine.model_runner.batch import PendingStep, Row, StepResult, StepRow

CONTEXT, SLICE_S = 4096, 0.25
FETCH_PAGES, RECLAIM_PAGES = 256, 64  # pages of a move: a context of 4,096 tokens, one of 1,024
WARM_STEPS, STEPS = 12, 52
RECLAIM_BYTES = 20 * 2**30

PARTS = ("alone", "host", "peer", "small", "rotation", "reclaim")
POOL_GIB, ROTATION_POOL_GIB = 40, 72
SMALL_PAGE_BYTES = 2**16
PROBES, PROBE_BYTES, PROBE_PAUSE_S = 100, 4096, 0.005


class Bench(MoveRig):
    """The parts; each adds rows to the table."""

    # ------------------------------------------------------------------ interference

    def interference(self, what: str, ways: Ways, wanted: str) -> None:
        """Decode at batch 64 and context 1,024, alone, then beside moves that do not end."""
        self._interference(what, "as served", ways, Mover(self.pools, self.compute), self.pools, wanted)

    def small_interference(self, what: str, way: tuple[int, int], *, by_kernel: bool) -> None:
        """The same with small pages; by a kernel, if the transfers look at a stream that is always idle."""
        pools = {
            pool: replace(each, pages=each.pages.view(-1, SMALL_PAGE_BYTES))
            for pool, each in self.pools.items()
        }
        mover = Mover(pools, torch.cuda.Stream(0), kernel(8)) if by_kernel else Mover(pools, self.compute)
        variant = "kernel, 8 programs" if by_kernel else "as served"
        self._interference(f"{what}, 64 KiB pages", variant, (way,), mover, pools, "")

    def _interference(
        self, what: str, variant: str, ways: Ways, mover: Mover, pools: Pools, wanted: str
    ) -> None:
        tokens = 1024 + 128
        rows, used = self.rig.rows(BATCH, tokens), BATCH * self.rig.layout.num_pages(tokens)
        alone = self.decode(rows, WARM_STEPS + STEPS, lambda count: None)[WARM_STEPS:]
        feeds = self.feeds(mover, pools, ways, self.rig.pages[used:])
        moved: list[tuple[float, int]] = []
        host_s: list[float] = []

        def on_step(count: int) -> None:
            for feed in feeds:
                feed.top_up()
            start = time.perf_counter()
            mover.take()
            host_s.append(time.perf_counter() - start)
            moved.append((time.perf_counter(), mover.moved_bytes.total()))

        beside = self.decode(rows, WARM_STEPS + STEPS, on_step)[WARM_STEPS:]
        mover.close()
        (began_s, before), (ended_s, after) = moved[WARM_STEPS], moved[-1]
        rate = (after - before) / (ended_s - began_s)
        limit = self.limits[tuple(ways)]
        slower = step_ms(beside) / step_ms(alone) - 1
        with_gaps = step_ms(beside, gap=True) / step_ms(alone, gap=True) - 1
        cells = [f"{rate / limit:.2f} of {limit / 1e9:.0f} GB/s", f"{slower:+.1%}", f"{with_gaps:+.1%}"]
        self.add_row(what, variant, *cells, f"{median(host_s) * 1e3:.2f} ms", wanted)
        print(f"(a step alone: {step_ms(alone):.2f} ms)", flush=True)

    def feeds(self, mover: Mover, pools: Pools, ways: Ways, free: Sequence[int]) -> list[Feed]:
        """For each way about three steps' worth of its link, to be kept in the queue."""
        scale = self.page_bytes // pools[LOCAL].page_bytes
        share = len(free) // len(ways)
        feeds = []
        for i, (src, dst) in enumerate(ways):
            each, ahead = (RECLAIM_PAGES, 16) if HOST in (src, dst) else (FETCH_PAGES, 24)
            count = min(share, 2 * ahead * each)
            mine = free[i * share : i * share + count]
            others = self.pages_of(src if dst == LOCAL else dst, count)
            pages = [split(part, scale) for part in ((others, mine) if dst == LOCAL else (mine, others))]
            feeds.append(Feed(mover, (src, dst), (pages[0], pages[1]), each * scale, ahead))
        return feeds

    def small_copies(self) -> None:
        """How long a small copy to the host takes beside a mirror to the host: they share a copy engine."""
        mover = Mover(self.pools, self.compute)
        feed = self.feeds(mover, self.pools, (DOWN,), self.rig.pages)[0]
        here = torch.zeros(PROBE_BYTES, dtype=torch.uint8, device="cuda")
        there = torch.empty(PROBE_BYTES, dtype=torch.uint8, pin_memory=True)
        stream = torch.cuda.Stream(0)
        waits_ms = []
        for _ in range(PROBES):
            feed.top_up()
            mover.take()
            time.sleep(PROBE_PAUSE_S)
            start = time.perf_counter()
            with torch.cuda.stream(stream):
                there.copy_(here, non_blocking=True)
            stream.synchronize()
            waits_ms.append((time.perf_counter() - start) * 1e3)
        mover.close()
        text = f"{median(waits_ms):.2f} ms, at most {max(waits_ms):.2f}"
        self.add_row("4 KiB to host beside mirror to host", "as served", text, "", "", "", "")

    # ------------------------------------------------------------------ rotation and reclaim

    def rotation(self, tier: int, name: str, num_slices: int, wanted: str) -> None:
        """Three batches take turns, the next one starting while the last steps of the one before run; its
        pages come while that one runs, from when the steps of the one before it have ended."""
        each = self.rig.layout.num_pages(CONTEXT)
        count = BATCH * each
        regions = [self.rig.pages[:count], self.rig.pages[count : 2 * count]]
        spare = self.rig.pages[2 * count :]
        own = len(spare) // (2 * BATCH)  # pages that a row grows into
        mirrors = [self.pages_of(tier, 3 * count)[i * count : (i + 1) * count] for i in range(3)]
        mover = Mover(self.pools, self.compute)
        fetches = mover.submit((tier, LOCAL), mirrors[0], regions[0], FETCH_PAGES)
        pending: deque[PendingStep] = deque()
        steps: list[StepResult] = []
        for number in range(num_slices):
            side, position = number % 2, CONTEXT
            tables = [
                regions[side][row * each : (row + 1) * each]
                + spare[(side * BATCH + row) * own : (side * BATCH + row + 1) * own]
                for row in range(BATCH)
            ]
            sampling = Sampling(max_tokens=own, temperature=0.0)
            rows = [Row(side * BATCH + i, sampling, CONTEXT, [table]) for i, table in enumerate(tables)]
            mover.finish(fetches)
            end_s = time.perf_counter() + SLICE_S
            last = CONTEXT + own * self.rig.layout.page_tokens - 1
            while position < last and time.perf_counter() < end_s:
                ids = [7] if position == CONTEXT else None
                step = [StepRow(row, position, 1, ids, sample=True) for row in rows]
                pending.append(self.rig.executor.launch(step))
                position += 1
                if len(pending) == self.rig.executor.depth:
                    steps.append(pending.popleft().result())
                if position == CONTEXT + 1:  # what is in flight is of this slice
                    fetched = mirrors[(number + 1) % 3]
                    fetches = mover.submit((tier, LOCAL), fetched, regions[1 - side], FETCH_PAGES)
                mover.take()
            grown = [page for table in tables for page in table[each : each + 2]]
            mover.submit((LOCAL, tier), grown, mirrors[number % 3][: len(grown)], FETCH_PAGES)
        steps += [step.result() for step in pending]
        mover.close()
        idle_s = sum(step.idle_ns for step in steps[1:]) / 1e9
        wall_s = idle_s + sum(step.step_ns for step in steps[1:]) / 1e9
        moved = (num_slices - 1) * count * self.page_bytes / wall_s / 1e9
        text = f"{idle_s / wall_s:.2%} of {wall_s:.2f} s ({moved:.0f} GB/s fetched)"
        self.add_row(f"rotation over {name}: compute waits", "as served", text, "", "", "", wanted)

    def reclaim_to_lender(self, *, by_kernel: bool) -> None:
        name = "another lender" if self.lenders[OTHER_PEER] else "another lender (on GPU 0)"
        self.reclaim(OTHER_PEER, name, "100 ms, 5 ms", by_kernel=by_kernel)

    def reclaim(self, dst: int, name: str, wanted: str, *, by_kernel: bool = False) -> None:
        """Move 20 GiB out of the lender, as the borrower's runner does when it wants them back; by a kernel,
        as where the lender cannot send for it."""
        count = RECLAIM_BYTES // self.page_bytes
        mover = Mover(issued_here(self.pools) if by_kernel else self.pools, self.compute)
        totals, firsts, queued = [], [], []
        for _ in range(3):
            src_pages, dst_pages = self.pages_of(PEER, count), self.pages_of(dst, count)
            began = time.perf_counter()
            mover.submit((PEER, dst), src_pages, dst_pages, RECLAIM_PAGES)
            queued.append(time.perf_counter() - began)
            first = mover.finish()
            totals.append(time.perf_counter() - began)
            firsts.append((first or began) - began)
        mover.close()
        text = f"{median(totals) * 1e3:.0f} ms, first pages after {median(firsts) * 1e3:.1f} ms"
        text += f" ({median(queued) * 1e3:.1f} of them to queue the moves)"
        variant = "kernel of GPU 0" if by_kernel else "as served"
        self.add_row(f"reclaim of 20 GiB to {name}", variant, text, "", "", "", wanted)


def step_ms(steps: list[StepResult], *, gap: bool = False) -> float:
    return median(step.step_ns + (step.idle_ns if gap else 0) for step in steps) / 1e6


def run_parts(bench: Bench, parts: Sequence[str]) -> None:
    if "host" in parts:
        attempt("fetch from host", lambda: bench.interference("fetch from host", (UP,), "0.95, 4%"))
        attempt("mirror to host", lambda: bench.interference("mirror to host", (DOWN,), "0.95, 4%"))
        attempt("small copies", bench.small_copies)
    if "peer" in parts:
        attempt("mirror to peer", lambda: bench.interference("mirror to peer", (MIRROR,), "0.85, 12%"))
        attempt("fetch from peer", lambda: bench.interference("fetch from peer", (FETCH,), "0.85, 12%"))
        attempt("both at once", lambda: bench.interference("both at once", (FETCH, MIRROR), "0.85, 12%"))
    if "small" in parts:
        for by_kernel in (False, True):
            attempt("mirror", lambda k=by_kernel: bench.small_interference("mirror", MIRROR, by_kernel=k))
            attempt("fetch", lambda k=by_kernel: bench.small_interference("fetch", FETCH, by_kernel=k))
    if "rotation" in parts:
        attempt("rotation, peer", lambda: bench.rotation(PEER, "peer HBM", 16, "1%"))
        attempt("rotation, host", lambda: bench.rotation(HOST, "host DRAM", 6, "beside"))
    if "reclaim" in parts:
        attempt("reclaim to host", lambda: bench.reclaim(HOST, "DRAM", "500 ms, 5 ms"))
        attempt("reclaim to lender", lambda: bench.reclaim_to_lender(by_kernel=False))
        if bench.lenders[OTHER_PEER] > 0:
            attempt("reclaim by a kernel", lambda: bench.reclaim_to_lender(by_kernel=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--peer-gib", type=float, default=96.0)
    parser.add_argument("--host-gib", type=float, default=8.0)
    parser.add_argument("--out", type=Path, help="folder for the table")
    options = parser.parse_args()
    if "alone" in options.only:
        subprocess.run([sys.executable, "-m", "bench.check_pools"], check=False)
    parts = [part for part in options.only if part != "alone"]
    if not parts:
        return
    needs_peer = parts != ["host"]
    if needs_peer and torch.cuda.device_count() < 2:
        parser.error("two GPUs are needed for all parts but alone and host")
    pool_gib = ROTATION_POOL_GIB if "rotation" in parts else POOL_GIB
    bench = Bench(pool_gib, options.peer_gib if needs_peer else 0, options.host_gib)
    run_parts(bench, parts)
    print(f"\n{bench.table()}")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "moves.md").write_text(bench.table() + "\n")


if __name__ == "__main__":
    main()
