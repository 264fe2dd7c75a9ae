"""Which launch parameters are best on this GPU, kernel by kernel, and what they are worth in whole steps.

    python -m bench.tune [--no-steps] [--no-sweeps] [--unchained]

At the Llama-3.1-8B shape. Sweeps the decode kernel, the kernel for products of few rows beside the vendor's
library, and the prefill kernel, then measures decode steps and prefill with the parameters that the kernels
have and with the best found. Variants are compiled by several processes at once, into Triton's cache.
"""

import argparse
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional as F

from bench import attention as alone
from bench import decode_step, prefill
from bench.gpu import Rig, as_graph, attempt, copy_rate, machine, make_rig, median_ms, random_pool
from engine.messages import Sampling
from engine.model_runner import device_step
from engine.model_runner.batch import Row, StepRow
from engine.model_runner.compile_cache import use_compile_cache
from engine.model_runner.cuda_executor import StepOptions
from engine.model_runner.kernels import attention, decode, linear
from engine.model_runner.kernels.linear import LinearScratch, Tiling, few_rows_linear
from engine.model_runner.kernels.prefill import tile_tokens
from engine.model_runner.sources.cache import cache_root

Tuning = dict[str, Any]
DecodeCase = tuple[int, int]
LinearCase = tuple[int, int, int]  # rows, features, width

DECODE_CASES: tuple[DecodeCase, ...] = (
    (2, 1088), (16, 1088), (64, 1088), (128, 1088), (256, 1088), (64, 4096), (1, 131_072),
)  # fmt: skip
DECODE_TUNINGS: tuple[Tuning, ...] = (
    {},
    {"heads_first": False},
    {"chain": False},
    {"programs": 256},
    {"programs": 1024},
    *(
        {"carry": carry, "block": block, "warps": warps, "stages": stages}
        for carry, block, warps, stages in (
            (False, 64, 4, 2), (False, 64, 4, 5), (False, 128, 4, 2), (False, 128, 4, 3), (False, 128, 8, 3),
            (True, 64, 4, 2), (True, 64, 4, 3), (True, 64, 4, 4), (True, 128, 4, 2), (True, 128, 4, 3),
            (True, 128, 8, 3), (True, 32, 4, 3), (True, 32, 4, 4), (True, 32, 2, 4), (True, 64, 2, 3),
        )
    ),
)  # fmt: skip
SHAPES = ((6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336), (128_256, 4096))
TIMES_A_STEP = (32, 32, 32, 32, 1)
ROWS = (2, 16, 32, 64)
TILINGS = (
    Tiling(64, 128, 384, 4, 4),
    Tiling(64, 128, 256, 4, 4),
    Tiling(64, 128, 800, 4, 4),
    Tiling(64, 128, 384, 4, 3),
    Tiling(64, 128, 800, 4, 3),
    Tiling(64, 128, 256, 4, 6),
    Tiling(64, 64, 800, 4, 5),
    Tiling(64, 64, 384, 4, 8),
    Tiling(64, 256, 256, 4, 3),
    Tiling(64, 256, 384, 4, 2),
    Tiling(128, 64, 256, 4, 6),
    Tiling(128, 128, 256, 4, 3),
    Tiling(128, 64, 512, 8, 4),
)
PREFILL_TUNINGS: tuple[Tuning, ...] = (
    {},
    {"one_loop": True},
    *(
        {"rows": rows, "block": block, "warps": warps, "stages": stages}
        for rows, block, warps, stages in (
            (128, 64, 8, 2), (128, 64, 8, 4), (128, 128, 8, 2), (128, 32, 8, 4),
            (64, 64, 4, 2), (64, 64, 4, 3), (64, 32, 4, 3), (64, 128, 4, 2),
        )
    ),
    {"rows": 64, "block": 64, "warps": 4, "stages": 2, "one_loop": True},
    {"rows": 64, "block": 64, "warps": 4, "stages": 3, "one_loop": True},
)  # fmt: skip
STEP_SIZES = (2, 16, 64, 128, 256)


# Compiling ahead


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
        if tiling.splits(weight) is not None:
            x = torch.zeros(rows, width, dtype=torch.bfloat16, device=alone.DEVICE)
            few_rows_linear(x, weight, scratch, tiling)
        del weight
        torch.cuda.empty_cache()


def compile_ahead(num_processes: int) -> None:
    jobs: list[Callable[[], None]] = [
        *(partial(_compile_linear, rows, tiling) for rows, tiling in product((2, 32, 64), TILINGS)),
        *(partial(_compile_decode, tuning) for tuning in DECODE_TUNINGS),
        *(partial(_compile_prefill, tuning) for tuning in PREFILL_TUNINGS),
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context) as processes:
        for job, done in [(job, processes.submit(job)) for job in jobs]:
            error = done.exception()
            if error is not None:
                print(f"{job} failed: {str(error)[:200]}")


