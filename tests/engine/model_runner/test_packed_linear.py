import pytest
import torch
from torch import nn

from engine.model_runner.packed_linear import PackedLinear, PaddedLinear, can_pack, pack_linears


def needs_packing(dtype: torch.dtype) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not can_pack(dtype), reason=f"no reordered {dtype} product on this machine")


KINDS = [
    pytest.param(PackedLinear, torch.bfloat16, marks=needs_packing(torch.bfloat16)),
    pytest.param(PackedLinear, torch.float32, marks=needs_packing(torch.float32)),
    pytest.param(PaddedLinear, torch.float32),
]


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 3, 64])
def test_a_replaced_layer_computes_what_the_layer_does(
    kind: type[PackedLinear] | type[PaddedLinear], dtype: torch.dtype, rows: int, bias: bool
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 160, bias=bias).to(dtype)
    x = torch.randn(1, rows, 96).to(dtype)
    with torch.inference_mode():
        torch.testing.assert_close(kind(linear)(x), linear(x))


@pytest.mark.parametrize(
    "kind", [pytest.param(PackedLinear, marks=needs_packing(torch.float32)), PaddedLinear]
)
@pytest.mark.parametrize(("width", "features"), [(64, 131), (640, 256), (2048, 640)])
def test_rows_are_the_same_bits_among_any_number_of_others(
    kind: type[PackedLinear] | type[PaddedLinear], width: int, features: int
) -> None:
    torch.manual_seed(0)
    layer = kind(nn.Linear(width, features))
    x = torch.randn(256, width)
    with torch.inference_mode():
        whole = layer(x)
        for rows in (1, 2, 3, 4, 5, 7, 8, 9, 11, 16, 17, 33, 64, 100, 255):
            for first in (0, 1):
                found = layer(x[first : first + rows].clone())
                assert torch.equal(found, whole[first : first + rows]), (rows, first)


@needs_packing(torch.bfloat16)
def test_linear_layers_are_replaced_and_others_left() -> None:
    model = nn.Sequential(nn.Linear(8, 8).bfloat16(), nn.Sequential(nn.Linear(8, 8)), nn.Embedding(4, 8))
    nested, embedding = model[1], model[2]
    pack_linears(model)
    assert [type(model[0]), type(nested[0])] == [PackedLinear, PackedLinear]
    assert model[2] is embedding
    packed = model[0]
    pack_linears(model)
    assert model[0] is packed


def test_without_onednn_float32_layers_are_padded_and_others_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.model_runner.packed_linear.can_pack", lambda dtype: False)
    model = nn.Sequential(nn.Linear(8, 8).bfloat16(), nn.Linear(8, 8))
    pack_linears(model)
    assert [type(child) for child in model] == [nn.Linear, PaddedLinear]
