import torch
from torch import nn

from engine.model_runner.rotary import rotate_once
from tests.engine.model_runner.tiny import tiny_config, tiny_model


def test_model_computes_what_it_did() -> None:
    for family in ("llama", "gemma3", "phi3", "gpt-oss"):
        model = tiny_model(tiny_config(family))
        ids = torch.arange(1, 9).unsqueeze(0)
        with torch.inference_mode():
            want = model(input_ids=ids).logits
            rotate_once(model)
            torch.testing.assert_close(model(input_ids=ids).logits, want)


def test_compiled_code_sees_an_operator_a_call_and_no_cosine() -> None:
    model = tiny_model(tiny_config("llama"))
    rotate_once(model)
    rotate_once(model)
    targets: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        targets.extend(node.target for node in graph.graph.nodes)
        return graph

    ids = torch.arange(1, 9).unsqueeze(0)
    with torch.inference_mode():
        torch.compile(model, backend=backend, fullgraph=True)(input_ids=ids, use_cache=False)
    assert targets.count(torch.ops.fairslice.computed_once) == 2


def test_one_tensor_is_as_good_as_two() -> None:
    class OneRotaryEmbedding(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cos()

    module = OneRotaryEmbedding()
    rotate_once(module)
    torch.testing.assert_close(module(torch.ones(3)), torch.ones(3).cos())
