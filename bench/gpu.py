"""What the GPU benchmarks share: the machine's own limit, a dummy Llama-3.1-8B, and its executor."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import median

import torch
from transformers import PreTrainedModel

from engine.memory.page import PageLayout
from engine.messages import Sampling
from engine.model_runner.batch import Row
from engine.model_runner.compile_cache import use_compile_cache
from engine.model_runner.cuda_executor import CudaExecutor, StepOptions
from engine.model_runner.grammar import Grammars

SHAPE = "llama-3.1-8b"
PAGE_TOKENS = 16


def machine() -> str:
    properties = torch.cuda.get_device_properties(0)
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{properties.name}, torch {torch.__version__}, {when}"


def gpu_kind() -> str | None:
    """The column of peers' rows that this GPU is compared with."""
    name = torch.cuda.get_device_name(0)
    return next((kind for kind in ("H100", "H200") if kind in name), None)


def attempt(what: str, run: Callable[[], None]) -> None:
    """Run a stage; one that fails is reported, and the rest goes on."""
    start = time.perf_counter()
    try:
        run()
    except Exception:
        print(f"FAILED: {what}\n{traceback.format_exc(limit=-6)}", flush=True)
    print(f"[{what}: {time.perf_counter() - start:.1f} s]", flush=True)


def median_ms(run: Callable[[], None], repeats: int = 15, warmup: int = 3) -> float:
    """Median device time of `run` in ms."""
    for _ in range(warmup):
        run()
    pairs = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)
    ]
    for start, end in pairs:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return median(start.elapsed_time(end) for start, end in pairs)


def as_graph(run: Callable[[], None]) -> Callable[[], None]:
    """The same work, replayed from a CUDA graph."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def print_profile(name: str, num_steps: int, run: Callable[[], object]) -> None:
    """The kernels in which `run` spends most of the GPU's time."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        run()
    print(f"profile of {num_steps} steps, {name}:")
    kernels = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    total_us = sum(event.self_device_time_total for event in kernels)
    print(f"  all of it {total_us / num_steps:8.1f} us/step")
    for event in kernels[:16]:
        share = event.self_device_time_total / total_us
        per_step_us = event.self_device_time_total / num_steps
        print(f"  {share:6.1%} {per_step_us:8.1f} us/step {event.count / num_steps:6.1f} x  {event.key[:80]}")


def copy_rate() -> float:
    """Bytes per second of a large copy inside the GPU, read and write counted."""
    block = torch.empty(2, 2**31, dtype=torch.uint8, device="cuda").random_()
    ms = median_ms(lambda: block[0].copy_(block[1]))
    return 2 * block[0].nbytes / ms * 1e3


def random_pool(layout: PageLayout, num_pages: int, scale: float = 1.0) -> torch.Tensor:
    """A pool full of random numbers."""
    shape = (
        num_pages, layout.layers_per_page, 2, layout.page_tokens, layout.kv_heads, layout.head_dim,
    )  # fmt: skip
    return fill(torch.empty(shape, dtype=torch.bfloat16, device="cuda"), scale)


def fill(pool: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Put random numbers into a pool."""
    for part in pool.split(1024):
        part.normal_(std=scale)
    return pool


@dataclass(slots=True)
class Rig:
    """An executor over a pool, and its pages in random order."""

    executor: CudaExecutor
    model: PreTrainedModel
    pool: torch.Tensor
    layout: PageLayout
    pages: list[int]
    weight_bytes: int  # read in every step: all but the embedding
    vocab_size: int

    def rows(self, num_rows: int, num_tokens: int) -> list[Row]:
        """Greedy rows with pages for `num_tokens` each."""
        each = self.layout.num_pages(num_tokens)
        assert num_rows * each <= len(self.pages), "the pool is too small"
        sampling = Sampling(max_tokens=num_tokens, temperature=0.0)
        return [
            Row(slot, sampling, num_tokens, [self.pages[slot * each : (slot + 1) * each]])
            for slot in range(num_rows)
        ]

    def compiled_again(self, options: StepOptions) -> "Rig":
        """The same model and pool in an executor of their own, nothing captured."""
        executor = CudaExecutor(self.model, self.layout, self.pool, options, stream=torch.cuda.Stream())
        executor.prepare(lambda stage, fraction: None, capture=False)
        return replace(self, executor=executor)


def make_rig(
    options: StepOptions,
    num_pages: int,
    *,
    capture: bool = True,
    grammars: Grammars | None = None,
    num_layers: int | None = None,
    make_pool: Callable[[PageLayout, int], torch.Tensor] = random_pool,
) -> Rig:
    """A dummy model of the Llama-3.1-8B shape, or of so many of its layers, ready to run. Says how long each
    part took."""
    from engine.model_runner import attention, families
    from engine.model_runner.sources.cache import cache_root
    from engine.model_runner.sources.dummy import dummy_config, random_model

    use_compile_cache(cache_root(None))
    start = time.perf_counter()

    def took(what: str) -> None:
        nonlocal start
        torch.cuda.synchronize()
        print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)
        start = time.perf_counter()

    config = dummy_config(SHAPE)
    if num_layers is not None:
        config.num_hidden_layers = num_layers
    model = random_model(config, device=torch.device("cuda"), dtype=torch.bfloat16, seed=0)
    model.eval().requires_grad_(False)
    attention.register()
    model.set_attn_implementation(attention.NAME)
    took("random weights")
    layout = families.layout(config, PAGE_TOKENS, torch.bfloat16)
    pool = make_pool(layout, num_pages)
    took(f"pool of {pool.nbytes / 2**30:.1f} GiB")
    stages: list[str] = []

    def on_progress(stage: str, fraction: float | None) -> None:
        if stage not in stages:
            if stages:
                took(stages[-1])
            stages.append(stage)

    executor = CudaExecutor(model, layout, pool, options, stream=torch.cuda.Stream(), grammars=grammars)
    executor.prepare(on_progress, capture=capture)
    took(stages[-1])
    total = sum(parameter.nbytes for parameter in model.parameters())
    embedding = model.get_input_embeddings().weight.nbytes
    pages = (torch.randperm(num_pages - 1) + 1).tolist()
    return Rig(executor, model, pool, layout, pages, total - embedding, config.vocab_size)


def compiled_rig(options: StepOptions, num_pages: int, *, grammars: Grammars | None = None) -> Rig:
    """`make_rig`, without compiling if that fails."""
    try:
        return make_rig(options, num_pages, grammars=grammars)
    except Exception:
        print(f"FAILED with torch.compile, going on without\n{traceback.format_exc(limit=-8)}", flush=True)
    torch.cuda.empty_cache()
    plain = StepOptions(options.max_batch, options.max_step_tokens, options.max_model_len, compile=False)
    return make_rig(plain, num_pages, grammars=grammars)
