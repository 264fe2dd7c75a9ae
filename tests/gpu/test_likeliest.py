"""The device breaks ties as the definition does."""

import pytest
import torch

from engine.model_runner.likeliest import likeliest


@pytest.mark.parametrize(("rows", "vocab"), [(1, 128_256), (256, 128_256), (3, 50_257)])
def test_is_the_first_of_the_largest(rows: int, vocab: int) -> None:
    logits = torch.randint(0, 4000, (rows, vocab), device="cuda").to(torch.bfloat16)
    assert torch.equal(likeliest(logits).cpu(), logits.cpu().argmax(dim=-1))
