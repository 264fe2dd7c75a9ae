"""Paged attention behind transformers' attention interface.

Models run with `attn_implementation=NAME` on tokens of all rows flattened to `[1, n]`, with explicit position
ids and `use_cache=False`. What a step attends to travels as one more keyword argument through the model to
every layer: `model(input_ids=..., position_ids=..., use_cache=False, paged=attention)`. Only the attention
function is registered, so transformers builds no mask.
"""

from typing import Protocol

import torch
from torch import nn
from transformers import AttentionInterface

NAME = "fairslice_paged"


class PagedAttention(Protocol):
    """Attention of one step over the pages of its rows; each device has its own."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        layer: int,
        scaling: float,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Write the step's K and V to their pages, then attend.

        `query` is `[n, heads, head_dim]`, `key` and `value` are `[n, kv_heads, head_dim]` for the step's n
        tokens, and so is the answer for `heads`. The window is the one of the layer's group. Scores are
        capped to `softcap * tanh(scores / softcap)`; `sinks` `[heads]` are scores that take part in the
        softmax and bring no value.
        """


def paged_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    paged: PagedAttention,
    scaling: float,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function, from `[1, heads, n, head_dim]` to `[1, n, heads, head_dim]`.

    What transformers passes beside (a window, dropout) is either known from the page layout or for training.
    """
    assert attention_mask is None, "the rules of a mask are not applied to pages"
    layer = module.layer_idx
    assert isinstance(layer, int)
    out = paged.attend(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        layer=layer,
        scaling=scaling,
        softcap=softcap,
        sinks=s_aux,
    )
    return out.unsqueeze(0), None


def register() -> None:
    """Make `NAME` known to transformers; a second call changes nothing."""
    AttentionInterface.register(NAME, paged_attention)
