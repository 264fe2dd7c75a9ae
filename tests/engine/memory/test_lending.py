"""Random operations on the whole ledger: stores, leases and pools of two page sizes over the same memory."""

import random

import pytest

from engine.memory.context import Context
from engine.memory.lender import Lender, Owner
from engine.memory.lending import CALM_NS, Lending
from engine.memory.page import LayerGroup, PageLayout
from engine.memory.placement import Placement
from engine.memory.pool import PagePool
from engine.memory.returns import PagesReturned
from engine.memory.store import ContextStore
from engine.messages import Move

PAGE = 256
SMALL = PageLayout((LayerGroup((0, 1)),), 4, 2, 1, 4, 4)
LARGE = PageLayout((LayerGroup((0, 1, 2)),), 4, 3, 1, 4, 4)
WINDOWED = PageLayout((LayerGroup((0,)), LayerGroup((1,), 6)), 4, 1, 1, 4, 8)
HOST = 900
STEP_NS = 50_000_000


class Borrower:
    """A model with one device, whose contexts do random things, each of which is legal."""

    def __init__(self, name: str, number: int, layout: PageLayout, num_pages: int, host: int) -> None:
        self.name = name
        self.pool = PagePool(
            number,
            num_pages,
            layout.page_bytes,
            first=1,
            segment_bytes=layout.page_bytes * max(2, 2048 // layout.page_bytes),
        )
        self.store = ContextStore(layout, Placement())
        self.store.add_local_pool(self.pool, name)
        self.store.add_tier(PagePool(HOST + number, host, layout.page_bytes))
        self.contexts: list[Context] = []
        self.moves: list[Move] = []
        self.appetite = 10  # contexts at most

    def step(self, source: random.Random) -> None:
        store, choice = self.store, source.random()
        context = source.choice(self.contexts) if self.contexts else None
        if context is None or (choice < 0.05 and len(self.contexts) < self.appetite):
            self.contexts += [store.open()] if self.appetite else []
        elif choice < 0.3:
            self.advance(context, source)
        elif choice < 0.55:
            self.moves += store.mirror(context, whole=not context.is_running)
        elif choice < 0.65:
            self.moves += [move for _, move in store.reclaim([self.pool.pool_id])]
            self.moves += store.empty_segments(self.pool.pool_id)
        elif choice < 0.95:
            if self.moves:
                move = self.moves.pop(source.randrange(len(self.moves)))
                store.finish_move(move.move_id, 1)
        elif choice < 0.98:
            if len(self.contexts) > self.appetite or source.random() < 0.2:
                self.close(context)
        elif choice < 0.99:
            if not context.is_running and not context.moves_in_flight:
                store.drop(context)
        elif choice < 0.992:
            self.lose_runner()

    def advance(self, context: Context, source: random.Random) -> None:
        store = self.store
        if not context.is_running:
            end = context.computed + source.randint(1, 16)
            self.moves += store.prepare(context, self.pool.pool_id, end) or []
            return
        credit = context.groups[0].local.end * store.layout.page_tokens - context.computed
        if not context.moves_in_flight:  # a slice starts when its pages are there
            context.computed += source.randint(0, credit)
        if source.random() < 0.4:
            store.extend(context, context.computed + credit + source.randint(1, 8))
        else:
            store.stop(context)

    def close(self, context: Context) -> None:
        self.contexts.remove(context)
        self.store.close(context)
        self.store.stop(context)

    def lose_runner(self) -> None:
        self.store.lose_moves(self.pool.pool_id)
        self.moves.clear()
        for context in list(self.contexts):
            self.store.stop(context)

    def finish_moves(self) -> None:
        for move in self.moves:
            self.store.finish_move(move.move_id, 1)
        self.moves.clear()


class Operations:
    """Two models with pages of different sizes, and a lender on which nothing runs."""

    def __init__(self, seed: int, layouts: tuple[PageLayout, PageLayout]) -> None:
        self.random = random.Random(seed)
        self.now_ns = 0
        self.num_restored = 0
        self.lending = Lending(term_ns=10**11)
        host = self.random.choice([4, 60])
        self.borrowers = [
            Borrower(f"m{number}", number, layout, 40 + 30 * number, host)
            for number, layout in enumerate(layouts, start=1)
        ]
        for borrower in self.borrowers:
            self.lending.add_borrower(borrower.name, borrower.store)
        self.add_lender("lender", 16, 2048, None)
        for borrower in self.borrowers:
            pool = borrower.pool
            owner = Owner(borrower.store, pool, keep_pages=2, max_segments=100)
            num_segments = pool.num_pages * pool.page_bytes // pool.segment_bytes
            self.add_lender(borrower.name, num_segments, pool.segment_bytes, owner)

    def add_lender(self, name: str, num_segments: int, segment_bytes: int, owner: Owner | None) -> None:
        self.lending.add_lender(name, name, num_segments, segment_bytes, owner)
        for number, borrower in enumerate(self.borrowers):
            page_bytes = borrower.store.layout.page_bytes
            tier = 100 * len(self.lending.lenders) + number
            pool = PagePool(
                tier,
                num_segments * segment_bytes // page_bytes,
                page_bytes,
                segment_bytes=segment_bytes,
                is_leased=True,
            )
            self.lending.connect(name, borrower.name, pool)

    def step(self) -> None:
        choice = self.random.random()
        if choice < 0.95:
            self.random.choice(self.borrowers).step(self.random)
        elif choice < 0.98:
            self.now_ns += self.random.choice([STEP_NS, CALM_NS])
            self.lending.tick(self.now_ns)
        elif choice < 0.997:
            self.random.choice(self.borrowers).appetite = self.random.choice([0, 3, 30])
        elif choice < 0.998:
            self.resize(self.random.choice(list(self.lending.lenders.values())))
        elif choice < 0.999:
            self.lose(self.random.choice(list(self.lending.lenders)))

    def lose(self, lender: str) -> None:
        """What the engine does when a lender's bytes are not to be trusted."""
        for borrower in self.borrowers:
            tier = self.lending.lenders[lender].pools[borrower.name]
            for context in borrower.store.entangled(tier.pool_id):
                if context in borrower.contexts:
                    borrower.close(context)
        self.lending.lose_lender(lender, is_gone=self.random.random() < 0.3)

    def resize(self, lender: Lender) -> None:
        """Have it shrink or grow; what was withdrawn may come back at once."""
        self.lending.resize(lender.name, self.random.randint(1, lender.num_segments))
        missing = lender.wanted_segments - lender.num_present
        if missing > 0:
            self.lending.restore(lender.name, set(sorted(lender.withdrawn)[:missing]))
            self.num_restored += missing

    def check_integrity(self) -> None:
        self.lending.check_integrity()
        for borrower in self.borrowers:
            borrower.store.check_integrity()
        self.check_bytes()
        self.check_withdrawn()

    def check_bytes(self) -> None:
        """No byte is in two usable pages, whoever's they are."""
        for borrower in self.borrowers:
            owner, lender = borrower.pool, self.lending.lenders[borrower.name]
            lent = {
                byte
                for tier in lender.pools.values()
                for number, segment in tier.segments.items()
                for page in set(tier.whole_pages(number)) - set(segment.free)
                for byte in range(page * tier.page_bytes, (page + 1) * tier.page_bytes, 32)
            }
            for context in borrower.store.contexts:
                for page in (page for group in context.groups for page in group.local.pages()):
                    assert not lent & set(range(page * owner.page_bytes, (page + 1) * owner.page_bytes, 32))

    def check_withdrawn(self) -> None:
        """Nothing lies in memory that may be given back."""
        for lender in self.lending.lenders.values():
            for borrower in self.borrowers:
                tier = lender.pools.get(borrower.name)
                assert tier is None or not lender.withdrawn & tier.segments.keys()
            if lender.owner is not None:
                assert not lender.withdrawn & lender.owner.pool.segments.keys()

    def end(self) -> None:
        for borrower in self.borrowers:
            for context in list(borrower.contexts):
                borrower.close(context)
            borrower.finish_moves()
            assert not borrower.store.contexts
        for _ in range(3):
            self.lending.tick(self.now_ns)
        self.check_integrity()
        for lender in self.lending.lenders.values():
            assert lender.num_present <= lender.wanted_segments
            assert not lender.leaving


@pytest.mark.parametrize("layouts", [(SMALL, SMALL), (SMALL, LARGE), (WINDOWED, LARGE)])
def test_random_operations(layouts):
    granted = returned = restored = shifted = 0
    for seed in range(10):
        operations = Operations(seed, layouts)
        for number in range(5000):
            operations.step()
            if number % 50 == 0:
                operations.check_integrity()
        operations.end()
        granted += operations.lending.counters.granted
        returned += operations.lending.counters.returned
        restored += operations.num_restored
        for borrower in operations.borrowers:
            own = borrower.pool.pool_id
            shifted += borrower.store.counters.moved_pages.get((own, own), 0)
    assert shifted > 30
    assert restored > 30
    assert granted > 200
    assert returned > 100


def test_pages_come_back_one_by_one_between_different_sizes():
    owned = PagePool(1, 16, 300, first=1, segment_bytes=1200)
    borrowed = PagePool(2, 4800 // 500, 500, segment_bytes=1200, is_leased=True)
    assert list(borrowed.whole_pages(1)) == [3]  # bytes 1500 to 1999 of 1200 to 2399
    borrowed.add(1, borrowed.whole_pages(1))
    (extent,) = borrowed.allocate(1)
    borrowed.recall(1)
    returned = PagesReturned(borrowed, owned, 1)
    assert returned.take() == [4, 7]
    borrowed.release(extent)
    assert returned.take() == [5, 6]
    assert returned.take() == []
