"""Lending in motion: offers by demand, grants as mirrors grow, recalls, and pages that come back.

Pure: stores do the bookkeeping of pages, `LeaseBook` that of leases; here they meet. A lender is a piece of
memory, known by name: that of a device on which nothing runs, which offers all of it, or the page pool of a
device that serves, which offers what it has not needed for a while. A borrower is a model's contexts, or
somebody's elastic tensors. Each pair has a pool of its own, with pages of the borrower's size over all of the
lender's memory, of which the borrower uses those that lie in its leased segments.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from engine.memory.leases import Lease, LeaseBook, Recall
from engine.memory.lender import Lender, OpenRecall, Owner
from engine.memory.mirrors import Market
from engine.memory.pool import PagePool
from engine.memory.returns import PagesReturned
from engine.memory.withdrawals import Withdrawals

TERM_NS = 30_000_000_000
RENEW_NS = 1_000_000_000
CALM_NS = 2_000_000_000  # memory is surplus that was free for so long


class Borrower(Protocol):
    """Has things to keep in leased tiers: `ContextStore`, `ElasticTensors`."""

    @property
    def num_moves_in_flight(self) -> int:
        """Moves that may touch a tier."""

    def set_market(self, market: Market) -> None:
        """Where leased tiers get their segments."""

    def add_tier(self, pool: PagePool, device: str | None = None, owner: int | None = None) -> None:
        """A leased tier in the memory of `device`, lent by local pool `owner`."""

    def recall(self, pool_id: int, segments: list[int]) -> None:
        """These segments are wanted back: put nothing there any more, and empty them."""

    def lose_segment(self, pool_id: int, number: int) -> None:
        """The bytes of this segment are gone: hold nothing there."""


@dataclass(slots=True)
class LendingCounters:
    """Totals since the start, in segments."""

    granted: int = 0
    recalled: int = 0
    returned: int = 0
    expired: int = 0
    reclaim_ns: int = 0  # from the recall of a segment to its return, summed
    longest_reclaim_ns: int = 0


class Lending:
    """The lenders and borrowers of one engine."""

    def __init__(self, term_ns: int = TERM_NS) -> None:
        self.book = LeaseBook(term_ns)
        self.lenders: dict[str, Lender] = {}
        self.borrowers: dict[str, Borrower] = {}
        self.counters = LendingCounters()
        self._by_pool: dict[int, tuple[Lender, str]] = {}  # tier -> its lender and its borrower
        self._by_owned: dict[int, tuple[Lender, Owner]] = {}  # local pool -> its lender and its owner
        self._withdrawals = Withdrawals(self.book, self._open_recall)
        self.num_changes = 0  # grows with every segment or page that changes hands
        self._now_ns = 0
        self._renewed_ns = 0

    # ------------------------------------------------------------------ who takes part

    def add_lender(
        self, name: str, device: str, num_segments: int, segment_bytes: int, owner: Owner | None = None
    ) -> None:
        """Memory of `device`. Without an owner all of it is on offer from now on."""
        lender = self.lenders[name] = Lender(name, device, num_segments, segment_bytes, owner, num_segments)
        self.book.offer(name, range(num_segments) if owner is None else ())
        if owner is not None:
            owner.since_ns = self._now_ns
            self._by_owned[owner.pool.pool_id] = (lender, owner)
            owner.store.set_landlord(self)

    def add_borrower(self, name: str, borrower: Borrower) -> None:
        """Its contexts or tensors may live in the memory of lenders."""
        self.borrowers[name] = borrower
        borrower.set_market(self)

    def connect(self, lender: str, borrower: str, pool: PagePool) -> None:
        """`pool`, which has no pages yet, covers the lender's memory with pages of the borrower's."""
        assert pool.segment_bytes == self.lenders[lender].segment_bytes
        self.lenders[lender].pools[borrower] = pool
        self._by_pool[pool.pool_id] = (self.lenders[lender], borrower)
        owner = self.lenders[lender].owner
        lent_by = owner.pool.pool_id if owner is not None else None
        self.borrowers[borrower].add_tier(pool, self.lenders[lender].device, lent_by)

    def lose_lender(self, name: str, *, is_gone: bool) -> None:
        """Its bytes are not to be trusted; with `is_gone` there is no memory either, until it is restored.

        Contexts that hold pages there and are on the move (`ContextStore.entangled`) have been closed; the
        others recompute what they had there and nowhere else.
        """
        lender = self.lenders[name]
        for lease in self.book.leases_from(name):
            self.borrowers[lease.borrower].lose_segment(lender.pools[lease.borrower].pool_id, lease.segment)
        if is_gone:
            self._withdrawals.take_all(lender)
        self._take_returns(lender)

    # ------------------------------------------------------------------ memory that goes and comes

    def resize(self, name: str, num_segments: int) -> None:
        """Have so many of the lender's segments in use, at least one. What is too much is emptied by and by
        and then `withdrawn`; what is missing is in use again when it is restored."""
        lender = self.lenders[name]
        lender.wanted_segments = max(1, min(num_segments, lender.num_segments))

    def restore(self, name: str, segments: set[int]) -> None:
        """There is memory behind these withdrawn segments again."""
        self._withdrawals.restore(self.lenders[name], segments)
        self.num_changes += 1

    # ------------------------------------------------------------------ the market, for borrowers' stores

    def num_on_offer(self, pool_id: int) -> int:
        """Pages that this tier's borrower could lease now, at least."""
        lender, borrower = self._by_pool[pool_id]
        num_pages = lender.pages_per_segment(borrower)
        return self.book.num_available(lender.name, borrower) * num_pages if num_pages else 0

    def lease(self, pool_id: int, num_pages: int) -> None:
        """Lease segments for `num_pages` in this tier, as far as they are on offer."""
        lender, borrower = self._by_pool[pool_id]
        pool, per_segment = lender.pools[borrower], lender.pages_per_segment(borrower)
        if not per_segment:
            return
        count = -(-num_pages // per_segment)
        for segment in self.book.borrow(lender.name, borrower, count, self._now_ns):
            pool.add(segment, pool.whole_pages(segment))
            self.counters.granted += 1

    # ------------------------------------------------------------------ the landlord, for owners' stores

    def num_regainable(self, pool_id: int) -> int:
        """Pages that the owner of this local pool could have back at once."""
        owned = self._by_owned.get(pool_id)
        return self.book.num_on_offer(owned[0].name) * owned[1].pages_per_segment if owned else 0

    def regain(self, pool_id: int, num_pages: int) -> None:
        """The owner of this local pool needs `num_pages` more: what is on offer is its own at once; as much
        as is missing then is recalled."""
        if pool_id not in self._by_owned:
            return
        lender, owner = self._by_owned[pool_id]
        owner.since_ns, owner.low_water = self._now_ns, 0
        count = -(-num_pages // owner.pages_per_segment)
        for segment in self.book.take_back(lender.name, count):
            owner.pool.add(segment, owner.pool.whole_pages(segment))
            count -= 1
            self.num_changes += 1
        count -= sum(recall.returned is not None for recall in lender.recalls.values())
        for lease in self.book.recall(lender.name, max(0, count)):
            self._open_recall(lender, lease)
        self._take_returns(lender)

    # ------------------------------------------------------------------ the turn

    def tick(self, now_ns: int, alive: Collection[str] | None = None) -> None:
        """Look after everything; called in every turn of the engine. `alive` are the borrowers with a runner
        that works (None: all)."""
        self._now_ns = now_ns
        if now_ns - self._renewed_ns >= RENEW_NS:
            self._renewed_ns = now_ns
            for borrower in self.borrowers if alive is None else alive:
                self.book.renew(borrower, now_ns)
            self._end_expired(now_ns)
        for lease in self.book.rebalance():
            self._open_recall(self.lenders[lease.lender], lease)
        for lender in self.lenders.values():
            self._take_returns(lender)
            self.num_changes += self._withdrawals.advance(lender)
            if lender.owner is not None:
                self._offer_surplus(lender, lender.owner)

    def _end_expired(self, now_ns: int) -> None:
        """A borrower that is dead cannot move its pages out: they are dropped, and come back at once."""
        for lease in self.book.expired(now_ns):
            lender, borrower = self.lenders[lease.lender], self.borrowers[lease.borrower]
            if not borrower.num_moves_in_flight:
                borrower.lose_segment(lender.pools[lease.borrower].pool_id, lease.segment)
                self._open_recall(lender, lease)
                self.counters.expired += 1

    def _open_recall(self, lender: Lender, lease: Lease) -> None:
        """Have the lease's segment emptied; its store does it by and by."""
        if lease.segment in lender.recalls:
            return
        pool, owner = lender.pools[lease.borrower], lender.owner
        self.borrowers[lease.borrower].recall(pool.pool_id, [lease.segment])
        is_owners = lease.recall is Recall.OWNER and lease.segment not in lender.leaving
        returned = PagesReturned(pool, owner.pool, lease.segment) if owner is not None and is_owners else None
        lender.recalls[lease.segment] = OpenRecall(lease, pool, self._now_ns, returned)
        self.counters.recalled += 1
        self.num_changes += 1

    def _take_returns(self, lender: Lender) -> None:
        """Freed pages of recalled segments are the owner's as they empty; a segment that is empty is
        returned."""
        for segment, recall in list(lender.recalls.items()):
            if recall.returned is not None and lender.owner is not None:
                pages = recall.returned.take()
                lender.owner.pool.add(segment, pages)
                self.num_changes += bool(pages)
            if recall.pool.is_empty(segment):
                recall.pool.remove(segment)
                del lender.recalls[segment]
                self.book.end(lender.name, segment)
                if segment in lender.leaving:
                    lender.leaving.remove(segment)
                    lender.withdrawn.add(segment)
                self.num_changes += 1
                waited_ns = self._now_ns - recall.since_ns
                self.counters.returned += 1
                self.counters.reclaim_ns += waited_ns
                self.counters.longest_reclaim_ns = max(self.counters.longest_reclaim_ns, waited_ns)

    def _offer_surplus(self, lender: Lender, owner: Owner) -> None:
        """Offer whole empty segments, the highest, of what was free for a whole period."""
        owner.low_water = min(owner.low_water, owner.pool.num_free)
        if self._now_ns - owner.since_ns < CALM_NS:
            return
        spare = (owner.low_water - owner.keep_pages) // owner.pages_per_segment
        room = owner.max_segments - (lender.num_present - len(owner.pool.segments))
        offered = list(owner.empty_segments(min(spare, room)))
        for segment in offered:
            owner.pool.remove(segment)
        self.book.offer(lender.name, offered)
        owner.since_ns, owner.low_water = self._now_ns, owner.pool.num_free

    def check_integrity(self) -> None:
        """Leases and pools agree. Raises AssertionError."""
        self.book.check_integrity()
        for lender in self.lenders.values():
            leased = {lease.segment: lease.borrower for lease in self.book.leases_from(lender.name)}
            for borrower, pool in lender.pools.items():
                own = {segment for segment, name in leased.items() if name == borrower}
                assert own == set(pool.segments), (
                    f"{lender.name}: {borrower} has segments that it did not lease"
                )
            in_use = lender.leaving | leased.keys()
            assert not lender.withdrawn & in_use, f"{lender.name}: in use and withdrawn"
            if lender.owner is not None:
                pool = lender.owner.pool
                assert not lender.withdrawn & pool.segments.keys(), f"{lender.name}: in use and withdrawn"
                for segment in leased.keys() & pool.segments.keys():
                    assert lender.recalls[segment].returned is not None, "a segment is lent and in use"
