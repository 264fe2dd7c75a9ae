"""Which pools each runner has mapped: tells runners of new ones, and the store what is in reach."""

import logging

from engine.memory.placement import Placement
from engine.messages import Mapped
from engine.pools import PoolTable
from engine.runner_client import RunnerClient

log = logging.getLogger("fairslice.engine")


class Mappings:
    """Of one model. A pool is in a device's reach once its runner has said that it mapped it."""

    def __init__(self, pools: PoolTable) -> None:
        self._pools = pools
        self._sent: dict[str, set[int]] = {}
        self._mapped: dict[str, set[int]] = {}

    def start(self, device: str, runner: RunnerClient) -> None:
        """A new runner, which has mapped nothing, is told of all pools."""
        self._sent[device], self._mapped[device] = set(), set()
        self._send(device, runner)

    def ready(self, device: str, unreachable: dict[int, str]) -> None:
        """The runner has mapped what it was told at its start."""
        self._note(device, self._sent[device], unreachable)

    def mapped(self, device: str, message: Mapped) -> None:
        """The runner has mapped what it was told later."""
        self._note(device, set(message.pools), message.unreachable)

    def update(self, runners: dict[str, RunnerClient], placement: Placement) -> None:
        """Tell runners that are ready of pools that are new to them, and `placement` how it stands."""
        every = {held.spec.pool for held in self._pools}
        for device, held in self._pools.local.items():
            if device in runners:
                self._send(device, runners[device])
            mapped = self._mapped.get(device, set())
            placement.set_unreachable(held.spec.pool, frozenset(every - mapped))

    def _send(self, device: str, runner: RunnerClient) -> None:
        attach = self._pools.attach(device, self._sent[device])
        if attach is not None:
            message, descriptors = attach
            self._sent[device].update(spec.pool for spec in message.pools)
            runner.send(message)
            runner.send_descriptors(descriptors)

    def _note(self, device: str, pools: set[int], unreachable: dict[int, str]) -> None:
        self._mapped[device] |= pools - unreachable.keys()
        names = {held.spec.pool: held.spec.device for held in self._pools}
        for pool, reason in unreachable.items():
            log.warning("%s cannot use the memory of %s: %s", device, names[pool], reason)
