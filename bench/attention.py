"""The paged kernels alone on one GPU, at the Llama-3.1-8B shape (32 layers, 32 query and 8 KV heads of 128).

    python -m bench.attention

Decode: bytes of K and V read per second, beside the copy rate of this run; 32 layers a graph replay, random
pages over the whole pool. Prefill: arithmetic rate, beside torch's own attention on the same tensors. Moves:
scattered 2 MiB pages inside the GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu import as_graph, attempt, copy_rate, machine, median_ms, random_pool
from engine.memory.page import PageLayout, make_layout
from engine.model_runner.kernels.decode import decode_attention, decode_scratch
from engine.model_runner.kernels.decode_plan import WORK_FIELDS, SplitPolicy, plan_decode
from engine.model_runner.kernels.moves import move_pages
from engine.model_runner.kernels.paged import Plane
from engine.model_runner.kernels.prefill import (
    TILE_FIELDS,
    TILE_ROWS,
    prefill_attention,
    tile_tokens,
    tiles_of,
)

LAYERS, HEADS, KV_HEADS, HEAD_DIM, PAGE_TOKENS = 32, 32, 8, 128, 16
LAYOUT: PageLayout = make_layout(
    [None] * LAYERS, page_tokens=PAGE_TOKENS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, element_bytes=2
)
TOKEN_BYTES = LAYOUT.page_bytes // PAGE_TOKENS
NUM_PAGES = 20_000
DECODE_CASES = ((1, 1088), (16, 1088), (64, 1088), (128, 1088), (256, 1088), (64, 4096), (1, 131_072))
PREFILL_CASES = ((8, 1024), (2, 4096), (1, 8192))
DEVICE = torch.device("cuda")


@dataclass(frozen=True, slots=True)
class Rate:
    name: str
    ms: float
    rate: float


def decode_run(
    pool: torch.Tensor, batch: int, context: int, *, programs: int = 512, **tuning: int
) -> Callable[[], None]:
    """32 layers of decode attention as a graph."""
    pages_each = LAYOUT.num_pages(context)
    pages = torch.randperm(len(pool) - 1, device=DEVICE)[: batch * pages_each] + 1
    tables = pages.view(batch, pages_each).int()
    query = torch.randn(batch, HEADS, HEAD_DIM, device=DEVICE, dtype=torch.bfloat16)
    key, value = torch.randn(2, batch, KV_HEADS, HEAD_DIM, device=DEVICE, dtype=torch.bfloat16)
    policy = SplitPolicy(KV_HEADS, programs)
    work = torch.zeros(1, policy.max_items(batch), WORK_FIELDS, dtype=torch.int32, device=DEVICE)
    positions = torch.full((batch,), context - 1, device=DEVICE)
    slots = torch.arange(batch, device=DEVICE)
    plan_decode(slots, positions, torch.tensor([2**30], dtype=torch.int32, device=DEVICE), work, policy)
    scratch = decode_scratch(policy, batch, HEADS, HEAD_DIM, DEVICE)
    out = torch.empty_like(query)

    def run() -> None:
        for plane in range(LAYERS):
            decode_attention(
                query, key, value, Plane(pool, plane, tables), work[0], scratch, out, policy,
                scale=HEAD_DIM**-0.5, **tuning,
            )  # fmt: skip

    return as_graph(run)


def decode_rate(pool: torch.Tensor, batch: int, context: int, **tuning: int) -> Rate:
    ms = median_ms(decode_run(pool, batch, context, **tuning))
    return Rate(f"{batch} x {context}", ms, batch * context * TOKEN_BYTES / ms * 1e3)


def plan_us(batch: int) -> float:
    policy = SplitPolicy(KV_HEADS)
    work = torch.zeros(1, policy.max_items(batch), WORK_FIELDS, dtype=torch.int32, device=DEVICE)
    positions = torch.full((batch,), 1000, device=DEVICE)
    slots = torch.arange(batch, device=DEVICE)
    windows = torch.tensor([2**30], dtype=torch.int32, device=DEVICE)

    def run() -> None:
        for _ in range(20):
            plan_decode(slots, positions, windows, work, policy)

    return median_ms(as_graph(run)) / 20 * 1e3


def prefill_flops(prompts: int, tokens: int) -> float:
    """Of one layer: two products over the causal half."""
    return 4 * prompts * HEADS * HEAD_DIM * tokens * (tokens + 1) / 2


def prefill_rate(
    pool: torch.Tensor, prompts: int, tokens: int, prefix: int = 0, *, rows: int = TILE_ROWS, **tuning: int
) -> Rate:
    """One layer of whole prompts, or of chunks that follow `prefix` tokens in pages."""
    total = prompts * tokens
    query = torch.randn(total, HEADS, HEAD_DIM, device=DEVICE, dtype=torch.bfloat16)
    key, value = torch.randn(2, total, KV_HEADS, HEAD_DIM, device=DEVICE, dtype=torch.bfloat16)
    pages_each = LAYOUT.num_pages(prefix + tokens)
    tables = (
        (torch.randperm(len(pool) - 1, device=DEVICE)[: prompts * pages_each] + 1).view(prompts, -1).int()
    )
    chunks = [(i * tokens, tokens, prefix, i) for i in range(prompts)]
    tiles = torch.tensor(
        tiles_of(chunks, tile_tokens(HEADS // KV_HEADS, rows)), dtype=torch.int32, device=DEVICE
    )
    assert tiles.shape[1] == TILE_FIELDS
    out = torch.empty_like(query)

    def run() -> None:
        prefill_attention(
            query, key, value, Plane(pool, 3, tables), tiles, out, scale=HEAD_DIM**-0.5, rows=rows, **tuning
        )  # fmt: skip

    ms = median_ms(as_graph(run))
    flops = prefill_flops(prompts, tokens) + 4 * total * prefix * HEADS * HEAD_DIM
    return Rate(f"{prompts} x {tokens} after {prefix}", ms, flops / ms * 1e3)


def sdpa_rate(backend: SDPBackend, prompts: int, tokens: int) -> Rate:
    query = torch.randn(prompts, HEADS, tokens, HEAD_DIM, device=DEVICE, dtype=torch.bfloat16)
    key, value = torch.randn(2, prompts, KV_HEADS, tokens, HEAD_DIM, device=DEVICE, dtype=torch.bfloat16)
    with sdpa_kernel(backend):
        ms = median_ms(
            lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        )
    return Rate(f"{backend.name} {prompts} x {tokens}", ms, prefill_flops(prompts, tokens) / ms * 1e3)


def move_rate(programs: int) -> Rate:
    pool = torch.randint(0, 2**31 - 1, (2, 2048, 2**19), dtype=torch.int32, device=DEVICE)
    src, dst = (torch.randperm(2048, device=DEVICE) for _ in range(2))
    ms = median_ms(lambda: move_pages(pool[0], pool[1], src, dst, programs=programs))
    return Rate(f"moves, {programs} programs", ms, pool[0].nbytes / ms * 1e3)


def main() -> None:
    bytes_per_s = copy_rate()
    torch.cuda.empty_cache()
    print(f"{machine()}; copy {bytes_per_s / 1e12:.3f} TB/s", flush=True)
    lines: list[str] = []
    for programs in (8, 16, 32):
        attempt("moves", lambda n=programs: lines.append(_bytes_line(move_rate(n), None)))
    torch.cuda.empty_cache()
    pool = random_pool(LAYOUT, NUM_PAGES)
    for batch, context in DECODE_CASES:
        attempt(
            f"decode {batch} x {context}",
            lambda b=batch, c=context: lines.append(_bytes_line(decode_rate(pool, b, c), bytes_per_s)),
        )
    for batch in (2, 64, 256):
        attempt("plan", lambda b=batch: lines.append(f"plan of {b} rows: {plan_us(b):.1f} us"))
    for prompts, tokens in PREFILL_CASES:
        attempt("prefill", lambda p=prompts, t=tokens: lines.append(_flops_line(prefill_rate(pool, p, t))))
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            attempt(
                "sdpa", lambda b=backend, p=prompts, t=tokens: lines.append(_flops_line(sdpa_rate(b, p, t)))
            )
    attempt("chunk", lambda: lines.append(_flops_line(prefill_rate(pool, 1, 2048, 6144))))
    print("\n".join(lines))


def _bytes_line(rate: Rate, limit: float | None) -> str:
    share = "" if limit is None else f"  {rate.rate / limit:.3f} of copy"
    return f"{rate.name:20s} {rate.ms:8.3f} ms  {rate.rate / 1e12:6.3f} TB/s{share}"


def _flops_line(rate: Rate) -> str:
    return f"prefill {rate.name:32s} {rate.ms:7.3f} ms  {rate.rate / 1e12:6.0f} TFLOP/s"


if __name__ == "__main__":
    main()
