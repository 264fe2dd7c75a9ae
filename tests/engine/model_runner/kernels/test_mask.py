import pytest

pytest.importorskip("triton")

import torch

from engine.model_runner.kernels.mask import mask_logits
from engine.model_runner.sampler import mask_by_bits


@pytest.mark.parametrize("vocab", [33, 4096, 5003])
def test_forbids_what_the_sampler_s_mask_forbids(vocab: int) -> None:
    logits = torch.randn(5, vocab)
    rows = torch.tensor([4, 0, 3])
    bits = torch.randint(-(2**31), 2**31, (3, -(-vocab // 32)), dtype=torch.int64).to(torch.int32)
    want = logits.clone()
    mask_by_bits(want, rows, bits)
    mask_logits(logits, rows, bits)
    assert torch.equal(logits, want)
    assert torch.isinf(logits[rows]).any()
    assert torch.isfinite(logits[[1, 2]]).all()
