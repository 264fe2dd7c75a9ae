import sys

import pytest
import torch
from torch import nn

from engine.model_runner.rotary import rotate_by, rotate_once
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


def halves(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    def turned(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, dim=-1)
        return x * cos.unsqueeze(1) + torch.cat((-b, a), dim=-1) * sin.unsqueeze(1)

    calls.append(query.shape)
    return turned(query), turned(key)


calls: list[torch.Size] = []


@pytest.mark.parametrize(
    ("family", "turns_halves"),
    [("llama", True), ("qwen3", True), ("gemma3", True), ("phi3", True), ("gpt-oss", False), ("opt", False)],
)
def test_a_family_that_turns_halves_does_so_by_our_function(
    family: str, turns_halves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tiny_config(family))
    module = sys.modules[type(model).__module__]
    monkeypatch.setattr(
        module, "apply_rotary_pos_emb", getattr(module, "apply_rotary_pos_emb", None), raising=False
    )
    ids = torch.arange(1, 9).unsqueeze(0)
    with torch.inference_mode():
        want = model(input_ids=ids).logits
        calls.clear()
        assert rotate_by(model, halves, torch.device("cpu")) == turns_halves
        torch.testing.assert_close(model(input_ids=ids).logits, want)
        assert bool(calls) == turns_halves
        calls.clear()
        assert rotate_by(model, halves, torch.device("cuda")) == turns_halves
        torch.testing.assert_close(model(input_ids=ids).logits, want)
        assert not calls
