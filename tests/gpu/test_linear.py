"""Products of few rows on the device: alone, and chained with kernels that write what they read."""

import pytest

pytest.importorskip("triton")

import torch
from torch.nn import functional as F

from engine.model_runner.kernels.invariant_linear import invariant_linear
from engine.model_runner.kernels.linear import (
    PRODUCT_ADDED,
    LinearProduct,
    LinearScratch,
    Tiling,
    few_rows_linear,
)
from tests.engine.model_runner.kernels.cases import relative_error

SHAPES = [(6144, 4096), (4096, 14_336), (28_672, 4096), (64, 256), (32_064, 2048)]
CUDA = torch.device("cuda")


def _weight(features: int, width: int) -> torch.Tensor:
    return torch.randn(features, width, dtype=torch.bfloat16, device=CUDA) * width**-0.5


@pytest.mark.parametrize("rows", [1, 2, 16, 17, 33, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_product(rows: int, shape: tuple[int, int]) -> None:
    weight = _weight(*shape)
    x = torch.randn(rows, shape[1] + 64, dtype=torch.bfloat16, device=CUDA)[:, : shape[1]]
    scratch = LinearScratch.make(CUDA)
    scratch.partial.fill_(torch.nan)
    for tiling in (Tiling(), Tiling(stages=6), Tiling(128, 64, 256, 4, 4)):
        if tiling.splits(weight) is None:
            continue
        for _ in range(2):
            out = few_rows_linear(x, weight, scratch, tiling)
            assert relative_error(out, x.float() @ weight.float().T) < 5e-3
        assert not scratch.arrived.any()


@pytest.mark.parametrize("rows", [2, 48, 65])
def test_waits_for_what_it_reads(rows: int) -> None:
    weights = [_weight(*shape) for shape in ((14_336, 4096), (4096, 14_336)) * 4]
    product = LinearProduct(CUDA)
    given = torch.empty(rows, 4096, dtype=torch.bfloat16, device=CUDA)

    def run(compute: LinearProduct) -> torch.Tensor:
        x = given
        for weight in weights:
            x = compute(x, weight)
        return x

    given.normal_()
    run(product)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(product)
    for _ in range(20):
        given.normal_()
        out.fill_(torch.nan)
        graph.replay()
        assert relative_error(out, run(F.linear).float()) < 3e-2  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [2, 16, 48, 65, 1000])
def test_adds_products_to_the_residual_in_place(rows: int) -> None:
    """In a graph, one after another: each must find what those before it have added."""
    into, out_of = _weight(14_336, 4096), _weight(4096, 14_336)
    product = LinearProduct(CUDA)
    given, residual = torch.empty(2, 1, rows, 4096, dtype=torch.bfloat16, device=CUDA)

    def run() -> None:
        residual.copy_(given)
        for _ in range(4):
            hidden = product(residual, into)
            PRODUCT_ADDED(hidden, out_of, product.partial, product.arrived, residual)

    given.normal_()
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for _ in range(20):
        given.normal_()
        graph.replay()
        want = given.float()
        for _ in range(4):
            want = want + F.linear(F.linear(want.bfloat16(), into), out_of).float()
        assert relative_error(residual, want) < 2e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (1000, 200)], ids=str)
def test_rows_are_the_same_bits_among_any_number_of_others(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    features, width = shape
    weight = (torch.randn(features, width, device=CUDA) * width**-0.5).to(dtype)
    bias = torch.randn(features, dtype=dtype, device=CUDA)
    x = torch.randn(1500, width, dtype=dtype, device=CUDA)
    whole = invariant_linear(x, weight, bias)
    error = relative_error(whole, x.double().mm(weight.double().T).add_(bias))
    assert error < (1e-4 if dtype == torch.float32 else 5e-3)
    for rows in (1, 2, 5, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 1000, 1024, 1025):
        assert torch.equal(invariant_linear(x[:rows], weight, bias), whole[:rows]), rows
        assert torch.equal(invariant_linear(x[-rows:], weight, bias), whole[-rows:]), rows
