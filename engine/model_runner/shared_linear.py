"""Linear layers of one input computed as one product, by a function of the caller's choice.

A decode step reads weights at the memory's speed only where a product is large: K and V projections of eight
heads leave most of a GPU idle. Q, K and V, and the gate and up projections of an MLP, take the same input, so
their weights are laid one after another, and each layer takes its part of the same product. Code that is
not compiled would compute the product for each, so this is for models compiled with `MergeProducts` alone.
"""

from collections.abc import Callable, Sequence

import torch
from torch import fx, nn
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.nn import functional as F

Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""x [..., width], weight [features, width], bias [features] -> x @ weight.T + bias"""

_aten = torch.ops.aten
_PRODUCTS = frozenset({"fairslice::linear", "fairslice::invariant_linear"})
_MERGED = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.permute.default,
        _aten.t.default,
        _aten.view.default,
        _aten.reshape.default,
    }
)

_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class SharedLinear(nn.Module):
    """Features `first` to `end` (exclusive) of a linear layer that several modules share."""

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, first: int, end: int, product: Product
    ) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self._first = first
        self._end = end
        self._product = product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(x, self.weight, self.bias)[..., self._first : self._end]


class LoneLinear(nn.Module):
    """A linear layer that shares its input with no other."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, product: Product) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self._product = product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(x, self.weight, self.bias)


def share_linears(model: nn.Module, product: Product = F.linear) -> None:
    """Join what can be joined, in place, and compute all linear layers by `product`; a second call changes
    nothing.

    Needs room for the weights of one layer beside the model: what was joined is freed at once.
    """
    for names in _TOGETHER:
        for parent in [module for module in model.modules() if _has_plain(module, names)]:
            _join(parent, names, product)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # the freed blocks do not fit the next layer's joined weights
    for parent in [*model.modules()]:
        for name, child in [*parent.named_children()]:
            if type(child) is nn.Linear:
                bias = None if child.bias is None else child.get_parameter("bias")
                setattr(parent, name, LoneLinear(child.get_parameter("weight"), bias, product))


def _has_plain(module: nn.Module, names: Sequence[str]) -> bool:
    """Whether the module has linear layers of these names that differ in their outputs alone."""
    linears = [getattr(module, name, None) for name in names]
    plain = [linear for linear in linears if type(linear) is nn.Linear]
    kinds = {(linear.in_features, linear.weight.dtype, linear.bias is None) for linear in plain}
    return len(plain) == len(names) and len(kinds) == 1


def _join(parent: nn.Module, names: Sequence[str], product: Product) -> None:
    linears = [parent.get_submodule(name) for name in names]
    weights = [linear.get_parameter("weight") for linear in linears]
    biases = [] if linears[0].bias is None else [linear.get_parameter("bias") for linear in linears]
    with torch.no_grad():
        weight = nn.Parameter(torch.cat([*weights]), requires_grad=False)
        bias = nn.Parameter(torch.cat([*biases]), requires_grad=False) if biases else None
    first = 0
    for name, part in zip(names, weights, strict=True):
        end = first + len(part)
        setattr(parent, name, SharedLinear(weight, bias, first, end, product))
        first = end


class MergeProducts(CustomGraphPass):
    """Inductor pass: equal products of equal operands, and equal views of them, become one."""

    def __call__(self, graph: fx.Graph) -> None:
        first_of: dict[object, fx.Node] = {}
        for node in graph.nodes:
            if node.target not in _MERGED and not _is_product(node.target):
                continue
            key = _hashable((node.target, node.args, tuple(node.kwargs.items())))
            first = first_of.setdefault(key, node)
            if first is not node:
                node.replace_all_uses_with(first)
                graph.erase_node(node)

    def uuid(self) -> str:
        return get_hash_for_files((__file__,)).hex()


def _is_product(target: object) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.name in _PRODUCTS


def _hashable(value: object) -> object:
    return tuple(_hashable(part) for part in value) if isinstance(value, tuple | list) else value
