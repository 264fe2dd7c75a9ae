"""Which models are served, and how their layers keep K and V.

A family is on the list only if a test holds it to transformers' own `generate`, token for token. Everything
else is refused by name: a model whose attention rule lives in the mask, say, would answer wrongly in silence.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from engine.memory.page import PageLayout, make_layout

Windows = list[int | None]


class UnsupportedModel(ValueError):
    """The model cannot be served; the message names its type and, where known, the reason."""


def _full(config: PretrainedConfig) -> Windows:
    return [None] * config.num_hidden_layers


def _uniform(config: PretrainedConfig) -> Windows:
    return [config.sliding_window] * config.num_hidden_layers


def _by_layer_type(config: PretrainedConfig) -> Windows:
    windows = {"full_attention": None, "sliding_attention": config.sliding_window}
    unknown = sorted(set(config.layer_types) - windows.keys())
    if unknown:
        raise UnsupportedModel(f"{config.model_type}: layers of type {', '.join(unknown)} are not supported")
    return [windows[layer_type] for layer_type in config.layer_types]


# transformers' masks let a token at position q attend to k > q - sliding_window, in every family below: the
# window counts the token itself, as `LayerGroup.window` does.
_FAMILIES: dict[str, Callable[[PretrainedConfig], Windows]] = {
    "gemma2": _by_layer_type,
    "gemma3_text": _by_layer_type,
    "gpt_oss": _by_layer_type,
    "llama": _full,
    "mistral": _uniform,
    "mixtral": _uniform,
    "opt": _full,
    "phi3": _uniform,
    "qwen2": _by_layer_type,
    "qwen3": _by_layer_type,
    "qwen3_moe": _uniform,
}

# What a token's experts compute depends on how many tokens of the batch they get: libraries choose how.
_MIXTURES = frozenset({"gpt_oss", "mixtral", "qwen3_moe"})

# Types that nest the config of one of the families above, and are served as text models.
_NESTING = frozenset({"gemma3"})

_MASK_RULE = "part of its attention rule lives only in the mask, which paged attention does not see"
_RECURRENT = "it has recurrent layers, whose state is not a page of K and V"
_NO_INTERFACE = "its attention does not go through transformers' attention interface"
_FAILS = "its attention fails on a flattened batch"
_REASONS = {
    "bloom": _NO_INTERFACE,
    "falcon": _FAILS,
    "falcon_h1": _RECURRENT,
    "gptj": _FAILS,
    "jamba": _RECURRENT,
    "llama4": _MASK_RULE,
    "llama4_text": _MASK_RULE,
    "mamba": _RECURRENT,
    "mamba2": _RECURRENT,
    "phimoe": _MASK_RULE,
    "qwen3_next": _RECURRENT,
    "recurrent_gemma": _RECURRENT,
    "xglm": _NO_INTERFACE,
}

_PLAIN_ROPES = frozenset({"default", "linear", "llama3", "yarn"})
_LENGTH_ROPES = frozenset({"dynamic", "longrope"})


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The config of the text model: the nested one where a supported type nests it."""
    return config.text_config if config.model_type in _NESTING else config


def kv_windows(config: PretrainedConfig) -> Windows:
    """Attention window of each layer (latest positions, the token itself included; None: all).

    Raises `UnsupportedModel` for a family, a rope or an option that is not held exact by a test.
    """
    text = text_config(config)
    windows_of = _FAMILIES.get(text.model_type)
    if windows_of is None:
        reason = _REASONS.get(text.model_type, "it is not among the families tested")
        supported = ", ".join(sorted(_FAMILIES))
        raise UnsupportedModel(f"{text.model_type} is not supported: {reason} (supported: {supported})")
    if getattr(text, "use_bidirectional_attention", None):
        raise UnsupportedModel(f"{text.model_type}: bidirectional attention is not supported")
    unknown = _rope_types(text) - _PLAIN_ROPES - _pinned_ropes(text)
    if unknown:
        raise UnsupportedModel(f"{text.model_type}: rope type {', '.join(sorted(unknown))} is not supported")
    return windows_of(text)


def check_deterministic(config: PretrainedConfig) -> None:
    """Raises `UnsupportedModel` if the model cannot be served so that no token depends on others of the
    batch."""
    model_type = text_config(config).model_type
    if model_type in _MIXTURES:
        raise UnsupportedModel(
            f"{model_type} cannot be deterministic: how its experts round depends on the whole batch"
        )


def layout(config: PretrainedConfig, page_tokens: int, dtype: torch.dtype) -> PageLayout:
    """Page layout of the model with K and V in `dtype`. Raises `UnsupportedModel`."""
    windows = kv_windows(config)
    text = text_config(config)
    num_heads: int = text.num_attention_heads
    return make_layout(
        windows,
        page_tokens=page_tokens,
        kv_heads=getattr(text, "num_key_value_heads", None) or num_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // num_heads,
        element_bytes=dtype.itemsize,
    )


def pin_rope(model: nn.Module, config: PretrainedConfig, max_model_len: int) -> None:
    """Fix frequencies that transformers would choose anew in each step by the longest position in the batch.

    They become those of a context of `max_model_len` tokens, for every context: a prompt's tokens must not
    depend on its neighbours, nor K in pages on when it was computed. Other ropes are left alone.
    """
    text = text_config(config)
    rope: Any  # transformers' rotary embeddings share no base class
    for rope in model.modules():
        kind = getattr(rope, "rope_type", None)
        if not isinstance(kind, str) or kind not in _LENGTH_ROPES:
            continue
        inv_freq, scaling = ROPE_INIT_FUNCTIONS[kind](text, rope.inv_freq.device, seq_len=max_model_len)
        rope.inv_freq.copy_(inv_freq)
        rope.attention_scaling = scaling
        rope.rope_type = "pinned"


def _pinned_ropes(config: PretrainedConfig) -> frozenset[str]:
    """Rope types that `pin_rope` handles: only where all layers share one."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return _LENGTH_ROPES if "rope_type" in parameters else frozenset()


def _rope_types(config: PretrainedConfig) -> set[str]:
    """Rope types in use: one for all layers, or one for each layer type."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in parameters:
        return {parameters["rope_type"]}
    return {nested["rope_type"] for nested in parameters.values() if isinstance(nested, dict)}
