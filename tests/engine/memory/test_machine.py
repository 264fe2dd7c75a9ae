"""What memory there is, by what a kernel shows: made up, and this machine's."""

from pathlib import Path

from engine.memory.machine import available_bytes, limit_bytes

GIB = 2**30
PAGE = 4096


def machine(root: Path, *, total: int, available: int, built_in: int | None) -> Path:
    """A machine whose /proc says this, in bytes. Half of what is built in is in each of two zones."""
    (root / "proc" / "self").mkdir(parents=True)
    meminfo = f"MemTotal: {total // 1024} kB\nHugePages_Total: 0\nMemAvailable: {available // 1024} kB\n"
    (root / "proc" / "meminfo").write_text(meminfo)
    if built_in is not None:
        half = built_in // 2 // PAGE
        zones = f"Node 0, zone DMA32\n  pages free 1\n        present  {half}\n        managed  {half // 2}\n"
        zones += f"Node 1, zone Normal\n        present  {half}\n        managed  1\n"
        zones += "Node 1, zone Device\n        present  999999999\n"
        (root / "proc" / "zoneinfo").write_text(zones)
    return root


def in_groups(root: Path, lines: str, files: dict[str, object]) -> None:
    (root / "proc" / "self" / "cgroup").write_text(lines)
    for name, value in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")


def test_without_groups_the_limit_is_what_is_built_in(tmp_path: Path) -> None:
    root = machine(tmp_path, total=63 * GIB, available=50 * GIB, built_in=64 * GIB)
    assert limit_bytes(root) == 64 * GIB
    assert available_bytes(root) == 50 * GIB


def test_memory_that_comes_as_it_is_used_is_counted(tmp_path: Path) -> None:
    root = machine(tmp_path, total=31 * GIB, available=30 * GIB, built_in=256 * GIB)
    assert limit_bytes(root) == 256 * GIB
    assert available_bytes(root) == 255 * GIB


def test_where_nothing_is_told_nothing_is_known(tmp_path: Path) -> None:
    root = machine(tmp_path, total=2 * GIB, available=GIB, built_in=None)
    assert limit_bytes(root) is None
    assert available_bytes(root) == GIB


def test_the_narrowest_of_the_groups_around_us_counts(tmp_path: Path) -> None:
    root = machine(tmp_path, total=64 * GIB, available=60 * GIB, built_in=64 * GIB)
    limits = {
        "memory.max": "max",
        "memory.current": 5 * GIB,
        "a/memory.max": 16 * GIB,
        "a/memory.current": 12 * GIB,
        "a/b/memory.max": 20 * GIB,
        "a/b/memory.current": GIB,
        "c/memory.max": GIB,  # not ours
        "c/memory.current": 0,
    }
    in_groups(root, "0::/a/b\n", limits)
    assert limit_bytes(root) == 16 * GIB
    assert available_bytes(root) == 4 * GIB


def test_groups_of_the_first_version_count_too(tmp_path: Path) -> None:
    root = machine(tmp_path, total=64 * GIB, available=60 * GIB, built_in=None)
    limits = {
        "memory/memory.limit_in_bytes": 2**63 - PAGE,  # its word for none
        "memory/memory.usage_in_bytes": 10 * GIB,
        "memory/x/memory.limit_in_bytes": 8 * GIB,
        "memory/x/memory.usage_in_bytes": 9 * GIB,
    }
    in_groups(root, "8:cpu,cpuacct:/y\n4:memory:/x\n0::/\n", limits)
    assert limit_bytes(root) == 8 * GIB
    assert available_bytes(root) == 0


def test_files_that_are_kept_in_memory_make_room(tmp_path: Path) -> None:
    """Weights that were read before: a restart must not find the group full of them."""
    root = machine(tmp_path, total=64 * GIB, available=60 * GIB, built_in=None)
    stat = f"anon {GIB}\ninactive_file {3 * GIB}\nactive_file {2 * GIB}\nshmem {GIB}"
    in_groups(root, "0::/a\n", {"a/memory.max": 8 * GIB, "a/memory.current": 7 * GIB, "a/memory.stat": stat})
    assert limit_bytes(root) == 8 * GIB
    assert available_bytes(root) == 6 * GIB


def test_of_the_first_version_files_of_groups_inside_count_too(tmp_path: Path) -> None:
    root = machine(tmp_path, total=64 * GIB, available=60 * GIB, built_in=None)
    stat = f"inactive_file 0\nactive_file 0\ntotal_inactive_file {3 * GIB}\ntotal_active_file {GIB}"
    files = {
        "memory/memory.limit_in_bytes": 8 * GIB,
        "memory/memory.usage_in_bytes": 7 * GIB,
        "memory/memory.stat": stat,
    }
    in_groups(root, "4:memory:/\n", files)
    assert available_bytes(root) == 5 * GIB


def test_this_machines_memory() -> None:
    limit = limit_bytes()
    assert available_bytes() > 0
    assert limit is None or available_bytes() <= limit
