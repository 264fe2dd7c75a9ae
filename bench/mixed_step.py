"""Steps in which prompts are computed beside rows that decode, of a dummy Llama-3.1-8B on one GPU.

    python -m bench.mixed_step

A decode step and a step with one chunk take turns, as when a short prompt arrives now and then. "costs" is
what a chunk adds to the pair, in wall time, over two plain decode steps; beside it, what its tokens would
take at the rate of full prefill steps (`--rate` tokens per second).
"""

import argparse
import time
from collections import deque
from statistics import median

from bench.gpu import Rig, compiled_rig, machine
from bench.report import print_rows
from engine.model_runner.batch import StepRow
from engine.model_runner.cuda_executor import LaunchedStep
from engine.model_runner.device_step import StepOptions

CONTEXT, DECODING, MAX_BATCH = 1024, 32, 64
CHUNKS = (16, 64, 128, 256, 384, 512, 768, 1024)
PAIRS = 24


def pair_ms(rig: Rig, num_decoding: int, chunk: int) -> tuple[float, float]:
    """Median wall ms of a decode step and a step with a chunk beside it, and of launching the latter."""
    rows = rig.rows(num_decoding + 1, CONTEXT + 4 * PAIRS)
    decoding, arriving = rows[:-1], rows[-1]
    pending: deque[LaunchedStep] = deque()
    ended_s, launch_s = [], []
    for index in range(2 * PAIRS):
        ids = [7] if index == 0 else None
        steps = [StepRow(row, CONTEXT + index, 1, ids, sample=True) for row in decoding]
        if index % 2 and chunk:
            steps.append(StepRow(arriving, 0, chunk, [3 + i % 250 for i in range(chunk)], sample=True))
        began_s = time.perf_counter()
        pending.append(rig.executor.launch(steps))
        if index % 2:
            launch_s.append(time.perf_counter() - began_s)
        if len(pending) == rig.executor.depth:
            pending.popleft().result()
            ended_s.append(time.perf_counter())
    while pending:
        pending.popleft().result()
    pairs = [(b - a) * 1e3 for a, b in zip(ended_s[3::2], ended_s[5::2], strict=False)]
    return median(pairs), median(launch_s[2:]) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rate", type=float, default=42_000.0, help="tokens/s of full prefill steps")
    parser.add_argument("--decoding", type=int, nargs="+", default=[1, DECODING])
    options = parser.parse_args()
    rig = compiled_rig(StepOptions(MAX_BATCH, 2048, 8192), 1 + (MAX_BATCH + 1) * 80)
    rows = []
    for num_decoding in options.decoding:
        alone_ms, _ = pair_ms(rig, num_decoding, 0)
        for chunk in CHUNKS:
            ms, launch_ms = pair_ms(rig, num_decoding, chunk)
            rows.append(
                (f"{num_decoding}", f"{chunk}", f"{ms:.2f}", f"{alone_ms:.2f}", f"{ms - alone_ms:.2f}",
                 f"{chunk / options.rate * 1e3:.2f}", f"{launch_ms:.2f}")
            )  # fmt: skip
    print(machine())
    print_rows(("decoding", "chunk", "pair ms", "two decode", "costs", "at full rate", "launch ms"), rows)


if __name__ == "__main__":
    main()
