import pytest

pytest.importorskip("triton")

from engine.model_runner.kernels.decode_plan import SplitPolicy


def test_items_are_bounded() -> None:
    policy = SplitPolicy(kv_heads=8)
    assert policy.max_splits == 64
    assert policy.max_items(256) == 320
