import pytest

pytest.importorskip("triton")

import torch

from engine.model_runner.kernels.invariant_plan import Segments
from tests.engine.model_runner.kernels.cases import (
    Case,
    invariant_chunked,
    invariant_decode_error,
    invariant_prefill_error,
)

DECODE = {
    "lengths from 1": Case(((0, 1), (16, 1), (128, 1))),
    "segments of one row": Case(((700, 1), (64, 1)), kv_heads=1, group=3),
    "window": Case(((699, 1), (32, 1), (63, 1)), group=8, page_tokens=32, window=100),
    "odd head dim, softcap": Case(((299, 1), (4, 1)), group=3, head_dim=48, softcap=5.0),
}
PREFILL = {
    "whole prompt and chunk": Case(((0, 100), (37, 70))),
    "window": Case(((0, 300), (150, 90)), kv_heads=1, group=7, head_dim=48, window=60),
    "softcap": Case(((0, 130),), group=2, page_tokens=64, softcap=4.0),
}


@pytest.mark.parametrize("name", DECODE)
def test_decode_matches_definition(name: str) -> None:
    assert invariant_decode_error(DECODE[name], "cpu", torch.float32, seed=3) < 1e-5


@pytest.mark.parametrize("name", PREFILL)
def test_prefill_matches_definition(name: str) -> None:
    assert invariant_prefill_error(PREFILL[name], "cpu", torch.float32, seed=5) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 90])
def test_chunks_and_decoding_change_no_bit(window: int | None) -> None:
    case = Case(((0, 150),), kv_heads=1, group=4, head_dim=32, window=window)
    whole, *others = invariant_chunked(
        case, "cpu", torch.float16, 7, [(150,), (1, 70, 79), (63, 63, *[1] * 24)]
    )
    for other in others:
        assert torch.equal(other, whole)


def test_segments_are_cut_by_the_longest_context() -> None:
    assert Segments.of(100) == Segments(512, 1)
    assert Segments.of(16_384) == Segments(512, 32)
    assert Segments.of(131_072) == Segments(4096, 32)
    assert Segments.of(131_073) == Segments(8192, 17)
