"""The shape of a page, known to the engine (which counts pages) and to the runner (which fills them).

Layers that share a KV shape and an attention window form a layer group. Groups of different sizes would
need pages of different sizes, so large groups are split until all have about as many layers as the smallest
one: then every page of a model has the same number of bytes, and one allocator serves all groups.
"""

from msgspec import Struct


class LayerGroup(Struct, frozen=True):
    """Layers (by index in the model) whose K and V of the same tokens share pages.

    `window` is the number of latest positions that a token attends to, itself included; None: all.
    """

    layers: tuple[int, ...]
    window: int | None = None


class PageLayout(Struct, frozen=True):
    """A page is `[layers_per_page, 2 (K, V), page_tokens, kv_heads, head_dim]`, contiguous.

    Layer `groups[g].layers[s]` uses plane s of the pages of group g; a short last group leaves planes unused.
    """

    groups: tuple[LayerGroup, ...]
    page_tokens: int
    layers_per_page: int
    kv_heads: int
    head_dim: int
    element_bytes: int

    @property
    def page_bytes(self) -> int:
        plane_bytes = 2 * self.page_tokens * self.kv_heads * self.head_dim * self.element_bytes
        return self.layers_per_page * plane_bytes

    def places(self) -> dict[int, tuple[int, int]]:
        """Of each layer of the model: its group, and its plane in the pages of that group."""
        return {
            layer: (index, plane)
            for index, group in enumerate(self.groups)
            for plane, layer in enumerate(group.layers)
        }

    def windowed(self) -> list[int]:
        """Groups of which late tokens do not read the first pages."""
        return [index for index, group in enumerate(self.groups) if group.window is not None]

    def num_pages(self, num_tokens: int) -> int:
        """Pages per group that hold `num_tokens` positions."""
        return -(-num_tokens // self.page_tokens)

    def first_live_page(self, group: int, position: int) -> int:
        """Index of the first page that a token at `position` may still read in this group."""
        window = self.groups[group].window
        if window is None:
            return 0
        return max(0, position - window + 1) // self.page_tokens


def make_layout(
    windows: list[int | None], *, page_tokens: int, kv_heads: int, head_dim: int, element_bytes: int
) -> PageLayout:
    """Group the layers of a model by window; `windows[i]` is layer i's (None: full attention)."""
    by_window: dict[int | None, list[int]] = {}
    for layer, window in enumerate(windows):
        by_window.setdefault(window, []).append(layer)
    layers_per_page = min(len(layers) for layers in by_window.values())
    groups = tuple(
        LayerGroup(tuple(layers[i : i + layers_per_page]), window)
        for window, layers in by_window.items()
        for i in range(0, len(layers), layers_per_page)
    )
    return PageLayout(groups, page_tokens, layers_per_page, kv_heads, head_dim, element_bytes)
