"""Segments of tiers that are wanted back: who leaves them, and when."""

from engine.memory.context import Context
from engine.memory.page import LayerGroup, PageLayout
from engine.memory.pool import PagePool
from engine.memory.store import ContextStore
from engine.messages import Move

LAYOUT = PageLayout((LayerGroup((0, 1)),), 4, 2, 1, 4, 4)
LOCAL, PEER, HOST = 1, 2, 3
SEGMENT_PAGES = 4


def make_store() -> ContextStore:
    """A peer with two segments, and the host."""
    store = ContextStore(LAYOUT)
    store.add_local_pool(PagePool(LOCAL, 17, LAYOUT.page_bytes, first=1), "device")
    segment_bytes = SEGMENT_PAGES * LAYOUT.page_bytes
    peer = PagePool(PEER, 2 * SEGMENT_PAGES, LAYOUT.page_bytes, segment_bytes=segment_bytes, is_leased=True)
    peer.add(0, peer.whole_pages(0))
    store.add_tier(peer, "peer")
    store.add_tier(PagePool(HOST, 40, LAYOUT.page_bytes))
    return store


def run(store: ContextStore, num_tokens: int) -> Context:
    """A context that has computed so much and runs on."""
    context = store.open()
    assert store.prepare(context, LOCAL, num_tokens + 4) == []
    context.computed = num_tokens
    return context


def finish(store: ContextStore, *moves: Move) -> None:
    for move in moves:
        store.finish_move(move.move_id, 1)


def test_what_is_kept_twice_is_given_up_and_the_rest_moves_on() -> None:
    store = make_store()
    asleep = run(store, 8)
    store.stop(asleep)
    finish(store, *store.mirror_idle(LOCAL))
    running = run(store, 56)  # which leaves no room for the other
    assert asleep.home is None
    running.computed = 8
    finish(store, *store.mirror(running, whole=False))
    store.recall(PEER, [0])
    ((runner, move),) = store.reclaim([LOCAL])
    assert (runner, move.src_pool, move.dst_pool, len(move.src_pages)) == (LOCAL, PEER, HOST, 2)
    assert (running.mirrored, asleep.mirrored) == (0, 8)
    assert not store.tiers[PEER].is_empty(0)
    finish(store, move)
    assert store.tiers[PEER].is_empty(0)
    store.check_integrity()


def test_a_context_of_which_a_copy_is_always_under_way_leaves_in_between() -> None:
    store = make_store()
    context = run(store, 4)
    (copy,) = store.mirror(context, whole=False)
    store.recall(PEER, [0])
    assert store.reclaim([LOCAL]) == []
    context.computed = 8  # as much again as is worth a copy
    finish(store, copy)
    (again,) = store.mirror(context, whole=False)
    assert (again.dst_pool, len(again.src_pages)) == (HOST, 2)
    assert store.tiers[PEER].is_empty(0)
    assert store.reclaim([LOCAL]) == []
    assert not store.has_recalls
    store.check_integrity()


def test_a_segment_that_was_empty_and_is_leased_again_is_not_emptied() -> None:
    store = make_store()
    peer, context = store.tiers[PEER], run(store, 8)
    finish(store, *store.mirror(context, whole=False))
    store.recall(PEER, [0])
    store.drop_mirror(context)
    peer.remove(0)
    peer.add(0, peer.whole_pages(0))
    (copy,) = store.mirror(context, whole=False)
    assert copy.dst_pool == PEER
    finish(store, copy)
    assert store.reclaim([LOCAL]) == []
    assert context.mirrored == 8
    assert not store.has_recalls
