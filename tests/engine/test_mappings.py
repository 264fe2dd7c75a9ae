"""What runners are told of pools, by devices and runners that are stood for by lists."""

import itertools
import os
from collections.abc import Iterator
from typing import cast

import msgspec
import pytest

from engine.config import parse_config
from engine.lenders import Region
from engine.mappings import Mappings
from engine.messages import Attach, MakeSegments, Mapped, Remap, Remapped, SegmentsMade, Unmap
from engine.pools import PoolTable
from engine.runner_client import RunnerClient
from tests.engine.fake_runner import FULL

DEVICES = ("cpu:0", "cpu:1")


class Told:
    """In place of a `RunnerClient`: what the runner was sent."""

    def __init__(self) -> None:
        self.messages: list[msgspec.Struct] = []

    def send(self, message: msgspec.Struct) -> None:
        self.messages.append(message)

    def send_descriptors(self, descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.fstat(descriptor)  # still open

    def receive_descriptors(self) -> list[int]:
        return []

    def take(self) -> list[msgspec.Struct]:
        messages, self.messages = self.messages, []
        return messages


class Setting:
    """One model on two devices, the first of which lends to the other; both runners are ready."""

    def __init__(self) -> None:
        devices = [{"name": name, "memory": "1MiB"} for name in DEVICES]
        config = parse_config({"devices": devices, "memory": {"host": "64KiB"}})
        self.pools = PoolTable(config, FULL, itertools.count(1))
        self.told = {name: Told() for name in DEVICES}
        self.mappings = Mappings(self.pools, cast(dict[str, RunnerClient], self.told))
        for device in config.devices:
            self.pools.add_local(device, 1, None)
        self.region: Region = self.pools.region_of("m", DEVICES[0], 64)
        self.pools.add_borrowed(self.region)
        for name in DEVICES:
            self.start(name)

    def start(self, name: str) -> None:
        self.mappings.start(name)
        self.mappings.ready(name, {})

    def answer(self, pool: int) -> None:
        for name in DEVICES:
            self.mappings.remapped(name, Remapped(pool=pool))


@pytest.fixture
def setting() -> Iterator[Setting]:
    made = Setting()
    yield made
    made.pools.close()


def test_a_runner_is_told_of_every_pool_once(setting: Setting) -> None:
    every = {held.spec.pool for held in setting.pools}
    for name in DEVICES:
        (attach,) = setting.told[name].take()
        assert isinstance(attach, Attach)
        assert {spec.pool for spec in attach.pools} == every
        setting.mappings.mapped(name, Mapped(pools=[]))
        assert not setting.told[name].messages


@pytest.mark.parametrize("kind", [Unmap, Remap])
def test_memory_leaves_and_comes_back_in_all_pools_over_a_region(
    setting: Setting, kind: type[Unmap | Remap]
) -> None:
    """The owner's pool and the one that its model's other devices borrow in are mapped apart."""
    over = {setting.pools.local[DEVICES[0]].spec.pool, setting.pools.borrowed[setting.region.name].spec.pool}
    for name in DEVICES:
        setting.told[name].take()
    if kind is Unmap:
        setting.mappings.unmap(setting.region.name, [3])
    else:
        setting.mappings.remap(setting.region.name, [3], [])
    for name in DEVICES:
        messages = setting.told[name].take()
        assert all(isinstance(message, kind) and message.segments == [3] for message in messages)
        assert {cast(Unmap, message).pool for message in messages} == over
    for pool in sorted(over):
        assert not setting.mappings.is_settled(setting.region.name)
        setting.answer(pool)
    assert setting.mappings.is_settled(setting.region.name)


def test_a_runner_that_is_gone_is_not_waited_for(setting: Setting) -> None:
    setting.mappings.unmap(setting.region.name, [3])
    for name in DEVICES:
        setting.mappings.lost(name)
    assert setting.mappings.is_settled(setting.region.name)


def test_the_owner_alone_makes_memory(setting: Setting) -> None:
    region, owner = setting.region.name, setting.told[DEVICES[0]]
    for name in DEVICES:
        setting.told[name].take()
    assert setting.mappings.make(region, [3])
    assert owner.take() == [MakeSegments(segments=[3])]
    assert not setting.told[DEVICES[1]].messages
    assert setting.mappings.take_made(region) is None
    pool = setting.pools.local[DEVICES[0]].spec.pool
    setting.mappings.made(DEVICES[0], SegmentsMade(pool=pool, segments=[3], error="none left"))
    made = setting.mappings.take_made(region)
    assert made is not None
    assert made.error == "none left"
    setting.mappings.lost(DEVICES[0])
    assert not setting.mappings.make(region, [3]), "its runner is not there"
