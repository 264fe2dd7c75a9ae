import pytest

pytest.importorskip("triton")

from collections.abc import Callable

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from engine.model_runner.kept_rows import KeepRowsEarly
from engine.model_runner.kernels.linear import PRODUCT, LinearProduct

WIDTH, MLP_WIDTH, TOKENS = 8, 24, 6
KEEP = torch.tensor([1, 5, 4, 5])
INNER = torch.randn(2 * MLP_WIDTH, WIDTH, generator=torch.Generator().manual_seed(1))
OUTER = torch.randn(WIDTH, MLP_WIDTH, generator=torch.Generator().manual_seed(2))
SQUARE = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3))

product = LinearProduct(torch.device("cpu"))


def norm(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def mlp(x: torch.Tensor) -> torch.Tensor:
    both = product(x, INNER)
    return product(torch.tanh(both[..., :MLP_WIDTH]) * both[..., MLP_WIDTH:], OUTER)


def layer(x: torch.Tensor) -> torch.Tensor:
    x = x + product(norm(x).cumsum(dim=1), SQUARE)  # tokens see those before them
    return x + mlp(norm(x))


def model(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    return norm(layer(layer(x)))[:, keep, :]


def passed(function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> fx.GraphModule:
    traced: fx.GraphModule = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(
        *arguments
    )
    KeepRowsEarly()(traced.graph)
    traced.graph.lint()
    traced.recompile()
    return traced


def rows_of_products(graph: fx.Graph) -> list[int]:
    return [int(node.meta["val"].shape[1]) for node in graph.find_nodes(op="call_function", target=PRODUCT)]


def test_the_last_layer_computes_kept_tokens_alone() -> None:
    x = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    traced = passed(model, x, KEEP)
    assert rows_of_products(traced.graph) == [TOKENS] * 3 + [len(KEEP)] * 3
    torch.testing.assert_close(traced(x, KEEP), model(x, KEEP))


def test_other_sizes_need_no_other_graph() -> None:
    traced = passed(model, torch.randn(1, TOKENS, WIDTH), KEEP)
    x, keep = torch.randn(1, 9, WIDTH, generator=torch.Generator().manual_seed(4)), torch.tensor([8, 2])
    torch.testing.assert_close(traced(x, keep), model(x, keep))


def read_elsewhere(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    out = mlp(x)
    return out[:, keep, :] + out.sum()


def of_the_width(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    return mlp(x)[:, :, keep]


def over_tokens(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    return mlp(x).cumsum(dim=1)[:, keep, :]


def beside_a_table(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    return (mlp(x) + x[0])[:, keep, :]  # the table is [tokens, width]


@pytest.mark.parametrize("function", [read_elsewhere, of_the_width, over_tokens, beside_a_table])
def test_what_every_token_is_needed_for_is_computed_for_every_token(
    function: Callable[..., torch.Tensor],
) -> None:
    x = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    traced = passed(function, x, KEEP)
    assert rows_of_products(traced.graph) == [TOKENS] * 2
    torch.testing.assert_close(traced(x, KEEP), function(x, KEEP))
