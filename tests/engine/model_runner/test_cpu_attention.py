import pytest
import torch

from engine.memory.page import PageLayout, make_layout
from engine.messages import Sampling
from engine.model_runner.batch import Row, StepRow
from engine.model_runner.cpu_attention import CpuAttention, CpuPool
from engine.model_runner.cpu_invariant_attention import CpuInvariantAttention

PAGE_TOKENS = 4
KV_HEADS, HEADS, HEAD_DIM = 2, 6, 8
SCALING = 0.3


def layout_of(windows: list[int | None]) -> PageLayout:
    return make_layout(
        windows, page_tokens=PAGE_TOKENS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, element_bytes=4
    )


def dense(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of the last tokens of one context, by its definition: loops over tokens and heads."""
    out = torch.empty_like(query)
    first_position = len(keys) - len(query)
    for i in range(len(query)):
        end = first_position + i + 1
        first = 0 if window is None else max(0, end - window)
        for head in range(HEADS):
            kv_head = head // (HEADS // KV_HEADS)
            scores = keys[first:end, kv_head] @ query[i, head] * SCALING
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            if sinks is not None:
                scores = torch.cat([scores, sinks[head : head + 1]])
            weights = scores.softmax(dim=0)[: end - first]
            out[i, head] = weights @ values[first:end, kv_head]
    return out


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("kind", [CpuAttention, CpuInvariantAttention])
def test_a_mixed_batch_equals_attention_by_definition(
    kind: type[CpuAttention] | type[CpuInvariantAttention], softcap: float | None, has_sinks: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    windows = [None, 6, None, 6]
    layout = layout_of(windows)
    pool = torch.full((300, layout.layers_per_page, 2, PAGE_TOKENS, KV_HEADS, HEAD_DIM), torch.nan)
    cpu_pool = CpuPool(pool, layout)
    free = (torch.randperm(299, generator=generator) + 1).tolist()
    sinks = torch.randn(HEADS, generator=generator) if has_sinks else None
    # (computed before, computed now): decodes of very different lengths beside whole and continued prefills
    shapes = [(0, 5), (9, 1), (300, 1), (7, 12), (60, 70), (0, 1), (30, 1)]
    rows, contexts = [], []
    for slot, (start, count) in enumerate(shapes):
        num_pages = layout.num_pages(start + count)
        tables = [
            [free.pop() if page >= layout.first_live_page(group, start) else 0 for page in range(num_pages)]
            for group in range(2)
        ]
        row = Row(slot, Sampling(max_tokens=1), num_prompt=start + count, page_tables=tables)
        rows.append(StepRow(row, start, count, [0] * count, sample=False))
        kv = torch.randn(len(windows), 2, start + count, KV_HEADS, HEAD_DIM, generator=generator)
        contexts.append(kv)
        for layer in range(len(windows)):
            group, plane = cpu_pool.plane_of_layer[layer]
            for position in range(layout.first_live_page(group, start) * PAGE_TOKENS, start):
                page = tables[group][position // PAGE_TOKENS]
                pool[page, plane, :, position % PAGE_TOKENS] = kv[layer, :, position]
    num_tokens = sum(count for _, count in shapes)
    attention = kind(cpu_pool, rows)
    for layer, window in enumerate(windows):
        query = torch.randn(num_tokens, HEADS, HEAD_DIM, generator=generator)
        new = [kv[layer, :, start:] for kv, (start, _) in zip(contexts, shapes, strict=True)]
        key, value = torch.cat(new, dim=1)
        found = attention.attend(
            query, key, value, layer=layer, scaling=SCALING, softcap=softcap, sinks=sinks
        )
        expected = [
            dense(part, kv[layer, 0], kv[layer, 1], window, softcap, sinks)
            for part, kv in zip(query.split([count for _, count in shapes]), contexts, strict=True)
        ]
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_slots_name_tokens_across_shuffled_pages() -> None:
    layout = layout_of([None, None])
    pool = torch.zeros(5, 2, 2, PAGE_TOKENS, KV_HEADS, HEAD_DIM)
    cpu_pool = CpuPool(pool, layout)
    slots = torch.from_numpy(cpu_pool.slots([4, 2, 3], 3, 9))
    keys, values = cpu_pool.planes[1]
    keys.index_copy_(0, slots, torch.arange(6.0)[:, None].expand(-1, KV_HEADS * HEAD_DIM))
    values.index_copy_(0, slots, torch.arange(10.0, 16.0)[:, None].expand(-1, KV_HEADS * HEAD_DIM))
    assert pool[4, 1, 0, 3].unique().tolist() == [0]
    assert pool[2, 1, 0, :, 0, 0].tolist() == [1, 2, 3, 4]
    assert pool[3, 1, 1, 0].unique().tolist() == [15]
    assert pool[:, 0].abs().sum() == 0
