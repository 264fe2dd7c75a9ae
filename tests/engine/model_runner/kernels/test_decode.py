import pytest

pytest.importorskip("triton")

import torch

from tests.engine.model_runner.kernels.cases import Case, decode_error

CASES = {
    "lengths from 1": Case(((0, 1), (16, 1), (128, 1))),
    "many splits of one row": Case(((1500, 1),), kv_heads=1),
    "window": Case(((699, 1), (32, 1), (63, 1)), group=8, page_tokens=32, window=100),
    "odd head dim, softcap": Case(((299, 1), (4, 1)), group=3, head_dim=48, softcap=5.0),
    "sinks over splits": Case(((299, 1), (899, 1)), group=1, page_tokens=64, sinks=True),
    "head dim 128": Case(((75, 1), (1, 1)), kv_heads=1, group=8, head_dim=128, page_tokens=64, window=33),
    "head dim 256": Case(((41, 1),), group=1, head_dim=256, page_tokens=8),
    "group of five": Case(((299, 1), (1899, 1)), group=5),
}


@pytest.mark.parametrize("name", CASES)
def test_matches_definition(name: str) -> None:
    assert decode_error(CASES[name], "cpu", torch.float32, seed=3) < 1e-5


def test_half_precision() -> None:
    case = Case(((299, 1), (4, 1)), group=2, window=128, sinks=True)
    assert decode_error(case, "cpu", torch.float16, seed=4) < 2e-3
