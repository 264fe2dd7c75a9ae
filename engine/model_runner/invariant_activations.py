"""Activation functions of which a number's result does not depend on where in a tensor it is.

torch computes SiLU, GELU and the sigmoid of whole vector registers in one way and of what is left over in
another, which now and then rounds differently, and what is left over depends on how many numbers there are
and how many threads. exp, tanh and erf have one way; a sum, a product or a quotient of two has one result.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import activations

Function = Callable[[torch.Tensor], torch.Tensor]


class InvariantActivation(nn.Module):
    """An activation module that computes `function`."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._function(x)


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return x.neg().exp_().add_(1).reciprocal_()


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / x.neg().exp_().add_(1)


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x / (x * -1.702).exp_().add_(1)


def gelu(x: torch.Tensor) -> torch.Tensor:
    return (x * math.sqrt(0.5)).erf_().add_(1).mul_(x).mul_(0.5)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU by the tanh approximation of Hendrycks and Gimpel (arXiv 1606.08415)."""
    inner = (x * x).mul_(0.044715).add_(1).mul_(x).mul_(math.sqrt(2 / math.pi))
    return inner.tanh_().add_(1).mul_(x).mul_(0.5)


_FUNCTIONS: dict[type[nn.Module], Function] = {
    nn.Sigmoid: sigmoid,
    nn.SiLU: silu,
    activations.SiLUActivation: silu,
    activations.QuickGELUActivation: quick_gelu,
    activations.GELUActivation: gelu,
    activations.GELUTanh: gelu_tanh,
}


def replace_activations(model: nn.Module) -> None:
    """Replace the activation modules that need it, in place; a second call changes nothing."""
    for parent in model.modules():
        for name, child in parent.named_children():
            function = _FUNCTIONS.get(type(child))
            if function is not None:
                setattr(parent, name, InvariantActivation(function))
