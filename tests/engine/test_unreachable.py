"""Devices without access to another's memory: the engine says why, and their contexts go to the host."""

import logging
from collections.abc import Iterator

import pytest

from engine.memory.placement import Placement
from engine.messages import Mapped
from tests.engine.lending_rig import LendingRig
from tests.engine.test_lending import check_outputs, prompts, submit
from tests.engine.test_mappings import DEVICES, Setting

REASON = "CUDA error 217: peer access is not supported between these two devices"


@pytest.fixture
def setting() -> Iterator[Setting]:
    made = Setting()
    yield made
    made.pools.close()


@pytest.mark.parametrize("is_late", [False, True])
def test_the_engine_says_why_a_pool_is_out_of_reach_and_the_host_takes_its_place(
    setting: Setting, caplog: pytest.LogCaptureFixture, is_late: bool
) -> None:
    """Whether the runner finds out at its start, or when it is told of a lender that came later."""
    borrowed, host = setting.pools.borrowed[setting.region.name].spec, setting.pools.host.spec
    home = setting.pools.local[DEVICES[1]].spec.pool
    placement = Placement()
    placement.add_home(home, DEVICES[1])
    placement.add_tier(borrowed.pool, DEVICES[0])
    placement.add_tier(host.pool, None)
    setting.mappings.update(set(DEVICES), placement)
    assert placement.classes(home) == [[borrowed.pool], [host.pool]]
    setting.mappings.lost(DEVICES[1])
    setting.mappings.start(DEVICES[1])
    with caplog.at_level(logging.WARNING, logger="fairslice.engine"):
        if is_late:
            every = {held.spec.pool for held in setting.pools}
            seen = Mapped(pools=sorted(every), unreachable={borrowed.pool: REASON})
            setting.mappings.mapped(DEVICES[1], seen)
        else:
            setting.mappings.ready(DEVICES[1], {borrowed.pool: REASON})
    assert caplog.messages == [f"{DEVICES[1]} cannot use the memory of {DEVICES[0]}: {REASON}"]
    setting.mappings.update(set(DEVICES), placement)
    assert placement.classes(home) == [[host.pool]]


def test_contexts_of_a_device_without_access_to_a_lender_go_to_the_host() -> None:
    lending = LendingRig(local=(40, 40), lenders=(400,))
    cut_off, connected = lending.rigs.values()
    tiers = [pool_id for pool_id, pool in cut_off.store.tiers.items() if pool.is_leased]
    (home,) = cut_off.store.local_pools
    cut_off.store.placement.set_unreachable(home, frozenset(tiers))
    wanted = prompts(40)
    for model in lending.rigs:
        submit(lending, model, wanted)
    lending.run()
    for model in lending.rigs:
        check_outputs(lending, model, wanted)
    assert lending.paths("m1") == {("d1", "host"), ("host", "d1")}
    assert ("d2", "l1") in lending.paths("m2")
    assert connected.scheduler.counters.recomputed_tokens == 0
    assert cut_off.scheduler.counters.recomputed_tokens == 0
