"""Who lends what to whom, without pages."""

import random

import pytest

from engine.memory.leases import LeaseBook, Recall

TERM_NS = 100


def book(num_segments: int = 8, lenders: tuple[str, ...] = ("l",)) -> LeaseBook:
    made = LeaseBook(TERM_NS)
    for lender in lenders:
        made.offer(lender, range(num_segments))
    return made


def borrowers_of(made: LeaseBook, lender: str = "l") -> dict[str, int]:
    held: dict[str, int] = {}
    for lease in made.leases_from(lender):
        held[lease.borrower] = held.get(lease.borrower, 0) + 1
    return held


def test_low_segments_are_lent_first_and_come_back_on_offer() -> None:
    made = book()
    assert made.borrow("l", "m", 3, 0) == [0, 1, 2]
    assert made.num_on_offer("l") == 5
    made.end("l", 1)
    assert made.borrow("l", "m", 2, 0) == [1, 3]
    made.check_integrity()


def test_what_the_owner_takes_back_or_recalls_is_not_on_offer_afterwards() -> None:
    made = book()
    made.borrow("l", "m", 6, 0)
    assert made.take_back("l", 5) == [6, 7]
    (lease,) = made.recall("l", 1)
    assert lease.recall is Recall.OWNER
    assert made.num_on_offer("l") == 0
    made.end("l", lease.segment)
    assert made.num_on_offer("l") == 0
    assert len(made.recall("l", 10)) == 5, "the rest, and none of them twice"
    assert made.recall("l", 1) == []


def test_recalls_take_in_turn_from_whoever_holds_most() -> None:
    made = book(9)
    made.borrow("l", "a", 6, 0)
    made.borrow("l", "b", 3, 0)
    taken = [lease.borrower for lease in made.recall("l", 5)]
    assert taken.count("a") == 4
    assert taken.count("b") == 1


def test_recalls_leave_low_segments_to_whoever_has_them() -> None:
    made = book(3)
    made.borrow("l", "z", 1, 0)
    made.borrow("l", "a", 2, 0)
    assert [lease.segment for lease in made.recall("l", 3, lowest=1)] == [2, 1]
    assert [lease.segment for lease in made.recall("l", 3)] == [0]


def test_the_highest_segments_are_withdrawn_but_never_the_first() -> None:
    made = book(4)
    assert made.withdraw("l", 2) == [2, 3]
    assert made.withdraw("l", 5) == [1]
    assert made.num_on_offer("l") == 1


def test_a_lease_ends_when_its_borrower_was_not_heard_of_for_a_term() -> None:
    made = book()
    made.borrow("l", "dead", 2, 0)
    made.borrow("l", "alive", 2, 0)
    assert made.expired(TERM_NS - 1) == []
    made.renew("alive", 50)
    expired = made.expired(TERM_NS)
    assert [lease.borrower for lease in expired] == ["dead", "dead"]
    for lease in expired:
        made.end("l", lease.segment)
    assert made.expired(TERM_NS) == []
    assert len(made.expired(50 + TERM_NS)) == 2


def test_who_asked_in_vain_gets_an_even_share() -> None:
    made = book(8)
    made.borrow("l", "first", 8, 0)
    assert made.borrow("l", "second", 6, 0) == []
    recalled = made.rebalance()
    assert {lease.borrower for lease in recalled} == {"first"}
    assert len(recalled) == 4
    assert made.rebalance() == [], "what is on its way is enough"
    for lease in recalled:
        made.end("l", lease.segment)
    assert made.borrow("l", "first", 4, 0) == [], "kept for the other"
    assert len(made.borrow("l", "second", 6, 0)) == 4
    assert borrowers_of(made) == {"first": 4, "second": 4}
    made.check_integrity()


def test_a_lender_that_is_gone_offers_nothing_and_wants_all_back() -> None:
    made = book(4)
    made.borrow("l", "m", 2, 0)
    assert len(made.lender_gone("l")) == 2
    assert made.num_available("l", "m") == 0
    for segment in (0, 1):
        made.end("l", segment)
    assert made.num_on_offer("l") == 0


@pytest.mark.parametrize("seed", range(20))
def test_random_operations(seed: int) -> None:
    """No segment is lost or lent twice, and borrowers that keep asking end with even shares."""
    source = random.Random(seed)
    made = book(20, ("l1", "l2"))
    owned: dict[str, set[int]] = {"l1": set(), "l2": set()}
    for now_ns in range(1000):
        lender = source.choice(list(owned))
        choice = source.random()
        leases = made.leases_from(lender)
        if choice < 0.4:
            made.borrow(lender, source.choice("abc"), source.randint(1, 6), now_ns)
        elif choice < 0.6 and leases:
            lease = source.choice(leases)
            made.end(lender, lease.segment)
            if lease.recall is Recall.OWNER:
                owned[lender].add(lease.segment)
        elif choice < 0.65:
            owned[lender].update(made.take_back(lender, source.randint(1, 3)))
        elif choice < 0.7:
            owned[lender].update(made.withdraw(lender, source.randint(1, 3)))
        elif choice < 0.75:
            made.recall(lender, source.randint(1, 3))
        elif choice < 0.85:
            made.offer(lender, owned[lender])
            owned[lender] = set()
        elif choice < 0.95:
            made.rebalance()
        else:
            made.renew(source.choice("abc"), now_ns)
            for lease in made.expired(now_ns):
                made.end(lease.lender, lease.segment)
                if lease.recall is Recall.OWNER:
                    owned[lease.lender].add(lease.segment)
        made.check_integrity()
        for name, out in owned.items():
            assert made.num_on_offer(name) + len(made.leases_from(name)) + len(out) == 20
