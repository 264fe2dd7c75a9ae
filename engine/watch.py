"""Looks after the memory of devices: what other programs leave of it, and whether the devices are there.

A device that is to leave some memory free gives back of its pools what is missing, at once, and takes it
again when there was enough for a while. A GPU that does not answer has no memory any more: contexts that have
pages there recompute them, and nothing is lent there until it answers again.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from engine.config import Config, DeviceConfig
from engine.gpus import Gpus
from engine.lenders import Lenders
from engine.memory.machine import available_bytes
from engine.pool_sizes import PoolSizes

log = logging.getLogger("fairslice.engine")

PERIOD_S = 1.0
CALM_NS = 10_000_000_000  # what is free was free for so long before a pool grows again
MAX_MISSED = 3  # looks in a row without an answer: the device is gone


@dataclass(slots=True)
class Watched:
    """A device, since when it had more than enough, and whether it is there: one that never answered is
    nothing that could be watched."""

    config: DeviceConfig
    since_ns: int | None = None
    has_answered: bool = False
    num_missed: int = 0

    @property
    def is_gone(self) -> bool:
        return self.has_answered and self.num_missed >= MAX_MISSED


class Watch:
    """Of the devices of an engine. `free_bytes` says what nobody has of a device's memory; None if it does
    not answer."""

    def __init__(
        self,
        config: Config,
        lenders: Lenders,
        sizes: PoolSizes,
        free_bytes: Callable[[str], int | None],
        clock: Callable[[], int],
    ) -> None:
        self._lenders = lenders
        self._sizes = sizes
        self._free_bytes = free_bytes
        self._clock = clock
        self._watched = [
            Watched(device)
            for device in config.devices
            if device.name.startswith("cuda") or device.leave_free is not None
        ]

    async def run(self) -> None:
        """Look once a second, until cancelled."""
        while self._watched:
            await asyncio.sleep(PERIOD_S)
            for watched in self._watched:
                free = await asyncio.to_thread(self._free_bytes, watched.config.name)
                self.observe(watched, free, self._clock())

    def observe(self, watched: Watched, free: int | None, now_ns: int) -> None:
        """So much of the device's memory is free now."""
        name = watched.config.name
        was_gone = watched.is_gone
        watched.num_missed = watched.num_missed + 1 if free is None else 0
        watched.has_answered |= free is not None
        if watched.is_gone and not was_gone:
            log.error("%s does not answer any more: what was lent there is lost", name)
            self._lenders.lose(name, now_ns)
        elif was_gone and not watched.is_gone:
            log.warning("%s answers again", name)
            self._lenders.found(name)
        if free is None:
            return
        if watched.config.leave_free is not None and self._sizes.capacity(name):
            self._keep_free(watched, free - watched.config.leave_free, now_ns)

    def _keep_free(self, watched: Watched, spare: int, now_ns: int) -> None:
        """`spare` bytes are free beyond what is to be left; less than none: so much is missing."""
        name, sizes = watched.config.name, self._sizes
        wanted, capacity = sizes.wanted(name), sizes.capacity(name)
        spare += sizes.held(name) - wanted  # on its way
        if spare < 0:
            watched.since_ns = None
            if wanted > sizes.least(name):
                sizes.resize(name, max(sizes.least(name), wanted + spare))
        elif wanted == capacity or spare < sizes.segment_bytes(name):
            watched.since_ns = None
        elif watched.since_ns is None:
            watched.since_ns = now_ns
        elif now_ns - watched.since_ns >= CALM_NS:
            watched.since_ns = None
            sizes.resize(name, min(capacity, wanted + spare))


def free_memory_of(gpus: Gpus) -> Callable[[str], int | None]:
    """Free bytes of a device by name: of a GPU, or of the machine for cpu devices."""
    return lambda name: gpus.free_bytes(name) if name.startswith("cuda") else available_bytes()
