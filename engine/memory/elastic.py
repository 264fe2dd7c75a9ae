"""Elastic tensors: tensors that live in the tiers of memory and come to the device when they are needed.

    tensors = ElasticTensors(local, tiers, transfers)
    tensors.put("adapter 7", weights)         # copied out in the background
    tensors.prefetch("adapter 7")             # on its way to the device, while something else computes
    tensors.get("adapter 7", out=buffer)      # there
    tensors.drop("adapter 7")

Contexts use the same pools, ledgers and transfers through the engine's `ContextStore`. This is the interface
for everything else: whole tensors, in a process of their own choice. docs/memory.md has an example that runs.
"""

import select
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from engine.memory.page_table import PageTable
from engine.memory.pool import PagePool
from engine.memory.transfer import Transfers
from engine.messages import Move

POLL_S = 0.0002  # between two looks at transfers that cannot wake anybody


class ElasticFull(Exception):
    """No tier has room for the tensor, or the device's pool is too small for it; nothing was changed."""


@dataclass(frozen=True, slots=True)
class LocalPool:
    """The device's pool: its ledger, and its bytes, uint8 `[num_pages, page_bytes]`."""

    ledger: PagePool
    pages: torch.Tensor


@dataclass(slots=True)
class _Entry:
    """A tensor: where its bytes are, in the tiers and in the local pool."""

    shape: torch.Size
    dtype: torch.dtype
    num_bytes: int
    kept: PageTable = field(default_factory=PageTable)
    local: PageTable = field(default_factory=PageTable)
    moves: set[int] = field(default_factory=set)  # in flight; until then no page of it is given up


class ElasticTensors:
    """Tensors by name. `tiers` are the pools to keep them in, best first; `transfers` knows them and the
    local pool by their ids, and is used by nobody else. Not thread-safe.

    A tensor has a place in the tiers from its `put` to its `drop`; its copy in the local pool is dropped, the
    least recently used first, when another needs the room.
    """

    def __init__(self, local: LocalPool, tiers: Sequence[PagePool], transfers: Transfers) -> None:
        self._local = local
        self._tiers = tiers
        self._transfers = transfers
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._owners: dict[int, _Entry] = {}  # by move
        self._last_move_id = 0

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Keep a copy of `tensor`, in place of what had that name. Its memory may be reused on return.

        Raises ElasticFull.
        """
        num_bytes = tensor.numel() * tensor.element_size()
        count = -(-num_bytes // self._local.ledger.page_bytes)
        own = self._entries.get(name)
        returning = own.kept.num_pages if own is not None else 0
        if count > sum(tier.num_free for tier in self._tiers) + returning:
            raise ElasticFull(f"{name}: {num_bytes} bytes find no room in the tiers")
        if count > self._local.ledger.num_usable:
            raise ElasticFull(f"{name}: {num_bytes} bytes are more than the device's pool holds")
        if own is not None:
            self.drop(name)
        entry = _Entry(tensor.shape, tensor.dtype, num_bytes)
        self._allocate_kept(entry, count)
        self._allocate_local(entry, count)
        self._entries[name] = entry
        flat = torch.zeros(count * self._local.ledger.page_bytes, dtype=torch.uint8, device=tensor.device)
        flat[:num_bytes] = tensor.detach().contiguous().view(-1).view(torch.uint8)
        self._local.pages[entry.local.pages()] = flat.view(count, -1).to(self._local.pages.device)
        self._synchronize()
        start = 0
        for tier, pages in entry.kept.parts(0, count):
            sources = entry.local.between(start, start + len(pages))
            self._submit(entry, self._local.ledger, tier, sources, pages)
            start += len(pages)

    def prefetch(self, name: str) -> None:
        """Have the tensor brought to the device's pool; returns at once. Raises KeyError, ElasticFull."""
        entry = self._entries[name]
        self._entries.move_to_end(name)
        if entry.local.num_pages:
            return
        self._allocate_local(entry, entry.kept.num_pages)
        start = 0
        for tier, pages in entry.kept.parts(0, entry.kept.num_pages):
            targets = entry.local.between(start, start + len(pages))
            self._submit(entry, tier, self._local.ledger, pages, targets, urgent=True)
            start += len(pages)

    def get(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """The tensor, in `out` or in a new one on the device; waits for it. Raises KeyError, ElasticFull."""
        self.prefetch(name)
        entry = self._entries[name]
        self._wait(entry)
        if out is None:
            out = torch.empty(entry.shape, dtype=entry.dtype, device=self._local.pages.device)
        assert out.shape == entry.shape
        assert out.dtype == entry.dtype
        flat = self._local.pages[entry.local.pages()].view(-1)[: entry.num_bytes]
        out.copy_(flat.view(entry.dtype).view(entry.shape))
        self._synchronize()
        return out

    def drop(self, name: str) -> None:
        """Forget the tensor. Raises KeyError."""
        entry = self._entries[name]
        self._wait(entry)
        del self._entries[name]
        entry.local.clear()
        entry.kept.clear()

    def check_integrity(self) -> None:
        """Every page is free or one tensor's. Raises AssertionError."""
        entries = self._entries.values()
        self._local.ledger.check_integrity(extent for entry in entries for extent in entry.local.extents)
        kept = [extent for entry in entries for extent in entry.kept.extents]
        for tier in self._tiers:
            tier.check_integrity(extent for extent in kept if extent.segment.pool is tier)

    def _allocate_kept(self, entry: _Entry, count: int) -> None:
        for tier in self._tiers:
            part = min(count - entry.kept.num_pages, tier.num_free)
            entry.kept.grow(tier, 0, entry.kept.num_pages + part, None)

    def _allocate_local(self, entry: _Entry, count: int) -> None:
        """Pages of the local pool, by dropping copies of tensors that were not used for longest."""
        ledger = self._local.ledger
        if count > ledger.num_usable:
            raise ElasticFull(f"{count} pages are more than the device's pool holds")
        for other in self._entries.values():
            if count <= ledger.num_free:
                break
            if other.local.num_pages:
                self._wait(other)
                other.local.clear()
        entry.local.grow(ledger, 0, count, None)

    def _submit(
        self,
        entry: _Entry,
        src: PagePool,
        dst: PagePool,
        src_pages: list[int],
        dst_pages: list[int],
        *,
        urgent: bool = False,
    ) -> None:
        self._last_move_id += 1
        entry.moves.add(self._last_move_id)
        self._owners[self._last_move_id] = entry
        self._transfers.submit(
            Move(
                move_id=self._last_move_id,
                src_pool=src.pool_id,
                dst_pool=dst.pool_id,
                src_pages=src_pages,
                dst_pages=dst_pages,
                urgent=urgent,
            )
        )

    def _wait(self, entry: _Entry) -> None:
        """Until none of the tensor's moves is in flight."""
        while True:
            for done in self._transfers.completed():
                self._owners.pop(done.move_id).moves.discard(done.move_id)
            if not entry.moves:
                return
            wake = self._transfers.wake_descriptor()
            if wake is None:
                time.sleep(POLL_S)
            else:
                select.select([wake], [], [])

    def _synchronize(self) -> None:
        """Moves are not ordered against the caller's stream: have it done with the pages."""
        if self._local.pages.is_cuda:
            torch.cuda.current_stream(self._local.pages.device).synchronize()
