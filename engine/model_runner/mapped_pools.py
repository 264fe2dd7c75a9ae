"""The pools of a runner: maps what the engine tells it of, and lets go of memory that is to be given back."""

import os
import socket
from dataclasses import dataclass

from engine.memory.regions import RegionError, receive_descriptors, send_descriptors
from engine.messages import Attach, MakeSegments, Mapped, Remap, Remapped, SegmentsMade, Unmap
from engine.model_runner.devices import Attached, Device
from engine.model_runner.sources.errors import one_line
from engine.model_runner.sources.progress import OnProgress

PoolMessage = Attach | Unmap | Remap | MakeSegments
PoolAnswer = Mapped | Remapped | SegmentsMade


def attach_pools(
    device: Device, attach: Attach, descriptors: socket.socket, on_progress: OnProgress
) -> "MappedPools":
    """Map the pools that the engine names first. Raises DeviceError, RegionError, EOFError."""
    received = receive_descriptors(descriptors)
    attached = device.attach(attach, received, on_progress)
    exported = attached.exported
    if exported is not None:
        send_descriptors(descriptors, exported)
    _close([*received, *(exported or ())])
    return MappedPools(device, attach.local, attached, descriptors)


@dataclass(frozen=True, slots=True)
class MappedPools:
    """`attached` as it was at the start. The engine keeps all descriptors; they travel on a socket of their
    own, in the order of the messages that they belong to."""

    device: Device
    local: int
    attached: Attached
    descriptors: socket.socket

    def change(self, message: PoolMessage) -> PoolAnswer:
        """Do what the engine wishes, between two steps; the answer. Raises DeviceError, RegionError,
        EOFError: the runner cannot go on with pools that are not what the engine takes them for."""
        match message:
            case Attach():
                return self._attach(message)
            case Unmap(pool=pool, segments=segments):
                self.device.unmap(pool, segments)
                return Remapped(pool=pool)
            case Remap(pool=pool, segments=segments):
                received = receive_descriptors(self.descriptors)
                self.device.remap(pool, segments, received)
                _close(received)
                return Remapped(pool=pool)
            case MakeSegments(segments=segments):
                return self._make(segments)

    def _attach(self, attach: Attach) -> Mapped:
        received = receive_descriptors(self.descriptors)
        unreachable = self.device.attach_more(self.attached, attach, received)
        _close(received)
        return Mapped(pools=[spec.pool for spec in attach.pools], unreachable=unreachable)

    def _make(self, segments: list[int]) -> SegmentsMade:
        """Want of memory is no fault: somebody else was quicker."""
        try:
            made = self.device.make_segments(self.local, segments)
        except Exception as error:
            if not isinstance(error, RegionError) and not self.device.is_out_of_memory(error):
                raise
            return SegmentsMade(pool=self.local, segments=segments, error=one_line(error))
        send_descriptors(self.descriptors, made)
        _close(made)
        return SegmentsMade(pool=self.local, segments=segments)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
