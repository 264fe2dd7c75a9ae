import pytest

pytest.importorskip("triton")

import torch

from engine.model_runner.kernels.moves import move_pages


@pytest.mark.parametrize("page_words", [16_384, 524_288, 4 * 1231])
def test_copies_the_pages_named_and_no_other(page_words: int) -> None:
    src = torch.randint(0, 2**31 - 1, (64, page_words), dtype=torch.int32, device="cuda")
    dst = torch.zeros_like(src)
    from_pages = torch.randperm(64, device="cuda")[:40]
    to_pages = torch.randperm(64, device="cuda")[:40]
    move_pages(src, dst, from_pages, to_pages)
    want = torch.zeros_like(src)
    want[to_pages] = src[from_pages]
    assert torch.equal(dst, want)
