"""Of the last layer, only what the logits that are wanted come from.

A prompt's step wants logits of its last token, and a model takes that token's hidden state once all layers
are through. But after its attention the last layer computes every token by itself: its MLP, most of what a
layer costs, need see no other tokens than those that are kept. So whatever is computed token by token, and
read by nothing else, is computed for the kept tokens alone.
"""

from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from engine.model_runner.kernels import linear

_aten = torch.ops.aten
_TOKENS = 1  # the dimension of tokens in [1, tokens, width]
_TOKEN_BY_TOKEN = frozenset({torch.ops.prims.convert_element_type.default, linear.PRODUCT})
_OVER_WIDTH = frozenset({_aten.mean.dim, _aten.sum.dim_IntList, _aten.slice.Tensor})


class KeepRowsEarly(CustomGraphPass):
    """Inductor pass: `f(x)[:, keep]` becomes `f(x[:, keep])`, through as many operators f as possible."""

    def __call__(self, graph: fx.Graph) -> None:
        for node in graph.find_nodes(op="call_function", target=_aten.index.Tensor):
            if _keeps_tokens(node):
                _keep_early(graph, node)

    def uuid(self) -> str:
        return get_hash_for_files((__file__,)).hex()


def _keeps_tokens(node: fx.Node) -> bool:
    source, indices = node.args
    assert isinstance(source, fx.Node)
    assert isinstance(indices, list | tuple)
    keep = indices[_TOKENS] if len(indices) == _TOKENS + 1 and indices[0] is None else None
    return isinstance(keep, fx.Node) and keep.meta["val"].dim() == 1 and source.meta["val"].dim() == 3


def _keep_early(graph: fx.Graph, index: fx.Node) -> None:
    source, indices = index.args
    assert isinstance(source, fx.Node)
    num_tokens = _size(source.meta["val"])
    narrowed = _narrowed_nodes(graph, index, num_tokens)
    place = {node: i for i, node in enumerate(graph.nodes)}
    kept: dict[fx.Node, fx.Node] = {}

    def keep(node: fx.Node) -> fx.Node:
        if node not in kept and _has_tokens(node, num_tokens):
            with graph.inserting_before(index):
                kept[node] = graph.call_function(_aten.index.Tensor, (node, indices))
            _infer(kept[node])
        return kept.get(node, node)

    for node in sorted(narrowed, key=place.__getitem__):
        with graph.inserting_before(index):
            kept[node] = graph.node_copy(node, keep)
        _infer(kept[node])
    index.replace_all_uses_with(keep(source))
    graph.erase_node(index)
    for node in sorted(narrowed, key=place.__getitem__, reverse=True):
        graph.erase_node(node)


def _narrowed_nodes(graph: fx.Graph, index: fx.Node, num_tokens: object) -> set[fx.Node]:
    """What is computed token by token and read by `index` alone, through however many of its like."""
    narrowed: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        is_read_alone = node.users and all(user is index or user in narrowed for user in node.users)
        if is_read_alone and _has_tokens(node, num_tokens) and _is_token_by_token(node, num_tokens):
            narrowed.add(node)
    return narrowed


def _has_tokens(node: fx.Node, num_tokens: object) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() == 3 and _size(value) == num_tokens


def _is_alike_for_all(node: fx.Node) -> bool:
    """Whether the node is broadcast over the tokens of what it is combined with."""
    value = node.meta.get("val")
    return not isinstance(value, torch.Tensor) or value.dim() < 2 or _size(value) == 1


def _size(value: torch.Tensor) -> object:
    """Number of tokens, as an expression: to compare sizes themselves would bind them to each other."""
    size = value.shape[-2]
    return size.node.expr if isinstance(size, torch.SymInt) else size


def _is_token_by_token(node: fx.Node, num_tokens: object) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if node.target in _OVER_WIDTH:
        dims = node.args[1] if len(node.args) > 1 else 0
        return dims in (2, -1, [2], [-1])
    if node.target in _TOKEN_BY_TOKEN:
        return True
    return torch.Tag.pointwise in node.target.tags and all(
        _has_tokens(operand, num_tokens) or _is_alike_for_all(operand) for operand in node.all_input_nodes
    )


def _infer(node: fx.Node) -> None:
    """What the node computes, as the compiler sees it."""

    def value(argument: fx.Node) -> Any:
        return argument.meta["val"]

    assert isinstance(node.target, torch._ops.OpOverload)
    arguments, keywords = fx.node.map_arg((node.args, node.kwargs), value)
    known = next(part.meta["val"] for part in node.all_input_nodes if "val" in part.meta)
    with known.fake_mode:
        node.meta["val"] = node.target(*arguments, **keywords)
