"""The log of slices, and the snapshot that goes with it: what the live page is told."""

import random
from itertools import pairwise

import msgspec
import pytest

from engine.live import MAX_TENANTS, live_model
from engine.messages import FromApi, Live, LiveModel, SliceFate, SliceRecord, ToApi
from engine.slice_log import SliceLog
from tests.engine.fake_runner import FULL
from tests.engine.rig import STEP_NS, Rig


def crowded(*, policy: str = "cfs", local: tuple[int, ...] = (40,)) -> Rig:
    """Many prompts of two tenants, run to their end."""
    rig = Rig(FULL, policy=policy, local=local)
    source = random.Random(5)
    for number in range(30):
        ids = [source.randrange(1000) for _ in range(source.randint(2, 30))]
        rig.submit(f"p{number}", ids, source.randint(2, 40), tenant=("a", "b")[number % 2])
    rig.run()
    return rig


def records(rig: Rig, since_ns: int = 0) -> list[SliceRecord]:
    return rig.scheduler.slice_log.ended_since(since_ns)


def by_prompt(found: list[SliceRecord]) -> dict[int, list[SliceRecord]]:
    grouped: dict[int, list[SliceRecord]] = {}
    for record in found:
        grouped.setdefault(record.prompt, []).append(record)
    return grouped


@pytest.mark.parametrize(("policy", "local"), [("cfs", (40,)), ("cfs", (40, 40)), ("fcfs", (60,))])
def test_the_slices_of_a_prompt_add_up(policy: str, local: tuple[int, ...]) -> None:
    rig = crowded(policy=policy, local=local)
    slices = by_prompt(records(rig))
    assert len(slices) == 30
    sampled = {serial: sum(record.sampled for record in own) for serial, own in slices.items()}
    assert sampled == {number + 1: len(rig.outputs[f"p{number}"]) for number in range(30)}
    for own in slices.values():
        assert [record.fate for record in own].count(SliceFate.LENGTH) == 1
        assert own[-1].fate is SliceFate.LENGTH
        assert sum(record.first_token_ns is not None for record in own) == 1
        for earlier, later in pairwise(own):
            assert earlier.end_ns is not None
            assert earlier.start_ns < earlier.end_ns <= later.start_ns + STEP_NS
            assert (earlier.end_ns == later.start_ns) >= (earlier.fate is SliceFate.EXTENDED)


def test_prefill_is_told_apart_from_decode() -> None:
    rig = crowded()
    counters = rig.scheduler.counters
    assert counters.recomputed_tokens == 0
    assert sum(record.prefilled for record in records(rig)) == counters.prompt_tokens
    recomputing = crowded(policy="fcfs", local=(30,))
    counters = recomputing.scheduler.counters
    assert counters.recomputed_tokens > 0
    prefilled = sum(record.prefilled for record in records(recomputing))
    assert prefilled >= counters.prompt_tokens + counters.recomputed_tokens


def test_a_place_holds_one_prompt_at_a_time() -> None:
    rig = crowded(local=(40, 40))
    assert {record.device for record in records(rig)} == {"d1", "d2"}
    places: dict[tuple[str, int], list[SliceRecord]] = {}
    for record in records(rig):
        places.setdefault((record.device, record.slot), []).append(record)
    assert {slot for _, slot in places} <= set(range(rig.max_batch))
    for own in places.values():
        for earlier, later in pairwise(own):
            assert earlier.end_ns is not None
            assert earlier.end_ns <= later.start_ns + STEP_NS


def test_prompts_that_take_turns_are_shown_as_preempted() -> None:
    rig = crowded()
    fates = [record.fate for record in records(rig)]
    assert fates.count(SliceFate.PREEMPTED) == rig.scheduler.planner.num_preemptions > 10


def test_a_reader_gets_what_ended_since_it_last_asked() -> None:
    rig = Rig(FULL)
    rig.submit("p", [1, 2, 3], 60)
    seen: list[SliceRecord] = []
    since_ns = 0
    while rig.scheduler.prompts:
        rig.tick()
        seen += records(rig, since_ns)
        since_ns = rig.now_ns
    assert seen == records(rig)
    assert records(rig, rig.now_ns) == []


