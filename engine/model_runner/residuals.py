"""Residuals added by the products that make what is added.

Left alone, attention and MLP each write what they add, and the norm that follows reads it together with the
residual, adds them up, and writes the sum or has it added up again. A product that adds to the residual in
place saves all that, and a rounding.
"""

import operator

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from engine.model_runner.kernels import linear


class AddInProducts(CustomGraphPass):
    """Inductor pass: `residual + product`, where nothing else reads the product, becomes one operator.

    It is functional still: inductor has it work in place where nothing reads the old residual afterwards, and
    on a copy elsewhere.
    """

    def __call__(self, graph: fx.Graph) -> None:
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor):
            found = _residual_and_product(node)
            if found is None:
                continue
            residual, product = found
            names = (argument.name for argument in linear.PRODUCT._schema.arguments)
            operands = dict(zip(names, product.args, strict=True))
            with graph.inserting_before(node):
                done = graph.call_function(
                    torch.ops.higher_order.auto_functionalized,
                    (linear.PRODUCT_ADDED,),
                    {**operands, "residual": residual},
                )
                total = graph.call_function(operator.getitem, (done, 1))
            done.meta["val"] = (None, node.meta["val"])
            total.meta.update(node.meta)
            node.replace_all_uses_with(total)
            graph.erase_node(node)
            graph.erase_node(product)

    def uuid(self) -> str:
        return get_hash_for_files((__file__,)).hex()


def _residual_and_product(add: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    for residual, product in (add.args, add.args[::-1]):
        if (
            isinstance(residual, fx.Node)
            and isinstance(product, fx.Node)
            and product.target is linear.PRODUCT
            and residual is not product
            and len(product.users) == 1
            and not add.kwargs
            and _like(residual, product)
        ):
            return residual, product
    return None


def _like(one: fx.Node, other: fx.Node) -> bool:
    a, b = one.meta["val"], other.meta["val"]
    return bool(a.shape == b.shape) and a.dtype == b.dtype and a.is_contiguous()
