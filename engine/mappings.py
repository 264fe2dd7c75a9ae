"""Which pools each runner has mapped: tells runners of new ones and of memory that goes and comes, and the
store what is in reach."""

import logging

from engine.lenders import Made
from engine.memory.placement import Placement
from engine.messages import MakeSegments, Mapped, Remap, Remapped, SegmentsMade, Unmap
from engine.pools import HeldPool, PoolTable
from engine.runner_client import RunnerClient

log = logging.getLogger("fairslice.engine")


class Mappings:
    """Of one model. A pool is in a device's reach once its runner has said that it mapped it.

    `runners` are those of now, by device. What a runner is told reaches it in order, so one that is still
    getting ready does it when it is.
    """

    def __init__(self, pools: PoolTable, runners: dict[str, RunnerClient]) -> None:
        self._pools = pools
        self._runners = runners
        self._sent: dict[str, set[int]] = {}
        self._mapped: dict[str, set[int]] = {}
        self._changing: dict[int, set[str]] = {}  # by pool: devices that have not answered
        self._made: dict[int, Made] = {}

    # ------------------------------------------------------------------ pools that come

    def start(self, device: str) -> None:
        """A new runner, which has mapped nothing, is told of all pools."""
        self._sent[device], self._mapped[device] = set(), set()
        self._send(device)

    def ready(self, device: str, unreachable: dict[int, str]) -> None:
        """The runner has mapped what it was told at its start."""
        self._note(device, self._sent[device], unreachable)

    def mapped(self, device: str, message: Mapped) -> None:
        """The runner has mapped what it was told later."""
        self._note(device, set(message.pools), message.unreachable)

    def update(self, ready: set[str], placement: Placement) -> None:
        """Tell runners that are ready of pools that are new to them, and `placement` how it stands."""
        every = {held.spec.pool for held in self._pools}
        for device, held in self._pools.local.items():
            if device in ready:
                self._send(device)
            mapped = self._mapped.get(device, set())
            placement.set_unreachable(held.spec.pool, frozenset(every - mapped))

    def lost(self, device: str) -> None:
        """The runner is gone, and with it all that it had mapped."""
        self._sent[device], self._mapped[device] = set(), set()
        for devices in self._changing.values():
            devices.discard(device)

    # ------------------------------------------------------------------ memory that goes and comes

    def unmap(self, region: str, units: list[int]) -> None:
        for held in self._pools.over(region):
            message = Unmap(pool=held.spec.pool, segments=units)
            for device in self._devices_with(held):
                self._runners[device].send(message)

    def remap(self, region: str, units: list[int], descriptors: list[int]) -> None:
        for held in self._pools.over(region):
            message = Remap(pool=held.spec.pool, segments=units)
            for device in self._devices_with(held):
                self._runners[device].send(message)
                self._runners[device].send_descriptors(descriptors)

    def make(self, region: str, units: list[int]) -> bool:
        held = self._pools.owned(region)
        if held is None or held.spec.pool not in self._mapped.get(held.spec.device, ()):
            return False
        self._changing[held.spec.pool] = {held.spec.device}
        self._runners[held.spec.device].send(MakeSegments(segments=units))
        return True

    def take_made(self, region: str) -> Made | None:
        held = self._pools.owned(region)
        return self._made.pop(held.spec.pool, None) if held is not None else None

    def is_settled(self, region: str) -> bool:
        return not any(self._changing.get(held.spec.pool) for held in self._pools.over(region))

    def remapped(self, device: str, message: Remapped) -> None:
        """The runner has done what it was told."""
        self._changing.get(message.pool, set()).discard(device)

    def made(self, device: str, message: SegmentsMade) -> None:
        """The runner has made memory for its own pool, or not."""
        descriptors = [] if message.error else self._runners[device].receive_descriptors()
        self._made[message.pool] = Made(descriptors, message.error)
        self._changing.get(message.pool, set()).discard(device)

    # ------------------------------------------------------------------ inner workings

    def _devices_with(self, held: HeldPool) -> list[str]:
        """Devices whose runners know of the pool; they are expected to answer."""
        devices = [device for device, sent in self._sent.items() if held.spec.pool in sent]
        self._changing[held.spec.pool] = set(devices)
        return devices

    def _send(self, device: str) -> None:
        attach = self._pools.attach(device, self._sent[device])
        if attach is not None:
            message, descriptors = attach
            self._sent[device].update(spec.pool for spec in message.pools)
            self._runners[device].send(message)
            self._runners[device].send_descriptors(descriptors)

    def _note(self, device: str, pools: set[int], unreachable: dict[int, str]) -> None:
        self._mapped[device] |= pools - unreachable.keys()
        names = {held.spec.pool: held.spec.device for held in self._pools}
        for pool, reason in unreachable.items():
            log.warning("%s cannot use the memory of %s: %s", device, names[pool], reason)
