"""Which launch parameters are best on this GPU for each kernel alone, at the Llama-3.1-8B shape.

    python -m bench.tune [decode] [linear] [prefill]

Sweeps decode attention, the kernel for products of few rows beside the vendor's library, and prefill
attention; all three if none is named. "as is" are the parameters that the engine uses. Variants are compiled
by several processes at once, into Triton's cache.
"""

import argparse
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from typing import Any

import torch
from torch.nn import functional as F

from bench import attention as alone
from bench.gpu import as_graph, attempt, copy_rate, machine, median_ms, random_pool
from engine.model_runner.compile_cache import use_compile_cache
from engine.model_runner.kernels.linear import LinearScratch, Tiling, few_rows_linear, tiling_for
from engine.model_runner.sources.cache import cache_root

Tuning = dict[str, Any]

KERNELS = ("decode", "linear", "prefill")

DECODE_CASES = ((2, 1088), (16, 1088), (64, 1088), (128, 1088), (256, 1088), (64, 4096), (1, 131_072))
DECODE_TUNINGS: tuple[Tuning, ...] = (
    {},
    {"programs": 256},
    {"programs": 1024},
    *(
        {"block": block, "warps": warps, "stages": stages, "chain": chain}
        for (block, warps, stages), chain in product(
            ((32, 2, 4), (32, 2, 3), (32, 4, 4), (64, 2, 3), (64, 4, 2), (64, 4, 3)), (True, False)
        )
    ),
)
SHAPES = ((6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336), (128_256, 4096))
TIMES_A_STEP = (32, 32, 32, 32, 1)
ROWS = (2, 8, 16, 32, 64)
TILINGS = tuple(
    Tiling(features, width, 256, 4, stages)
    for features, width, stages in (
        (64, 128, 3), (64, 128, 4), (64, 128, 6), (64, 256, 3), (128, 64, 6), (128, 128, 3),
    )
)  # fmt: skip
PREFILL_CASES = ((8, 1024, 0), (2, 4096, 0), (1, 512, 1024), (1, 2048, 6144))
PREFILL_TUNINGS: tuple[Tuning, ...] = (
    {},
    *(
        {"rows": rows, "block": block, "warps": warps, "stages": stages}
        for rows, block, warps, stages in (
            (64, 64, 4, 2),
            (64, 64, 4, 4),
            (64, 128, 4, 2),
            (128, 32, 8, 3),
            (128, 64, 4, 3),
            (128, 64, 8, 2),
            (128, 64, 8, 3),
            (128, 64, 8, 4),
            (128, 128, 8, 2),
            (128, 128, 8, 3),
            (256, 64, 8, 3),
        )
    ),
)


def _compile_decode(tuning: Tuning) -> None:
    pool = random_pool(alone.LAYOUT, 40)
    for context in (64, 256):  # page tables of 4 pages and of 16: multiples of 16 are compiled for apart
        alone.decode_run(pool, 2, context, **tuning)


def _compile_prefill(tuning: Tuning) -> None:
    alone.prefill_rate(random_pool(alone.LAYOUT, 80), 1, 1024, **tuning)


def _compile_linear(rows: int, tiling: Tiling) -> None:
    scratch = LinearScratch.make(alone.DEVICE)
    for features, width in SHAPES:
        weight = torch.empty(features, width, dtype=torch.bfloat16, device=alone.DEVICE)
        x = torch.zeros(rows, width, dtype=torch.bfloat16, device=alone.DEVICE)
        few_rows_linear(x, weight, scratch, tiling)
        del weight
        torch.cuda.empty_cache()


def compile_ahead(kernels: Sequence[str], num_processes: int) -> None:
    jobs: list[Callable[[], None]] = []
    if "linear" in kernels:
        jobs += [partial(_compile_linear, rows, tiling) for rows, tiling in product((2, 32, 64), TILINGS)]
    if "decode" in kernels:
        jobs += [partial(_compile_decode, tuning) for tuning in DECODE_TUNINGS]
    if "prefill" in kernels:
        jobs += [partial(_compile_prefill, tuning) for tuning in PREFILL_TUNINGS]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context) as processes:
        for job, done in [(job, processes.submit(job)) for job in jobs]:
            error = done.exception()
            if error is not None:
                print(f"{job} failed: {str(error)[:200]}")


def _named(tuning: Tuning) -> str:
    if not tuning:
        return "as is"
    return "/".join(str(value) if len(tuning) > 2 else f"{name}={value}" for name, value in tuning.items())


