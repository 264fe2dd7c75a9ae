"""The context store under random use: pages are never lost, shared or read too early."""

import random

import pytest

from engine.memory.context import Context
from engine.memory.local_copies import SMALL_PAGES
from engine.memory.pool import PagePool
from engine.memory.store import ContextStore
from engine.messages import Move
from tests.engine.fake_runner import FULL, WINDOWED

LOCAL, OTHER, HOST = 1, 2, 3


def make_store(layout=FULL, local=12, other=12, host=40):
    store = ContextStore(layout)
    store.add_local_pool(PagePool(LOCAL, local, layout.page_bytes, first=1))
    store.add_local_pool(PagePool(OTHER, other, layout.page_bytes, first=1))
    store.add_tier(PagePool(HOST, host, layout.page_bytes))
    return store


def run(store, context, tokens, pool=LOCAL):
    """Give the context a turn in which it computes up to `tokens` positions."""
    moves = store.prepare(context, pool, tokens)
    assert moves is not None
    finish(store, moves)
    context.computed = tokens
    store.stop(context)


def finish(store, moves):
    for move in moves:
        store.finish_move(move.move_id, 1)


def test_unused_pages_come_back_at_the_end_of_a_turn():
    store = make_store()
    context = store.open()
    assert store.prepare(context, LOCAL, 40) == []
    assert store.local_pools[LOCAL].num_used == 10
    context.computed = 9
    store.stop(context)
    assert store.local_pools[LOCAL].num_used == 3
    store.check_integrity()


def test_nothing_changes_when_there_is_no_room():
    store = make_store()
    first, second = store.open(), store.open()
    run(store, first, 40)
    assert store.prepare(second, LOCAL, 8) is None  # first is not mirrored: to evict it would lose it
    assert second.home is None
    finish(store, store.mirror(first, whole=True))
    assert store.prepare(second, LOCAL, 8) == []
    assert first.num_local == 0


def test_what_is_on_its_way_for_an_earlier_turn_is_lost_with_its_runner():
    store = make_store()
    context = store.open()
    run(store, context, 8)
    finish(store, store.mirror(context, whole=True))
    run(store, store.open(), 40)  # pushes it out
    store.close(next(each for each in store.contexts if each is not context))
    (move,) = store.prepare(context, LOCAL, 12)
    store.stop(context)  # before it has arrived
    assert store.prepare(context, LOCAL, 12) == []
    assert store.awaited(context) == [move.move_id]
    store.lose_moves(LOCAL)
    store.stop(context)
    assert context.num_local == 0
    store.check_integrity()
    (again,) = store.prepare(context, LOCAL, 12)
    assert again.src_pages == move.src_pages


def test_more_is_never_evicted_than_the_mirror_has():
    """Of one of two that are pushed out as many pages are wanted as it has, and not all are mirrored."""
    store = make_store(local=1 + 3 * SMALL_PAGES, host=3 * SMALL_PAGES)
    num_pages = SMALL_PAGES + 4
    first, second = store.open(), store.open()
    for context in (first, second):
        run(store, context, num_pages * FULL.page_tokens)
        finish(store, store.mirror(context, whole=True))
    run(store, first, (num_pages + 2) * FULL.page_tokens)
    store.prepare(second, LOCAL, num_pages * FULL.page_tokens)
    store.stop(second)  # it is the later one
    free = store.local_pools[LOCAL].num_free
    assert store.prepare(store.open(), LOCAL, (free + first.num_local) * FULL.page_tokens) == []
    assert first.num_local == 2
    store.check_integrity()


def test_a_large_context_is_evicted_as_far_as_is_needed():
    store = make_store(local=302, host=400)
    first, second = store.open(), store.open()
    run(store, first, 1200)
    finish(store, store.mirror(first, whole=True))
    assert store.prepare(second, LOCAL, 8) == []
    assert first.num_local == 299
    store.close(second)
    store.stop(second)
    (fetch,) = store.prepare(first, LOCAL, 1201)
    assert len(fetch.src_pages) == 1
    store.check_integrity()
    store.check_integrity()


