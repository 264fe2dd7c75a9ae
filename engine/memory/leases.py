"""Who lends what to whom. Pure: time is an argument, nothing here knows what a segment holds.

A lender offers segments of its pool; a borrower leases them one by one, and a lease ends when it is recalled
and its segment empty, or when the borrower has not been heard of for a term. A lender's segments are shared
evenly among the borrowers that want them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from sortedcontainers import SortedSet


class Recall(Enum):
    """Why a lease is to end."""

    OWNER = "owner"  # the lender needs the memory itself: the segment is not on offer afterwards
    FAIRNESS = "fairness"  # another borrower has less than its share


@dataclass(slots=True, eq=False)
class Lease:
    """One segment of a lender, in the hands of a borrower until `expires_ns`."""

    lender: str
    segment: int
    borrower: str
    expires_ns: int
    recall: Recall | None = None


@dataclass(slots=True)
class _Lender:
    on_offer: SortedSet[int] = field(default_factory=SortedSet)
    leases: dict[int, Lease] = field(default_factory=dict)  # by segment
    held: dict[str, int] = field(default_factory=dict)  # leases by borrower
    wanted: dict[str, int] = field(default_factory=dict)  # segments that a borrower asked for in vain


class LeaseBook:
    """All leases. A lease that nobody renews ends after `term_ns`."""

    def __init__(self, term_ns: int) -> None:
        self.term_ns = term_ns
        self._lenders: dict[str, _Lender] = {}

    # ------------------------------------------------------------------ lenders

    def offer(self, lender: str, segments: Iterable[int]) -> None:
        """These segments may be leased from now on."""
        entry = self._lenders.setdefault(lender, _Lender())
        entry.on_offer.update(segments)

    def take_back(self, lender: str, count: int) -> list[int]:
        """Up to `count` segments that were on offer and leased by nobody: they are the lender's at once."""
        on_offer = self._lenders[lender].on_offer
        taken = list(on_offer[:count])
        on_offer.difference_update(taken)
        return taken

    def withdraw(self, lender: str, count: int) -> list[int]:
        """Up to `count` segments that were on offer, the highest, are on offer no more; never segment 0."""
        on_offer = self._lenders[lender].on_offer
        taken = [segment for segment in on_offer[max(0, len(on_offer) - count) :] if segment]
        on_offer.difference_update(taken)
        return taken

    def recall(self, lender: str, count: int, *, lowest: int = 0) -> list[Lease]:
        """Ask for up to `count` leased segments back, from number `lowest` on: in turn from whoever holds
        most."""
        entry = self._lenders[lender]
        recalled: list[Lease] = []
        if not entry.leases or not count:
            return recalled
        held = dict(entry.held)
        open_leases = {name: self._open_leases(entry, name, lowest) for name in held}
        while len(recalled) < count and any(open_leases.values()):
            borrower = max((name for name in held if open_leases[name]), key=lambda name: (held[name], name))
            lease = open_leases[borrower].pop()
            lease.recall = Recall.OWNER
            held[borrower] -= 1
            recalled.append(lease)
        return recalled

    def num_on_offer(self, lender: str) -> int:
        return len(self._lenders[lender].on_offer)

    def leases_from(self, lender: str) -> list[Lease]:
        return list(self._lenders[lender].leases.values())

    def lender_gone(self, lender: str) -> list[Lease]:
        """The lender's memory is no more: nothing of it is on offer, and all leases are to end."""
        entry = self._lenders[lender]
        entry.on_offer.clear()
        for lease in entry.leases.values():
            lease.recall = Recall.OWNER
        return list(entry.leases.values())

    # ------------------------------------------------------------------ borrowers

    def num_available(self, lender: str, borrower: str) -> int:
        """Segments that `borrow` would give now."""
        return self._allowance(self._lenders[lender], borrower)

    def borrow(self, lender: str, borrower: str, count: int, now_ns: int) -> list[int]:
        """Lease up to `count` segments; what is missing is remembered as wanted."""
        entry = self._lenders[lender]
        granted = list(entry.on_offer[: min(count, self._allowance(entry, borrower))])
        entry.on_offer.difference_update(granted)
        for segment in granted:
            entry.leases[segment] = Lease(lender, segment, borrower, now_ns + self.term_ns)
        entry.held[borrower] = entry.held.get(borrower, 0) + len(granted)
        if len(granted) < count:
            entry.wanted[borrower] = count - len(granted)
        else:
            entry.wanted.pop(borrower, None)
        return granted

    def end(self, lender: str, segment: int) -> Lease:
        """The borrower has nothing in the segment any more. Unless its owner recalled it, it is on offer."""
        entry = self._lenders[lender]
        lease = entry.leases.pop(segment)
        entry.held[lease.borrower] -= 1
        if not entry.held[lease.borrower]:
            del entry.held[lease.borrower]
        if lease.recall is not Recall.OWNER:
            entry.on_offer.add(segment)
        return lease

    def renew(self, borrower: str, now_ns: int) -> None:
        """The borrower is alive."""
        for entry in self._lenders.values():
            if borrower in entry.held:
                for lease in entry.leases.values():
                    if lease.borrower == borrower:
                        lease.expires_ns = now_ns + self.term_ns

    def expired(self, now_ns: int) -> list[Lease]:
        """Leases whose borrowers have not been heard of for a term. The caller ends them."""
        return [lease for lease in self._leases() if lease.expires_ns <= now_ns]

    def rebalance(self) -> list[Lease]:
        """Recall segments from borrowers above their even share, for those below it that asked in vain."""
        recalled: list[Lease] = []
        for entry in self._lenders.values():
            for borrower, short in list(entry.wanted.items()):
                missing = min(short, self._share(entry) - entry.held.get(borrower, 0))
                missing -= len(entry.on_offer) + self._num_coming(entry)
                if missing > 0:
                    recalled += self._recall_surplus(entry, missing)
        return recalled

    # ------------------------------------------------------------------ inner workings

    def _leases(self) -> list[Lease]:
        return [lease for entry in self._lenders.values() for lease in entry.leases.values()]

    def _open_leases(self, entry: _Lender, borrower: str, lowest: int = 0) -> list[Lease]:
        """Leases from segment `lowest` on that are not recalled, those of low segments first: pages are taken
        from low ones."""
        numbers = [number for number in sorted(entry.leases) if number >= lowest]
        own = [entry.leases[number] for number in numbers if entry.leases[number].borrower == borrower]
        return [lease for lease in own if lease.recall is None]

    def _share(self, entry: _Lender, borrower: str | None = None) -> int:
        """Segments for each of those that hold or want some, `borrower` among them."""
        parties = len(entry.held.keys() | entry.wanted.keys() | ({borrower} if borrower else set()))
        return (len(entry.on_offer) + len(entry.leases)) // max(1, parties)

    def _allowance(self, entry: _Lender, borrower: str) -> int:
        """Up to its share for sure; beyond it only what nobody else asked for."""
        if not entry.wanted or entry.wanted.keys() == {borrower}:
            return len(entry.on_offer)
        room = max(0, self._share(entry, borrower) - entry.held.get(borrower, 0))
        return min(len(entry.on_offer), room)

    def _num_coming(self, entry: _Lender) -> int:
        return sum(lease.recall is Recall.FAIRNESS for lease in entry.leases.values())

    def _recall_surplus(self, entry: _Lender, count: int) -> list[Lease]:
        share = self._share(entry)
        recalled: list[Lease] = []
        for borrower in sorted(entry.held, key=lambda name: (-entry.held[name], name)):
            leases = self._open_leases(entry, borrower)
            surplus = max(0, len(leases) - share)
            for lease in leases[::-1][: min(surplus, count - len(recalled))]:
                lease.recall = Recall.FAIRNESS
                recalled.append(lease)
        return recalled

    def check_integrity(self) -> None:
        """A segment is leased once or on offer, and counts agree. Raises AssertionError."""
        for lender, entry in self._lenders.items():
            assert not entry.on_offer & entry.leases.keys(), f"{lender}: leased and on offer"
            held: dict[str, int] = {}
            for segment, lease in entry.leases.items():
                assert (lease.lender, lease.segment) == (lender, segment)
                held[lease.borrower] = held.get(lease.borrower, 0) + 1
            assert held == {name: count for name, count in entry.held.items() if count}
