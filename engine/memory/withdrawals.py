"""Segments that are taken out of use, for a while or for good, so that their memory can be given back.

Nothing that is there is lost: leased segments are recalled as for an owner that needs them, and what lies in
the owner's own is moved aside by its store.
"""

from collections.abc import Callable

from engine.memory.leases import Lease, LeaseBook
from engine.memory.lender import Lender, Owner

OpenRecallOf = Callable[[Lender, Lease], None]


class Withdrawals:
    """Brings lenders to the number of segments that is wanted of them: what nobody has first, then what is
    leased, then what the owner uses; of each the highest. Segment 0 always stays."""

    def __init__(self, book: LeaseBook, open_recall: OpenRecallOf) -> None:
        self._book = book
        self._open_recall = open_recall

    def advance(self, lender: Lender) -> int:
        """Take out what can be now, and have more of it emptied; how many segments changed hands."""
        before = len(lender.withdrawn)
        if lender.leaving and lender.owner is not None:
            self._take_emptied(lender, lender.owner)
        surplus = lender.num_present - len(lender.leaving) - lender.wanted_segments
        if surplus > 0:
            surplus -= self._take_unused(lender, surplus)
            surplus -= self._recall(lender, surplus)
            if lender.owner is not None:
                self._vacate(lender, lender.owner, surplus)
        return len(lender.withdrawn) - before

    def restore(self, lender: Lender, segments: set[int]) -> None:
        """There is memory behind these withdrawn segments again."""
        assert segments <= lender.withdrawn
        lender.withdrawn -= segments
        if lender.owner is None:
            self._book.offer(lender.name, segments)
        else:
            for segment in segments:
                lender.owner.pool.add(segment, lender.owner.pool.whole_pages(segment))

    def take_all(self, lender: Lender) -> None:
        """Everything that is on offer or leased is gone. What its borrowers had there, they have lost."""
        lender.withdrawn.update(self._book.take_back(lender.name, lender.num_segments))
        for lease in self._book.lender_gone(lender.name):
            recall = lender.recalls.get(lease.segment)
            if recall is None or recall.returned is None:  # else it is half its owner's already
                lender.leaving.add(lease.segment)
            self._open_recall(lender, lease)
        lender.wanted_segments = lender.num_present - len(lender.leaving)

    def _take_unused(self, lender: Lender, count: int) -> int:
        taken = self._book.withdraw(lender.name, count)
        if lender.owner is not None:
            for segment in list(lender.owner.empty_segments(count - len(taken))):
                lender.owner.pool.remove(segment)
                taken.append(segment)
        lender.withdrawn.update(taken)
        return len(taken)

    def _recall(self, lender: Lender, count: int) -> int:
        recalled = self._book.recall(lender.name, count, lowest=1)
        for lease in recalled:
            lender.leaving.add(lease.segment)
            self._open_recall(lender, lease)
        return len(recalled)

    def _vacate(self, lender: Lender, owner: Owner, count: int) -> None:
        own = sorted(owner.pool.segments, reverse=True)
        able = [n for n in own if n and owner.has_whole(n) and not owner.pool.segments[n].is_recalled]
        for number in able[: max(0, count)]:
            lender.leaving.add(number)
            owner.store.vacate(owner.pool.pool_id, number)

    def _take_emptied(self, lender: Lender, owner: Owner) -> None:
        for number in lender.leaving & owner.pool.segments.keys():
            if owner.pool.is_empty(number):
                owner.pool.remove(number)
                lender.leaving.remove(number)
                lender.withdrawn.add(number)
