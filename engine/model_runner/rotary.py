# mypy: allow-untyped-calls
"""Cosines and sines of rotary embeddings computed once a step, and not in every layer again.

Inductor computes what is pointwise wherever it is read, and takes a cosine for cheap: left to itself, it has
every layer's rotation compute them for every element of every head. An operator that it cannot look into ends
that.
"""

from typing import Any

import torch
from torch import library, nn

_library = library.Library("fairslice", "FRAGMENT")
_library.define("computed_once(Tensor x) -> Tensor")
_library.impl("computed_once", torch.clone, "CompositeExplicitAutograd")


def _shape(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


library.register_fake("fairslice::computed_once", _shape, lib=_library)


def rotate_once(model: nn.Module) -> None:
    """Have each rotary embedding, which compiled code would repeat in every layer, computed once in a call of
    the model. Doing this a second time changes nothing."""
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding") and _keep not in module._forward_hooks.values():
            module.register_forward_hook(_keep)


def _keep(module: nn.Module, args: object, output: Any) -> Any:
    once = torch.ops.fairslice.computed_once
    if isinstance(output, torch.Tensor):
        return once(output)
    return tuple(once(part) for part in output)
