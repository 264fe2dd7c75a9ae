"""How much room somebody waits for."""

from engine.device import Device
from engine.memory.pool import PagePool
from engine.memory.store import ContextStore
from engine.messages import CostModel
from engine.room_wanted import RoomWanted
from tests.engine.fake_runner import FULL


def make(*sizes):
    """A store with pools of so many pages beside page 0, and their devices."""
    store, cost = ContextStore(FULL), CostModel(step_ns=1, decode_ns=1, prefill_ns=1)
    devices = []
    for pool_id, size in enumerate(sizes, start=1):
        store.add_local_pool(PagePool(pool_id, size + 1, FULL.page_bytes, first=1))
        devices.append(Device(f"d{pool_id}", pool_id, 2, 64, cost, 1.0))
    return store, RoomWanted(store), devices


def run(store, device, num_pages):
    context = store.open()
    assert store.prepare(context, device.pool_id, num_pages * FULL.page_tokens) is not None
    context.computed = num_pages * FULL.page_tokens
    return context


def test_nobody_waits_for_room():
    _, wanted, (device,) = make(10)
    assert not wanted.is_there(device)


def test_a_context_waits_for_its_pages_and_what_is_to_be_left():
    store, wanted, (device,) = make(10)
    running = [run(store, device, num_pages) for num_pages in (3, 2, 4)]
    wanted.refuse(device, store.open(), 4, spare=2)
    assert not wanted.is_there(device)  # 1 page
    for context, is_enough in zip(running, (False, True, True), strict=True):
        store.close(context)
        store.stop(context)
        assert wanted.is_there(device) == is_enough
    wanted.begin_plan()
    assert not wanted.is_there(device)


def test_its_own_pages_that_may_be_dropped_are_no_room_for_it():
    store, wanted, (device,) = make(10)
    store.add_tier(PagePool(9, 10, FULL.page_bytes))
    context, other = run(store, device, 4), run(store, device, 5)
    store.stop(context)
    for move in store.mirror_idle(device.pool_id):
        store.finish_move(move.move_id, 1)
    assert store.num_available(device.pool_id) == 5
    wanted.refuse(device, context, 2, spare=0)  # of one that is free
    assert not wanted.is_there(device)
    store.close(other)
    store.stop(other)
    assert wanted.is_there(device)


def test_who_runs_waits_for_a_page_more():
    store, wanted, (device, other) = make(4, 4)
    context = run(store, device, 4)
    wanted.refuse_growth(device)
    assert not wanted.is_there(device)
    assert not wanted.is_there(other)
    store.close(context)
    store.stop(context)
    assert wanted.is_there(device)


def test_the_least_of_those_who_were_refused_counts():
    _, wanted, (small, large) = make(3, 5)
    wanted.refuse_everywhere(6)
    assert not wanted.is_there(large)
    wanted.refuse_everywhere(4)
    wanted.refuse_everywhere(7)
    assert wanted.is_there(large)
    assert not wanted.is_there(small)
