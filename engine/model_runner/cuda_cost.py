"""What a step costs on a GPU, measured without touching a page that may hold a context."""

from statistics import median

import torch

from engine.memory.page import PageLayout
from engine.messages import CostModel, Sampling
from engine.model_runner.batch import Executor, Row, StepRow
from engine.model_runner.device_clock import between_ns, cuda_mark
from engine.model_runner.kernels.step_buffers import StepLimits
from engine.model_runner.prefill_cost import fit_prefill

_REPEATS = 5
_MANY_TOKENS, _FEW_TOKENS = 1024, 256  # a chunk alone, and one beside rows that decode
_MIXED_ROWS = 32
_COPY_BYTES = 2**28
_READ_SHARE = 0.92  # of the copy rate that paged attention reaches


def measure_cost(executor: Executor, layout: PageLayout, limits: StepLimits, pool: torch.Tensor) -> CostModel:
    """Time steps of rows whose page tables name page 0 only; reading context is charged by the rate at which
    the device copies, because such rows would find theirs in the cache."""
    greedy = Sampling(max_tokens=1, temperature=0.0)
    tables = [[0] * (limits.max_pages - 1) for _ in layout.groups]
    rows = [Row(slot, greedy, num_prompt=1, page_tables=tables) for slot in range(limits.max_batch)]

    def step_ns(steps: list[StepRow]) -> float:
        executor.launch(steps).result()
        return median(executor.launch(steps).result().step_ns for _ in range(_REPEATS))

    def decode(num_rows: int) -> float:
        return step_ns([StepRow(row, 0, 1, [0], sample=True) for row in rows[:num_rows]])

    def prefill(num_tokens: int, num_decoding: int) -> float:
        decoding = [StepRow(row, 0, 1, [0], sample=True) for row in rows[1 : 1 + num_decoding]]
        return step_ns([*decoding, StepRow(rows[0], 0, num_tokens, [0] * num_tokens, sample=True)])

    most = min(limits.max_step_tokens, limits.max_pages * layout.page_tokens // 2)
    num_mixed = min(_MIXED_ROWS, len(rows) - 1)
    num_many, num_few = min(_MANY_TOKENS, most), max(1, min(_FEW_TOKENS, most - num_mixed))
    one_ns = decode(1)
    decode_ns = max(1.0, (decode(len(rows)) - one_ns) / max(1, len(rows) - 1))
    many_ns = prefill(num_many, 0) - one_ns
    few_ns = prefill(num_few, num_mixed) - decode(num_mixed) if num_mixed else 0.0
    prefill_ns, overlap_ns = fit_prefill((num_many - 1, many_ns), (num_few, few_ns))
    return CostModel(
        step_ns=max(0.0, one_ns - decode_ns),
        decode_ns=decode_ns,
        prefill_ns=prefill_ns,
        context_ns=_token_bytes(layout) / (_READ_SHARE * _bytes_per_ns(pool.device)),
        overlap_ns=overlap_ns,
    )


def _token_bytes(layout: PageLayout) -> int:
    """Bytes of K and V of one token in all groups."""
    return len(layout.groups) * layout.page_bytes // layout.page_tokens


def _bytes_per_ns(device: torch.device) -> float:
    """Rate of a large copy inside the device, read and write counted."""
    block = torch.zeros(2, _COPY_BYTES, dtype=torch.uint8, device=device)
    durations = []
    for _ in range(_REPEATS):
        start = cuda_mark()
        block[0].copy_(block[1])
        end = cuda_mark()
        end.synchronize()
        durations.append(between_ns(start, end))
    return 2 * _COPY_BYTES / median(durations)