def test_slices_in_force_grow_and_end_with_an_abort() -> None:
    rig = Rig(FULL)
    rig.submit("p", [1, 2, 3], 100)
    for _ in range(4):
        rig.tick()
    (record,) = rig.scheduler.slice_log.in_force()
    assert (record.end_ns, record.fate) == (None, None)
    assert record.prefilled == 3
    assert record.sampled == len(rig.outputs["p"]) > 0
    rig.abort("p")
    assert rig.scheduler.slice_log.in_force() == []
    assert records(rig)[-1].fate is SliceFate.ABORT
    rig.run()
    rig.scheduler.check_integrity()


def test_a_lost_runner_ends_its_slices() -> None:
    rig = Rig(FULL, local=(40, 40))
    for number in range(4):
        rig.submit(f"p{number}", [number], 30)
    for _ in range(3):
        rig.tick()
    assert {record.device for record in rig.scheduler.slice_log.in_force()} == {"d1", "d2"}
    rig.kill_runner("d1")
    assert {record.device for record in rig.scheduler.slice_log.in_force()} == {"d2"}
    rig.start_runner("d1")
    rig.run()
    assert rig.scheduler.slice_log.in_force() == []
    assert all(len(rig.outputs[f"p{number}"]) == 30 for number in range(4))


def test_the_log_is_bounded() -> None:
    rig = Rig(FULL, slice_log=SliceLog(capacity=5))
    for number in range(20):
        rig.submit(f"p{number}", [number], 3)
    rig.run()
    assert len(records(rig)) == 5
    assert records(rig)[-1].end_ns == max(record.end_ns or 0 for record in records(rig))


def test_the_snapshot_says_where_pages_and_prompts_are() -> None:
    rig = Rig(FULL, max_batch=2)
    for number in range(6):
        rig.submit(f"p{number}", [number] * 20, 30, tenant="a" if number < 4 else "b", weight=2.0)
    for _ in range(40):
        rig.tick()
    model = live_model("m", rig.scheduler, 0)
    (device,) = model.devices
    pool = rig.store.local_pools[1]
    assert device.pages_running + device.pages_idle == pool.num_used
    assert device.pages_free == pool.num_free
    assert 0 <= device.pages_clean <= device.pages_idle
    assert device.num_running == len(model.in_force) > 0
    tenants = {tenant.name: tenant for tenant in model.tenants}
    assert {name: tenant.num_running + tenant.num_waiting for name, tenant in tenants.items()} == {
        "a": sum(f"p{number}" in rig.scheduler.prompts for number in range(4)),
        "b": sum(f"p{number}" in rig.scheduler.prompts for number in range(4, 6)),
    }
    assert tenants["a"].weight == 2.0
    assert tenants["a"].service_ns == rig.scheduler.service_by_tenant()["a"]
    assert {tier.place for tier in model.tiers} == {"host"}
    rig.run()
    assert all(tenant.weight is None for tenant in live_model("m", rig.scheduler, 0).tenants)


def test_a_snapshot_names_a_bounded_number_of_tenants_the_busiest_first() -> None:
    rig = Rig(FULL)
    for number in range(MAX_TENANTS + 20):
        for copy in range(3 if number == 70 else 1):
            rig.submit(f"p{number}-{copy}", [1], 2, tenant=f"t{number}")
    tenants = live_model("m", rig.scheduler, 0).tenants
    assert len(tenants) == MAX_TENANTS
    assert tenants[0].name == "t70"


def test_what_an_api_asks_and_gets_survives_the_wire() -> None:
    model = live_model("m", crowded().scheduler, 0)
    live = Live(serial=1, engine_id="e", now_ns=5, models=[model], lenders=[])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(live), type=ToApi) == live
    assert msgspec.json.decode(msgspec.json.encode(model), type=LiveModel) == model
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(live), type=FromApi)
