"""Memory that models borrow: regions behind descriptors that the engine holds, and who lends and who borrows.

A device on which nothing runs lends all of its memory. One that serves lends what it does not need, through
the same `Lending`.
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from engine.awake import command_for, keep_awake
from engine.config import Config, DeviceConfig
from engine.memory.lender import Owner
from engine.memory.lending import Lending
from engine.memory.regions import RegionError, create_region, receive_descriptors
from engine.runner_client import DEVICE_ORDER
from engine.scheduler import Scheduler

log = logging.getLogger("fairslice.engine")

GPU_SEGMENT_BYTES = 2**28
MIN_SEGMENT_BYTES = 2**12
CPU_SEGMENTS = 16  # of a cpu device's pool


Descriptors = list[int | None]
"""Of the memory of a region: one for all of it, or on GPUs one for each unit, None where it has been given
back."""


@dataclass(slots=True, eq=False)
class Region:
    """A piece of memory of `device` that may be lent, and that may be smaller for a while. Descriptors belong
    to whoever made it. On GPUs memory is given back in units that were allocated as one."""

    name: str
    device: str
    kind: str  # of `PoolSpec`
    num_bytes: int
    segment_bytes: int
    descriptors: Descriptors = field(default_factory=list)
    least_bytes: int = 0  # that its owner cannot do without
    is_lent: bool = True
    holes: set[int] = field(default_factory=set)  # units without memory

    @property
    def unit_bytes(self) -> int:
        return GPU_SEGMENT_BYTES if self.kind == "cuda" else self.segment_bytes


def close_all(descriptors: Descriptors) -> None:
    """Give the memory back once the last process that maps it is gone."""
    for descriptor in descriptors:
        if descriptor is not None:
            os.close(descriptor)
    descriptors.clear()


def segment_bytes(kind: str, num_bytes: int) -> int:
    """In what portions memory is lent, unless configured."""
    return GPU_SEGMENT_BYTES if kind == "cuda" else max(MIN_SEGMENT_BYTES, num_bytes // CPU_SEGMENTS)


class Mapper(Protocol):
    """Tells the runners of one model what to map of a region. One change of a region at a time: the next may
    follow when it `is_settled`."""

    def unmap(self, region: str, units: list[int]) -> None:
        """Nothing is in these units: let go of their memory."""

    def remap(self, region: str, units: list[int], descriptors: list[int]) -> None:
        """These units have memory again."""

    def make(self, region: str, units: list[int]) -> bool:
        """Have the region's owner, if it is of this model and working, make memory for these units."""

    def take_made(self, region: str) -> "Made | None":
        """What came of that, once."""

    def is_settled(self, region: str) -> bool:
        """Whether all runners have done what they were told."""


@dataclass(frozen=True, slots=True)
class Made:
    """Memory that a runner has made: a descriptor for each unit, none where the region's own serves; or why
    there is none."""

    descriptors: list[int]
    error: str | None = None


