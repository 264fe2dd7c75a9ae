# mypy: allow-untyped-calls
"""Rotary embeddings in compiled code: cosines once a step, and queries and keys turned by one kernel a layer.

Inductor computes what is pointwise wherever it is read, and takes a cosine for cheap: left to itself, it has
every layer's rotation compute them for every element of every head. An operator that it cannot look into ends
that. For the rotation itself, which joins the halves of a head crosswise, it makes two slow kernels.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import library, nn

Rotate = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""query [1, heads, n, dim], key [1, kv_heads, n, dim], cos [1, n, dim], sin -> query and key, turned."""

_FUNCTION = "apply_rotary_pos_emb"  # of the modules in which transformers defines its models
_ORIGINAL = "_fairslice_original"  # what the function that stands in for it goes back to

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


def rotate_by(model: nn.Module, rotate: Rotate, device: torch.device) -> bool:
    """Have all models of this model's family in this process turn queries and keys by `rotate`, where these
    are on such a device and whole heads are turned by halves. False, and nothing changed, if the family does
    it in another way."""
    module = sys.modules[type(model).__module__]
    current = getattr(module, _FUNCTION, None)
    original = getattr(current, _ORIGINAL, current)
    if original is None or not _turns_halves(original):
        return False

    def turn(
        query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        is_whole = unsqueeze_dim == 1 and query.shape[-1] == cos.shape[-1]  # some turn a part of each head
        if not is_whole or query.device.type != device.type:
            turned: tuple[torch.Tensor, torch.Tensor] = original(query, key, cos, sin, unsqueeze_dim)
            return turned
        return rotate(query, key, cos, sin)

    setattr(turn, _ORIGINAL, original)
    setattr(module, _FUNCTION, turn)
    return True


def _turns_halves(function: Rotate) -> bool:
    """Whether the function does on random heads what `kernels.rotate` does."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, heads, 3, 8, generator=generator) for heads in (4, 2))
    cos, sin = torch.randn(2, 1, 3, 8, generator=generator)
    try:
        turned = function(query, key, cos, sin)
    except (RuntimeError, TypeError):  # other shapes, or other arguments
        return False
    return all(torch.allclose(got, _turned(x, cos, sin)) for got, x in zip(turned, (query, key), strict=True))


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(1) + torch.cat((-b, a), dim=-1) * sin.unsqueeze(1)
