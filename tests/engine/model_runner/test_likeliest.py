import pytest
import torch

from engine.model_runner.likeliest import likeliest


@pytest.mark.parametrize("vocab", [1, 7, 96, 1024, 50_257])
def test_is_the_first_of_the_largest(vocab: int) -> None:
    torch.manual_seed(vocab)
    logits = torch.randint(0, 50, (5, vocab)).to(torch.bfloat16)
    assert torch.equal(likeliest(logits), logits.argmax(dim=-1))