class Lenders:
    """All regions of an engine. `join` says who wants to hear of new ones."""

    def __init__(self, config: Config) -> None:
        self.lending = Lending()
        self.regions: dict[str, Region] = {}
        self._config = config
        self._listeners: list[Callable[[Region], None]] = []
        self._schedulers: dict[str, Scheduler] = {}
        self.mappings: dict[str, Mapper] = {}  # by model
        self._seen_changes = 0
        self._made: list[Region] = []  # whose descriptors are ours to close

    def make_regions(self) -> None:
        """Regions of the cpu devices on which nothing runs. Raises RegionError."""
        for device in self._config.lenders:
            if device.name.startswith("cpu"):
                num_bytes = _lendable(device, int(device.memory or 0))
                descriptor = create_region(f"fairslice-{device.name}", num_bytes)
                segment = self._config.memory.segment or segment_bytes("cpu", num_bytes)
                self._add_own(Region(device.name, device.name, "cpu", num_bytes, segment, [descriptor]))

    async def make_gpu_regions(self) -> None:
        """Regions of the GPUs on which nothing runs, each as soon as it is there, and then keep these GPUs
        awake, until cancelled. One that cannot lend is left out, with a warning: mirrors go to the host then.
        """
        async with asyncio.TaskGroup() as group:
            for device in self._config.lenders:
                if device.name.startswith("cuda"):
                    group.create_task(self._make_gpu_region(device))

    async def _make_gpu_region(self, device: DeviceConfig) -> None:
        wanted = None if device.memory is None else _lendable(device, int(device.memory))
        try:
            num_bytes, descriptors = await make_gpu_memory(device.name, wanted, device.memory_fraction)
        except RegionError as error:
            log.warning("%s cannot lend its memory: %s", device.name, error)
            return
        region = Region(device.name, device.name, "cuda", num_bytes, GPU_SEGMENT_BYTES, [*descriptors])
        self._add_own(region)
        log.info("%s lends %.1f GiB", device.name, num_bytes / 2**30)
        await keep_awake(device.name, command_for(device.name))

    def _add_own(self, region: Region) -> None:
        self._made.append(region)
        self.add(region)

    def add(self, region: Region, owner: Owner | None = None) -> None:
        """A region that exists from now on; `owner` has it as its local pool."""
        self.regions[region.name] = region
        num_segments = region.num_bytes // region.segment_bytes  # only whole ones
        self.lending.add_lender(region.name, region.device, num_segments, region.segment_bytes, owner)
        for listener in self._listeners if region.is_lent else ():
            listener(region)

    def join(
        self, model: str, scheduler: Scheduler, mapper: Mapper, on_region: Callable[[Region], None]
    ) -> None:
        """A model that borrows: it hears of every region that is lent, of those that are there at once.
        `mapper` is told of memory that goes and comes."""
        self.mappings[model] = mapper
        self._schedulers[model] = scheduler
        self.lending.add_borrower(model, scheduler.store)
        self._listeners.append(on_region)
        for region in self.regions.values():
            if region.is_lent:
                on_region(region)

    def distrust(self, name: str, now_ns: int) -> None:
        """A region may hold anything now: what its borrowers had there and nowhere else is recomputed."""
        if name in self.regions:
            self._lose(name, now_ns, is_gone=False)

    def lose(self, device: str, now_ns: int) -> None:
        """A device is gone, and with it the memory that it lent: likewise, and nothing is lent there."""
        for region in self.regions.values():
            if region.device == device:
                self._lose(region.name, now_ns, is_gone=True)

    def found(self, device: str) -> None:
        """It is there again: it may have memory made."""
        for region in self.regions.values():
            if region.device == device:
                self.lending.resize(region.name, self.lending.lenders[region.name].num_segments)

    def _lose(self, name: str, now_ns: int, *, is_gone: bool) -> None:
        for model, pool in self.lending.lenders[name].pools.items():
            self._schedulers[model].distrust_tier(pool.pool_id, now_ns)
        self.lending.lose_lender(name, is_gone=is_gone)

    def tick(self, now_ns: int) -> None:
        """Have offers, recalls and returns go on. Schedulers that could do something about them plan."""
        alive = [model for model, scheduler in self._schedulers.items() if scheduler.is_up]
        self.lending.tick(now_ns, alive)
        has_changed = self.lending.num_changes != self._seen_changes
        has_changed |= any(lender.leaving for lender in self.lending.lenders.values())
        self._seen_changes = self.lending.num_changes
        for scheduler in self._schedulers.values():
            scheduler.needs_plan |= scheduler.store.has_recalls or has_changed

    def close(self) -> None:
        """Give the memory back once the last process that maps it is gone."""
        for region in self._made:
            close_all(region.descriptors)
        self._made.clear()


async def make_gpu_memory(device: str, num_bytes: int | None, fraction: float) -> tuple[int, list[int]]:
    """Have a process allocate `num_bytes` of a GPU, or that part of what is free, in whole segments; their
    size and descriptors. Raises RegionError."""
    ours, theirs = socket.socketpair()
    command = ["-m", "engine.model_runner.lender", "--index", device.partition(":")[2] or "0"]
    command += ["--pools-fd", str(theirs.fileno()), "--fraction", str(fraction)]
    command += ["--segment-bytes", str(GPU_SEGMENT_BYTES)]
    if num_bytes is not None:
        command += ["--num-bytes", str(num_bytes)]
    with ours, theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            pass_fds=(theirs.fileno(),),
            env=DEVICE_ORDER | os.environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        theirs.close()
        try:
            descriptors = await asyncio.to_thread(receive_descriptors, ours)
        except EOFError:
            descriptors = []
        printed, complaint = await process.communicate()
    if not descriptors or process.returncode != 0:
        reason = complaint.decode(errors="replace").strip().splitlines() or ["no reason given"]
        close_all([*descriptors])
        raise RegionError(reason[-1])
    return int(printed), descriptors


def _lendable(device: DeviceConfig, num_bytes: int) -> int:
    """What a device on which nothing runs lends of its pool."""
    rest = max(0, num_bytes - device.keep)
    return rest if device.lend is None else min(rest, device.lend)
