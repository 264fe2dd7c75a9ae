"""Pages of a lent segment that come back one by one, though borrower and owner count in different pages."""

from engine.memory.pool import PagePool


class PagesReturned:
    """Follows a recalled segment: a page of the owner's is free when no borrowed page that overlaps it is in
    use."""

    def __init__(self, borrowed: PagePool, owned: PagePool, segment: int) -> None:
        self._segment = borrowed.segments[segment]
        self._seen = 0  # of its free pages, which only become more: nothing is given out any more
        self._borrowed_bytes, self._owned_bytes = borrowed.page_bytes, owned.page_bytes
        self._blockers = dict.fromkeys(owned.whole_pages(segment), 0)
        for page in borrowed.whole_pages(segment):
            for own in self._overlapping(page):
                self._blockers[own] += 1
        self._ready = [own for own, blockers in self._blockers.items() if not blockers]

    def take(self) -> list[int]:
        """The owner's pages that have become free since the last call."""
        ready, self._ready = self._ready, []
        for page in self._segment.free[self._seen :]:
            for own in self._overlapping(page):
                self._blockers[own] -= 1
                if not self._blockers[own]:
                    ready.append(own)
        self._seen = self._segment.num_free
        return ready

    def _overlapping(self, page: int) -> range:
        """Pages of the owner's that share bytes with a borrowed page."""
        first = page * self._borrowed_bytes // self._owned_bytes
        return range(first, -(-(page + 1) * self._borrowed_bytes // self._owned_bytes))
