"""Decoding speed on the CPU: one stream beside transformers' own generate, and eight streams beside one.

    python -m bench.cpu_runner MODEL_FOLDER

Rounds of the three are interleaved, so that whatever else the machine does falls on all alike; each figure is
the median of the rounds. Prefill is not timed: `generate` is timed by the gaps between its tokens.
"""

import argparse
from collections.abc import Iterator
from statistics import median
from time import perf_counter

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from engine.memory.page import PageLayout
from engine.messages import Sampling
from engine.model_runner import attention
from engine.model_runner.batch import StepRow
from engine.model_runner.cpu_executor import CpuExecutor
from engine.model_runner.families import layout
from engine.model_runner.scratch import Scratch

PAGE_TOKENS = 16
NUM_STREAMS = 8
PROMPT_TOKENS = 32
NEW_TOKENS = 32


class Clock(BaseStreamer):
    """Notes when each token of `generate` came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(perf_counter())

    def end(self) -> None:
        pass


def reference_rate(model: PreTrainedModel, prompt: list[int]) -> float:
    """Tokens per second of transformers' generate with its cache, after the first token."""
    clock = Clock()
    ids = torch.tensor([prompt])
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        streamer=clock,
    )
    times = clock.times[1:]  # the first call brings the prompt
    return (len(times) - 1) / (times[-1] - times[0])


def paged_rate(model: PreTrainedModel, page_layout: PageLayout, prompts: list[list[int]]) -> float:
    """Tokens per second of all streams together, after their first tokens."""
    scratch = Scratch(page_layout, len(prompts), PROMPT_TOKENS + NEW_TOKENS)
    executor = CpuExecutor(
        model,
        page_layout,
        scratch.pool(torch.bfloat16, torch.device("cpu")),
        max_batch=len(prompts),
        max_model_len=scratch.num_tokens,
    )
    sampling = Sampling(max_tokens=NEW_TOKENS, temperature=0.0)
    rows = [scratch.row(slot, sampling) for slot in range(len(prompts))]
    executor.launch(
        [StepRow(row, 0, PROMPT_TOKENS, ids, sample=True) for row, ids in zip(rows, prompts, strict=True)]
    )
    start = perf_counter()
    for position in range(PROMPT_TOKENS, PROMPT_TOKENS + NEW_TOKENS - 1):
        executor.launch([StepRow(row, position, 1, None, sample=True) for row in rows]).result()
    return len(prompts) * (NEW_TOKENS - 1) / (perf_counter() - start)


def rounds(folder: str, repeats: int) -> Iterator[tuple[float, float, float]]:
    """Tokens per second of generate, of one stream, and of all streams."""
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    reference.generation_config.pad_token_id = 0
    attention.register()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation=attention.NAME
    ).eval()
    page_layout = layout(model.config, PAGE_TOKENS, torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_STREAMS, PROMPT_TOKENS)
    prompts = torch.randint(1000, 50_000, shape, generator=generator).tolist()
    for _ in range(repeats + 1):
        by_generate = reference_rate(reference, prompts[0])
        yield (
            by_generate,
            paged_rate(model, page_layout, prompts[:1]),
            paged_rate(model, page_layout, prompts),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a Hugging Face folder of a supported model")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    measured = list(rounds(args.folder, args.repeats))[1:]  # the first round warms up
    by_generate, one, many = (median(column) for column in zip(*measured, strict=True))
    print(f"| bf16, {torch.get_num_threads()} threads | tokens/s | reference | ratio | goal |")
    print("| --- | --- | --- | --- | --- |")
    print(f"| one stream | {one:.1f} | generate: {by_generate:.1f} | {one / by_generate:.2f} | 0.95 |")
    print(f"| {NUM_STREAMS} streams | {many:.1f} | one stream: {one:.1f} | {many / one:.2f} | 5 |")


if __name__ == "__main__":
    main()
