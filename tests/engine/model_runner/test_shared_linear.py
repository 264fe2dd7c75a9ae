import torch
from torch import nn

from engine.model_runner.shared_linear import SharedLinear, share_linears
from tests.engine.model_runner.tiny import tiny_config, tiny_model


def test_model_computes_what_it_did() -> None:
    for family in ("llama", "qwen2", "opt", "gpt-oss"):
        model = tiny_model(tiny_config(family))
        ids = torch.arange(1, 9).unsqueeze(0)
        with torch.inference_mode():
            want = model(input_ids=ids).logits
            share_linears(model)
            share_linears(model)
            torch.testing.assert_close(model(input_ids=ids).logits, want)


def test_weights_are_kept_once() -> None:
    model = tiny_model(tiny_config("llama"))
    before = sum(parameter.numel() for parameter in model.parameters())
    share_linears(model)
    assert sum(parameter.numel() for parameter in model.parameters()) == before
    assert sum(isinstance(module, SharedLinear) for module in model.modules()) == 3 * 5


def test_unlike_layers_stay_apart() -> None:
    parent = nn.Module()
    parent.gate_proj, parent.up_proj = nn.Linear(4, 6), nn.Linear(4, 6, bias=False)
    share_linears(parent)
    assert not isinstance(parent.gate_proj, SharedLinear)
