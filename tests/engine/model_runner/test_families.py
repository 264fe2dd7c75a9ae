import pytest
import torch
from transformers import AutoConfig

from engine.memory.page import LayerGroup
from engine.model_runner.families import (
    UnsupportedModel,
    check_deterministic,
    kv_windows,
    layout,
    pin_rope,
)
from tests.engine.model_runner.test_cpu_executor import greedy, prompts_of
from tests.engine.model_runner.tiny import Scheduler, generated, paged, tiny_config, tiny_model

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
}


def test_windows_count_the_token_itself_as_transformers_masks_do() -> None:
    assert kv_windows(tiny_config("llama")) == [None, None, None]
    assert kv_windows(tiny_config("mistral-window")) == [8, 8, 8]
    assert kv_windows(tiny_config("gemma3")) == [8, 8, None, 8]
    assert kv_windows(tiny_config("qwen2-window")) == [None, 8, 8]
    assert kv_windows(tiny_config("gpt-oss")) == [8, None, 8, None]


def test_layout_takes_heads_from_each_familys_own_fields() -> None:
    gemma = layout(tiny_config("gemma3"), 16, torch.bfloat16)
    assert gemma.groups == (LayerGroup((0,), 8), LayerGroup((1,), 8), LayerGroup((3,), 8), LayerGroup((2,)))
    assert (gemma.kv_heads, gemma.head_dim, gemma.element_bytes) == (2, 12, 2)
    opt = layout(tiny_config("opt"), 16, torch.float32)
    assert (opt.kv_heads, opt.head_dim, opt.layers_per_page) == (4, 12, 3)


def test_a_nested_text_config_is_used() -> None:
    text = tiny_config("gemma3").to_dict()
    nested = AutoConfig.for_model("gemma3", text_config=text)
    assert kv_windows(nested) == [8, 8, None, 8]


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("bloom", "attention interface"),
        ("falcon", "flattened batch"),
        ("gptj", "flattened batch"),
        ("llama4_text", "mask"),
        ("mamba", "recurrent"),
        ("phimoe", "mask"),
        ("qwen3_next", "recurrent"),
        ("bert", "not among the families tested"),
    ],
)
def test_others_are_refused_by_name_with_a_reason(model_type: str, reason: str) -> None:
    with pytest.raises(
        UnsupportedModel, match=f"{model_type} is not supported: .*{reason}.*supported: gemma2"
    ):
        kv_windows(AutoConfig.for_model(model_type))


def test_options_outside_the_tests_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="bidirectional"):
        kv_windows(tiny_config("gemma3", use_bidirectional_attention=True))
    config = tiny_config("qwen2")
    config.layer_types = ["full_attention", "chunked_attention", "full_attention"]
    with pytest.raises(UnsupportedModel, match="chunked_attention"):
        kv_windows(config)
    config = tiny_config("gemma3")
    config.rope_parameters = {"full_attention": LONGROPE, "sliding_attention": {"rope_type": "default"}}
    with pytest.raises(UnsupportedModel, match="rope type longrope"):
        kv_windows(config)
    config = tiny_config("llama")
    config.rope_parameters = {"rope_type": "mrope"}
    with pytest.raises(UnsupportedModel, match="rope type mrope"):
        kv_windows(config)


@pytest.mark.parametrize(("max_model_len", "length"), [(32, 12), (256, 40)])
def test_pinned_longrope_equals_generate_on_the_pinned_side(max_model_len: int, length: int) -> None:
    config = tiny_config("phi3-window", rope_parameters=LONGROPE, original_max_position_embeddings=32)
    model = tiny_model(config)
    prompts = prompts_of([length, length + 5])
    expected = [generated(model, prompt, 12) for prompt in prompts]
    pin_rope(model, config, max_model_len)
    mixed = Scheduler(paged(model), chunk=9).run(prompts, [greedy(12)] * 2)
    assert [context.output for context in mixed] == expected


def test_pinned_dynamic_rope_does_not_follow_the_batch() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    config = tiny_config("llama", rope_parameters=rope, max_position_embeddings=16)
    model = tiny_model(config)
    pin_rope(model, config, 64)
    paged(model)
    prompts = prompts_of([3, 40])
    samplings = [greedy(10)] * 2
    together = Scheduler(model, chunk=None).run(prompts, samplings)
    for prompt, context in zip(prompts, together, strict=True):
        assert Scheduler(model, chunk=5).run([prompt], [greedy(10)])[0].output == context.output


@pytest.mark.parametrize("family", ["mixtral", "gpt-oss"])
def test_mixtures_of_experts_are_not_deterministic(family: str) -> None:
    with pytest.raises(UnsupportedModel, match="cannot be deterministic"):
        check_deterministic(tiny_config(family))
    check_deterministic(tiny_config("llama"))
