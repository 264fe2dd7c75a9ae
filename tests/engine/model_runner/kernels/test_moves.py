import pytest

pytest.importorskip("triton")

import torch

from engine.model_runner.kernels.moves import move_pages


def test_copies_the_pages_named_and_no_other() -> None:
    src = torch.randint(0, 2**31 - 1, (7, 12_288), dtype=torch.int32)
    dst = torch.zeros_like(src)
    from_pages, to_pages = torch.tensor([5, 0, 3]), torch.tensor([1, 6, 2])
    move_pages(src, dst, from_pages, to_pages, programs=2)
    want = torch.zeros_like(src)
    want[to_pages] = src[from_pages]
    assert torch.equal(dst, want)


def test_nothing_to_move() -> None:
    pages = torch.zeros(2, 8, dtype=torch.int32)
    move_pages(pages, pages, torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    assert not pages.any()
