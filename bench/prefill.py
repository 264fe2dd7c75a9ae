"""Prefill of a dummy Llama-3.1-8B on one GPU, through the executor as a runner drives it.

    python -m bench.prefill

Prompts are packed into steps of a number of tokens; the figure is prompt tokens per second of wall time, two
steps in flight.
"""

import time
from collections import deque
from dataclasses import dataclass
from statistics import median

from bench.gpu import Rig, attempt, compiled_rig, gpu_kind, machine, print_profile
from engine.model_runner.batch import StepRow
from engine.model_runner.cuda_executor import LaunchedStep, StepOptions

MAX_STEP_TOKENS = 8192
NUM_TOKENS = 131_072  # of a measurement, or a step's rest more
MAX_PROMPTS = 32  # in a step, or on their way
VLLM_TOKENS_PER_S = {"H100": {1024: 43_750, 4096: 41_100}, "H200": {1024: 43_550, 4096: 40_450}}
CASES = ((1024, 1024), (1024, 2048), (1024, 8192), (4096, 2048), (4096, 8192))
PROFILED = (1024, 8192)


@dataclass(frozen=True, slots=True)
class Measured:
    prompt_tokens: int
    step_tokens: int
    tokens_per_s: float
    device_tokens_per_s: float
    launch_ms: float


def make_steps(
    rig: Rig, prompt_tokens: int, step_tokens: int, num_tokens: int = NUM_TOKENS
) -> list[list[StepRow]]:
    """Full steps of `step_tokens`, filled with prompts of one length in turn; what does not fit goes into the
    next step."""
    rows = rig.rows(MAX_PROMPTS, prompt_tokens)
    steps: list[list[StepRow]] = []
    prompt = start = 0
    for _ in range(-(-num_tokens // step_tokens)):
        steps.append([])
        room = step_tokens
        while room:
            chunk = min(room, prompt_tokens - start)
            ids = [(start + 17 * i) % rig.vocab_size for i in range(chunk)]
            row, end = rows[prompt % MAX_PROMPTS], start + chunk
            steps[-1].append(StepRow(row, start, chunk, ids, sample=end == prompt_tokens))
            room -= chunk
            prompt, start = (prompt + 1, 0) if end == prompt_tokens else (prompt, end)
    return steps


def compute(rig: Rig, steps: list[list[StepRow]], launch_s: list[float]) -> int:
    """Run the steps, two in flight; ns of device time."""
    pending: deque[LaunchedStep] = deque()
    device_ns = 0
    for step in steps:
        start_s = time.perf_counter()
        pending.append(rig.executor.launch(step))
        launch_s.append(time.perf_counter() - start_s)
        if len(pending) == rig.executor.depth:
            device_ns += pending.popleft().result().step_ns
    return device_ns + sum(step.result().step_ns for step in pending)


def measure(rig: Rig, prompt_tokens: int, step_tokens: int, num_tokens: int = NUM_TOKENS) -> Measured:
    steps = make_steps(rig, prompt_tokens, step_tokens, num_tokens)
    compute(rig, steps[: max(2, len(steps) // 8)], [])
    launch_s: list[float] = []
    begun = time.perf_counter()
    device_ns = compute(rig, steps, launch_s)
    wall_s = time.perf_counter() - begun
    num_tokens = len(steps) * step_tokens  # whole steps
    return Measured(
        prompt_tokens,
        step_tokens,
        num_tokens / wall_s,
        num_tokens / device_ns * 1e9,
        median(launch_s) * 1e3,
    )


def profile(rig: Rig, prompt_tokens: int, step_tokens: int) -> None:
    """What fills the time of a step, by kernel."""
    steps = make_steps(rig, prompt_tokens, step_tokens)[:6]
    compute(rig, steps, [])
    name = f"prefill, {prompt_tokens} in steps of {step_tokens}"
    print_profile(name, len(steps), lambda: compute(rig, steps, []))


def run(rig: Rig, *, profiled: bool) -> None:
    """Measure all cases and print them."""
    measured: list[Measured] = []
    for prompt_tokens, step_tokens in CASES:
        attempt(
            f"prefill {prompt_tokens} in steps of {step_tokens}",
            lambda p=prompt_tokens, s=step_tokens: measured.append(measure(rig, p, s)),
        )
    if profiled:
        attempt("profile", lambda: profile(rig, *PROFILED))
    theirs = VLLM_TOKENS_PER_S.get(gpu_kind() or "", {})
    print(f"\n{machine()}")
    print("prompt  step tokens | tokens/s  by device time  launch ms |  vLLM  ratio")
    for row in measured:
        vllm = theirs.get(row.prompt_tokens)
        beside = "" if vllm is None else f"{vllm:6d}  {row.tokens_per_s / vllm:5.3f}"
        print(
            f"{row.prompt_tokens:6d}  {row.step_tokens:11d} | {row.tokens_per_s:8.0f}  "
            f"{row.device_tokens_per_s:14.0f}  {row.launch_ms:9.2f} | {beside}"
        )


def main() -> None:
    options = StepOptions(max_batch=32, max_step_tokens=MAX_STEP_TOKENS, max_model_len=8192)
    run(compiled_rig(options, 1 + 32 * 256), profiled=True)


if __name__ == "__main__":
    main()
