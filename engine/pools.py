"""The pools of a model, as the engine lays them out. It holds the descriptors, so pools outlive runners."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from engine.config import Config, DeviceConfig
from engine.memory.page import PageLayout
from engine.memory.pool import PagePool
from engine.memory.regions import create_region
from engine.messages import Attach, PoolSpec

MIN_CONTEXT_TOKENS = 64  # a pool that holds less serves nobody


class PoolTooSmall(Exception):
    """A pool cannot hold one prompt. One line for the operator."""


@dataclass(slots=True)
class HeldPool:
    """A pool, its ledger, and the descriptors of its memory."""

    spec: PoolSpec
    ledger: PagePool
    descriptors: list[int] = field(default_factory=list)


class PoolTable:
    """The pools of one model: a local one for each of its devices, and its part of the host tier."""

    def __init__(self, config: Config, layout: PageLayout, pool_ids: Iterator[int]) -> None:
        self.layout = layout
        self.page_bytes = layout.page_bytes
        self._pool_ids = pool_ids
        self.local: dict[str, HeldPool] = {}
        num_pages = config.memory.host // len(config.models) // self.page_bytes
        self.host = self._make("host", "host", num_pages, first=0)

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
            held = self._make(kind, device.name, num_bytes // num_sharing // self.page_bytes, first=1)
            self.local[device.name] = held
        return held

    def context_limit(self, device_name: str, wanted: int | None, model_len: int) -> int:
        """The longest context, in tokens, that the device's pool can hold: at most the model's, and at
        least what the configuration asked for (`wanted`). Raises PoolTooSmall."""
        held = self.local[device_name].ledger
        num_tokens = held.num_usable // len(self.layout.groups) * self.layout.page_tokens
        least = min(wanted or MIN_CONTEXT_TOKENS, model_len)
        if num_tokens < least:
            needed = self.layout.num_pages(least) * len(self.layout.groups) + held.first
            raise PoolTooSmall(
                f"devices.memory: the pool of {device_name} holds contexts of {num_tokens} tokens, but "
                f"{'models.max_model_len is' if wanted else 'at least this many are needed:'} {least}; "
                f"make it {-(-needed * self.page_bytes // 2**20)} MiB or more"
            )
        return min(num_tokens, model_len)

    def attach(self, device_name: str) -> tuple[Attach, list[int]]:
        """The message that tells a runner its pools, and the descriptors that go with it."""
        descriptors: list[int] = []
        specs = []
        for held in (self.local[device_name], self.host):
            region = len(descriptors) if held.descriptors else None
            specs.append(_with_region(held.spec, region))
            descriptors += held.descriptors
        return Attach(local=self.local[device_name].spec.pool, pools=specs), descriptors

    def close(self) -> None:
        """Give the memory back once the last process that maps it is gone."""
        for held in (*self.local.values(), self.host):
            for descriptor in held.descriptors:
                os.close(descriptor)
            held.descriptors.clear()

    def _make(self, kind: str, device: str, num_pages: int, *, first: int) -> HeldPool:
        pool_id = next(self._pool_ids)
        spec = PoolSpec(
            pool=pool_id, kind=kind, device=device, num_pages=num_pages, page_bytes=self.page_bytes
        )
        held = HeldPool(spec, PagePool(pool_id, max(num_pages, first), self.page_bytes, first=first))
        if kind != "cuda" and num_pages:
            held.descriptors.append(create_region(f"fairslice-{device}", num_pages * self.page_bytes))
        return held


def _with_region(spec: PoolSpec, region: int | None) -> PoolSpec:
    return PoolSpec(
        pool=spec.pool,
        kind=spec.kind,
        device=spec.device,
        num_pages=spec.num_pages,
        page_bytes=spec.page_bytes,
        region=region,
    )
