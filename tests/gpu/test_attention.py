"""The kernels on the device against the definition in fp32, on inputs that are new in every run."""

import random

import pytest

pytest.importorskip("triton")

import torch

from tests.engine.model_runner.kernels.cases import Case, decode_error, prefill_error

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