# Sweeps


def _named(tuning: Tuning) -> str:
    if not tuning:
        return "as is"
    return "/".join(str(value) if len(tuning) > 2 else f"{name}={value}" for name, value in tuning.items())


def sweep_decode(pool: torch.Tensor, bytes_per_s: float, lines: list[str]) -> dict[DecodeCase, Tuning]:
    """The best tuning of each case that takes the same work items as the kernel's own."""
    best = {}
    lines.append("decode attention, share of copy (carry/block/warps/stages):")
    for batch, context in DECODE_CASES:
        found = []
        for tuning in DECODE_TUNINGS:
            try:
                rate = alone.decode_rate(pool, batch, context, **tuning)
            except Exception as error:
                print(f"decode {tuning}: {str(error)[:200]}")
                continue
            found.append((rate.ms, rate.rate / bytes_per_s, tuning))
        shares = {_named(tuning): share for _, share, tuning in found}
        found.sort(key=lambda each: each[0])
        best[batch, context] = next(tuning for _, _, tuning in found if "programs" not in tuning)
        basics = " ".join(f"{name} {shares[name]:.3f}" for name in list(shares)[:5])
        winners = ", ".join(f"{_named(tuning)} {share:.3f}" for _, share, tuning in found[:5])
        us = found[0][0] / alone.LAYERS * 1e3
        lines.append(f"  {batch:3d} x {context:6d}: {basics} | best {us:.1f} us a layer: {winners}")
    return best


