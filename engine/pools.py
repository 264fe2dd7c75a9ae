"""The pools of a model, as the engine lays them out. It holds the descriptors, so pools outlive runners."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import msgspec

from engine.config import Config, DeviceConfig, LinkConfig
from engine.lenders import GPU_SEGMENT_BYTES, Descriptors, Region, close_all, segment_bytes
from engine.memory.page import PageLayout
from engine.memory.pool import PagePool
from engine.memory.regions import create_region
from engine.messages import Attach, LinkSpec, PoolSpec

MIN_CONTEXT_TOKENS = 64  # a pool that holds less serves nobody


class PoolTooSmall(Exception):
    """A pool cannot hold one prompt. One line for the operator."""


@dataclass(slots=True)
class HeldPool:
    """A pool, its ledger, and the descriptors of its memory."""

    spec: PoolSpec
    ledger: PagePool
    descriptors: Descriptors = field(default_factory=list)

    @property
    def has_memory(self) -> bool:
        """Whether a runner can be told to map it, from its first segment on. An empty pool needs no memory
        for that."""
        return self.descriptors[:1] not in ([], [None]) or not self.spec.num_pages

    @property
    def outlives_runners(self) -> bool:
        """Whether its pages are still there when the runner that made it is gone: not where the driver cannot
        share memory."""
        return bool(self.descriptors)


class PoolTable:
    """The pools of one model: a local one for each of its devices, its part of the host tier, and one over
    each region that it may borrow from."""

    def __init__(self, config: Config, layout: PageLayout, pool_ids: Iterator[int]) -> None:
        self.layout = layout
        self.page_bytes = layout.page_bytes
        self._pool_ids = pool_ids
        self._segment_bytes = config.memory.segment
        self._links = config.memory.links
        self.local: dict[str, HeldPool] = {}
        self.borrowed: dict[str, HeldPool] = {}  # by the region's name
        self._owned: dict[str, HeldPool] = {}  # local pools that are regions too, likewise
        num_pages = config.memory.host // len(config.models) // self.page_bytes
        self.host = self._make("host", "host", num_pages)

    def __iter__(self) -> Iterator[HeldPool]:
        yield from self.local.values()
        yield from self.borrowed.values()
        yield self.host

    def add_local(self, device: DeviceConfig, num_sharing: int, free_bytes: int | None) -> HeldPool:
        """The local pool of `device`, made at its first runner's start and kept for those after it.

        `num_sharing` models share the device; `free_bytes` is what a GPU has left. Raises RegionError.
        """
        held = self.local.get(device.name)
        if held is None:
            num_bytes = int(device.memory or 0)
            if device.memory is None:
                assert free_bytes is not None
                num_bytes = int(free_bytes * device.memory_fraction)
            kind = device.name.partition(":")[0]
            held = self._make(kind, device.name, num_bytes // num_sharing // self.page_bytes, is_local=True)
            self.local[device.name] = held
        return held

    def add_borrowed(self, region: Region) -> HeldPool:
        """A pool over a lender's memory, with no page in it yet."""
        num_pages = region.num_bytes // self.page_bytes
        spec = PoolSpec(
            pool=next(self._pool_ids),
            kind=region.kind,
            device=region.device,
            num_pages=num_pages,
            page_bytes=self.page_bytes,
            region_bytes=region.num_bytes,
            segment_bytes=region.unit_bytes,
        )
        ledger = PagePool(
            spec.pool, num_pages, self.page_bytes, segment_bytes=region.segment_bytes, is_leased=True
        )
        held = self.borrowed[region.name] = HeldPool(spec, ledger, region.descriptors)
        return held

    def region_of(self, model: str, device_name: str, model_len: int) -> Region:
        """The memory of a local pool, for others to borrow from; it has to hold a context of `model_len`
        tokens. Its descriptors are known by now."""
        held = self.local[device_name]
        name = f"{model}@{device_name}"
        self._owned[name] = held
        return Region(
            name=name,
            device=device_name,
            kind=held.spec.kind,
            num_bytes=held.spec.num_pages * self.page_bytes,
            segment_bytes=held.ledger.segment_bytes,
            descriptors=held.descriptors,
            least_bytes=self._num_pages_for(model_len, held) * self.page_bytes,
        )

    def owned(self, region: str) -> HeldPool | None:
        """The local pool that is this region, if a device of this model lends it."""
        return self._owned.get(region)

    def over(self, region: str) -> list[HeldPool]:
        """The pools that this model has over a region: its own, and the one in which its other devices
        borrow. Runners map each of them for itself."""
        found = (self._owned.get(region), self.borrowed.get(region))
        return [held for held in found if held is not None]

    def context_limit(self, device_name: str, wanted: int | None, model_len: int) -> int:
        """The longest context, in tokens, that the device's pool can hold: at most the model's, and at
        least what the configuration asked for (`wanted`). Raises PoolTooSmall."""
        pool = self.local[device_name]
        held = pool.ledger
        num_pages = pool.spec.num_pages - held.first  # what is lent out now comes back
        num_tokens = num_pages // len(self.layout.groups) * self.layout.page_tokens
        least = min(wanted or MIN_CONTEXT_TOKENS, model_len)
        if num_tokens < least:
            needed = self._num_pages_for(least, pool)
            raise PoolTooSmall(
                f"devices.memory: the pool of {device_name} holds contexts of {num_tokens} tokens, but "
                f"{'models.max_model_len is' if wanted else 'at least this many are needed:'} {least}; "
                f"make it {-(-needed * self.page_bytes // 2**20)} MiB or more"
            )
        return min(num_tokens, model_len)

    def _num_pages_for(self, num_tokens: int, held: HeldPool) -> int:
        return self.layout.num_pages(num_tokens) * len(self.layout.groups) + held.ledger.first

    def attach(self, device_name: str, mapped: Collection[int]) -> tuple[Attach, list[int]] | None:
        """The message that tells a runner of pools that it has not `mapped` yet, and the descriptors that go
        with it; None if there is nothing new. A local pool on a GPU may be one that the runner has to make.
        """
        local = self.local[device_name]
        there = [held for held in self if held is local or held.has_memory]
        new = [held for held in there if held.spec.pool not in mapped]
        if not new:
            return None
        descriptors: list[int] = []
        specs = []
        for held in new:
            region = len(descriptors) if held.descriptors else None
            missing = [number for number, each in enumerate(held.descriptors) if each is None]
            specs.append(msgspec.structs.replace(held.spec, region=region, missing=missing))
            descriptors += [descriptor for descriptor in held.descriptors if descriptor is not None]
        links = [
            _link(link, src.spec, dst.spec)
            for link in self._links
            for src in there
            for dst in there
            if (src in new or dst in new) and _joins(link, src.spec, dst.spec)
        ]
        return Attach(local=local.spec.pool, pools=specs, links=links), descriptors

    def close(self) -> None:
        """Give the memory back once the last process that maps it is gone. Regions are their lenders'."""
        for held in (*self.local.values(), self.host):
            close_all(held.descriptors)

    def _make(self, kind: str, device: str, num_pages: int, *, is_local: bool = False) -> HeldPool:
        pool_id = next(self._pool_ids)
        segment = None
        if is_local:
            wanted = self._segment_bytes or segment_bytes(kind, num_pages * self.page_bytes)
            segment = max(1, wanted // self.page_bytes) * self.page_bytes
        spec = PoolSpec(
            pool=pool_id,
            kind=kind,
            device=device,
            num_pages=num_pages,
            page_bytes=self.page_bytes,
            segment_bytes=segment if segment and kind == "cpu" else GPU_SEGMENT_BYTES,
        )
        first = int(is_local)
        ledger = PagePool(pool_id, max(num_pages, first), self.page_bytes, first=first, segment_bytes=segment)
        held = HeldPool(spec, ledger)
        if kind != "cuda" and num_pages:
            held.descriptors.append(create_region(f"fairslice-{device}", num_pages * self.page_bytes))
        return held


def _joins(link: LinkConfig, src: PoolSpec, dst: PoolSpec) -> bool:
    return link.between in ((src.device, dst.device), (dst.device, src.device))


def _link(link: LinkConfig, src: PoolSpec, dst: PoolSpec) -> LinkSpec:
    return LinkSpec(
        src=src.pool,
        dst=dst.pool,
        delay_s=link.delay_ms / 1e3,
        bytes_per_s=None if link.bytes_per_s is None else float(link.bytes_per_s),
    )
