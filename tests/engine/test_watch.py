"""Pools that follow what other programs leave of a device's memory, and a device that goes and comes."""

from collections.abc import Iterator

import pytest

from engine.config import Config, parse_config
from engine.lenders import Lenders
from engine.pool_sizes import PoolSizes
from engine.watch import CALM_NS, MAX_MISSED, Watch

MIB = 2**20
SECOND_NS = 1_000_000_000


def config() -> Config:
    return parse_config(
        {
            "models": [{"path": "dummy:tiny", "devices": ["cpu:0"]}],
            "devices": [
                {"name": "cpu:0", "memory": "1MiB"},
                {"name": "cpu:1", "memory": "64MiB", "leave_free": "20MiB"},
            ],
        }
    )


class Rig:
    """A lender of 64 MiB in sixteen segments, nobody who borrows, and a machine with `free` bytes besides."""

    def __init__(self) -> None:
        self.lenders = Lenders(config())
        self.lenders.make_regions()
        self.sizes = PoolSizes(self.lenders)
        self.free: int | None = 40 * MIB
        self.now_ns = 0
        self.watch = Watch(config(), self.lenders, self.sizes, lambda _: self.free, lambda: self.now_ns)
        (self.watched,) = self.watch._watched

    @property
    def held(self) -> int:
        return self.sizes.held("cpu:1") // MIB

    def look(self, count: int = 1, *, free: int | None) -> None:
        """So many seconds with so many MiB free, were the pool as it is now."""
        before = self.held
        for _ in range(count):
            self.now_ns += SECOND_NS
            others = None if free is None else (free + before - self.held) * MIB
            self.watch.observe(self.watched, others, self.now_ns)
            for _ in range(3):
                self.lenders.tick(self.now_ns)
                self.sizes.tick()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.lenders.close()


def test_what_is_missing_is_given_back_at_once_and_taken_again_later(rig: Rig) -> None:
    rig.look(free=40)
    assert rig.held == 64
    rig.look(free=5)
    assert rig.held == 48  # 15 MiB were missing, and segments have four
    rig.look(free=21)
    assert rig.held == 48
    rig.look(CALM_NS // SECOND_NS, free=29)
    assert rig.held == 48
    rig.look(2, free=29)
    assert rig.held == 56  # nine to spare
    rig.look(2 * CALM_NS // SECOND_NS, free=60)
    assert rig.held == 64


def test_a_moment_of_plenty_is_not_enough(rig: Rig) -> None:
    rig.look(free=5)
    for _ in range(4):
        rig.look(6, free=30)
        rig.look(free=20)
    assert rig.held == 48


def test_the_least_stays(rig: Rig) -> None:
    rig.look(free=0)
    rig.look(free=0)
    rig.look(5, free=0)
    assert rig.held == 4


def test_a_device_that_does_not_answer_lends_nothing_until_it_does(rig: Rig) -> None:
    lender = rig.lenders.lending.lenders["cpu:1"]
    rig.look(MAX_MISSED, free=None)
    assert lender.num_present == 16, "it has never been there"
    rig.look(free=40)
    rig.look(MAX_MISSED - 1, free=None)
    assert lender.num_present == 16
    rig.look(free=None)
    assert lender.num_present == 0
    assert rig.held == 0
    rig.look(free=110)
    assert lender.wanted_segments == 16
