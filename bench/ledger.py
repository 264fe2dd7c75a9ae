"""How long the memory's ledger takes, with a million pages and ten thousand contexts.

    python -m bench.ledger [--repeat N]

Plans a slice: 64 contexts that are with lenders are made ready to run (evictions, allocations, fetches), and
the 64 that ran before are stopped and their last pages mirrored. Reclaims 10,240 pages: what the engine does
between the wish of a lender and the moves to another one, in a ledger where contexts are whole with one
lender, and in one where their pages are scattered over segments by random use.
"""

import argparse
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterable
from itertools import pairwise

from bench.report import print_rows
from engine.memory.context import Context
from engine.memory.lending import Lending
from engine.memory.page import LayerGroup, PageLayout
from engine.memory.pool import PagePool
from engine.memory.store import ContextStore
from engine.messages import Move

LAYOUT = PageLayout((LayerGroup(tuple(range(32))),), 16, 32, 8, 128, 2)
SEGMENT_PAGES = 128
SEGMENT_BYTES = SEGMENT_PAGES * LAYOUT.page_bytes
LOCAL, HOST, LENDERS = 1, 2, (3, 4)
NUM_CONTEXTS, CONTEXT_PAGES, BATCH = 10_000, 72, 64
RECLAIMED_PAGES = 10_240


class Ledger:
    """One model with a local pool, two lenders and the host: a million pages."""

    def __init__(self, *, scattered: bool) -> None:
        self.random = random.Random(1)
        self.store = ContextStore(LAYOUT)
        self.lending = Lending()
        self.lending.tick(1)
        self.store.add_local_pool(PagePool(LOCAL, 20_000, LAYOUT.page_bytes, first=1), "gpu 0")
        self.store.add_tier(PagePool(HOST, 100_000, LAYOUT.page_bytes))
        self.lending.add_borrower("model", self.store)
        for pool_id in LENDERS:
            name, num_pages = f"gpu {pool_id}", 440_064
            self.lending.add_lender(name, name, num_pages // SEGMENT_PAGES, SEGMENT_BYTES)
            pool = PagePool(
                pool_id, num_pages, LAYOUT.page_bytes, segment_bytes=SEGMENT_BYTES, is_leased=True
            )
            self.lending.connect(name, "model", pool)
        self.contexts = [self.fill(0) for _ in range(NUM_CONTEXTS)]
        rounds = 4 if scattered else 1
        for size in range(1, rounds + 1):
            for context in self.random.sample(self.contexts, NUM_CONTEXTS) if scattered else self.contexts:
                self.grow(context, CONTEXT_PAGES * size // rounds)

    def fill(self, num_pages: int) -> Context:
        context = self.store.open()
        if num_pages:
            self.grow(context, num_pages)
        return context

    def grow(self, context: Context, num_pages: int) -> None:
        """Have the context run up to so many pages, and mirror it."""
        end = num_pages * LAYOUT.page_tokens
        self.finish(self.prepare(context, end))
        context.computed = end
        self.store.stop(context)
        self.finish(self.store.mirror(context, whole=True))

    def prepare(self, context: Context, end: int) -> list[Move]:
        moves = self.store.prepare(context, LOCAL, end)
        assert moves is not None
        return moves

    def finish(self, moves: list[Move]) -> None:
        for move in moves:
            self.store.finish_move(move.move_id, 1)

    @property
    def num_pages(self) -> int:
        return sum(pool.num_pages for pool in (*self.store.tiers.values(), *self.store.local_pools.values()))


def time_slices(ledger: Ledger, repeat: int) -> list[tuple[int, int, int]]:
    """Nanoseconds to take one batch off and the next on: to stop, to mirror, to prepare."""
    order = ledger.random.sample(ledger.contexts, BATCH * (repeat + 1))
    batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    for context in batches[0]:
        ledger.finish(ledger.prepare(context, context.computed + 64))
    times = []
    for before, after in pairwise(batches):
        for context in before:
            context.computed += 20
        times.append(switch(ledger, before, after))
        for move_id in list(ledger.store._moves._open):
            ledger.store.finish_move(move_id, 1)
    for context in batches[-1]:
        ledger.store.stop(context)
    return times


def switch(ledger: Ledger, before: list[Context], after: list[Context]) -> tuple[int, int, int]:
    began_ns = time.thread_time_ns()
    for context in before:
        ledger.store.stop(context)
    stopped_ns = time.thread_time_ns()
    ledger.store.mirror_idle(LOCAL)
    mirrored_ns = time.thread_time_ns()
    for context in after:
        ledger.prepare(context, context.computed + 64)
    return stopped_ns - began_ns, mirrored_ns - stopped_ns, time.thread_time_ns() - mirrored_ns


def time_reclaims(ledger: Ledger, repeat: int) -> list[int]:
    """Nanoseconds to recall segments that hold many pages and to plan all moves out of them."""
    store, times = ledger.store, []
    for _ in range(repeat):
        pool = store.tiers[LENDERS[0]]
        full = [n for n, segment in pool.segments.items() if segment.num_used == segment.num_pages]
        segments = ledger.random.sample(full, RECLAIMED_PAGES // SEGMENT_PAGES)
        planned: list[tuple[int, Move]] = []
        times.append(timed(lambda s=segments, p=planned: p.extend(reclaim(store, s))))
        assert sum(len(move.src_pages) for _, move in planned) > 0.9 * RECLAIMED_PAGES  # some were redundant
        ledger.finish([move for _, move in planned])
        for segment in segments:
            pool.remove(segment)
            ledger.lending.book.end("gpu 3", segment)
    return times


def reclaim(store: ContextStore, segments: list[int]) -> list[tuple[int, Move]]:
    store.recall(LENDERS[0], segments)
    return store.reclaim([LOCAL])


def timed(work: Callable[[], None]) -> int:
    began_ns = time.thread_time_ns()
    work()
    return time.thread_time_ns() - began_ns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=30)
    options = parser.parse_args()
    rows = []
    for name, scattered in (("contexts in one piece", False), ("contexts grown in turns", True)):
        ledger = Ledger(scattered=scattered)
        gc.freeze()  # as in an engine that runs for long
        beside = f"{ledger.num_pages:,} pages, {NUM_CONTEXTS:,} contexts, {name}"
        slices = time_slices(ledger, options.repeat)
        rows.append((f"switch a slice of {BATCH}", _median(map(sum, slices)), f"limit 1 ms; {beside}"))
        for name, times in zip(("stop", "mirror", "prepare"), zip(*slices, strict=True), strict=True):
            rows.append((f"  of it: {name}", _median(times), ""))
        reclaims = time_reclaims(ledger, options.repeat)
        rows.append((f"reclaim {RECLAIMED_PAGES:,} pages", _median(reclaims), f"limit 3 ms; {beside}"))
        ledger.store.check_integrity()
    print_rows(("what", "median", "beside"), rows)


def _median(times: Iterable[int]) -> str:
    return f"{statistics.median(times) / 1e6:.2f} ms"


if __name__ == "__main__":
    main()
