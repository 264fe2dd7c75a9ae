import pytest

pytest.importorskip("triton")

import torch

from engine.model_runner.kernels.rotate import rotate
from tests.engine.model_runner.kernels.cases import relative_error


@pytest.mark.parametrize(
    ("heads", "kv_heads", "tokens", "dim"), [(8, 2, 5, 64), (32, 8, 9, 128), (4, 1, 3, 256), (6, 6, 1, 80)]
)
def test_turns_both_halves(heads: int, kv_heads: int, tokens: int, dim: int) -> None:
    merged = torch.randn(tokens, heads + kv_heads, dim)
    query, key = (part.unsqueeze(0).transpose(1, 2) for part in merged.split((heads, kv_heads), dim=1))
    cos, sin = torch.randn(2, 1, tokens, dim)
    for got, x in zip(rotate(query, key, cos, sin), (query, key), strict=True):
        a, b = x.double().chunk(2, dim=-1)
        want = x.double() * cos.unsqueeze(1) + torch.cat((-b, a), dim=-1) * sin.unsqueeze(1)
        assert got.shape == x.shape
        assert relative_error(got, want) < 1e-6