def sweep_decode(pool: torch.Tensor, bytes_per_s: float) -> None:
    print("decode attention, share of copy (block/warps/stages/chain):")
    for batch, context in DECODE_CASES:
        found = []
        for tuning in DECODE_TUNINGS:
            rate = alone.decode_rate(pool, batch, context, **tuning)
            found.append((rate.ms, f"{_named(tuning)} {rate.rate / bytes_per_s:.3f}"))
        found.sort()
        us = found[0][0] / alone.LAYERS * 1e3
        print(f"  {batch:3d} x {context:6d}: {us:.1f} us a layer: {', '.join(line for _, line in found)}")


def _linear_ms(weights: Sequence[torch.Tensor], compute: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Mean of one product, over weights that do not fit the L2 cache together."""

    def run() -> None:
        for weight in weights:
            compute(weight)

    return median_ms(as_graph(run), repeats=7) / len(weights)


def _try_product(
    x: torch.Tensor, weights: Sequence[torch.Tensor], scratch: LinearScratch, tiling: Tiling | None
) -> float:
    """ms of one product; the library's without a tiling. A wrong one is an error."""

    def compute(weight: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight) if tiling is None else few_rows_linear(x, weight, scratch, tiling)

    want = F.linear(x.float(), weights[0].float())
    error = float((compute(weights[0]).float() - want).norm() / want.norm())
    assert error < 5e-3, f"wrong by {error}"
    return _linear_ms(weights, compute)


def sweep_linear(bytes_per_s: float) -> None:
    """Every shape and number of rows; last, what the products of a step take in all."""
    scratch = LinearScratch.make(alone.DEVICE)
    totals = {rows: [0.0, 0.0, 0.0] for rows in ROWS}
    print("products, share of copy (features/width/programs/warps/stages):")
    for (features, width), times in zip(SHAPES, TIMES_A_STEP, strict=True):
        count = max(2, min(12, 2**29 // (features * width)))
        weights = [
            torch.randn(features, width, dtype=torch.bfloat16, device=alone.DEVICE) for _ in range(count)
        ]
        limit_ms = weights[0].nbytes / bytes_per_s * 1e3
        for rows in ROWS:
            x = torch.randn(rows, width, dtype=torch.bfloat16, device=alone.DEVICE)
            chosen = tiling_for(rows, weights[0])
            took = {
                tiling: _try_product(x, weights, scratch, tiling)
                for tiling in dict.fromkeys((None, chosen, *TILINGS))
            }
            for i, ms in enumerate((took[None], took[chosen], min(took.values()))):
                totals[rows][i] += ms * times
            found = sorted((ms, _tiling_name(tiling)) for tiling, ms in took.items())
            winners = ", ".join(f"{name} {limit_ms / ms:.3f}" for ms, name in found[:4])
            as_is = f"as is: {_tiling_name(chosen)} {limit_ms / took[chosen]:.3f}"
            print(f"  {rows:2d} x {features} x {width}: {as_is} | {winners}")
        del weights
        torch.cuda.empty_cache()
    for rows, (library_ms, chosen_ms, best_ms) in totals.items():
        print(f"  all of a step, {rows} rows: library {library_ms:.2f}, as is {chosen_ms:.2f}, "
              f"best {best_ms:.2f} ms")  # fmt: skip


def _tiling_name(tiling: Tiling | None) -> str:
    if tiling is None:
        return "library"
    return f"{tiling.features}/{tiling.width}/{tiling.programs}/{tiling.warps}/{tiling.stages}"


def sweep_prefill(pool: torch.Tensor) -> None:
    print("prefill attention, TFLOP/s (rows/block/warps/stages):")
    for prompts, tokens, prefix in PREFILL_CASES:
        found = []
        for tuning in PREFILL_TUNINGS:
            rate = alone.prefill_rate(pool, prompts, tokens, prefix, **tuning)
            found.append((-rate.rate, f"{_named(tuning)} {rate.rate / 1e12:.0f}"))
        found.sort()
        print(f"  {prompts} x {tokens} after {prefix}: {', '.join(line for _, line in found)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("kernels", nargs="*", choices=[*KERNELS, []], metavar="kernel")
    kernels = parser.parse_args().kernels or KERNELS
    use_compile_cache(cache_root(None))
    bytes_per_s = copy_rate()
    torch.cuda.empty_cache()
    print(f"{machine()}; copy {bytes_per_s / 1e12:.3f} TB/s")
    attempt("compile ahead", lambda: compile_ahead(kernels, min(14, os.cpu_count() or 1)))
    if "linear" in kernels:
        attempt("products", lambda: sweep_linear(bytes_per_s))
    pool = random_pool(alone.LAYOUT, alone.NUM_PAGES)
    if "decode" in kernels:
        attempt("decode", lambda: sweep_decode(pool, bytes_per_s))
    if "prefill" in kernels:
        attempt("prefill", lambda: sweep_prefill(pool))


if __name__ == "__main__":
    main()
