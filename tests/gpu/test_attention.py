"""The kernels on the device against the definition in fp32, on inputs that are new in every run."""

import itertools
import random

import pytest

pytest.importorskip("triton")

import torch

from tests.engine.model_runner.kernels.cases import (
    Case,
    decode_error,
    invariant_chunked,
    invariant_decode_error,
    invariant_prefill_error,
    prefill_error,
)

BF16_ERROR = 1e-2

SHAPES = [
    {"head_dim": head_dim, "group": group, "page_tokens": page_tokens}
    for head_dim, group, page_tokens in [
        (64, 1, 16),
        (64, 8, 32),
        (64, 3, 64),
        (128, 1, 64),
        (128, 2, 16),
        (128, 4, 16),
        (128, 5, 32),
        (128, 7, 16),
        (128, 8, 64),
        (256, 1, 32),
        (256, 2, 16),
        (256, 8, 16),
        (96, 6, 16),
    ]
]
RULES = [
    {},
    {"window": 200},
    {"softcap": 20.0},
    {"sinks": True, "window": 128},
]
ALL_SHAPES = [
    {"head_dim": head_dim, "group": group, "page_tokens": page_tokens, **rule}
    for head_dim, group, page_tokens, rule in itertools.product(
        (64, 128, 256), range(1, 9), (8, 16, 32, 64), RULES
    )
]
DECODE = (1, 15, 16, 63, 64, 129, 777, 1024, 4095)
PREFILL = ((0, 1024), (0, 333), (100, 17), (64, 128), (1000, 1), (511, 300))


def _seed() -> int:
    return random.SystemRandom().randrange(2**31)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("shape", [SHAPES[5], SHAPES[1], SHAPES[11]], ids=str)
def test_decode_rules(shape: dict[str, int], rule: dict[str, object]) -> None:
    seed = _seed()
    case = Case(tuple((start, 1) for start in DECODE), **shape, **rule)
    assert decode_error(case, "cuda", torch.bfloat16, seed) < BF16_ERROR, f"seed {seed}"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decode_shapes(shape: dict[str, int]) -> None:
    seed = _seed()
    case = Case(tuple((start, 1) for start in DECODE), **shape)
    assert decode_error(case, "cuda", torch.bfloat16, seed) < BF16_ERROR, f"seed {seed}"


def test_decode_one_long_row() -> None:
    seed = _seed()
    case = Case(((50_000, 1),), kv_heads=8, head_dim=128)
    assert decode_error(case, "cuda", torch.bfloat16, seed) < BF16_ERROR, f"seed {seed}"


def test_decode_many_rows() -> None:
    seed = _seed()
    rng = random.Random(seed)
    case = Case(tuple((rng.randrange(2000), 1) for _ in range(256)), kv_heads=8, head_dim=128)
    assert decode_error(case, "cuda", torch.bfloat16, seed) < BF16_ERROR, f"seed {seed}"


def test_decode_fp32() -> None:
    seed = _seed()
    case = Case(tuple((start, 1) for start in DECODE))
    assert decode_error(case, "cuda", torch.float32, seed) < 1e-4, f"seed {seed}"


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("shape", [SHAPES[5], SHAPES[1], SHAPES[11]], ids=str)
def test_prefill_rules(shape: dict[str, int], rule: dict[str, object]) -> None:
    seed = _seed()
    case = Case(PREFILL, **shape, **rule)
    assert prefill_error(case, "cuda", torch.bfloat16, seed) < BF16_ERROR, f"seed {seed}"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prefill_shapes(shape: dict[str, int]) -> None:
    seed = _seed()
    assert prefill_error(Case(PREFILL, **shape), "cuda", torch.bfloat16, seed) < BF16_ERROR, f"seed {seed}"


def test_prefill_fp32() -> None:
    seed = _seed()
    assert prefill_error(Case(PREFILL), "cuda", torch.float32, seed) < 1e-4, f"seed {seed}"


def test_some_of_all_shapes_and_rules() -> None:
    """Others in every run: those above are the same in each."""
    seed = _seed()
    rng = random.Random(seed)
    for shape in rng.sample(ALL_SHAPES, 12):
        decoding = Case(tuple((rng.randrange(3000), 1) for _ in range(5)), **shape)
        filling = Case(tuple((rng.randrange(700), rng.randrange(1, 400)) for _ in range(4)), **shape)
        assert decode_error(decoding, "cuda", torch.bfloat16, seed) < BF16_ERROR, f"seed {seed}: {decoding}"
        assert prefill_error(filling, "cuda", torch.bfloat16, seed) < BF16_ERROR, f"seed {seed}: {filling}"


@pytest.mark.parametrize("rule", RULES[:3], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_invariant(shape: dict[str, int], rule: dict[str, object]) -> None:
    seed = _seed()
    decoding = Case(tuple((start, 1) for start in DECODE), **shape, **rule)
    assert invariant_decode_error(decoding, "cuda", torch.bfloat16, seed) < BF16_ERROR, f"seed {seed}"
    filling = Case(PREFILL, **shape, **rule)
    assert invariant_prefill_error(filling, "cuda", torch.bfloat16, seed) < BF16_ERROR, f"seed {seed}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("rule", RULES[:3], ids=str)
@pytest.mark.parametrize("shape", [SHAPES[5], SHAPES[1], SHAPES[6], SHAPES[11]], ids=str)
def test_chunks_and_decoding_change_no_bit(
    shape: dict[str, int], rule: dict[str, object], dtype: torch.dtype
) -> None:
    seed = _seed()
    rng = random.Random(seed)
    total = 1500
    chunkings = [(total,), (1,) * 200 + (total - 200,), (total - 300,) + (1,) * 300]
    for _ in range(6):
        cuts = sorted(rng.sample(range(1, total), 8))
        ends = zip([0, *cuts], [*cuts, total], strict=True)
        chunkings.append(tuple(end - start for start, end in ends))
    case = Case(((0, total),), **shape, **rule)
    whole, *others = invariant_chunked(case, "cuda", dtype, seed, chunkings)
    assert not whole.isnan().any()
    for sizes, other in zip(chunkings[1:], others, strict=True):
        assert torch.equal(other, whole), f"seed {seed}: {sizes}"
