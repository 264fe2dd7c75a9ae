"""The properties that cfs and eevdf promise, on a simulated device."""

import random

import pytest

from engine.fairness import Policy, Task, make_policy

from .device import GRANULARITY_NS, MS, SLICE_NS, Device

FAIR = ("cfs", "eevdf")


def make_fair(name: str) -> Policy:
    return make_policy(name, slice_ns=SLICE_NS, granularity_ns=GRANULARITY_NS)


@pytest.mark.parametrize("name", FAIR)
@pytest.mark.parametrize("num_slots", [1, 4, 64])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0), (0.25, 8.0)])
def test_backlogged_tenants_differ_by_a_constant_at_most(
    name: str, num_slots: int, weights: tuple[float, float]
) -> None:
    rng = random.Random(num_slots)
    device = Device(make_fair(name), num_slots, lambda task: rng.randrange(1, SLICE_NS))
    for _ in range(100):
        device.submit("a", weight=weights[0])
        device.submit("b", weight=weights[1])
    bound_ns = 2 * num_slots * SLICE_NS / min(weights)
    for _ in range(3000):
        device.step()
        served = device.service_ns
        difference_ns = served.get("a", 0) / weights[0] - served.get("b", 0) / weights[1]
        assert abs(difference_ns) <= bound_ns


@pytest.mark.parametrize("name", FAIR)
def test_shares_follow_weights(name: str) -> None:
    rng = random.Random(1)
    device = Device(make_fair(name), 8, lambda task: rng.randrange(1, SLICE_NS))
    weights = {"a": 1.0, "b": 2.0, "c": 5.0}
    for tenant, weight in weights.items():
        for _ in range(20):
            device.submit(tenant, weight=weight)
    device.run(10_000)
    total_ns = sum(device.service_ns.values())
    for tenant, weight in weights.items():
        assert device.service_ns[tenant] / total_ns == pytest.approx(weight / 8.0, rel=0.02)


@pytest.mark.parametrize("name", FAIR)
def test_shares_within_a_tenant_follow_nice_levels(name: str) -> None:
    device = Device(make_fair(name), 1, lambda task: 2 * MS)
    polite, rude = device.submit("a", nice=5), device.submit("a", nice=0)
    device.run(10_000)
    assert rude.service_ns / polite.service_ns == pytest.approx(1024 / 335, rel=0.02)


@pytest.mark.parametrize("name", FAIR)
def test_many_prompts_buy_nothing(name: str) -> None:
    device = Device(make_fair(name), 4, lambda task: 3 * MS)
    for _ in range(100):
        device.submit("many")
    for _ in range(4):
        device.submit("few")
    device.run(10_000)
    assert device.service_ns["many"] / device.service_ns["few"] == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("name", FAIR)
def test_a_batch_is_filled_by_weight(name: str) -> None:
    policy = make_fair(name)
    device = Device(policy, 64, lambda task: SLICE_NS)
    for _ in range(100):
        device.submit("a", weight=1.0)
        device.submit("b", weight=3.0)
    batch = [policy.pick(0) for _ in range(64)]
    tenants = [task.tenant for task in batch if task is not None]
    assert tenants.count("a") == pytest.approx(16, abs=1)
    assert tenants.count("b") == pytest.approx(48, abs=1)


@pytest.mark.parametrize("name", FAIR)
@pytest.mark.parametrize("num_tenants", [1, 50, 10**6])
def test_endless_arrivals_starve_nobody(name: str, num_tenants: int) -> None:
    """Each stint of a newcomer ends it, and the next one arrives: only 4 of 50 prompts stay. A rotation
    is a request of each prompt of its tenant, and as many of each other tenant."""
    stint_ns = 2 * MS
    device = Device(make_fair(name), 4, lambda task: stint_ns)
    residents = [device.submit("t0") for _ in range(4)]
    for index in range(46):
        device.submit(f"t{index % num_tenants}", stints=1)
    most_siblings = 0
    for _ in range(12_000):
        if device.step() not in device.stints_left:
            device.submit(f"t{device.num_stints % num_tenants}", stints=1)
        most_siblings = max(most_siblings, sum(task.tenant == "t0" for task in device.stints_left))
    rotation_ns = SLICE_NS * most_siblings * min(num_tenants, 50)
    assert device.longest_wait * stint_ns <= 10 * rotation_ns
    assert all(task.service_ns > 0 for task in residents)


