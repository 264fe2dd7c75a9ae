"""What the engine's choices are worth in whole steps: decode and prefill as they are, and with each undone.

    python -m bench.variants [compiled | launched] [--layers N] [--only NAME ...] [--profile]

`compiled`, which is taken if neither is named: see `bench.compile_variants`. `launched`: how kernels are
launched and products computed; first the tables and profiles of `bench.decode_step` and `bench.prefill`, of
the same model. Prefill variants take turns, because a GPU at its power limit slows down as it warms up.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from statistics import median
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch.nn import functional as F

from bench import compile_variants, decode_step, prefill
from bench.attention import HEADS, KV_HEADS
from bench.gpu import Rig, attempt, copy_rate, gpu_kind, make_rig
from engine.messages import Sampling
from engine.model_runner.batch import Row, StepRow
from engine.model_runner.cuda_executor import StepOptions
from engine.model_runner.kernels import attention, decode, linear
from engine.model_runner.kernels.prefill import tile_tokens

Variant = Callable[[], AbstractContextManager[object]]

SIZES = (2, 16, 64, 128, 256)
PREFILL_CASE = (1024, 8192)
_ROUNDS = 2
_SPLIT_FEATURES = 16_384


@contextmanager
def cublas_lt() -> Iterator[None]:
    """Products by cuBLASLt's own choice of kernels."""
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library("cublaslt")
    try:
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)


def library_products() -> AbstractContextManager[object]:
    return patch.object(linear, "tiling_for", lambda rows, weight: None)


def chained_rows(limit: int) -> AbstractContextManager[object]:
    """Attention of up to so many rows starts before the kernel in front has ended."""
    return patch.object(decode, "_CHAINED_ROWS", limit)


def _linear_in_halves(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    features, width = weight.shape
    rows = x.reshape(-1, width)
    if features <= _SPLIT_FEATURES or len(rows) <= linear.MAX_ROWS:
        return F.linear(x, weight)
    out = x.new_empty(len(rows), features)
    for part, weights in zip(out.chunk(2, dim=1), weight.chunk(2), strict=True):
        torch.mm(rows, weights.T, out=part)
    return out.view(*x.shape[:-1], features)


def products_in_halves() -> AbstractContextManager[object]:
    """Gate and up projections of many rows as two products, into the halves of one tensor."""
    return patch.object(linear, "F", SimpleNamespace(linear=_linear_in_halves))


@contextmanager
def wide_tiles(rig: Rig) -> Iterator[None]:
    """Prefill attention in tiles of 128 rows."""
    rows = 128
    wide = partial(attention.prefill_attention, rows=rows, warps=8)
    with ExitStack() as patches:
        patches.enter_context(patch.object(attention, "prefill_attention", wide))
        patches.enter_context(
            patch.object(rig.executor._step, "_tile_tokens", tile_tokens(HEADS // KV_HEADS, rows))
        )
        yield


def capture(rig: Rig) -> None:
    rig.executor.capture(lambda stage, fraction: None, SIZES)


def logits_of(rig: Rig, batch: int) -> torch.Tensor:
    """Logits of a decode step, replayed."""
    sampling = Sampling(max_tokens=1, temperature=1.0)
    rows = [Row(row.slot, sampling, 1024, row.page_tables) for row in rig.rows(batch, 1100)]
    rig.executor.launch([StepRow(row, 1024, 1, [7 + row.slot], sample=True) for row in rows]).result()
    return rig.executor._step.logits[:batch].float()


def compare_logits(rig: Rig) -> None:
    """Kernels that race with each other would differ from kernels that wait."""
    with library_products(), chained_rows(0):
        capture(rig)
        want = {batch: logits_of(rig, batch) for batch in SIZES}
    capture(rig)
    for batch in SIZES:
        errors = [float((logits_of(rig, batch) - want[batch]).norm() / want[batch].norm()) for _ in range(10)]
        print(f"logits at batch {batch}: off by {min(errors):.1e} to {max(errors):.1e}")


def decode_variants(rig: Rig, bytes_per_s: float) -> None:
    """Whole steps, beside the table of steps as they are."""
    variants: dict[str, Variant] = {
        "attention all chained": lambda: chained_rows(max(SIZES)),
        "attention unchained": lambda: chained_rows(0),
        "cublasLt": cublas_lt,
    }
    lines = [f"ms a step at {', '.join(f'{batch} x {context}' for batch, context in decode_step.CASES)}"]
    theirs = decode_step.VLLM_MS.get(gpu_kind() or "", {})
    lines.append(f"  {'(vLLM)':22s} {' '.join(f'{ms:6.2f}' for ms in theirs.values())}")

    def measure(name: str, variant: Variant) -> None:
        with variant():
            capture(rig)
            rows = [decode_step.measure(rig, *case, bytes_per_s) for case in decode_step.CASES]
        lines.append(f"  {name:22s} {' '.join(f'{row.wall_ms:6.2f}' for row in rows)}")

    for name, variant in variants.items():
        attempt(name, lambda n=name, v=variant: measure(n, v))
    print("\n".join(lines))


def prefill_variants(rig: Rig) -> None:
    """Tokens per second by device time, medians of rounds."""
    variants: dict[str, Variant] = {
        "as is": nullcontext,
        "gate and up apart": products_in_halves,
        "cublasLt": cublas_lt,
        "tiles of 128 rows": lambda: wide_tiles(rig),
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(_ROUNDS):
        for name, variant in variants.items():
            with variant():
                rates[name].append(prefill.measure(rig, *PREFILL_CASE).device_tokens_per_s)
    found = ", ".join(f"{name} {median(each):.0f}" for name, each in rates.items())
    print("prefill, {} in steps of {}: {}".format(*PREFILL_CASE, found), flush=True)


def launched() -> None:
    bytes_per_s = copy_rate()
    torch.cuda.empty_cache()
    options = StepOptions(decode_step.MAX_BATCH, prefill.MAX_STEP_TOKENS, 8192)
    rig = make_rig(options, decode_step.NUM_PAGES, capture=False)
    attempt("compare logits", lambda: compare_logits(rig))
    decode_step.run(rig, bytes_per_s, profiled=True)
    attempt("prefill", lambda: prefill.run(rig, profiled=True))
    attempt("prefill variants", lambda: prefill_variants(rig))
    attempt("decode variants", lambda: decode_variants(rig, bytes_per_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("compiled", "launched"), default="compiled")
    compile_variants.add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.part == "launched":
        launched()
    else:
        compile_variants.run(arguments)


if __name__ == "__main__":
    main()
