import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from engine.model_runner.invariant_activations import InvariantActivation, replace_activations

REPLACED = ("silu", "swish", "gelu", "gelu_pytorch_tanh", "quick_gelu", "sigmoid")


def replaced(name: str) -> nn.Module:
    parent = nn.Sequential(ACT2FN[name])
    replace_activations(parent)
    return parent[0]


@pytest.mark.parametrize("name", REPLACED)
def test_a_replaced_activation_computes_what_the_activation_does(name: str) -> None:
    x = torch.cat([torch.linspace(-30, 30, 2001), torch.tensor([-200.0, 200.0])])
    activation = replaced(name)
    assert type(activation) is InvariantActivation
    torch.testing.assert_close(activation(x), ACT2FN[name](x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", REPLACED)
def test_numbers_are_the_same_bits_in_any_place(name: str) -> None:
    torch.manual_seed(0)
    activation = replaced(name)
    x = torch.randn(100, 100) * 3
    whole = activation(x)
    for rows in (1, 2, 3, 7, 33):
        for first in (0, 1, 5):
            assert torch.equal(activation(x[first : first + rows].clone()), whole[first : first + rows])


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu_new", "gelu_fast"])
def test_others_are_left(name: str) -> None:
    assert type(replaced(name)) is type(ACT2FN[name])
