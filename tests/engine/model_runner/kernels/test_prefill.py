import pytest

pytest.importorskip("triton")

import torch

from engine.model_runner.kernels.prefill import tile_tokens, tiles_of
from tests.engine.model_runner.kernels.cases import Case, prefill_error

CASES = {
    "whole prompt and chunk": Case(((0, 100), (37, 70))),
    "one query head": Case(((0, 5), (200, 1), (130, 33)), kv_heads=1, group=1, page_tokens=32),
    "window": Case(((0, 300), (150, 90)), kv_heads=1, group=7, head_dim=48, window=60),
    "head dim 128": Case(((0, 17), (33, 31)), kv_heads=1, group=6, head_dim=128, page_tokens=64, window=20),
    "head dim 256": Case(((7, 29),), kv_heads=1, group=2, head_dim=256, page_tokens=8),
    "softcap and sinks": Case(((0, 130),), group=2, page_tokens=64, softcap=4.0, sinks=True),
}


@pytest.mark.parametrize("name", CASES)
def test_matches_definition(name: str) -> None:
    assert prefill_error(CASES[name], "cpu", torch.float32, seed=5) < 1e-5


def test_tiles_cover_chunks_longest_context_first() -> None:
    assert tile_tokens(4) == 16
    tiles = tiles_of([(0, 40, 0, 7), (40, 33, 100, 2)], 32)
    assert [tile[:5] for tile in tiles] == [
        (40, 32, 33, 100, 2),
        (40, 0, 33, 100, 2),
        (0, 32, 40, 0, 7),
        (0, 0, 40, 0, 7),
    ]
