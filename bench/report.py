"""Rows of a benchmark as a plain table that can be pasted into docs/benchmarks.md."""

import platform
from collections.abc import Sequence
from pathlib import Path


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table, under the name of the machine."""
    print(f"\n{machine()}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + " --- |" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def machine() -> str:
    """The processor, its cores and the Python version."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.machine()}, {len(names)} cores, Python {platform.python_version()}"
    )
