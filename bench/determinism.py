"""What the deterministic mode costs on one GPU, and whether it holds, with a dummy Llama-3.1-8B.

    python -m bench.determinism [--only deterministic|fast] [--seed N]

Holds: a prompt's tokens and the log-probabilities beside them are the same bits alone, in batches of up to
256, in chunks of any length, and when what it has said is computed again as part of the prompt. Costs:
steps that decode, prefill, and the four products of a layer by number of rows, with the mode and without.
Takes about two minutes, compiling included, if the compiler's cache is warm.
"""

import argparse
import gc
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from bench import decode_step, prefill
from bench.gpu import Rig, as_graph, attempt, copy_rate, machine, make_rig, median_ms
from engine.messages import Sampling, TokenLogprobs
from engine.model_runner.batch import Row, StepRow
from engine.model_runner.cuda_executor import StepOptions
from engine.model_runner.kernels.invariant_linear import invariant_linear
from engine.model_runner.kernels.linear import LinearProduct

PROMPT_TOKENS, NEW_TOKENS, SAID_AGAIN = 700, 24, 11
BATCHES = (2, 17, 64, 200, 256)
CHUNKINGS = 6
DECODE_CASES = ((1, 1024), (16, 1024), (64, 1024), (256, 1024), (64, 4096))
PREFILL_CASE = (1024, 2048)
LAYER_PRODUCTS = ((6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336))
PRODUCT_ROWS = (1, 16, 64, 128, 256, 512, 2048)
NUM_PAGES = 1 + 256 * 73
MODES = {"deterministic": True, "fast": False}


Answer = list[tuple[int | None, TokenLogprobs]]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to be answered in one way or another; `said` are tokens of its answer that it already has."""

    ids: Sequence[int]
    said: Sequence[int] = ()

    def chunks(self, sizes: Sequence[int]) -> list[tuple[int, list[int]]]:
        """(start, ids) of chunks of these sizes, which sum up to all."""
        ids = [*self.ids, *self.said]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [(start, ids[start : start + size]) for start, size in zip(starts, sizes, strict=True)]


def answer(
    rig: Rig, prompt: Prompt, sizes: Sequence[int], others: Sequence[tuple[Row, int]], slot: int
) -> Answer:
    """The prompt's tokens after `said`, computed in chunks of `sizes` while `others` decode, each a row and
    where it begins."""
    each = rig.layout.num_pages(PROMPT_TOKENS + NEW_TOKENS)
    pages = rig.pages[-each * (slot + 1) :][:each]
    row = Row(slot, Sampling(max_tokens=NEW_TOKENS, temperature=0.0, logprobs=20), len(prompt.ids), [pages])
    chunks = prompt.chunks(sizes)
    answers = []
    for i in range(len(chunks) + NEW_TOKENS - len(prompt.said) - 1):
        ids: list[int] | None = None
        start = len(prompt.ids) + len(prompt.said) + i - len(chunks)
        if i < len(chunks):
            start, ids = chunks[i]
        sample = i >= len(chunks) - 1
        step = [StepRow(other, first + i, 1, [7] if i == 0 else None, sample=True) for other, first in others]
        step.insert(len(step) // 2, StepRow(row, start, len(ids) if ids else 1, ids, sample=sample))
        result = rig.executor.launch(step).result()
        if sample:
            mine = len(others) // 2
            answers.append((result.tokens[mine], result.logprobs[mine]))
    return answers


def random_sizes(rng: random.Random, total: int) -> list[int]:
    """Chunks of one token, of a few, and of many."""
    sizes = []
    while total:
        size = min(total, rng.choice((1, rng.randrange(2, 40), rng.randrange(40, 400))))
        sizes.append(size)
        total -= size
    return sizes


def check(rig: Rig, seed: int) -> list[str]:
    """How many answers, computed in other ways than alone, are the same bits."""
    rng = random.Random(seed)
    ids = [rng.randrange(rig.vocab_size) for _ in range(PROMPT_TOKENS)]
    prompt = Prompt(ids)
    alone = answer(rig, prompt, [PROMPT_TOKENS], [], slot=0)
    said = [token for token, _ in alone[:SAID_AGAIN] if token is not None]

    def way(name: str, sizes: Sequence[int], beside: int = 0, again: Sequence[int] = ()) -> str:
        others = [(row, rng.randrange(700)) for row in rig.rows(beside + 1, 800)[1:]]
        found = answer(rig, Prompt(ids, again), sizes, others, slot=0)
        return f"  {'same bits' if found == alone[len(again) :] else 'DIFFERENT'}  {name}"

    lines = [way("alone again", [PROMPT_TOKENS])]
    lines += [way(f"in a batch of {batch}", [PROMPT_TOKENS], batch - 1) for batch in BATCHES]
    for _ in range(CHUNKINGS):
        sizes, beside = random_sizes(rng, PROMPT_TOKENS), rng.randrange(100)
        lines.append(way(f"in {len(sizes)} chunks beside {beside}", sizes, beside))
        sizes = random_sizes(rng, PROMPT_TOKENS + SAID_AGAIN)
        lines.append(way(f"{SAID_AGAIN} tokens computed again in {len(sizes)} chunks", sizes, 0, said))
    return lines


def step_rows(rig: Rig, bytes_per_s: float) -> dict[str, float]:
    """Milliseconds of a decode step by case, and prefill's tokens per second."""
    rows = {}
    for batch, context in DECODE_CASES:
        rows[f"decode {batch} x {context}, ms"] = decode_step.measure(
            rig, batch, context, bytes_per_s
        ).wall_ms
    rows["prefill of 1,024 in steps of 2,048, tokens/s"] = prefill.measure(rig, *PREFILL_CASE).tokens_per_s
    return rows


