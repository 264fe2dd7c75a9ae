import pytest

pytest.importorskip("triton")

import torch

from engine.model_runner.kernels.invariant_linear import Tile, invariant_linear, tile_for
from tests.engine.model_runner.kernels.cases import relative_error

SMALL = Tile(features=32, rows=16, warps=4, stages=1)


@pytest.mark.parametrize(("rows", "features", "width"), [(1, 64, 128), (33, 100, 192), (3, 288, 72)])
def test_is_the_product(rows: int, features: int, width: int) -> None:
    torch.manual_seed(rows)
    x, weight, bias = (
        torch.randn(rows, 2 * width)[:, :width],
        torch.randn(features, width),
        torch.randn(features),
    )
    out = invariant_linear(x, weight, tile=SMALL)
    assert relative_error(out, x @ weight.T) < 1e-6
    assert torch.equal(invariant_linear(x, weight, bias, tile=SMALL), out + bias)


def test_half_precision_is_rounded_once() -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*shape).half() for shape in ((3, 128), (64, 128), (64,)))
    want = x.float() @ weight.float().T + bias.float()
    assert relative_error(invariant_linear(x, weight, bias), want) < 3e-4


def test_tiles_hold_the_rows_and_fit_the_memory() -> None:
    assert [tile_for(rows, 2).rows for rows in (1, 16, 17, 64, 65, 256, 257, 1024, 1025)] == [
        *(16, 16, 32, 64, 128, 128, 128, 128, 256)
    ]
    assert tile_for(2000, 4).rows == 128
    many = tile_for(2000, 2)
    assert [many.stages_within(memory, 2) for memory in (225_000, 99_000, 40_000)] == [3, 2, 1]