def test_an_evicted_context_is_fetched():
    store = make_store()
    first, second = store.open(), store.open()
    run(store, first, 30)
    finish(store, store.mirror(first, whole=True))
    run(store, second, 40)
    (move,) = store.mirror(second, whole=True)
    store.finish_move(move.move_id, 1)
    (fetch,) = store.prepare(first, LOCAL, 31)
    assert (fetch.src_pool, fetch.dst_pool, fetch.urgent) == (HOST, LOCAL, True)
    assert len(fetch.src_pages) == 8
    store.check_integrity()


def test_a_mirror_grows_at_its_end_and_copies_a_half_full_page_again():
    store = make_store()
    context = store.open()
    run(store, context, 6)
    (half,) = store.mirror(context, whole=True)
    assert len(half.src_pages) == 2
    assert store.mirror(context, whole=True) == []  # one is in flight
    store.finish_move(half.move_id, 1)
    run(store, context, 9)
    (rest,) = store.mirror(context, whole=False)
    assert list(rest.src_pages) == [half.src_pages[1]]
    assert list(rest.dst_pages) == [half.dst_pages[1]]


def test_another_device_gets_the_pages_from_where_they_are():
    store = make_store()
    context = store.open()
    run(store, context, 10)
    (move,) = store.prepare(context, OTHER, 12)
    assert (move.src_pool, move.dst_pool) == (LOCAL, OTHER)
    assert store.local_pools[LOCAL].num_used == 3  # still being read
    store.finish_move(move.move_id, 1)
    assert store.local_pools[LOCAL].num_used == 0
    store.check_integrity()


def test_pages_behind_the_window_come_back_while_it_runs():
    store = make_store(WINDOWED, local=30)
    context = store.open()
    store.prepare(context, LOCAL, 24)
    context.computed = 20
    added = store.extend(context, 32)
    assert added is not None
    assert [len(pages) for pages in added] == [2, 2]
    assert [group.live_from for group in context.groups] == [0, 3]
    assert context.slice_tables()[1][:3].tolist() == [0, 0, 0]
    store.check_integrity()


def test_a_closed_context_waits_for_its_moves_and_its_slice():
    store = make_store()
    context = store.open()
    run(store, context, 8)
    moves = store.mirror(context, whole=True)
    store.prepare(context, LOCAL, 12)
    store.close(context)
    finish(store, moves)
    assert store.local_pools[LOCAL].num_used == 3
    store.stop(context)
    assert store.local_pools[LOCAL].num_used == 0
    assert store.tiers[HOST].num_used == 0
    store.check_integrity()


def test_mirrors_of_what_runs_make_room_for_what_does_not():
    store = make_store(host=4)
    running, idle = store.open(), store.open()
    run(store, running, 16)
    finish(store, store.mirror(running, whole=True))
    store.prepare(running, LOCAL, 17)
    run(store, idle, 12)
    assert store.mirror(idle, whole=True) != []
    assert running.mirrored == 0


def test_a_lost_runner_takes_its_moves_along():
    store = make_store()
    context = store.open()
    run(store, context, 16)
    finish(store, store.mirror(context, whole=True))
    run(store, store.open(), 44)  # evicts it
    for other in store.idle_dirty(LOCAL):
        store.drop(other)
    (fetch,) = store.prepare(context, LOCAL, 17)
    store.lose_moves(LOCAL)
    store.stop(context)
    assert context.num_local == 0
    assert not context.moves_in_flight
    store.check_integrity()
    (again,) = store.prepare(context, LOCAL, 17)
    assert again.src_pages == fetch.src_pages


def test_an_untrusted_pool_costs_what_was_not_mirrored():
    store = make_store()
    context = store.open()
    run(store, context, 8)
    finish(store, store.mirror(context, whole=True))
    run(store, context, 11)
    store.drop(context)
    assert (context.computed, context.home) == (8, None)
    assert store.counters.dropped_tokens == 3
    store.check_integrity()


