"""Decode steps of a dummy Llama-3.1-8B on one GPU, through the executor as a runner drives it.

    python -m bench.decode_step [--prefill] [--profile] [--no-compile]

Every batch decodes 128 tokens from its context, two steps in flight; the figure is wall time per step. Beside
it: vLLM 0.23.0's step on the same kind of GPU, and the least time in which the weights and the contexts can
be read at the copy rate of this run.
"""

import argparse
import time
from collections import deque
from dataclasses import dataclass
from statistics import median

import torch

from bench import prefill
from bench.gpu import Rig, attempt, compiled_rig, copy_rate, gpu_kind, machine, print_profile
from engine.model_runner.batch import Row, StepResult, StepRow
from engine.model_runner.cuda_executor import LaunchedStep, StepOptions

NUM_STEPS = 128
MAX_BATCH = 256
NUM_PAGES = 1 + 256 * 73

# (batch, context) -> ms of vLLM 0.23.0's whole step, contexts growing by 128 tokens
VLLM_MS = {
    "H100": {(1, 1024): 6.50, (16, 1024): 7.32, (64, 1024): 10.33, (128, 1024): 14.05, (256, 1024): 21.58,
             (64, 4096): 18.37},
    "H200": {(1, 1024): 4.98, (16, 1024): 5.65, (64, 1024): 7.91, (128, 1024): 11.20, (256, 1024): 18.81,
             (64, 4096): 13.91},
}  # fmt: skip
PROFILED = ((1, 1024), (64, 1024), (256, 1024), (64, 4096))
CASES = tuple(VLLM_MS["H100"])


@dataclass(frozen=True, slots=True)
class Measured:
    batch: int
    context: int
    wall_ms: float
    device_ms: float
    idle_share: float
    launch_ms: float  # host time of `launch`
    limit_ms: float


def decode(
    rig: Rig, rows: list[Row], context: int, num_steps: int, launch_s: list[float]
) -> tuple[list[StepResult], list[float]]:
    """Decode from random last tokens; results, and when each reached the host."""
    pending: deque[LaunchedStep] = deque()
    results, times = [], []

    def take() -> None:
        results.append(pending.popleft().result())
        times.append(time.perf_counter())

    for i in range(num_steps):
        start = time.perf_counter()
        ids = [7] if i == 0 else None
        pending.append(rig.executor.launch([StepRow(row, context + i, 1, ids, sample=True) for row in rows]))
        launch_s.append(time.perf_counter() - start)
        if len(pending) == rig.executor.depth:
            take()
    while pending:
        take()
    return results, times


def measure(rig: Rig, batch: int, context: int, bytes_per_s: float) -> Measured:
    rows = rig.rows(batch, context + NUM_STEPS)
    launch_s: list[float] = []
    results, times = decode(rig, rows, context, NUM_STEPS, launch_s)
    settled = slice(8, None)
    steps = results[settled]
    wall_s = times[-1] - times[7]
    token_bytes = rig.layout.page_bytes // rig.layout.page_tokens
    kv_bytes = batch * (context + (8 + NUM_STEPS) / 2) * token_bytes
    busy_ns = sum(step.step_ns for step in steps)
    idle_ns = sum(step.idle_ns for step in steps)
    return Measured(
        batch,
        context,
        wall_s / len(steps) * 1e3,
        median(step.step_ns for step in steps) / 1e6,
        idle_ns / (busy_ns + idle_ns),
        median(launch_s[settled]) * 1e3,
        (rig.weight_bytes + kv_bytes) / bytes_per_s * 1e3,
    )


def profile(rig: Rig, batch: int, context: int) -> None:
    """What fills the time of one slice, by kernel."""
    rows = rig.rows(batch, context + 32)
    decode(rig, rows, context, 8, [])
    print_profile(f"decode, batch {batch}, context {context}", 16, lambda: decode(rig, rows, context, 16, []))


def print_table(measured: list[Measured], bytes_per_s: float) -> None:
    kind = gpu_kind()
    theirs = VLLM_MS.get(kind or "", {})
    print(f"\n{machine()}; copy {bytes_per_s / 1e12:.2f} TB/s; medians and means of {NUM_STEPS - 8} steps")
    print("batch context |   wall  device  launch   idle |   vLLM  ratio | limit  share")
    for row in measured:
        vllm = theirs.get((row.batch, row.context))
        beside = "     -      -" if vllm is None else f"{vllm:6.2f}  {row.wall_ms / vllm:5.3f}"
        print(
            f"{row.batch:5d} {row.context:7d} | {row.wall_ms:6.2f}  {row.device_ms:6.2f}  "
            f"{row.launch_ms:6.3f} {row.idle_share:6.2%} | {beside} | "
            f"{row.limit_ms:5.2f}  {row.limit_ms / row.wall_ms:5.3f}"
        )


def run(rig: Rig, bytes_per_s: float, *, profiled: bool) -> None:
    """Measure all cases and print them."""
    measured: list[Measured] = []
    for batch, context in CASES:
        attempt(
            f"decode {batch} x {context}",
            lambda b=batch, c=context: measured.append(measure(rig, b, c, bytes_per_s)),
        )
    if profiled:
        for batch, context in PROFILED:
            attempt("profile", lambda b=batch, c=context: profile(rig, b, c))
    print_table(measured, bytes_per_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prefill", action="store_true", help="measure prefill with the same model")
    parser.add_argument("--profile", action="store_true", help="show what fills a step")
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    bytes_per_s = copy_rate()
    torch.cuda.empty_cache()
    options = StepOptions(MAX_BATCH, prefill.MAX_STEP_TOKENS, 8192, compile=not arguments.no_compile)
    rig = compiled_rig(options, NUM_PAGES)
    run(rig, bytes_per_s, profiled=arguments.profile)
    if arguments.prefill:
        attempt("prefill", lambda: prefill.run(rig, profiled=arguments.profile))
    attempt("cost model", lambda: print(rig.executor.measure_cost()))


if __name__ == "__main__":
    main()