@pytest.mark.parametrize("name", FAIR)
def test_a_light_tenant_gets_the_next_place_while_another_floods(name: str) -> None:
    rng = random.Random(2)
    device = Device(make_fair(name), 8, lambda task: rng.randrange(1, SLICE_NS))
    for _ in range(500):
        device.submit("flood")
    device.run(100)
    for _ in range(200):
        light = device.submit("light", stints=1)
        device.fill()  # one place is free
        assert not light.is_queued
        while light in device.stints_left:
            device.step()
        device.run(10)


@pytest.mark.parametrize("name", FAIR)
def test_idling_banks_no_credit(name: str) -> None:
    device = Device(make_fair(name), 4, lambda task: 2 * MS)
    for _ in range(10):
        device.submit("busy")
    idler = device.submit("idler", stints=1)
    device.run(5000)
    assert idler not in device.stints_left
    before_ns = dict(device.service_ns)
    for _ in range(10):
        device.submit("idler")
    device.run(200)
    gained_ns = device.service_ns["idler"] - before_ns["idler"]
    assert gained_ns - (device.service_ns["busy"] - before_ns["busy"]) <= 2 * 4 * SLICE_NS


@pytest.mark.parametrize("name", FAIR)
def test_running_below_its_share_banks_no_credit(name: str) -> None:
    """A tenant with one prompt that never waits long cannot flood on what it did not use."""
    device = Device(make_fair(name), 4, lambda task: 2 * MS if task.tenant == "busy" else MS // 10)
    for _ in range(10):
        device.submit("busy")
    device.submit("light")
    device.run(5000)
    device.cost_ns = lambda task: 2 * MS
    before_ns = dict(device.service_ns)
    for _ in range(10):
        device.submit("light")
    device.run(400)
    gained_ns = device.service_ns["light"] - before_ns["light"]
    assert gained_ns - (device.service_ns["busy"] - before_ns["busy"]) <= 2 * 4 * SLICE_NS


@pytest.mark.parametrize("name", FAIR)
@pytest.mark.parametrize("pause_stints", [0, 100])
def test_aborting_erases_no_debt(name: str, pause_stints: int) -> None:
    """A prompt takes 2 s at once and is aborted; its tenant comes back when others have had 0.2 s."""
    policy = make_fair(name)
    device = Device(policy, 1, lambda task: 2 * MS)
    for _ in range(5):
        device.submit("patient")
    hog = device.submit("hog")
    policy.take(hog, device.now_ns)
    policy.charge(hog, 2000 * MS, device.now_ns)
    device.abort(hog)
    device.run(pause_stints)
    for _ in range(5):
        device.submit("hog")
    device.run(900 - pause_stints)
    assert device.service_ns.get("hog", 0) <= 2 * SLICE_NS
    device.run(2000)
    assert device.service_ns["hog"] + 2000 * MS == pytest.approx(device.service_ns["patient"], rel=0.1)


@pytest.mark.parametrize("name", FAIR)
def test_service_that_nobody_waited_for_is_no_debt(name: str) -> None:
    device = Device(make_fair(name), 4, lambda task: 2 * MS)
    for _ in range(4):
        device.submit("early")
    device.run(5000)
    before_ns = device.service_ns["early"]
    for _ in range(4):
        device.submit("late")
    device.run(400)
    gained_ns = device.service_ns["early"] - before_ns
    assert abs(gained_ns - device.service_ns["late"]) <= 2 * 4 * SLICE_NS


@pytest.mark.parametrize("name", FAIR)
def test_a_pick_that_finds_no_room_costs_nothing(name: str) -> None:
    policy = make_fair(name)
    tasks = [Task(serial, f"t{serial % 3}", 1.0, 0, 0) for serial in range(30)]
    for task in tasks:
        policy.join(task, 0)
    orders = []
    for _ in range(2):
        order = [policy.pick(0) for _ in range(10)]
        orders.append(order)
        for task in order:
            assert task is not None
            policy.put_back(task, 0)
        policy.check_integrity()
    assert orders[0] == orders[1]


@pytest.mark.parametrize("name", FAIR)
def test_a_debt_is_forgotten_after_its_time(name: str) -> None:
    policy = make_policy(name, slice_ns=SLICE_NS, granularity_ns=GRANULARITY_NS, memory_ns=1000 * MS)
    patient, hog, other = (Task(serial, t, 1.0, 0, 0) for serial, t in enumerate(("patient", "hog", "other")))
    policy.join(patient, 0)
    policy.join(hog, 0)
    policy.take(hog, 0)
    policy.charge(hog, 2000 * MS, 0)
    policy.leave(hog, 0)
    policy.join(other, 0)
    policy.leave(other, 1000 * MS)  # the oldest debts are looked at when somebody leaves
    back = Task(3, "hog", 1.0, 0, 1000 * MS)
    policy.join(back, 1000 * MS)
    for task in (patient, back):
        assert policy.pick(0) is task


@pytest.mark.parametrize("name", FAIR)
def test_a_prompt_may_be_charged_when_its_tenant_is_gone(name: str) -> None:
    policy = make_fair(name)
    gone, patient, back = (Task(serial, t, 1.0, 0, 0) for serial, t in enumerate(("hog", "patient", "hog")))
    policy.join(gone, 0)
    policy.join(patient, 0)
    assert policy.pick(0) is gone
    policy.leave(gone, 0)
    policy.charge(gone, 500 * MS, 0)
    policy.join(back, 0)
    policy.check_integrity()
    for _ in range(45):
        assert policy.pick(0) is patient
        policy.charge(patient, 10 * MS, 0)
        policy.put_back(patient, 0)


@pytest.mark.parametrize("name", FAIR)
def test_preemption_needs_a_lead_beyond_a_request(name: str) -> None:
    policy = make_fair(name)
    tasks = [Task(serial, "a", 1.0, 0, 0) for serial in range(3)]
    for task in tasks:
        policy.join(task, 0)
    running = policy.pick(0)
    assert running is tasks[0]
    policy.charge(running, SLICE_NS - 1, 0)
    assert not policy.preempts(tasks[1], running, 0)
    policy.charge(running, 2, 0)
    assert policy.preempts(tasks[1], running, 0)


@pytest.mark.parametrize("name", FAIR)
def test_a_tenant_without_a_place_preempts_one_that_has_them_all(name: str) -> None:
    """Also when its prompt was picked and found no room; and two that have theirs leave each other alone."""
    policy = make_fair(name)
    hogs = [Task(serial, "hog", 1.0, 0, 0) for serial in range(20)]
    for task in hogs:
        policy.join(task, 0)
    running = [policy.pick(0) for _ in range(4)]
    newcomer = Task(20, "newcomer", 1.0, 0, 0)
    policy.join(newcomer, 0)
    assert running[0] is not None
    assert policy.preempts(newcomer, running[0], 0)
    assert policy.pick(0) is newcomer
    assert policy.preempts(newcomer, running[0], 0)
    assert not policy.preempts(hogs[5], newcomer, 0)


@pytest.mark.parametrize("name", FAIR)
def test_prompts_resubmitted_after_a_restart_yield_to_new_ones(name: str) -> None:
    policy = make_fair(name)
    restored = Task(0, "a", 1.0, 0, 0, service_ns=60_000 * MS)
    new = Task(1, "a", 1.0, 0, 0)
    policy.join(restored, 0)
    policy.join(new, 0)
    assert policy.pick(0) is new
    policy.charge(new, SLICE_NS + 1, 0)
    policy.put_back(new, 0)
    assert policy.pick(0) is restored


@pytest.mark.parametrize("name", FAIR)
def test_a_prompt_that_never_joined_may_leave(name: str) -> None:
    policy = make_fair(name)
    policy.leave(Task(0, "a", 1.0, 0, 0), 0)
    policy.check_integrity()
    assert policy.pick(0) is None


@pytest.mark.parametrize("name", FAIR)
def test_the_spread_is_service_by_weight_of_those_who_wait(name: str) -> None:
    policy = make_fair(name)
    assert policy.vruntime_spread_ns() == 0
    light, heavy = Task(0, "a", 1.0, 0, 0), Task(1, "b", 4.0, 0, 0)
    for task in (light, heavy):
        policy.join(task, 0)
        policy.take(task, 0)
    assert policy.vruntime_spread_ns() == 0  # nobody waits
    policy.join(Task(2, "a", 1.0, 0, 0), 0)
    policy.join(Task(3, "b", 4.0, 0, 0), 0)
    policy.charge(light, 30 * MS, MS)
    policy.charge(heavy, 40 * MS, MS)
    assert policy.vruntime_spread_ns() == 20 * MS
