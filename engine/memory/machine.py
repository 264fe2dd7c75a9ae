"""What memory the machine has, and what is left of it, as the kernel and control groups say.

`root` is where /proc and /sys are.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
KERNELS_SHARE = (
    16  # a kernel takes less than one part in so many for itself: what else is missing comes later
)


@dataclass(frozen=True, slots=True)
class _Group:
    """A control group with a limit that holds for this process."""

    limit_bytes: int
    used_bytes: int


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
                names = ("sys/fs/cgroup", "memory.max", "memory.current")
            elif "memory" in controllers.split(","):
                names = ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
            else:
                continue
            mount, limit, used = names
            for group in (inside, *inside.parents):
                with contextlib.suppress(OSError, ValueError):  # not shown here; "max" is no limit
                    folder = root / mount / group
                    yield _Group(int((folder / limit).read_text()), int((folder / used).read_text()))
