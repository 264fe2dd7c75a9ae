# mypy: allow-untyped-calls
"""GPUs on which a process has copies issued, beside its own: those whose memory it borrows.

One GPU's copy engines carry what comes and what goes over its links in turn, if the memory is of the driver's
virtual memory calls: 396 GB/s in all on an H200, where a sender at each end carries 782. And they pass pages
on between two other GPUs at a quarter of the links' speed. So the GPU that has the source is to issue a copy.
For that the borrower's process needs a context there, which takes some 530 MiB of the lender's memory, and
each GPU that sends needs access to what it sends from and to.

These contexts are the borrower's: it does not matter to them whether a process of the lender is there, ends
or faults. If the lender's GPU itself fails, so does what was issued there, and the borrower's runner takes
that for a fault of its own device: it cannot tell which of its bytes have arrived.
"""

import logging
from typing import Any

import torch
from cuda.bindings import driver

from engine.memory.cuda_calls import CudaError, unwrap
from engine.memory.cuda_pool import CudaRange, allow

log = logging.getLogger(__name__)

LEAVE_BYTES = 2**30  # of a lender's memory, for what it does itself


class SenderRefused(Exception):
    """A GPU cannot send for this process; one line that says why."""


class Senders:
    """Those of a process that computes on GPU `own`. A GPU becomes one with the first range of its memory
    that is mapped; where that cannot be, `own` goes on issuing the copies, and a warning says why."""

    def __init__(self, own: int) -> None:
        self._own = own
        self._ranges: list[CudaRange] = []
        self._devices = [own]
        self._seen = {own}

    def add(self, made: CudaRange) -> None:
        """Let senders use a range that is mapped for `own`; its owner becomes one of them. `made.devices` are
        those that may send from and to it, of which more may come."""
        self._ranges.append(made)
        for device in self._devices:
            self._allow(made, device)
        if made.owner not in self._seen:
            self._seen.add(made.owner)
            self._add_sender(made.owner)

    def _add_sender(self, device: int) -> None:
        try:
            if not _reaches(device, self._own):
                raise SenderRefused("it has no peer access")
            hold_context(device)
        except (SenderRefused, CudaError) as error:
            self._warn(device, error)
            return
        self._devices.append(device)
        for made in self._ranges:
            self._allow(made, device)

    def _allow(self, made: CudaRange, device: int) -> None:
        if not _reaches(device, made.owner):
            return  # two lenders: what they pass on goes by `own`
        try:
            allow(made, device)
        except CudaError as error:
            self._warn(device, error)

    def _warn(self, device: int, error: Exception) -> None:
        log.warning("cuda:%d cannot send for cuda:%d, which fetches for itself: %s", device, self._own, error)


def hold_context(device: int) -> None:
    """Have a context on GPU `device` until the process ends. Raises CudaError; SenderRefused if too little of
    the GPU's memory would be left."""
    found = unwrap("cuDeviceGet", driver.cuDeviceGet(device))
    context = unwrap("cuDevicePrimaryCtxRetain", driver.cuDevicePrimaryCtxRetain(found))
    try:
        free_bytes = _free_bytes(context)
        if free_bytes < LEAVE_BYTES:
            raise SenderRefused(f"a context would leave {free_bytes / 2**20:.0f} MiB of its memory free")
    except (CudaError, SenderRefused):
        unwrap("cuDevicePrimaryCtxRelease", driver.cuDevicePrimaryCtxRelease(found))
        raise


def _free_bytes(context: Any) -> int:
    """Free memory of the GPU of a context."""
    unwrap("cuCtxPushCurrent", driver.cuCtxPushCurrent(context))
    try:
        return int(unwrap("cuMemGetInfo", driver.cuMemGetInfo()))  # and all that it has
    finally:
        unwrap("cuCtxPopCurrent", driver.cuCtxPopCurrent())


def _reaches(device: int, owner: int) -> bool:
    return device == owner or torch.cuda.can_device_access_peer(device, owner)
