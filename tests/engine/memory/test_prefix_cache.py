"""Shared prefixes in the context store: what is found, what it costs, what gives way; and random use."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from engine.memory.context import Context
from engine.memory.placement import Placement
from engine.memory.pool import PagePool
from engine.memory.prefix_search import NOTHING, Prefix
from engine.memory.prefix_tree import TOKEN_BYTES, pack_tokens
from engine.memory.store import ContextStore
from engine.messages import Move
from tests.engine.fake_runner import FULL, WINDOWED

LOCAL, OTHER, PEER, HOST = 1, 2, 3, 4
PAGE = FULL.page_tokens


def make_store(layout=FULL, local=40, other=24, host=50, peer=0, segment_pages=None):
    store = ContextStore(layout, shares_prefixes=True)
    segment_bytes = segment_pages and segment_pages * layout.page_bytes
    store.add_local_pool(PagePool(LOCAL, local, layout.page_bytes, first=1, segment_bytes=segment_bytes))
    store.add_local_pool(PagePool(OTHER, other, layout.page_bytes, first=1))
    if peer:
        store.add_tier(PagePool(PEER, peer, layout.page_bytes), "lender")
    store.add_tier(PagePool(HOST, host, layout.page_bytes))
    return store


@dataclass(eq=False)
class Prompt:
    """All tokens that it will ever have, and its context."""

    ids: list[int]
    context: Context

    @property
    def tokens(self):
        return pack_tokens(self.ids)


def find(store, tokens, pool=LOCAL):
    return store.find_prefixes("", tokens).get(pool, NOTHING)


def join(store, prompt, pool=LOCAL, known=None):
    """Let an empty prompt of which `known` tokens are known go on from what is cached."""
    tokens = prompt.tokens[: (known or len(prompt.ids)) * TOKEN_BYTES]
    prefix = find(store, tokens, pool)
    prompt.context = store.join(prompt.context, pool, "", tokens, prefix)
    return prefix


def serve(store, ids, pool=LOCAL):
    """A prompt from its beginning to its end: all but its last token are computed. Returns its context."""
    prompt = Prompt(ids, store.open())
    join(store, prompt, pool)
    moves = store.prepare(prompt.context, pool, len(ids))
    assert moves is not None
    for move in moves:
        store.finish_move(move.move_id, 1)
    prompt.context.computed = len(ids) - 1
    store.stop(prompt.context)
    store.retire(prompt.context, prompt.tokens)
    store.check_integrity()
    return prompt.context


def test_a_context_is_split_where_prompts_part():
    store = make_store()
    first = serve(store, [*range(14), 50])
    second = serve(store, [*range(10), *range(60, 66)])
    assert first.parent is second.parent is not None
    assert (first.start, second.start) == (8, 8)
    assert store.local_pools[LOCAL].num_used == 2 + 2 + 2
    assert first.slice_tables()[0][:2] == second.slice_tables()[0][:2]


def test_a_running_context_may_be_split_and_goes_on():
    store = make_store()
    running = Prompt(list(range(40)), store.open())
    join(store, running)
    store.prepare(running.context, LOCAL, 40)
    running.context.computed = 20
    pages = running.context.slice_tables()[0]
    other = Prompt([*range(16), 99, 98], store.open())
    assert join(store, other).end == 16
    assert running.context.slice_tables()[0] == pages
    assert store.prepare(other.context, LOCAL, 18) == []
    running.context.computed = 38
    store.stop(running.context)
    assert other.context.parent.is_running
    store.stop(other.context)
    assert not other.context.parent.is_running
    store.check_integrity()


def test_cached_contexts_count_as_room_and_give_way_from_their_ends():
    store = make_store(local=11, host=0)
    serve(store, list(range(25)))
    assert store.num_available(LOCAL) == 10
    prompt = Prompt([100] * 30, store.open())
    join(store, prompt)
    assert store.prepare(prompt.context, LOCAL, 24) == []
    assert find(store, pack_tokens(range(24))).end == 16  # of 24
    store.check_integrity()


def test_what_a_prompt_needs_does_not_give_way():
    store = make_store(local=11, host=0)
    serve(store, list(range(25)))
    prompt = Prompt([*range(24), 7, 8], store.open())
    join(store, prompt)
    assert store.num_available(LOCAL, besides=prompt.context) == 4
    assert store.prepare(store.open(), LOCAL, 5 * PAGE) is None
    assert store.prepare(prompt.context, LOCAL, 25) == []
    store.check_integrity()


def test_the_least_recently_used_gives_way_first():
    store = make_store(local=17, host=0)
    for number in range(3):
        serve(store, [number] * 17)
    serve(store, [0] * 17)  # used again
    serve(store, [9] * 17)
    ends = [find(store, pack_tokens([number] * 17)).end for number in range(3)]
    assert ends == [16, 12, 16]


def test_cached_mirrors_make_room_for_those_that_prompts_need():
    store = make_store(local=17, host=6)
    serve(store, list(range(25)))
    for move in store.mirror_cached(LOCAL) or store.mirror(next(iter(store.contexts)), whole=True):
        store.finish_move(move.move_id, 1)
    assert store.tiers[HOST].num_free == 0
    idle = store.open()
    store.prepare(idle, LOCAL, 16)
    idle.computed = 16
    store.stop(idle)
    assert sum(len(move.src_pages) for move in store.mirror(idle, whole=True)) == 4
    store.check_integrity()


def asleep(store, number, length=25, pool=LOCAL):
    """A cached context of its own tokens that is in the tiers alone."""
    context = serve(store, [number] * length, pool)
    finish(store, store.mirror(context, whole=True))
    store.drop(context)
    return context


def finish(store, moves):
    for move in moves:
        store.finish_move(move.move_id, 1)
    store.check_integrity()


def tiers_of(context):
    return [extent.segment.pool.pool_id for extent in context.groups[0].mirror.extents]


def idle_mirror(store, num_pages):
    """The mirror of a context that a prompt needs."""
    context = store.open()
    assert store.prepare(context, LOCAL, num_pages * PAGE) == []
    context.computed = num_pages * PAGE
    store.stop(context)
    finish(store, store.mirror(context, whole=True))
    return context


def test_cached_mirrors_leave_a_good_tier_before_it_is_full():
    store = make_store(peer=19)
    first, second = asleep(store, 1), asleep(store, 2)
    finish(store, store.mirror_cached(LOCAL))
    assert (tiers_of(first), tiers_of(second)) == ([PEER], [PEER])  # there is room yet
    serve(store, [1] * 25)  # used again: the second is the oldest now
    store.drop(first)
    third = asleep(store, 3)
    finish(store, store.mirror_cached(LOCAL))
    assert [tiers_of(context) for context in (first, second, third)] == [[PEER], [HOST], [PEER]]
    assert tiers_of(idle_mirror(store, 7)) == [PEER]
    assert find(store, pack_tokens([2] * 25)).end == 24


def test_only_what_is_longer_unused_gives_way_to_mirrors_that_leave_a_good_tier():
    store = make_store(peer=16, host=8)
    first, second = asleep(store, 1), asleep(store, 2)
    leaving = idle_mirror(store, 4)
    assert tiers_of(leaving) == [PEER]
    finish(store, store.mirror_cached(LOCAL))
    assert (tiers_of(first), tiers_of(second)) == ([HOST], [PEER])
    idle_mirror(store, 6)
    finish(store, store.mirror_cached(LOCAL))
    assert tiers_of(second) == [HOST]
    assert first not in store.contexts
    asleep(store, 3, length=9)
    finish(store, store.mirror_cached(LOCAL))
    assert tiers_of(second) == [HOST]


def test_devices_that_see_tiers_differently_do_not_undo_what_others_did():
    links = {("a", "near a"): 2e11, ("b", "near b"): 2e11, ("a", "near b"): 1e11, ("b", "near a"): 1e11}
    store = ContextStore(FULL, Placement(links), shares_prefixes=True)
    for local, device, tier, size in ((LOCAL, "a", PEER, 12), (OTHER, "b", HOST, 19)):
        store.add_local_pool(PagePool(local, 40, FULL.page_bytes, first=1), device)
        store.add_tier(PagePool(tier, size, FULL.page_bytes), f"near {device}")
    contexts = [asleep(store, number, pool=pool) for number, pool in enumerate((LOCAL, LOCAL, OTHER, OTHER))]
    assert [tiers_of(context) for context in contexts] == [[PEER], [PEER], [HOST], [HOST]]
    for _ in range(8):
        moves = store.mirror_cached(LOCAL) + store.mirror_cached(OTHER)
        finish(store, moves)
    assert moves == []


def test_moves_of_cached_mirrors_that_are_lost_leave_them_where_they_were():
    store = make_store(peer=12)
    context, _ = asleep(store, 1), asleep(store, 2)
    assert store.mirror_cached(LOCAL) != []
    assert store.mirror_cached(LOCAL) == []  # one batch at a time
    store.lose_moves(LOCAL)
    store.check_integrity()
    assert tiers_of(context) == [PEER]
    finish(store, store.mirror_cached(LOCAL))
    assert tiers_of(context) == [HOST]


def test_what_leaves_a_pool_that_shrinks_sleeps_and_gives_way_as_such():
    store = make_store(local=11, peer=20, segment_pages=4)
    asleep = serve(store, list(range(33)))
    finish(store, store.mirror_cached(LOCAL))
    store.vacate(LOCAL, 2)
    assert store.empty_segments(LOCAL) == []  # there is no room to move it aside
    assert (asleep.home, asleep.mirrored) == (None, 32)
    store.check_integrity()
    latest = serve(store, [9] * 17)
    assert store._prefixes.make_room_in(store.tiers[PEER], 20, latest)
    assert find(store, pack_tokens(range(33))).end == 0


def test_what_continues_a_context_that_is_entangled_is_so_too():
    store = make_store(peer=2)
    serve(store, [*range(20), *[50] * 5])
    above = serve(store, [*range(8), *[60] * 5]).parent
    finish(store, store.mirror(above, whole=True))
    prompt = Prompt([*range(20), 70, 71], store.open())
    join(store, prompt)
    between = prompt.context.parent
    assert between.parent is above
    (move,) = store.mirror(between, whole=True)
    assert move.dst_pool == HOST
    store.prepare(prompt.context, LOCAL, 22)
    assert store.entangled(PEER) == {between, *between.children}
    assert prompt.context in between.children


def continues_what_is_cached(store):
    """A prompt that has run for 29 positions, of which 20 were cached."""
    serve(store, list(range(25)))
    prompt = Prompt([*range(20), *range(70, 80)], store.open())
    join(store, prompt)
    store.prepare(prompt.context, LOCAL, 29)
    prompt.context.computed = 29
    store.stop(prompt.context)
    return prompt


def test_what_is_lost_takes_along_what_continues_it():
    store = make_store(local=15, host=0, peer=20)
    prompt = continues_what_is_cached(store)
    for context in (prompt.context.parent, prompt.context):
        finish(store, store.mirror(context, whole=True))
    other = store.open()
    store.prepare(other, LOCAL, 56)
    assert (prompt.context.home, prompt.context.parent.home) == (None, None)
    store.lose_segment(PEER, 0)
    assert (prompt.context.computed, prompt.context.parent) == (0, None)
    assert set(store.contexts) == {prompt.context, other}
    store.check_integrity()


def test_a_context_that_is_moved_from_tier_to_tier_cannot_be_given_up_before_it_is_there():
    store = make_store(local=15, host=5, peer=5)
    prompt = continues_what_is_cached(store)
    finish(store, store.mirror(prompt.context, whole=True))
    other = store.open()
    store.prepare(other, LOCAL, 36)
    assert prompt.context.home is None
    assert prompt.context.parent.home == LOCAL
    store.recall(PEER, [0])
    ((_, move),) = store.reclaim([LOCAL])
    assert not prompt.context.would_be_lost({LOCAL})
    finish(store, [move])
    assert prompt.context.would_be_lost({LOCAL})
    store.forget(prompt.context)
    store.check_integrity()


def test_joining_can_be_undone():
    store = make_store()
    cached = serve(store, list(range(20)))
    for ids in ([*range(19), 5], [*range(8), 5]):  # taken over; split
        prompt = Prompt(ids, store.open())
        prefix = join(store, prompt)
        assert prefix.end == len(ids) - 1
        prompt.context = store.part(prompt.context, prompt.tokens)
        assert prompt.context.computed == 0
        assert prompt.context.parent is None
        assert all(context.num_prompts == 0 for context in store.contexts if context is not prompt.context)
        store.close(prompt.context)
        store.check_integrity()
    assert cached.is_cached


class Operations:
    """Random legal use by prompts that go through a small tree of tokens, on two devices."""

    def __init__(self, seed, layout, peer):
        self.random = random.Random(seed)
        self.store = make_store(layout, local=50, other=40, host=60, peer=peer)
        self.prompts: list[Prompt] = []
        self.stopping: list[Context] = []  # retired or closed while they ran
        self.moves: list[Move] = []

    def ids(self):
        """Long runs of the same few tokens, so that many prompts agree for a while."""
        ids: list[int] = []
        while len(ids) < 60:
            ids += [self.random.randrange(2)] * self.random.choice([4, 6, 8, 12])
        return ids

    def step(self):
        choice = self.random.random()
        prompt = self.random.choice(self.prompts) if self.prompts else None
        if prompt is None or (choice < 0.1 and len(self.prompts) < 10):
            self.prompts.append(Prompt(self.ids(), self.store.open()))
        elif choice < 0.4:
            self.advance(prompt)
        elif choice < 0.55:
            self.mirror(prompt)
        elif choice < 0.85 and self.moves:
            move = self.moves.pop(self.random.randrange(len(self.moves)))
            self.store.finish_move(move.move_id, 1)
        elif choice < 0.92:
            self.end(prompt)
        elif choice < 0.94 and not prompt.context.is_running and not prompt.context.moves_in_flight:
            self.store.drop(prompt.context)
        elif choice < 0.97 and self.stopping:
            self.store.stop(self.stopping.pop())
        elif choice < 0.975:
            self.lose(self.random.choice([LOCAL, OTHER]), trusted=self.random.random() < 0.5)

    def mirror(self, prompt):
        pool = self.random.choice([LOCAL, OTHER])
        self.moves += self.store.mirror_cached(pool)
        for context in (prompt.context, *self.store.idle_dirty(pool)[:2]):
            self.moves += self.store.mirror(context, whole=not context.is_running)

    def advance(self, prompt):
        store, context = self.store, prompt.context
        if not context.is_running:
            self.start(prompt, self.random.choice([LOCAL, OTHER]))
        elif not store.awaited(context) and self.random.random() < 0.5:
            credit = context.groups[0].local.end * PAGE - context.computed
            context.computed += self.random.randint(0, min(credit, len(prompt.ids) - 1 - context.computed))
        elif self.random.random() < 0.5:
            store.extend(
                context, min(context.groups[0].local.end * PAGE + self.random.randint(1, 8), len(prompt.ids))
            )
        else:
            store.stop(context)

    def start(self, prompt, pool):
        has_joined = prompt.context.node is None
        if has_joined:
            join(self.store, prompt, pool, known=self.random.randint(10, len(prompt.ids)))
        end = min(prompt.context.computed + self.random.randint(1, 12), len(prompt.ids))
        moves = self.store.prepare(prompt.context, pool, end)
        if moves is not None:
            self.moves += moves
        elif has_joined:
            prompt.context = self.store.part(prompt.context, prompt.tokens)

    def end(self, prompt):
        self.prompts.remove(prompt)
        if prompt.context.is_running:
            self.stopping.append(prompt.context)
        if self.random.random() < 0.8:
            self.store.retire(prompt.context, prompt.tokens)
        else:
            self.store.close(prompt.context)

    def lose(self, pool, *, trusted):
        """The device's runner is gone. Prompts that cannot begin again at once are given new contexts."""
        store = self.store
        store.lose_moves(pool)
        self.moves = [move for move in self.moves if move.move_id in store._moves]
        for context in [c for c in self.stopping if c.home == pool]:
            self.stopping.remove(context)
            store.stop(context)
        for prompt in self.prompts:
            if prompt.context.is_running and prompt.context.home == pool:
                store.stop(prompt.context)
        if trusted:
            return
        leaving = store.coming_from(pool)
        for prompt in [prompt for prompt in self.prompts if prompt.context in leaving]:
            if prompt.context.is_running:
                self.stopping.append(prompt.context)
            store.close(prompt.context)
            prompt.context = store.open()
        store.lose_local(pool)


@pytest.mark.parametrize(("layout", "peer"), [(FULL, 0), (WINDOWED, 0), (FULL, 30), (WINDOWED, 30)])
def test_random_operations(layout, peer, monkeypatch):
    monkeypatch.setattr("engine.memory.demotion.FREE_PART", 0.5)
    hits = 0
    for seed in range(8):
        operations = Operations(seed, layout, peer)
        store = operations.store
        find_prefixes = store.find_prefixes

        def count(*args, find_prefixes=find_prefixes) -> Mapping[int, Prefix]:
            nonlocal hits
            found = find_prefixes(*args)
            hits += any(prefix.end for prefix in found.values())
            return found

        store.find_prefixes = count
        for number in range(1500):
            operations.step()
            if number % 5 == 0:
                store.check_integrity()
        for move in operations.moves:
            store.finish_move(move.move_id, 1)
        for context in [*operations.stopping, *(prompt.context for prompt in operations.prompts)]:
            store.close(context)
            store.stop(context)
        store.check_integrity()
        cached = store.num_cached_pages()
        for pool in (*store.local_pools.values(), *store.tiers.values()):
            assert pool.num_used == cached.get(pool.pool_id, 0)
    assert hits > 100
