"""Elastic tensors: tensors that live in the tiers of memory and come to the device when they are needed.

    tensors = ElasticTensors(local, tiers, transfers)
    tensors.put("adapter 7", weights)         # copied out in the background
    tensors.prefetch("adapter 7")             # on its way to the device, while something else computes
    tensors.get("adapter 7", out=buffer)      # there
    tensors.drop("adapter 7")

Contexts use the same pools, ledgers, leases and transfers through the engine's `ContextStore`. This is the
interface for everything else: whole tensors, in a process of their own choice. docs/memory.md has an example
that runs.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.memory.elastic_moves import ElasticMoves
from engine.memory.elastic_tensor import ElasticTensor
from engine.memory.mirrors import Market, Mirrors
from engine.memory.placement import Placement
from engine.memory.pool import PagePool, Segment
from engine.memory.transfer import Transfers


class ElasticFull(Exception):
    """No tier has room for the tensor, or the device's pool is too small for it; nothing was changed."""


class ElasticLost(Exception):
    """The memory that held the tensor is gone. Its name may be put again, or dropped."""


@dataclass(frozen=True, slots=True)
class LocalPool:
    """The device's pool: its ledger, and its bytes, uint8 `[num_pages, page_bytes]`."""

    ledger: PagePool
    pages: torch.Tensor


