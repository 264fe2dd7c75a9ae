"""The ledger of a pool of equal pages: which are free. Bytes live elsewhere (in runners, by descriptor)."""

from collections.abc import Iterable


class PagePool:
    """Pages `first .. num_pages - 1` of pool `pool_id`; a runner's local pool keeps page 0 for padding.

    Free pages are a stack, so allocation and release are slices of a list: microseconds for thousands.
    """

    def __init__(self, pool_id: int, num_pages: int, page_bytes: int, *, first: int = 0) -> None:
        self.pool_id = pool_id
        self.page_bytes = page_bytes
        self.num_pages = num_pages
        self.first = first
        self._free = list(range(num_pages - 1, first - 1, -1))

    @property
    def num_usable(self) -> int:
        """Pages that contexts may have."""
        return self.num_pages - self.first

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_usable - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages. The caller has looked at `num_free`."""
        assert 0 <= count <= len(self._free), f"pool {self.pool_id}: {count} of {len(self._free)} free"
        if count == 0:
            return []
        taken = self._free[-count:]
        del self._free[-count:]
        taken.reverse()
        return taken

    def release(self, pages: list[int]) -> None:
        """Give pages back. Nobody may read or write them any more."""
        self._free.extend(pages)
        assert len(self._free) <= self.num_usable, f"pool {self.pool_id}: a page was released twice"

    def check_integrity(self, held: Iterable[int]) -> None:
        """`held` are all pages that somebody has: with the free ones they make up the pool, each once."""
        pages = sorted([*held, *self._free])
        assert pages == list(range(self.first, self.num_pages)), f"pool {self.pool_id}: pages lost or shared"
