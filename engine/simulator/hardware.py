"""What simulated GPUs and links can do. The figures of the presets were measured (docs/simulator.md)."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.memory.page import LayerGroup, PageLayout
from engine.messages import CostModel

LLAMA_8B = PageLayout((LayerGroup(tuple(range(32))),), 16, 32, 8, 128, 2)
"""Pages of 16 tokens of Llama-3.1-8B in bf16: 2 MiB."""


class HardwareError(Exception):
    """A cost model cannot be read. One line."""


@dataclass(frozen=True, slots=True)
class LinkSpeed:
    """A move takes `delay_ns` plus its bytes over `bytes_per_s`, once the moves before it are done. None: no
    time at all, and none to wait for."""

    bytes_per_s: float | None
    delay_ns: int = 0

    def duration_ns(self, num_bytes: int) -> int:
        if self.bytes_per_s is None:
            return 0
        return self.delay_ns + round(num_bytes * 1e9 / self.bytes_per_s)


PEER_LINK = LinkSpeed(340e9, 30_000)
HOST_LINK = LinkSpeed(50e9, 30_000)
FREE_LINK = LinkSpeed(None)


@dataclass(frozen=True, slots=True)
class Gpu:
    """`cost` is of a step of the model, as the engine knows it. What it does not know: a prefilled
    token takes `attention_ns` for every position that it looks back on, and a move of n bytes takes
    n / `hbm_bytes_per_s` from the compute that runs beside it."""

    cost: CostModel
    hbm_bytes_per_s: float
    attention_ns: float = 0.0


GPUS = {
    "h200": Gpu(
        CostModel(
            step_ns=4.6e6,
            decode_ns=8e3,
            prefill_ns=1e9 / 43_000,
            context_ns=131_072 / 3_900,
            overlap_ns=2.8e6,
        ),
        4.18e12,
        1.3,
    ),
    "h100": Gpu(
        CostModel(step_ns=6.4e6, decode_ns=15e3, prefill_ns=1e9 / 43_500, context_ns=131_072 / 3_200),
        3.02e12,
        1.3,
    ),
}
"""Llama-3.1-8B in bf16, 128 KiB of K and V per token.

h200 is within a few percent of what the engine showed under overload, h100 fitted to vLLM 0.23.0's decode
steps at batch 1 to 256. Attention of prefill is 4 x 4,096 x 32 operations for a token and a position, at
400 TFLOP/s: between what prompts of 4,096 tokens show in steps of 2,048 tokens (330) and of 8,192 (445)."""


def read_cost(path: Path) -> CostModel:
    """A cost model as JSON, as the engine fits it. Raises HardwareError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=CostModel)
    except OSError as error:
        raise HardwareError(f"{path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise HardwareError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class Cluster:
    """Equal GPUs, each with a pool of `pool_pages` pages, and the tiers that they share: the spare memory of
    lenders (`peer_pages`) and the host's. A message between engine and runner is `message_ns` on its way, a
    plan takes the engine `plan_ns`, and a runner has up to `depth` steps in flight and launches the next one
    `lead_ns` before the last one ends."""

    num_gpus: int
    gpu: Gpu
    layout: PageLayout
    pool_pages: int
    host_pages: int
    peer_pages: int = 0
    peer_link: LinkSpeed = PEER_LINK
    host_link: LinkSpeed = HOST_LINK
    max_batch: int = 256
    max_step_tokens: int = 2048
    part_tokens: int | None = 128
    depth: int = 2
    lead_ns: int = 1_500_000
    message_ns: int = 200_000
    plan_ns: int = 0