class ElasticTensors:
    """Tensors by name. `tiers` are pools that stay, best first: the host's, say. Memory that is leased
    (`Lending.add_borrower`) comes before them. `transfers` knows all pools by their ids, and nobody else uses
    it. Not thread-safe.

    A tensor has a place in the tiers from its `put` to its `drop`; its copy in the local pool is dropped, the
    least recently used first, when another needs the room. What a lender wants back is emptied by `reclaim`,
    which costs no tensor: it may then be on the device alone for a while, and is not dropped there.
    """

    def __init__(self, local: LocalPool, tiers: Sequence[PagePool], transfers: Transfers) -> None:
        self._local = local
        self._home = local.ledger.pool_id
        self._mirrors = Mirrors(Placement())
        self._moves = ElasticMoves(transfers)
        self._tensors: OrderedDict[str, ElasticTensor] = OrderedDict()  # least recently used first
        self._recalled: set[Segment] = set()
        for tier in tiers:
            self.add_tier(tier)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    # ------------------------------------------------------------------ use

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Keep a copy of `tensor`, in place of what had that name. Its memory may be reused on return.

        Raises ElasticFull.
        """
        self.reclaim()
        num_bytes = tensor.numel() * tensor.element_size()
        count = -(-num_bytes // self._local.ledger.page_bytes)
        own = self._tensors.get(name)
        self._require_room(name, num_bytes, count, own)
        if own is not None:
            self.drop(name)
        new = ElasticTensor(tensor.shape, tensor.dtype, num_bytes, count)
        self._allocate_local(new)
        self._tensors[name] = new
        flat = torch.zeros(count * self._local.ledger.page_bytes, dtype=torch.uint8, device=tensor.device)
        flat[:num_bytes] = tensor.detach().contiguous().view(-1).view(torch.uint8)
        self._local.pages[new.local.pages().tolist()] = flat.view(count, -1).to(self._local.pages.device)
        self._synchronize()
        self._copy_out(new)

    def prefetch(self, name: str) -> None:
        """Have the tensor brought to the device's pool; returns at once. Raises KeyError, ElasticFull,
        ElasticLost."""
        self.reclaim()
        tensor = self._tensors[name]
        if tensor.is_lost:
            raise ElasticLost(f"{name}: the memory that held it is gone")
        self._tensors.move_to_end(name)
        if not tensor.is_local:
            self._require_local_room(name, tensor.num_pages)
            self._fetch(tensor)

    def get(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """The tensor, in `out` or in a new one on the device; waits for it. Raises KeyError, ElasticFull,
        ElasticLost."""
        self.prefetch(name)
        tensor = self._tensors[name]
        if tensor.is_arriving:
            self._moves.wait(tensor)
        if out is None:
            out = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._local.pages.device)
        assert out.shape == tensor.shape
        assert out.dtype == tensor.dtype
        flat = self._local.pages[tensor.local.pages().tolist()].view(-1)[: tensor.num_bytes]
        out.copy_(flat.view(tensor.dtype).view(tensor.shape))
        self._synchronize()
        return out

    def drop(self, name: str) -> None:
        """Forget the tensor. Raises KeyError."""
        tensor = self._tensors[name]
        self._moves.wait(tensor)
        del self._tensors[name]
        tensor.local.clear()
        tensor.kept.clear()

    # ------------------------------------------------------------------ a borrower, for `Lending`

    def add_tier(self, pool: PagePool, device: str | None = None, owner: int | None = None) -> None:
        """A pool to keep tensors in, in the memory of `device` (None: one that stays)."""
        self._mirrors.tiers[pool.pool_id] = pool
        self._mirrors.placement.add_tier(pool.pool_id, device, owner)

    def set_market(self, market: Market) -> None:
        """Where leased tiers get their segments."""
        self._mirrors.market = market

    @property
    def num_moves_in_flight(self) -> int:
        return len(self._moves)

    def recall(self, pool_id: int, segments: list[int]) -> None:
        """These segments of a leased tier are wanted back: nothing new goes there, and `reclaim` empties
        them."""
        pool = self._mirrors.tiers[pool_id]
        for number in segments:
            pool.recall(number)
            self._recalled.add(pool.segments[number])

    def reclaim(self) -> None:
        """Go on emptying segments that are wanted back. `put`, `prefetch` and `get` do it too; who may be
        without them for long calls it in turns. Raises TransferError.

        A tensor that is on the device gives up its place in the tiers, and is copied out again where there
        is room. Others move to other tiers, or to the device if there is no room. What finds none stays until
        there is, and so does what would leave too little room on the device for any other tensor; what has
        moves in flight waits for the next call.
        """
        self._moves.poll()
        self._recalled = {segment for segment in self._recalled if segment.extents}
        for tensor in self._tensors.values() if self._recalled else ():
            if tensor.moves or not tensor.extents_in_the_way():
                continue
            if tensor.is_local and self._has_room(tensor.num_pages):
                tensor.kept.clear()
                self._copy_out(tensor)
            elif tensor.is_local and self._may_be_alone(tensor):
                tensor.kept.clear()
            else:
                self._move_away(tensor)
        for tensor in self._tensors.values():
            if tensor.is_alone and not tensor.moves and self._has_room(tensor.num_pages):
                self._copy_out(tensor)

    def lose_segment(self, pool_id: int, number: int) -> None:
        """The bytes of a leased segment are gone, and with them what is not complete on the device."""
        segment = self._mirrors.tiers[pool_id].segments[number]
        for tensor in self._tensors.values():
            tensor.lose(segment)

    def check_integrity(self) -> None:
        """Every page is free or one tensor's, and none is lost on the way. Raises AssertionError."""
        tensors = self._tensors.values()
        for tensor in tensors:
            tensor.check_integrity()
        self._local.ledger.check_integrity(extent for tensor in tensors for extent in tensor.local.extents)
        held = [extent for tensor in tensors for extent in tensor.held_in_tiers()]
        for tier in self._mirrors.tiers.values():
            tier.check_integrity(extent for extent in held if extent.segment.pool is tier)

    # ------------------------------------------------------------------ room

    def _require_room(self, name: str, num_bytes: int, count: int, own: ElasticTensor | None) -> None:
        """Raises ElasticFull, unless a tensor could come in place of `own`."""
        returning = own.kept.extents if own is not None else []
        returned = sum(len(extent.pages) for extent in returning if not extent.segment.is_recalled)
        if self._mirrors.num_short(self._home, count) > returned:
            raise ElasticFull(f"{name}: {num_bytes} bytes find no room in the tiers")
        self._require_local_room(name, count, own)

    def _require_local_room(self, name: str, count: int, own: ElasticTensor | None = None) -> None:
        available = self._num_available()
        if own is not None and own.is_alone:
            available += own.num_pages
        if count > available:
            raise ElasticFull(f"{name}: {count} pages, and the device's pool has room for {available}")

    def _num_available(self) -> int:
        """Pages of the device's pool that are free, or can be without losing anything."""
        tensors = self._tensors.values()
        return self._local.ledger.num_free + sum(
            each.local.num_pages for each in tensors if not each.is_alone
        )

    def _has_room(self, count: int) -> bool:
        """Whether the tiers have it."""
        return self._mirrors.has_room(self._home, count)

    def _may_be_alone(self, tensor: ElasticTensor) -> bool:
        """Whether any other tensor could still come to the device, if the only copy of this were there."""
        others = [each for each in self._tensors.values() if each is not tensor]
        taken = sum(each.num_pages for each in others if each.is_alone)
        largest = max((each.num_pages for each in others if each.is_kept), default=0)
        return taken + tensor.num_pages + largest <= self._local.ledger.num_usable

    def _allocate_local(self, tensor: ElasticTensor) -> None:
        """Pages of the local pool, by dropping copies of tensors that were not used for longest; there are
        enough."""
        ledger = self._local.ledger
        for other in self._tensors.values():
            if tensor.num_pages <= ledger.num_free:
                break
            if other.local.num_pages and not other.is_alone:
                self._moves.wait(other)
                other.local.clear()
        tensor.local.grow(ledger, 0, tensor.num_pages, None)

    # ------------------------------------------------------------------ moves

    def _copy_out(self, tensor: ElasticTensor) -> None:
        """From the device to the best tiers, which have room."""
        tensor.keep(self._mirrors.take(None, self._home, tensor.num_pages))
        start = 0
        for tier, pages in tensor.kept.parts(0, tensor.num_pages):
            sources = tensor.local.between(start, start + len(pages))
            self._moves.start(tensor, (self._local.ledger, tier), (sources, pages))
            start += len(pages)

    def _fetch(self, tensor: ElasticTensor) -> None:
        """To the device, where there is room."""
        self._allocate_local(tensor)
        tensor.is_arriving = True
        start = 0
        for tier, pages in tensor.kept.parts(0, tensor.num_pages):
            targets = tensor.local.between(start, start + len(pages))
            self._moves.start(tensor, (tier, self._local.ledger), (pages, targets), urgent=True)
            start += len(pages)

    def _move_away(self, tensor: ElasticTensor) -> None:
        """Have the tensor moved out of recalled segments, as far as other tiers have room; if they have none,
        to the device."""
        for old in tensor.extents_in_the_way():
            if not self._has_room(len(old.pages)):
                continue
            new = self._mirrors.take(None, self._home, len(old.pages))
            tensor.relocations.append((old, new))
            start = 0
            for extent in new:
                pages = old.pages[start : start + len(extent.pages)]
                self._moves.start(tensor, (old.segment.pool, extent.segment.pool), (pages, extent.pages[:]))
                start += len(pages)
        if tensor.moves or tensor.is_local:
            return
        if tensor.num_pages <= self._num_available() and self._may_be_alone(tensor):
            self._fetch(tensor)

    def _synchronize(self) -> None:
        """Moves are not ordered against the caller's stream: have it done with the pages."""
        if self._local.pages.is_cuda:
            torch.cuda.current_stream(self._local.pages.device).synchronize()
