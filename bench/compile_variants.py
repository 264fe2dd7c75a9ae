"""What the choices of `engine.model_runner.compiling` are worth in whole steps, and how long steps should be.

The model is compiled once for each variant. All share its weights and pool, and take turns. Beside each
figure: what was predicted before it was first measured, for all 32 layers on an H200.
"""

import argparse
import time
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from unittest.mock import patch

import torch
import torch._dynamo.config

from bench import decode_step, prefill
from bench.gpu import Rig, attempt, copy_rate, machine, make_rig
from engine.messages import Sampling
from engine.model_runner import device_step
from engine.model_runner.batch import Row, StepRow
from engine.model_runner.compiling import CompileChoices, compiled
from engine.model_runner.cuda_executor import StepOptions
from engine.model_runner.step_plan import plan_step

PROMPT_TOKENS, STEP_TOKENS = 1024, 8192
# 66 tiles of 128 rows: 132 multiprocessors share the tiles of products 4,096 and 6,144 wide evenly.
EVEN_STEPS = (8448, 16_896)
DECODE_CASE = (64, 1024)
_ROUNDS = 2
_NUM_TOKENS = 65_536  # of a measurement


@dataclass(slots=True)
class Variant:
    """A way to compile the model; `steps` of so many tokens are measured beside those of `STEP_TOKENS`."""

    choices: CompileChoices
    predicted_tokens_per_s: int
    predicted_decode_ms: float
    steps: tuple[int, ...] = (STEP_TOKENS,)
    rates: dict[int, list[float]] = field(default_factory=dict)
    decode_ms: list[float] = field(default_factory=list)


def variants() -> dict[str, Variant]:
    """By name; the first is what the others are compared with."""
    return {
        "none": Variant(CompileChoices(False, False, 0), 43_005, 7.05),
        "rows kept early": Variant(CompileChoices(True, False, 0), 44_200, 7.05),
        "residual in products": Variant(CompileChoices(False, True, 0), 43_570, 7.03),
        "rows in one pass": Variant(CompileChoices(False, False, 8192), 43_250, 7.05),
        "all three": Variant(CompileChoices(True, True, 8192), 44_850, 7.03, (STEP_TOKENS, *EVEN_STEPS)),
    }


def compile_variant(rig: Rig, options: StepOptions, choices: CompileChoices) -> Rig:
    with patch.object(device_step, "compiled", partial(compiled, choices=choices)):
        made = rig.compiled_again(options)
    made.executor.capture(lambda stage, fraction: None, (DECODE_CASE[0],))
    return made


def decode_logits(rig: Rig) -> torch.Tensor:
    """Logits of a decode step, replayed."""
    batch, context = DECODE_CASE
    sampling = Sampling(max_tokens=1, temperature=1.0)
    rows = [Row(row.slot, sampling, context, row.page_tables) for row in rig.rows(batch, context + 16)]
    rig.executor.launch([StepRow(row, context, 1, [7 + row.slot], sample=True) for row in rows]).result()
    return rig.executor._step.logits[:batch].float()


def prefill_logits(rig: Rig) -> torch.Tensor:
    rows = prefill.make_steps(rig, PROMPT_TOKENS, STEP_TOKENS)[0]
    step = rig.executor._step
    with rig.executor._on_stream(), torch.inference_mode():
        step.state.update(rows)
        logits = step.mixed(plan_step(rows, [], step.state.padding_slot)).float()
    torch.cuda.synchronize()
    return logits


def compare(name: str, rig: Rig, base: Rig) -> None:
    """How far logits are from those of the first variant, which differ by roundings."""
    parts = []
    for what, logits in (("prefill", prefill_logits), ("decode", decode_logits)):
        want = logits(base)
        parts.append(f"{what} {float((logits(rig) - want).norm() / want.norm()):.1e}")
    print(f"  logits of {name}, off by: {', '.join(parts)}", flush=True)


def measure(variant: Variant, rig: Rig, bytes_per_s: float) -> None:
    for step_tokens in variant.steps:
        rate = prefill.measure(rig, PROMPT_TOKENS, step_tokens, _NUM_TOKENS).tokens_per_s
        variant.rates.setdefault(step_tokens, []).append(rate)
    variant.decode_ms.append(decode_step.measure(rig, *DECODE_CASE, bytes_per_s).wall_ms)


def show(chosen: dict[str, Variant]) -> None:
    print(f"\n{machine()}; {PROMPT_TOKENS}-token prompts; decode {DECODE_CASE[0]} x {DECODE_CASE[1]}")
    print("variant                step tokens | tokens/s  ms/step  predicted | decode ms  predicted")
    for name, variant in chosen.items():
        for step_tokens, rates in variant.rates.items():
            rate = median(rates)
            line = f"{name:22s} {step_tokens:11d} | {rate:8.0f}  {step_tokens / rate * 1e3:7.2f}"
            if step_tokens == STEP_TOKENS:
                line += f"  {variant.predicted_tokens_per_s:9d} | {median(variant.decode_ms):9.3f}"
                line += f"  {variant.predicted_decode_ms:9.2f}"
            print(line)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, help="of the model, instead of all 32")
    parser.add_argument("--only", nargs="+", choices=variants(), metavar="NAME", help="these variants")
    parser.add_argument("--profile", action="store_true", help="show what fills a prefill step of each")


def run(arguments: argparse.Namespace) -> None:
    start = time.perf_counter()
    torch._dynamo.config.recompile_limit = 64  # the same code is compiled for each variant
    bytes_per_s = copy_rate()
    torch.cuda.empty_cache()
    names = arguments.only or [*variants()]
    chosen = {name: variant for name, variant in variants().items() if name in names}
    batch, context = DECODE_CASE
    options = StepOptions(batch, max(EVEN_STEPS), 2048)
    num_pages = 1 + batch * (-(-(context + decode_step.NUM_STEPS) // 16) + 1)
    plain = StepOptions(2, 64, 2048, compile=False)  # an executor that is never run
    made = make_rig(plain, num_pages, capture=False, num_layers=arguments.layers)
    rigs: dict[str, Rig] = {}

    def prepare(name: str) -> None:
        rigs[name] = compile_variant(made, options, chosen[name].choices)
        compare(name, rigs[name], next(iter(rigs.values())))

    for name in chosen:
        attempt(f"compile {name}", partial(prepare, name))
    for _ in range(_ROUNDS):
        for name, rig in rigs.items():
            attempt(f"measure {name}", partial(measure, chosen[name], rig, bytes_per_s))
    show(chosen)
    print(f"[all: {time.perf_counter() - start:.0f} s]", flush=True)
    if arguments.profile:
        for name, rig in rigs.items():
            print(name)
            attempt("profile", partial(prefill.profile, rig, PROMPT_TOKENS, STEP_TOKENS))
