"""What memory the machine has, and what is left of it, as the kernel and control groups say.

`root` is where /proc and /sys are.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
KERNELS_SHARE = 16  # a kernel takes less than one part in so many; what else is missing comes later


@dataclass(frozen=True, slots=True)
class _Group:
    """A control group with a limit that holds for this process. What it has used does not count files that
    the kernel keeps in memory as long as nothing else needs it."""

    limit_bytes: int
    used_bytes: int


@dataclass(frozen=True, slots=True)
class _Controller:
    """Where a version of control groups keeps its numbers."""

    mount: str
    limit: str
    used: str
    cached: tuple[str, ...]  # in memory.stat, of the group and those in it

    def read(self, root: Path, group: Path) -> _Group:
        """Raises OSError where the group is not shown here, ValueError if it has no limit."""
        folder = root / self.mount / group
        limit, used = (int((folder / name).read_text()) for name in (self.limit, self.used))
        return _Group(limit, max(0, used - self._cached_bytes(folder)))

    def _cached_bytes(self, folder: Path) -> int:
        with contextlib.suppress(FileNotFoundError):
            lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return sum(int(amount) for name, amount in lines if name in self.cached)
        return 0


_UNIFIED = _Controller(
    "sys/fs/cgroup", "memory.max", "memory.current", cached=("inactive_file", "active_file")
)
_FIRST_VERSION = _Controller(
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    cached=("total_inactive_file", "total_active_file"),
)


def limit_bytes(root: Path = ROOT) -> int | None:
    """The most memory that a process here can ever have, by what is built in and by its control groups; None
    where neither is told. What others use, or a virtual machine is given only later, counts as there."""
    known = [group.limit_bytes for group in _groups(root)]
    built_in = _physical_bytes(root)
    if built_in is not None:
        known.append(built_in)
    return min(known, default=None)


def available_bytes(root: Path = ROOT) -> int:
    """Memory that can be taken without swapping, by the kernel's estimate and the control groups' limits.
    Memory that a virtual machine is given only as it is used is counted, for it will be there."""
    fields = _meminfo(root)
    built_in = _physical_bytes(root) or 0
    to_come = built_in - fields["MemTotal"]
    available = fields["MemAvailable"] + (to_come if to_come > built_in // KERNELS_SHARE else 0)
    left = [max(0, group.limit_bytes - group.used_bytes) for group in _groups(root)]
    return min([available, *left])


def _meminfo(root: Path) -> dict[str, int]:
    """In bytes."""
    lines = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
    return {name.rstrip(":"): int(amount) * 1024 for name, amount, *unit in lines if unit == ["kB"]}


def _physical_bytes(root: Path) -> int | None:
    """The memory built in, by the zones of the kernel: its total leaves out what it has not begun to use.
    None where it shows no zones."""
    pages = 0
    zone = ""
    with contextlib.suppress(OSError):
        for line in (root / "proc/zoneinfo").read_text().splitlines():
            words = line.split()
            if words[:1] == ["Node"]:
                zone = words[-1]
            elif words[:1] == ["present"] and zone != "Device":  # a device's memory is not ours to take
                pages += int(words[1])
    return pages * os.sysconf("SC_PAGE_SIZE") or None


def _groups(root: Path) -> Iterator[_Group]:
    """The groups that this process is in and those around them, of either version, if they have a limit."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            inside = Path(path.lstrip("/"))
            if not controllers:
                controller = _UNIFIED
            elif "memory" in controllers.split(","):
                controller = _FIRST_VERSION
            else:
                continue
            for group in (inside, *inside.parents):
                with contextlib.suppress(OSError, ValueError):  # not shown here; "max" is no limit
                    yield controller.read(root, group)
