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

from engine.config import Config, DeviceConfig
from engine.memory.lender import Owner
from engine.memory.lending import Lending
from engine.memory.regions import create_region, receive_descriptors
from engine.scheduler import Scheduler

log = logging.getLogger("fairslice.engine")

GPU_SEGMENT_BYTES = 2**28
MIN_SEGMENT_BYTES = 2**12
CPU_SEGMENTS = 16  # of a cpu device's pool


@dataclass(slots=True, eq=False)
class Region:
    """A piece of memory of `device` that may be lent. Descriptors belong to whoever made it."""

    name: str
    device: str
    kind: str  # of `PoolSpec`
    num_bytes: int
    segment_bytes: int
    descriptors: list[int] = field(default_factory=list)


def segment_bytes(kind: str, num_bytes: int) -> int:
    """In what portions memory is lent, unless configured."""
    return GPU_SEGMENT_BYTES if kind == "cuda" else max(MIN_SEGMENT_BYTES, num_bytes // CPU_SEGMENTS)


class Lenders:
    """All regions of an engine. `join` says who wants to hear of new ones."""

    def __init__(self, config: Config) -> None:
        self.lending = Lending()
        self.regions: dict[str, Region] = {}
        self._config = config
        self._listeners: list[Callable[[Region], None]] = []
        self._schedulers: dict[str, Scheduler] = {}
        self._made: list[int] = []  # descriptors that are ours to close

    def make_regions(self) -> None:
        """Regions of the cpu devices on which nothing runs. Raises RegionError."""
        for device in self._config.lenders:
            if device.name.startswith("cpu"):
                num_bytes = _lendable(device, int(device.memory or 0))
                descriptor = create_region(f"fairslice-{device.name}", num_bytes)
                self._made.append(descriptor)
                segment = self._config.memory.segment or segment_bytes("cpu", num_bytes)
                self.add(Region(device.name, device.name, "cpu", num_bytes, segment, [descriptor]))

    async def make_gpu_regions(self) -> None:
        """Regions of the GPUs on which nothing runs, each as soon as it is there. A GPU that cannot lend is
        left out, with a warning: mirrors go to the host then."""
        async with asyncio.TaskGroup() as group:
            for device in self._config.lenders:
                if device.name.startswith("cuda"):
                    group.create_task(self._make_gpu_region(device))

    async def _make_gpu_region(self, device: DeviceConfig) -> None:
        ours, theirs = socket.socketpair()
        command = ["-m", "engine.model_runner.lender", "--index", device.name.partition(":")[2] or "0"]
        command += ["--pools-fd", str(theirs.fileno()), "--fraction", str(device.memory_fraction)]
        command += ["--segment-bytes", str(GPU_SEGMENT_BYTES)]
        if device.memory is not None:
            command += ["--num-bytes", str(_lendable(device, int(device.memory)))]
        with ours, theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                pass_fds=(theirs.fileno(),),
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
            log.warning("%s cannot lend its memory: %s", device.name, reason[-1])
            return
        self._made += descriptors
        num_bytes = int(printed)
        self.add(Region(device.name, device.name, "cuda", num_bytes, GPU_SEGMENT_BYTES, descriptors))
        log.info("%s lends %.1f GiB", device.name, num_bytes / 2**30)

    def add(self, region: Region, owner: Owner | None = None) -> None:
        """A region that may be lent from now on; `owner` has it as its local pool."""
        self.regions[region.name] = region
        num_segments = region.num_bytes // region.segment_bytes  # only whole ones
        self.lending.add_lender(region.name, region.device, num_segments, region.segment_bytes, owner)
        for listener in self._listeners:
            listener(region)

    def join(self, model: str, scheduler: Scheduler, on_region: Callable[[Region], None]) -> None:
        """A model that borrows: it hears of every region, of those that are there at once."""
        self._schedulers[model] = scheduler
        self.lending.add_borrower(model, scheduler.store)
        self._listeners.append(on_region)
        for region in self.regions.values():
            on_region(region)

    def distrust(self, name: str, now_ns: int) -> None:
        """A region may hold anything now: what its borrowers had there and nowhere else is recomputed."""
        if name in self.regions:
            for model, pool in self.lending.lenders[name].pools.items():
                self._schedulers[model].distrust_tier(pool.pool_id, now_ns)
            self.lending.lose_lender(name, is_gone=False)

    def tick(self, now_ns: int) -> None:
        """Have offers, recalls and returns go on. Schedulers that could do something about them plan."""
        changes = self.lending.num_changes
        alive = [model for model, scheduler in self._schedulers.items() if scheduler.is_up]
        self.lending.tick(now_ns, alive)
        for scheduler in self._schedulers.values():
            scheduler.needs_plan |= scheduler.store.has_recalls or self.lending.num_changes != changes

    def close(self) -> None:
        """Give the memory back once the last process that maps it is gone."""
        for descriptor in self._made:
            os.close(descriptor)
        self._made.clear()


def _lendable(device: DeviceConfig, num_bytes: int) -> int:
    """What a device on which nothing runs lends of its pool."""
    rest = max(0, num_bytes - device.keep)
    return rest if device.lend is None else min(rest, device.lend)
