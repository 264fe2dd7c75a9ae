import pytest

pytest.importorskip("triton")

import torch

from engine.model_runner.kernels.linear import LinearScratch, Tiling, few_rows_linear, tiling_for
from tests.engine.model_runner.kernels.cases import relative_error

TILING = Tiling(features=32, width=64, programs=12)


@pytest.mark.parametrize(("rows", "features", "splits"), [(1, 96, 4), (5, 384, 1), (33, 192, 2)])
def test_is_the_product(rows: int, features: int, splits: int) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, 2 * 1024)[:, :1024], torch.randn(features, 1024)
    scratch = LinearScratch.make(torch.device("cpu"))
    assert TILING.splits(weight) == splits
    for _ in range(2):  # the second run finds the counters as the first left them
        scratch.partial.fill_(torch.nan)
        out = few_rows_linear(x, weight, scratch, TILING)
        assert relative_error(out, x @ weight.T) < 1e-6
    assert not scratch.arrived.any()


@pytest.mark.parametrize(("rows", "features"), [(5, 384), (33, 192)])
def test_adds_the_product_in_place(rows: int, features: int) -> None:
    torch.manual_seed(rows)
    x, weight, residual = torch.randn(rows, 1024), torch.randn(features, 1024), torch.randn(rows, features)
    want = residual.double() + x.double() @ weight.double().T
    out = few_rows_linear(x, weight, LinearScratch.make(torch.device("cpu")), TILING, added_to=residual)
    assert out is residual
    assert relative_error(out, want) < 1e-6


def test_half_precision() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 128).half(), torch.randn(64, 128).half()
    out = few_rows_linear(x, weight, LinearScratch.make(torch.device("cpu")), TILING)
    assert relative_error(out, x.float() @ weight.float().T) < 1e-3


def test_refuses_weights_that_do_not_divide() -> None:
    assert TILING.splits(torch.empty(100, 1024)) is None
    assert TILING.splits(torch.empty(96, 1000)) is None
    assert TILING.splits(torch.empty(1024, 96).T) is None


def test_leaves_to_the_library_what_it_does_better() -> None:
    whole, part, small = (torch.empty(n, 4096, device="meta") for n in (28_672, 6144, 4096))
    stages = [
        [tiling and tiling.stages for tiling in (tiling_for(rows, weight) for rows in (2, 16, 32, 64))]
        for weight in (whole, part, small)
    ]
    assert stages == [[6, 6, 6, 3], [None, 3, None, None], [4, 4, 4, None]]
