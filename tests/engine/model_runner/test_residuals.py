import pytest

pytest.importorskip("triton")

from collections.abc import Callable

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from engine.model_runner.kernels.linear import PRODUCT, LinearProduct
from engine.model_runner.residuals import AddInProducts

WIDTH, MLP_WIDTH = 8, 24
INNER = torch.randn(MLP_WIDTH, WIDTH, generator=torch.Generator().manual_seed(1))
OUTER = torch.randn(WIDTH, MLP_WIDTH, generator=torch.Generator().manual_seed(2))
SQUARE = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3))
ADDED = torch.ops.higher_order.auto_functionalized

product = LinearProduct(torch.device("cpu"))


def layers(x: torch.Tensor) -> torch.Tensor:
    for _ in range(2):
        x = x + product(torch.relu(product(x * 0.5, INNER)), OUTER)
        x = product(torch.tanh(x), SQUARE) + x
    return x


def calls(graph: fx.Graph, target: Callable[..., object]) -> int:
    return len(graph.find_nodes(op="call_function", target=target))


def test_products_add_to_the_residual() -> None:
    x = torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    given, want = x.clone(), layers(x)
    traced = make_fx(layers, tracing_mode="fake", _allow_non_fake_inputs=True)(x)
    AddInProducts()(traced.graph)
    traced.recompile()
    assert calls(traced.graph, ADDED) == 4
    assert calls(traced.graph, PRODUCT) == 2, "what is not added to anything stays a product"
    assert calls(traced.graph, torch.ops.aten.add.Tensor) == 0
    torch.testing.assert_close(traced(x), want)
    assert torch.equal(x, given)


def read_twice(x: torch.Tensor) -> torch.Tensor:
    branch = product(x, SQUARE)
    return (x + branch) * branch


def broadcast(x: torch.Tensor) -> torch.Tensor:
    return x[:, :1] + product(x, SQUARE)


def other_dtype(x: torch.Tensor) -> torch.Tensor:
    return x.double() + product(x, SQUARE)


def scaled(x: torch.Tensor) -> torch.Tensor:
    return torch.add(x, product(x, SQUARE), alpha=2)


def transposed(x: torch.Tensor) -> torch.Tensor:
    return x.new_ones(1, WIDTH, 5).transpose(1, 2) + product(x, SQUARE)


@pytest.mark.parametrize("function", [read_twice, broadcast, other_dtype, scaled, transposed])
def test_leaves_other_sums_alone(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    traced = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(torch.randn(1, 5, WIDTH))
    AddInProducts()(traced.graph)
    assert calls(traced.graph, ADDED) == 0
    assert calls(traced.graph, PRODUCT) == 1
