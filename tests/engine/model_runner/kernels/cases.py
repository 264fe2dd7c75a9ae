"""Random cases of paged attention and their answers in fp32, for Triton's interpreter and for GPUs alike.

Pages are shuffled over a pool with room to spare, page tables hold them by slot, and what must not be read
(pages outside a window) is NaN, as is the output before the kernel runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from engine.model_runner.kernels.decode import decode_attention, decode_scratch
from engine.model_runner.kernels.decode_plan import WORK_FIELDS, SplitPolicy, plan_decode
from engine.model_runner.kernels.invariant_attention import invariant_attention
from engine.model_runner.kernels.invariant_plan import Segments, plan_parts
from engine.model_runner.kernels.paged import PartScratch, Plane
from engine.model_runner.kernels.prefill import TILE_FIELDS, prefill_attention, tile_tokens, tiles_of
from engine.model_runner.kernels.store import store_pages

_PLANES, _PLANE = 3, 1
_SEGMENTS = Segments(128, 400)  # short, so that short contexts have several


@dataclass(frozen=True, slots=True)
class Case:
    """Rows by (tokens in context, new tokens), and the shape of the attention."""

    rows: tuple[tuple[int, int], ...]
    kv_heads: int = 2
    group: int = 4
    head_dim: int = 64
    page_tokens: int = 16
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False


@dataclass(frozen=True, slots=True)
class World:
    """A pool with contexts in it, the new tokens, and what attention over them is."""

    pool: torch.Tensor
    tables: torch.Tensor
    slots: list[int]
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    sinks: torch.Tensor | None
    want: torch.Tensor

    @property
    def plane(self) -> Plane:
        return Plane(self.pool, _PLANE, self.tables)


def make_world(case: Case, device: str, dtype: torch.dtype, seed: int) -> World:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device=device, dtype=dtype)

    size = case.page_tokens
    lengths = [start + count for start, count in case.rows]
    num_pages = [-(-length // size) for length in lengths]
    num_new = sum(count for _, count in case.rows)
    pool = randn(sum(num_pages) + 3, _PLANES, 2, size, case.kv_heads, case.head_dim)
    free = (torch.randperm(len(pool) - 1, generator=generator) + 1).tolist()
    slots = torch.randperm(len(case.rows) + 2, generator=generator)[: len(case.rows)].tolist()
    tables = torch.zeros(len(case.rows) + 2, max(num_pages) + 1, dtype=torch.int32, device=device)
    query = randn(num_new, case.kv_heads * case.group, case.head_dim)
    key, value = (randn(num_new, case.kv_heads, case.head_dim) for _ in range(2))
    sinks = randn(case.kv_heads * case.group) if case.sinks else None
    want = []
    first = 0
    for (start, count), slot, pages in zip(case.rows, slots, num_pages, strict=True):
        table = torch.tensor([free.pop() for _ in range(pages)], device=device)
        tables[slot, :pages] = table
        old = torch.arange(start, device=device)
        new = slice(first, first + count)
        context = pool[table[old // size], _PLANE, :, old % size]
        keys = torch.cat([context[:, 0], key[new]])
        values = torch.cat([context[:, 1], value[new]])
        if case.window is not None:
            pool[table[: max(0, start + 1 - case.window) // size]] = torch.nan
        want.append(attention(query[new], keys, values, case, sinks))
        first += count
    return World(pool, tables, slots, query, key, value, sinks, torch.cat(want))


def attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, case: Case, sinks: torch.Tensor | None
) -> torch.Tensor:
    """The definition, in fp32: `query` are the last tokens of a context of `keys` and `values`."""
    keys, values = (tensor.float().repeat_interleave(case.group, dim=1) for tensor in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", query.float(), keys) * case.head_dim**-0.5
    if case.softcap is not None:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    at = torch.arange(len(keys) - len(query), len(keys), device=keys.device)[:, None]
    of = torch.arange(len(keys), device=keys.device)
    seen = of <= at
    if case.window is not None:
        seen &= of > at - case.window
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.float()[:, None, None].expand(-1, len(query), 1)], dim=-1)
    weights = scores.softmax(dim=-1)
    if sinks is not None:
        weights = weights[..., :-1]
    return torch.einsum("hqk,khd->qhd", weights, values)


def relative_error(out: torch.Tensor, want: torch.Tensor) -> float:
    return float((out.float() - want).norm() / want.norm())


def assert_stored(world: World, case: Case) -> None:
    """The new K and V are in their pages."""
    first = 0
    for (start, count), slot in zip(case.rows, world.slots, strict=True):
        new = torch.arange(start, start + count, device=world.pool.device)
        pages = world.tables[slot].long()[new // case.page_tokens]
        stored = world.pool[pages, _PLANE, :, new % case.page_tokens]
        assert torch.equal(stored[:, 0], world.key[first : first + count])
        assert torch.equal(stored[:, 1], world.value[first : first + count])
        first += count


def decode_error(case: Case, device: str, dtype: torch.dtype, seed: int) -> float:
    """Run the decode kernels on a case of one new token a row; relative error of the answer."""
    world = make_world(case, device, dtype, seed)
    num_rows = len(case.rows)
    policy = SplitPolicy(case.kv_heads)
    positions = torch.tensor([start for start, _ in case.rows], device=device)
    windows = torch.tensor([case.window or 2**30], dtype=torch.int32, device=device)
    work = torch.full((1, policy.max_items(num_rows), WORK_FIELDS), 77, dtype=torch.int32, device=device)
    slots = torch.tensor(world.slots, device=device)
    plan_decode(slots, positions, windows, work, policy)
    heads = case.kv_heads * case.group
    scratch = decode_scratch(policy, num_rows, heads, case.head_dim, world.pool.device)
    for _ in range(2):  # the second run finds the counters as the first left them
        out = torch.full_like(world.query, torch.nan)
        decode_attention(
            world.query,
            world.key,
            world.value,
            world.plane,
            work[0],
            scratch,
            out,
            policy,
            scale=case.head_dim**-0.5,
            softcap=case.softcap,
            sinks=world.sinks,
        )
    assert_stored(world, case)
    assert not scratch.arrived.any()
    return relative_error(out, world.want)


def prefill_error(case: Case, device: str, dtype: torch.dtype, seed: int) -> float:
    """Run the prefill kernel on a case; relative error of the answer."""
    world = make_world(case, device, dtype, seed)
    tiles = tiles_of(_chunks(world, case), tile_tokens(case.group))
    out = torch.full_like(world.query, torch.nan)
    prefill_attention(
        world.query,
        world.key,
        world.value,
        world.plane,
        torch.tensor(tiles, dtype=torch.int32, device=device),
        out,
        scale=case.head_dim**-0.5,
        window=case.window,
        softcap=case.softcap,
        sinks=world.sinks,
    )
    assert_stored(world, case)
    return relative_error(out, world.want)


def invariant_decode_error(case: Case, device: str, dtype: torch.dtype, seed: int) -> float:
    """Run the batch-invariant kernels on a case of one new token a row; relative error of the answer."""
    world = make_world(case, device, dtype, seed)
    segments = Segments(_SEGMENTS.keys, max(start for start, _ in case.rows) // _SEGMENTS.keys + 1)
    scratch = _part_scratch(world, case, segments)
    for _ in range(2):  # the second run finds the counters as the first left them
        scratch.partial.fill_(torch.nan)
        out = _invariant_decode(world, case, segments, scratch)
    assert_stored(world, case)
    assert not scratch.arrived.any()
    return relative_error(out, world.want)


def invariant_prefill_error(case: Case, device: str, dtype: torch.dtype, seed: int) -> float:
    """Run the batch-invariant kernels on a case of chunks; relative error of the answer."""
    world = make_world(case, device, dtype, seed)
    out = _invariant_prefill(world, case, _SEGMENTS)
    assert_stored(world, case)
    return relative_error(out, world.want)


def invariant_chunked(
    case: Case, device: str, dtype: torch.dtype, seed: int, chunkings: Sequence[tuple[int, ...]]
) -> list[torch.Tensor]:
    """Answers for the one prompt of a case, computed anew in the chunks of each chunking; those of one token
    are decoded."""
    world = make_world(case, device, dtype, seed)
    ((_, num_tokens),) = case.rows
    segments = Segments(_SEGMENTS.keys, num_tokens // _SEGMENTS.keys + 1)
    scratch = _part_scratch(world, case, segments)
    answers = []
    for chunks in chunkings:
        world.pool[:, _PLANE] = torch.nan
        parts = []
        start = 0
        for count in chunks:
            chunk = replace(case, rows=((start, count),))
            new = slice(start, start + count)
            step = replace(world, query=world.query[new], key=world.key[new], value=world.value[new])
            if count == 1:
                parts.append(_invariant_decode(step, chunk, segments, scratch))
            else:
                parts.append(_invariant_prefill(step, chunk, segments))
            start += count
        answers.append(torch.cat(parts))
    return answers


def _invariant_decode(world: World, case: Case, segments: Segments, scratch: PartScratch) -> torch.Tensor:
    device = world.pool.device
    slots = torch.tensor(world.slots, device=device)
    positions = torch.tensor([start for start, _ in case.rows], device=device)
    windows = torch.tensor([case.window or 2**30], dtype=torch.int32, device=device)
    num_parts = len(case.rows) * segments.most
    work = torch.full((1, num_parts, TILE_FIELDS), 77, dtype=torch.int32, device=device)
    plan_parts(slots, positions, windows, work, segments)
    return _invariant(world, case, slots, positions, work[0], segments, scratch)


def _invariant_prefill(world: World, case: Case, segments: Segments) -> torch.Tensor:
    device = world.pool.device
    chunks = _chunks(world, case)
    slots = torch.tensor([slot for _, count, _, slot in chunks for _ in range(count)], device=device)
    positions = torch.cat([torch.arange(start, start + count) for _, count, start, _ in chunks]).to(device)
    tiles = [*tiles_of(chunks, tile_tokens(case.group)), (0,) * TILE_FIELDS]  # the last one is padding
    on_device = torch.tensor(tiles, dtype=torch.int32, device=device)
    return _invariant(
        world, case, slots, positions, on_device, segments, _part_scratch(world, case, segments)
    )


def _invariant(
    world: World,
    case: Case,
    slots: torch.Tensor,
    positions: torch.Tensor,
    tiles: torch.Tensor,
    segments: Segments,
    scratch: PartScratch,
) -> torch.Tensor:
    out = torch.full_like(world.query, torch.nan)
    store_pages(world.key, world.value, world.plane, slots, positions)
    invariant_attention(
        world.query,
        world.plane,
        tiles,
        scratch,
        out,
        segments,
        scale=case.head_dim**-0.5,
        window=case.window,
        softcap=case.softcap,
    )
    return out


def _part_scratch(world: World, case: Case, segments: Segments) -> PartScratch:
    heads = case.kv_heads * case.group
    num_rows = len(case.rows)
    return PartScratch.make(
        num_rows * segments.most, num_rows, heads, case.kv_heads, case.head_dim, world.pool.device
    )


def _chunks(world: World, case: Case) -> list[tuple[int, int, int, int]]:
    """What `tiles_of` takes."""
    chunks = []
    first = 0
    for (start, count), slot in zip(case.rows, world.slots, strict=True):
        chunks.append((first, count, start, slot))
        first += count
    return chunks
