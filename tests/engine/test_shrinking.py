"""Pools that shrink and grow while their contexts are in use: outputs stay exact, nobody is stuck."""

import random

import pytest

from tests.engine.lending_rig import LendingRig
from tests.engine.test_lending import check_outputs, prompts, submit


def grow_back(lending: LendingRig, name: str) -> None:
    """What the engine does once there is memory again."""
    lender = lending.lending.lenders[name]
    lending.lending.resize(name, lender.num_segments)
    lending.lending.restore(name, set(lender.withdrawn))


def is_settled(lending: LendingRig, name: str) -> bool:
    lender = lending.lending.lenders[name]
    return lender.num_present == lender.wanted_segments


@pytest.mark.parametrize("lenders", [(), (200,)])
@pytest.mark.parametrize("host", [0, 30, 400])
@pytest.mark.parametrize("device", ["d1", "l1"])
def test_a_pool_shrinks_within_a_few_slices(lenders: tuple[int, ...], host: int, device: str) -> None:
    if device == "l1" and not lenders:
        pytest.skip("no such device")
    lending = LendingRig(local=(120,), lenders=lenders, host=host)
    wanted = prompts(40, longest=60)
    submit(lending, "m1", wanted)
    for _ in range(100):
        lending.tick()
    lending.lending.resize(device, 16)
    for _ in range(120):
        lending.tick()
    assert is_settled(lending, device)
    lending.check_integrity()
    lending.run()
    check_outputs(lending, "m1", wanted)


def test_contexts_that_nobody_presses_are_moved_aside() -> None:
    lending = LendingRig(local=(120,), host=400, max_batch=2)
    wanted = prompts(3, longest=30)
    submit(lending, "m1", wanted)
    for _ in range(5):
        lending.tick()
    lending.lending.resize("d1", 4)
    lending.run()
    assert is_settled(lending, "d1")
    assert lending.rigs["m1"].scheduler.counters.recomputed_tokens == 0
    check_outputs(lending, "m1", wanted)


def test_the_first_segment_stays_whoever_holds_it() -> None:
    """Runners map a lender's memory from there on."""
    lending = LendingRig(local=(40, 40), lenders=(12,), host=400)
    lending.lending.lease(201, 1)  # one for m2, and the others for m1
    lending.lending.lease(200, 8)
    lending.lending.resize("l1", 1)
    lending.tick()
    lender = lending.lending.lenders["l1"]
    assert lender.withdrawn | lender.leaving == {1, 2}


@pytest.mark.parametrize("seed", range(4))
def test_random_sizes_under_load(seed: int) -> None:
    source = random.Random(seed)
    lending = LendingRig(local=(80, 100), lenders=(80,), host=source.choice([20, 300]), seed=seed)
    wanted: dict[str, dict[str, tuple[list[int], int]]] = {name: {} for name in lending.rigs}
    for number in range(80):
        model = source.choice(list(lending.rigs))
        prompt = prompts(1, seed * 1000 + number)["p0"]
        wanted[model][f"p{number}"] = prompt
        lending.rigs[model].submit(f"p{number}", *prompt)
        for _ in range(source.choice([0, 1, 5, 40])):
            lending.tick()
        name = source.choice(list(lending.lending.lenders))
        if source.random() < 0.3:
            lending.lending.resize(name, source.randint(16, lending.lending.lenders[name].num_segments))
        elif source.random() < 0.3:
            grow_back(lending, name)
        if number % 10 == 0:
            lending.check_integrity()
    lending.run()
    for model, of_model in wanted.items():
        check_outputs(lending, model, of_model)