def _linear_ms(weights: Sequence[torch.Tensor], compute: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Mean of one product, over weights that do not fit the L2 cache together."""

    def run() -> None:
        for weight in weights:
            compute(weight)

    return median_ms(as_graph(run), repeats=7) / len(weights)


def sweep_linear(bytes_per_s: float, lines: list[str]) -> dict[LinearCase, Tiling | None]:
    best: dict[LinearCase, Tiling | None] = {}
    scratch = LinearScratch.make(alone.DEVICE)
    totals = {rows: [0.0, 0.0, 0.0] for rows in ROWS}
    lines.append(
        "products: share of copy by library, unchained and best (features/width/programs/warps/stages):"
    )
    for (features, width), times in zip(SHAPES, TIMES_A_STEP, strict=True):
        count = max(2, min(12, 2**29 // (features * width)))
        weights = [
            torch.randn(features, width, dtype=torch.bfloat16, device=alone.DEVICE) for _ in range(count)
        ]
        limit_ms = weights[0].nbytes / bytes_per_s * 1e3
        for rows in ROWS:
            x = torch.randn(rows, width, dtype=torch.bfloat16, device=alone.DEVICE)
            want = F.linear(x.float(), weights[0].float())
            library_ms = _linear_ms(weights, partial(F.linear, x))
            found: list[tuple[float, Tiling | None]] = [(library_ms, None)]
            for tiling in TILINGS:
                if tiling.splits(weights[0]) is None:
                    continue
                try:
                    out = few_rows_linear(x, weights[0], scratch, tiling).float()
                    error = float((out - want).norm() / want.norm())
                    assert error < 5e-3, f"wrong by {error}"
                    compute = partial(_few_rows, x, scratch, tiling)
                    found.append((_linear_ms(weights, compute), tiling))
                except Exception as problem:
                    print(f"linear {rows} {features} {width} {tiling}: {str(problem)[:200]}")
            loose_ms = _linear_ms(weights, partial(_few_rows, x, scratch, TILINGS[0], chain=False))
            found.sort(key=lambda each: each[0])
            best[rows, features, width] = found[0][1]
            for i, ms in enumerate((library_ms, loose_ms, found[0][0])):
                totals[rows][i] += ms * times
            winners = ", ".join(f"{_tiling_name(tiling)} {limit_ms / ms:.3f}" for ms, tiling in found[:4])
            basics = f"{limit_ms / library_ms:.3f} {limit_ms / loose_ms:.3f}"
            lines.append(f"  {rows:2d} x {features} x {width}: {basics} | {winners}")
        del weights
        torch.cuda.empty_cache()
    for rows, (library_ms, loose_ms, best_ms) in totals.items():
        lines.append(f"  all of a step, {rows} rows: library {library_ms:.2f}, unchained {loose_ms:.2f}, "
                     f"best {best_ms:.2f} ms")  # fmt: skip
    return best


def _few_rows(
    x: torch.Tensor, scratch: LinearScratch, tiling: Tiling, weight: torch.Tensor, *, chain: bool = True
) -> torch.Tensor:
    return few_rows_linear(x, weight, scratch, tiling, chain=chain)


def _tiling_name(tiling: Tiling | None) -> str:
    if tiling is None:
        return "library"
    return f"{tiling.features}/{tiling.width}/{tiling.programs}/{tiling.warps}/{tiling.stages}"


def sweep_prefill(pool: torch.Tensor, lines: list[str]) -> Tuning:
    """The best tuning for prompts of 1,024 tokens."""
    best: list[Tuning] = []
    lines.append("prefill attention, TFLOP/s (rows/block/warps/stages):")
    for prompts, tokens, prefix in ((8, 1024, 0), (2, 4096, 0), (1, 512, 1024), (1, 2048, 6144)):
        found = []
        for tuning in PREFILL_TUNINGS:
            try:
                rate = alone.prefill_rate(pool, prompts, tokens, prefix, **tuning)
            except Exception as error:
                print(f"prefill {tuning}: {str(error)[:200]}")
                continue
            found.append((rate.rate / 1e12, tuning))
        found.sort(key=lambda each: -each[0])
        best.append(found[0][1])
        line = ", ".join(f"{_named(tuning)} {rate:.0f}" for rate, tuning in found)
        lines.append(f"  {prompts} x {tokens} after {prefix}: {line}")
    return best[0]


# Whole steps


@contextmanager
def tuned(
    rig: Rig,
    decode_tunings: dict[DecodeCase, Tuning],
    tilings: dict[LinearCase, Tiling | None],
    prefill_tuning: Tuning,
) -> Iterator[None]:
    """The kernels of `rig` run with these parameters; graphs have to be captured anew."""
    by_rows = {batch: tuning for (batch, context), tuning in decode_tunings.items() if context < 4096}

    def decode_attention(query: torch.Tensor, *arguments: Any, **options: Any) -> None:
        tuning = by_rows[min(by_rows, key=lambda batch: abs(batch - len(query)))]
        decode.decode_attention(query, *arguments, **options, **tuning)

    def tiling_for(rows: int, weight: torch.Tensor) -> Tiling | None:
        measured = next((each for each in ROWS if rows <= each), None)
        return None if measured is None else tilings.get((measured, *weight.shape))

    prefill_attention = partial(attention.prefill_attention, **prefill_tuning)
    step = rig.executor._step
    tokens = tile_tokens(alone.HEADS // alone.KV_HEADS, prefill_tuning.get("rows", 128))
    with ExitStack() as patches:
        patches.enter_context(patch.object(attention, "decode_attention", decode_attention))
        patches.enter_context(patch.object(attention, "prefill_attention", prefill_attention))
        patches.enter_context(patch.object(linear, "tiling_for", tiling_for))
        patches.enter_context(patch.object(step, "_tile_tokens", tokens))
        yield


def unchained_rig(options: StepOptions) -> Rig:
    """A rig in whose compiled code no kernel starts before the one in front has ended."""
    plain = device_step._compile_options(torch.device("cpu"))
    with patch.object(device_step, "_compile_options", lambda device: plain):
        return make_rig(options, decode_step.NUM_PAGES, capture=False)


def step_rig(options: StepOptions) -> Rig:
    """A rig as a runner has it, or an unchained one if that fails."""
    try:
        return make_rig(options, decode_step.NUM_PAGES, capture=False)
    except Exception:
        print(f"FAILED, going on unchained\n{traceback.format_exc(limit=-8)}", flush=True)
    torch.cuda.empty_cache()
    return unchained_rig(options)


def logits_of(rig: Rig, batch: int) -> torch.Tensor:
    """Logits of a decode step, replayed."""
    sampling = Sampling(max_tokens=1, temperature=1.0)
    rows = [Row(row.slot, sampling, 1024, row.page_tables) for row in rig.rows(batch, 1100)]
    rig.executor.launch([StepRow(row, 1024, 1, [7 + row.slot], sample=True) for row in rows]).result()
    return rig.executor._step.logits[:batch].float()


def compare_logits(rig: Rig, lines: list[str]) -> None:
    """Kernels that race with each other would differ from kernels that wait."""
    nothing = patch.object(linear, "tiling_for", lambda rows, weight: None)
    with nothing, patch.object(decode, "can_chain", lambda device: False):
        rig.executor.capture(lambda stage, fraction: None, STEP_SIZES)
        want = {batch: logits_of(rig, batch) for batch in STEP_SIZES}
    rig.executor.capture(lambda stage, fraction: None, STEP_SIZES)
    for batch in STEP_SIZES:
        errors = [float((logits_of(rig, batch) - want[batch]).norm() / want[batch].norm()) for _ in range(10)]
        lines.append(f"logits at batch {batch}: off by {min(errors):.1e} to {max(errors):.1e}")


def measure_steps(rig: Rig, name: str, bytes_per_s: float, rows: dict[str, list[str]]) -> None:
    start = time.perf_counter()
    rig.executor.capture(lambda stage, fraction: None, STEP_SIZES)
    cases = [decode_step.measure(rig, batch, context, bytes_per_s) for batch, context in decode_step.CASES]
    rows[name] = [f"{case.wall_ms:6.2f}" for case in cases]
    print(f"[steps, {name}: {time.perf_counter() - start:.1f} s] {rows[name]}", flush=True)


def run_steps(
    bytes_per_s: float,
    decode_tunings: dict[DecodeCase, Tuning],
    tilings: dict[LinearCase, Tiling | None],
    prefill_tuning: Tuning,
    lines: list[str],
    make: Callable[[StepOptions], Rig],
) -> None:
    rig = make(StepOptions(decode_step.MAX_BATCH, prefill.MAX_STEP_TOKENS, 8192))
    attempt("compare logits", lambda: compare_logits(rig, lines))
    rows: dict[str, list[str]] = {}

    def variant(name: str) -> None:
        attempt(name, lambda: measure_steps(rig, name, bytes_per_s, rows))

    def prefill_rate(name: str) -> None:
        for prompt, step in ((1024, 8192), (1024, 1024), (1024, 512), (4096, 8192)):
            found = prefill.measure(rig, prompt, step)
            lines.append(f"prefill, {name}: {prompt} in steps of {step}: {found.tokens_per_s:.0f} tokens/s "
                         f"({found.device_tokens_per_s:.0f} by device time), "
                         f"launch {found.launch_ms:.1f} ms")  # fmt: skip

    as_they_are: Tuning = {}
    plain: dict[DecodeCase, Tuning] = {(2, 1088): as_they_are}
    variant("as is")
    attempt("prefill", lambda: prefill_rate("as is"))
    with patch.object(linear, "tiling_for", lambda rows, weight: None):
        variant("library products")
    with patch.object(decode, "can_chain", lambda device: False):
        variant("attention unchained")
    if decode_tunings:
        with tuned(rig, plain, tilings, as_they_are):
            variant("best products")
        with tuned(rig, decode_tunings, tilings, prefill_tuning):
            variant("best of all")
            attempt("prefill", lambda: prefill_rate("best of all"))
            for batch in (1, 16, 64):
                attempt("profile", lambda b=batch: decode_step.profile(rig, b, 1024))
        long = {(64, 1088): decode_tunings[64, 4096]}
        with tuned(rig, long, tilings, as_they_are):
            variant("attention for long")
    lines.append(f"ms a step at {', '.join(f'{batch} x {context}' for batch, context in decode_step.CASES)}")
    theirs = decode_step.VLLM_MS.get(decode_step.gpu_kind() or "", {})
    rows["(wanted)"] = [f"{ms * (0.98 if case == (64, 4096) else 0.95):6.2f}" for case, ms in theirs.items()]
    lines.extend(f"  {name:20s} {' '.join(row)}" for name, row in rows.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--no-steps", action="store_true", help="sweep only")
    parser.add_argument("--no-sweeps", action="store_true", help="whole steps only")
    parser.add_argument("--unchained", action="store_true", help="steps whose compiled code is not chained")
    arguments = parser.parse_args()
    use_compile_cache(cache_root(None))
    bytes_per_s = copy_rate()
    torch.cuda.empty_cache()
    lines = [f"{machine()}; copy {bytes_per_s / 1e12:.3f} TB/s"]
    decode_tunings: dict[DecodeCase, Tuning] = {}
    tilings: dict[LinearCase, Tiling | None] = {}
    prefill_tuning: Tuning = {}
    if not arguments.no_sweeps:
        attempt("compile ahead", lambda: compile_ahead(min(14, os.cpu_count() or 1)))
        attempt("sweep products", lambda: tilings.update(sweep_linear(bytes_per_s, lines)))
        pool = random_pool(alone.LAYOUT, alone.NUM_PAGES)
        attempt("sweep decode", lambda: decode_tunings.update(sweep_decode(pool, bytes_per_s, lines)))
        attempt("sweep prefill", lambda: prefill_tuning.update(sweep_prefill(pool, lines)))
        del pool
        torch.cuda.empty_cache()
        print("\n".join(lines), flush=True)
    if not arguments.no_steps:
        make = unchained_rig if arguments.unchained else step_rig
        attempt("steps", lambda: run_steps(bytes_per_s, decode_tunings, tilings, prefill_tuning, lines, make))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
