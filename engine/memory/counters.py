"""What a store counts of its doings, for metrics."""

from collections.abc import Iterator
from dataclasses import dataclass, field

Path = tuple[int, int]
"""(from pool, to pool)"""


@dataclass(slots=True)
class StoreCounters:
    """Totals since the start."""

    moves: int = 0
    moved_pages: dict[Path, int] = field(default_factory=dict)
    moved_ns: dict[Path, int] = field(default_factory=dict)  # time that the copies took
    evicted_pages: int = 0
    relocated_pages: int = 0  # moved from one tier to another
    redundant_pages: int = 0  # mirrored pages that were given up because their originals were local
    dropped_contexts: int = 0
    dropped_tokens: int = 0  # positions that have to be recomputed
    lost_pages: int = 0  # mirrored pages that went away with their pool

    def count_move(self, path: Path, num_pages: int, duration_ns: int) -> None:
        self.moves += 1
        self.moved_pages[path] = self.moved_pages.get(path, 0) + num_pages
        self.moved_ns[path] = self.moved_ns.get(path, 0) + duration_ns

    def rates(self, page_bytes: int) -> Iterator[tuple[Path, float]]:
        """Bytes per second of each path while it was moving."""
        for path, num_pages in self.moved_pages.items():
            if self.moved_ns[path]:
                yield path, num_pages * page_bytes / self.moved_ns[path] * 1e9