def products() -> list[str]:
    """Microseconds of a layer's products by number of rows, by this mode, without it, and by the library."""
    weights = [
        torch.randn(shape, dtype=torch.bfloat16, device="cuda") * shape[1] ** -0.5 for shape in LAYER_PRODUCTS
    ]
    fast = LinearProduct(torch.device("cuda"))
    lines = ["rows | deterministic  fast  library, us for the products of a layer"]
    for rows in PRODUCT_ROWS:
        inputs = [
            torch.randn(rows, weight.shape[1], dtype=torch.bfloat16, device="cuda") for weight in weights
        ]

        def us(
            compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], given: list[torch.Tensor]
        ) -> float:
            def run() -> None:
                for x, weight in zip(given, weights, strict=True):
                    compute(x, weight)

            return median_ms(as_graph(run)) * 1e3

        figures = [us(compute, inputs) for compute in (invariant_linear, fast, F.linear)]
        lines.append(f"{rows:4d} | {figures[0]:13.1f} {figures[1]:5.1f}  {figures[2]:7.1f}")
    return lines


def products_hold() -> str:
    """Whether the rows of a product are the same bits among any number of others."""
    different: list[str] = []
    for features, width in LAYER_PRODUCTS:
        weight = torch.randn(features, width, dtype=torch.bfloat16, device="cuda")
        x = torch.randn(2048, width, dtype=torch.bfloat16, device="cuda")
        whole = invariant_linear(x, weight)
        different += [
            f"{rows} rows by {features} x {width}"
            for rows in (1, 2, 16, 17, 33, 64, 65, 129, 256, 257, 512, 1024, 1025)
            if not torch.equal(invariant_linear(x[:rows], weight), whole[:rows])
        ]
    return "products: " + (
        "the same bits for all numbers of rows" if not different else f"DIFFERENT {different}"
    )


def measure(mode: str, seed: int, bytes_per_s: float) -> tuple[list[str], dict[str, float]]:
    """Check and time a model in one mode; all of it is gone from the GPU afterwards."""
    options = StepOptions(
        max_batch=256, max_step_tokens=2048, max_model_len=131_072, deterministic=MODES[mode]
    )
    lines: list[str] = []
    rows: dict[str, float] = {}
    rig = make_rig(options, NUM_PAGES)
    attempt(f"{mode}: check", lambda: lines.extend(check(rig, seed)))
    attempt(f"{mode}: steps", lambda: rows.update(step_rows(rig, bytes_per_s)))
    return lines, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=MODES)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    arguments = parser.parse_args()
    report = [machine(), f"seed {arguments.seed}"]
    attempt("products hold", lambda: report.append(products_hold()))
    attempt("products", lambda: report.extend(products()))
    bytes_per_s = copy_rate()
    timed: dict[str, dict[str, float]] = {}
    for mode in [arguments.only] if arguments.only else MODES:
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
        lines, timed[mode] = measure(mode, arguments.seed, bytes_per_s)
        report += [f"{mode}:", *lines]
    print("\n" + "\n".join(report))
    for name in next(iter(timed.values())):
        figures = [rows[name] for rows in timed.values() if name in rows]
        ratio = f"  {figures[0] / figures[1]:5.3f}" if len(figures) == 2 else ""
        print(f"{name:46s} " + "  ".join(f"{figure:9.2f}" for figure in figures) + ratio)


if __name__ == "__main__":
    main()