class Operations:
    """Random legal use of a store by two devices."""

    def __init__(self, seed, layout):
        self.random = random.Random(seed)
        self.store = make_store(layout, local=30, other=24, host=50)
        self.contexts: list[Context] = []
        self.moves: list[Move] = []

    def step(self):
        choice = self.random.random()
        context = self.random.choice(self.contexts) if self.contexts else None
        if context is None or (choice < 0.1 and len(self.contexts) < 12):
            self.contexts.append(self.store.open())
        elif choice < 0.35:
            self.advance(context)
        elif choice < 0.6:
            self.moves += self.store.mirror(context, whole=not context.is_running)
        elif choice < 0.9 and self.moves:
            move = self.moves.pop(self.random.randrange(len(self.moves)))
            self.store.finish_move(move.move_id, 1)
        elif choice < 0.93:
            self.contexts.remove(context)
            self.store.close(context)
            self.store.stop(context)
        elif choice < 0.95 and not context.is_running and not context.moves_in_flight:
            self.store.drop(context)
        elif choice < 0.96:
            self.lose(self.random.choice([LOCAL, OTHER]), trusted=self.random.random() < 0.5)

    def advance(self, context):
        store = self.store
        if not context.is_running:
            pool = self.random.choice([LOCAL, OTHER])
            self.moves += store.prepare(context, pool, context.computed + self.random.randint(1, 12)) or []
            return
        if not context.moves_in_flight:  # a slice starts when its pages are there
            context.computed += self.random.randint(0, self.credit(context))
        if self.random.random() < 0.5:
            store.extend(context, context.computed + self.credit(context) + self.random.randint(1, 8))
        else:
            store.stop(context)

    def credit(self, context):
        return context.groups[0].local.end * self.store.layout.page_tokens - context.computed

    def lose(self, pool, *, trusted):
        lost = [context for context in self.store.contexts if context.home == pool]
        self.store.lose_moves(pool)
        self.moves = [move for move in self.moves if move.move_id in self.store._moves]
        for context in lost:
            self.store.stop(context)
        for context in lost if not trusted else ():
            if context in self.store.contexts:
                self.store.drop(context)


@pytest.mark.parametrize("layout", [FULL, WINDOWED])
def test_random_operations(layout):
    for seed in range(10):
        operations = Operations(seed, layout)
        for number in range(1500):
            operations.step()
            if number % 5 == 0:
                operations.store.check_integrity()
        for move in operations.moves:
            operations.store.finish_move(move.move_id, 1)
        for context in operations.contexts:
            operations.store.close(context)
            operations.store.stop(context)
        operations.store.check_integrity()
        assert all(pool.num_used == 0 for pool in operations.store.local_pools.values())
        assert all(tier.num_used == 0 for tier in operations.store.tiers.values())


@pytest.mark.parametrize("layout", [FULL, WINDOWED])
def test_pools_that_changed_are_told(layout):
    operations = Operations(77, layout)
    store = operations.store
    seen = {pool: state_of(store, pool) for pool in store.local_pools}
    assert store.take_changed_pools() == {LOCAL, OTHER}
    assert store.take_changed_pools() == set()
    num_quiet = 0
    for _ in range(1500):
        operations.step()
        changed = store.take_changed_pools()
        for pool in store.local_pools:
            state = state_of(store, pool)
            assert pool in changed or state == seen[pool]
            seen[pool] = state
        num_quiet += len(changed) < 2
        assert set(store.dirty_pools) == {pool for pool in store.local_pools if store.idle_dirty(pool)}
    assert num_quiet > 500


def state_of(store, pool):
    idle_dirty = [context.serial for context in store.idle_dirty(pool)]
    return store.num_available(pool), store.num_in_motion(pool), idle_dirty, store.lacks_mirrors(pool)
