"""Devices in a plan: those that something happened to, those with room, and that no other needs a look."""

import random

import msgspec
import pytest

from engine.device import Device
from engine.devices import Devices
from engine.memory.pool import PagePool
from engine.memory.store import ContextStore
from engine.messages import CostModel
from tests.engine.fake_runner import FULL, WINDOWED
from tests.engine.rig import Rig

_ENCODER = msgspec.json.Encoder(enc_hook=list)


def make_devices(sizes, reserve=0.0):
    """Devices by pool id, from 1 on, with pools of so many pages beside page 0."""
    store = ContextStore(FULL)
    devices = Devices(store, reserve=reserve)
    for pool_id, size in enumerate(sizes, start=1):
        store.add_local_pool(PagePool(pool_id, size + 1, FULL.page_bytes, first=1))
        devices.come(
            Device(f"d{pool_id}", pool_id, 2, 64, CostModel(step_ns=1, decode_ns=1, prefill_ns=1), 1.0)
        )
    return store, devices


def pools(devices):
    return [device.pool_id for device in devices]


def test_a_device_is_touched_by_what_happens_to_it_and_to_its_pages():
    store, devices = make_devices([10, 10, 10])
    assert pools(devices.take_touched()) == [1, 2, 3]
    assert devices.take_touched() == []
    context = store.open()
    store.prepare(context, 3, 5)
    devices.touch(devices.up[2])
    assert pools(devices.touched()) == [2, 3]
    assert pools(devices.touched([devices.up[1], devices.up[3]])) == [1, 2, 3]
    assert pools(devices.take_touched()) == [2, 3]
    store.close(context)
    assert devices.take_touched() == []
    store.stop(context)
    assert pools(devices.take_touched()) == [3]


def test_one_that_is_down_is_nowhere_until_it_comes_again():
    _, devices = make_devices([10, 20])
    down = devices.up[2]
    devices.go(down)
    assert pools(devices.take_touched()) == pools(devices.with_room(1)) == [1]
    assert pools(devices) == [1, 2]
    devices.check_integrity()
    devices.come(down)
    assert pools(devices.take_touched()) == [2]
    assert pools(devices.with_room(1)) == [2, 1]
    assert devices.least_busy() is devices.up[1]


def test_room_is_what_is_available_beside_the_reserve_of_those_who_run():
    _, devices = make_devices([10, 12, 20, 20], reserve=0.25)
    assert pools(devices.with_room(11)) == [3, 4, 2]
    for pool_id in (2, 3):
        devices.begin_turn(devices.up[pool_id], object())
    assert pools(devices.with_room(10)) == [3, 4, 1]
    assert pools(devices.with_room(9)) == [3, 4, 2, 1]
    assert pools(devices.with_room(16)) == [4]
    for _ in range(2):
        devices.begin_turn(devices.up[4], object())
    assert pools(devices.with_room(16)) == []  # its batch is full
    devices.check_integrity()


def test_turns_count_while_their_device_is_up():
    _, devices = make_devices([10, 10])
    lost, other = devices.up.values()
    for device in (lost, other, other):
        devices.begin_turn(device, object())
    assert not devices.are_all_full
    for _ in range(2):  # its fault, and the end of its runner
        devices.go(lost)
    assert devices.num_running == 2
    assert devices.are_all_full
    devices.end_turn(lost, next(iter(lost.running)))
    assert devices.num_running == 2
    devices.come(lost)
    assert not devices.are_all_full
    devices.check_integrity()


def test_the_least_busy_and_whether_one_stands_idle():
    _, devices = make_devices([10, 10])
    assert devices.least_busy() is devices.up[1]
    for pool_id in (1, 2):
        assert not devices.are_all_busy()
        devices.begin_turn(devices.up[pool_id], object())
    assert devices.are_all_busy()
    for device in list(devices.up.values()):
        devices.go(device)
    assert devices.least_busy() is None


class _Recorder(Rig):
    """Keeps all plans; with `looks_at_all`, every plan looks at every device."""

    def __init__(self, *args, looks_at_all, **options):
        self.plans, self.num_looked_at, self.looks_at_all = [], 0, looks_at_all
        super().__init__(*args, **options)

    def flush(self):
        if self.scheduler.needs_plan:
            devices = self.scheduler.planner.devices
            if self.looks_at_all:
                devices.touch_all()
            self.num_looked_at += len(devices.touched())
            for name, plan in self.scheduler.plan(self.now_ns):
                self.plans.append((self.now_ns, name, _ENCODER.encode(plan)))
                self.runners[name].apply(plan)
        super().flush()

    def tick_one(self, name):
        self.now_ns += 2_000_000
        self.scheduler.on_report(name, self.runners[name].tick(), self.now_ns)
        self.flush()


@pytest.mark.parametrize("policy", ["cfs", "eevdf", "fcfs"])
@pytest.mark.parametrize("host", [20, 400])
@pytest.mark.parametrize("layout", [FULL, WINDOWED])
def test_a_plan_that_looks_where_something_happened_decides_as_one_that_looks_everywhere(
    layout, host, policy
):
    rigs = []
    for looks_at_all in (False, True):
        source = random.Random(host)
        options = {"policy": policy, "host": host, "seed": 3, "gap_ns": 50_000_000, "reserve": 0.2}
        rig = _Recorder(layout, local=(60, 60, 60, 80, 100), looks_at_all=looks_at_all, **options)
        trunk = [source.randrange(1000) for _ in range(30)]
        for number in range(60):
            own = [source.randrange(1000) for _ in range(source.randint(1, 20))]
            ids = trunk[: source.choice([0, 0, 8, 30])] + own
            rig.submit(f"p{number}", ids, source.randint(1, 40), tenant=f"t{number % 3}")
            for _ in range(source.randint(0, 12)):
                rig.tick_one(source.choice(list(rig.runners)))
            if source.random() < 0.1:
                rig.abort(f"p{source.randint(0, number)}")
            if number == 40:
                rig.kill_runner("d2", trusted=False)
                rig.flush()
            if number == 50:
                rig.start_runner("d2")
                rig.flush()
        while rig.scheduler.prompts:
            rig.tick_one(source.choice(list(rig.runners)))
        rig.scheduler.check_integrity()
        rigs.append(rig)
    assert rigs[0].plans == rigs[1].plans
    assert rigs[0].num_looked_at < 0.8 * rigs[1].num_looked_at
