import pytest
import torch
from torch import nn

from engine.model_runner.packed_linear import PackedLinear, can_pack, pack_linears

needs_packing = pytest.mark.skipif(not can_pack(), reason="no reordered bf16 product on this machine")


@needs_packing
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_a_packed_layer_computes_what_the_layer_does(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 160, bias=bias).bfloat16()
    x = torch.randn(1, rows, 96).bfloat16()
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear)(x), linear(x))


@needs_packing
def test_bf16_layers_are_replaced_and_others_left() -> None:
    model = nn.Sequential(nn.Linear(8, 8).bfloat16(), nn.Sequential(nn.Linear(8, 8)), nn.Embedding(4, 8))
    nested = model[1]
    pack_linears(model)
    assert type(model[0]) is PackedLinear
    assert type(nested[0]) is nn.Linear
    packed = model[0]
    pack_linears(model)
    assert model[0] is packed
