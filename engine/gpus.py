"""The machine's GPUs as NVML shows them: how they are linked, what is free, whether they are still there.

NVML needs no CUDA context, so the engine may ask it. Links are told by what they are made of, not measured:
good enough to prefer one to another.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping
from itertools import permutations
from typing import Any, Protocol, Self

import pynvml

# One NVLink, one direction. Some drivers say 5.0 of GPUs that have 4.0; all of a server's say the same.
NVLINK_BYTES_PER_S = 25e9
NVLINK_BYTES_PER_S_OF = {pynvml.NVML_NVLINK_VERSION_1_0: 20e9, pynvml.NVML_NVLINK_VERSION_5_0: 50e9}
PCIE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}  # one lane
# What is left of PCIe between two GPUs, by what they have in common; no more than an order of preference.
SHARE_BY_ANCESTOR = {
    pynvml.NVML_TOPOLOGY_INTERNAL: 1.0,
    pynvml.NVML_TOPOLOGY_SINGLE: 1.0,  # one PCIe switch
    pynvml.NVML_TOPOLOGY_MULTIPLE: 0.9,  # several
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: 0.8,
    pynvml.NVML_TOPOLOGY_NODE: 0.7,
    pynvml.NVML_TOPOLOGY_SYSTEM: 0.5,  # the link between processors
}
SWITCH = 2  # NVML_NVLINK_DEVICE_TYPE_SWITCH

Links = dict[tuple[str, str], float]
"""(device, device or "host") -> bytes per second, for each direction."""


class Gpus(Protocol):
    """GPUs by the names that the configuration gives them."""

    def free_bytes(self, name: str) -> int | None:
        """Memory that nobody has; None if the GPU does not answer any more."""

    def links(self, names: Iterable[str]) -> Links:
        """Between these GPUs, and to the host. A pair without peer access is left out."""


class NoGpus:
    """A machine without NVML."""

    def free_bytes(self, name: str) -> int | None:
        return None

    def links(self, names: Iterable[str]) -> Links:
        return {}


class NvmlGpus:
    """See `Gpus`. `cuda:N` is the Nth of the visible GPUs, in the order of their PCI addresses."""

    @classmethod
    def open(cls) -> Self | NoGpus:
        """What NVML knows, or that there is nothing to know."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return NoGpus()
        return cls(visible_handles(os.environ))

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    def free_bytes(self, name: str) -> int | None:
        handle = self._handle(name)
        if handle is None:
            return None
        try:
            return int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
        except pynvml.NVMLError:
            return None

    def links(self, names: Iterable[str]) -> Links:
        gpus = {name: handle for name in names if (handle := self._handle(name)) is not None}
        links: Links = {}
        for (name, handle), (other_name, other) in permutations(gpus.items(), 2):
            speed = _nvlink_speed(handle, other) or _pcie_peer_speed(handle, other)
            if speed:
                links[name, other_name] = speed
        for name, handle in gpus.items():
            with contextlib.suppress(pynvml.NVMLError):
                links[name, "host"] = _pcie_speed(handle)
        return links

    def _handle(self, name: str) -> Any | None:
        kind, _, index = name.partition(":")
        number = int(index or 0)
        return self._handles[number] if kind == "cuda" and number < len(self._handles) else None


def visible_handles(environment: Mapping[str, str]) -> list[Any]:
    """Handles of the GPUs that CUDA_VISIBLE_DEVICES names, by index or by the beginning of a UUID; of all, if
    it is not set. As CUDA does, it ends at the first that is not there."""
    every = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return every
    visible = []
    for entry in (part.strip() for part in named.split(",")):
        if entry.isdecimal():
            found = every[int(entry) : int(entry) + 1]
        else:
            found = [h for h in every if entry and _uuid(h).startswith(entry)]
        if not found:
            break
        visible.append(found[0])
    return visible


def _uuid(handle: Any) -> str:
    uuid = pynvml.nvmlDeviceGetUUID(handle)
    return uuid.decode() if isinstance(uuid, bytes) else str(uuid)


def _has_peer_access(handle: Any, other: Any, capability: int) -> bool:
    try:
        status = pynvml.nvmlDeviceGetP2PStatus(handle, other, capability)
    except pynvml.NVMLError:
        return False
    return bool(status == pynvml.NVML_P2P_STATUS_OK)


def _nvlink_speed(handle: Any, other: Any) -> float:
    """Of all NVLinks from one GPU to the other, or to the switch that joins them; 0 without any."""
    if not _has_peer_access(handle, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK):
        return 0.0
    address, speed = pynvml.nvmlDeviceGetPciInfo(other).busId, 0.0
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        with contextlib.suppress(pynvml.NVMLError):
            if not pynvml.nvmlDeviceGetNvLinkState(handle, link):
                continue
            is_switch = pynvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link) == SWITCH
            if is_switch or pynvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId == address:
                version = pynvml.nvmlDeviceGetNvLinkVersion(handle, link)
                speed += NVLINK_BYTES_PER_S_OF.get(version, NVLINK_BYTES_PER_S)
    return speed or NVLINK_BYTES_PER_S  # there is a link, though NVML does not say which


def _pcie_peer_speed(handle: Any, other: Any) -> float:
    """Between two GPUs without NVLink; 0 without peer access."""
    if not _has_peer_access(handle, other, pynvml.NVML_P2P_CAPS_INDEX_READ):
        return 0.0
    try:
        ancestor = pynvml.nvmlDeviceGetTopologyCommonAncestor(handle, other)
        return min(_pcie_speed(handle), _pcie_speed(other)) * SHARE_BY_ANCESTOR.get(ancestor, 0.5)
    except pynvml.NVMLError:
        return 0.0


def _pcie_speed(handle: Any) -> float:
    """Of the GPU's slot, at best. Raises NVMLError."""
    lanes = pynvml.nvmlDeviceGetMaxPcieLinkWidth(handle)
    generation = pynvml.nvmlDeviceGetMaxPcieLinkGeneration(handle)
    return float(lanes * PCIE_BYTES_PER_S.get(generation, PCIE_BYTES_PER_S[3]))
