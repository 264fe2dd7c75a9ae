"""Elastic tensors in leased memory: lenders get it back at any time, and no tensor is lost by that."""

import random

import numpy as np
import pytest
import torch

from engine.memory.elastic import ElasticFull, ElasticLost, ElasticTensors, LocalPool
from engine.memory.lending import Lending
from engine.memory.pool import PagePool
from engine.memory.transfer_cpu import CpuTransfers
from engine.messages import LinkSpec

PAGE, SEGMENT_BYTES = 64, 512
HOST, FIRST_TIER = 90, 10


class Borrower:
    """Somebody's tensors: a device of `local` pages, so many of the host's, and lenders' memory."""

    def __init__(self, rig: "Rig", name: str, page_bytes: int, local: int, host: int) -> None:
        self.name = name
        self.page_bytes = page_bytes
        memory = {1: np.zeros((local, page_bytes), np.uint8), HOST: np.zeros((host, page_bytes), np.uint8)}
        first = FIRST_TIER * (1 + len(rig.borrowers))  # no two pools of a `Lending` have the same id
        tiers = range(first, first + len(rig.memory))
        for tier, lent in zip(tiers, rig.memory.values(), strict=True):
            whole = lent[: len(lent) // page_bytes * page_bytes]
            memory[tier] = whole.reshape(-1, page_bytes)
        slow = [LinkSpec(src=a, dst=b, delay_s=0.001) for a in memory for b in memory if HOST not in (a, b)]
        self.transfers = CpuTransfers(memory, slow)
        self.local = LocalPool(PagePool(1, local, page_bytes), torch.from_numpy(memory[1]))
        self.tensors = ElasticTensors(self.local, [PagePool(HOST, host, page_bytes)], self.transfers)
        self.kept: dict[str, torch.Tensor] = {}
        rig.lending.add_borrower(name, self.tensors)
        for tier, lender in zip(tiers, rig.memory, strict=True):
            pool = PagePool(tier, len(memory[tier]), page_bytes, segment_bytes=SEGMENT_BYTES, is_leased=True)
            rig.lending.connect(lender, name, pool)

    def put(self, name: str, num_pages: int, value: int) -> None:
        tensor = torch.full((num_pages * self.page_bytes - 3,), value, dtype=torch.uint8)
        self.tensors.put(name, tensor)
        self.kept[name] = tensor

    def check(self, name: str) -> None:
        assert torch.equal(self.tensors.get(name), self.kept[name])

    def step(self, source: random.Random, *, may_lose: bool) -> None:
        name, choice = f"t{source.randrange(8)}", source.random()
        if choice < 0.3:
            largest = self.local.ledger.num_pages
            try:
                self.put(name, source.randint(1, largest // source.choice([1, 4])), source.randrange(250))
            except ElasticFull:
                assert (name in self.tensors) == (name in self.kept)
        elif choice < 0.4:
            self.tensors.reclaim()
        elif name in self.kept and choice < 0.5:
            self.tensors.drop(name)
            del self.kept[name]
        elif name in self.kept:
            use = self.tensors.prefetch if choice < 0.7 else self.check
            try:
                use(name)
            except ElasticLost:
                assert may_lose
                self.tensors.drop(name)
                del self.kept[name]
            except ElasticFull:  # the device may have the only copies of too many
                assert may_lose


class Rig:
    """Lenders with so many segments each."""

    def __init__(self, **num_segments: int) -> None:
        self.now_ns = 0
        self.lending = Lending(term_ns=10**18)
        self.memory = {name: np.zeros(n * SEGMENT_BYTES, np.uint8) for name, n in num_segments.items()}
        for name, count in num_segments.items():
            self.lending.add_lender(name, name, count, SEGMENT_BYTES)
        self.borrowers: list[Borrower] = []
        self.has_lost = False

    def lose(self, lender: str, *, is_gone: bool) -> None:
        """The bytes of a lender are anything now."""
        self.has_lost = True
        self.memory[lender][:] = 251
        self.lending.lose_lender(lender, is_gone=is_gone)

    def borrow(self, *, local: int, host: int, page_bytes: int = PAGE) -> Borrower:
        borrower = Borrower(self, f"b{len(self.borrowers)}", page_bytes, local, host)
        self.borrowers.append(borrower)
        return borrower

    def tick(self) -> None:
        self.now_ns += 10**9
        self.lending.tick(self.now_ns)

    def settle(self, ticks: int = 200) -> None:
        """Until nothing moves and nobody's memory is wanted back, or for so long."""
        for _ in range(ticks):
            self.tick()
            for borrower in self.borrowers:
                borrower.tensors.reclaim()
                for name in borrower.kept:
                    borrower.tensors._moves.wait(borrower.tensors._tensors[name])
            if not any(lender.recalls for lender in self.lending.lenders.values()):
                return

    def check_integrity(self) -> None:
        self.lending.check_integrity()
        for borrower in self.borrowers:
            borrower.tensors.check_integrity()


@pytest.fixture
def rig_of():
    rigs: list[Rig] = []

    def make(**num_segments: int) -> Rig:
        rigs.append(Rig(**num_segments))
        return rigs[-1]

    yield make
    for rig in rigs:
        for borrower in rig.borrowers:
            borrower.transfers.close()


def num_kept_by(rig: Rig, lender: str) -> int:
    return sum(pool.num_used for pool in rig.lending.lenders[lender].pools.values())


def test_a_lender_that_wants_its_memory_sends_tensors_to_another_then_to_the_host(rig_of):
    rig = rig_of(near=4, far=4)
    own = rig.borrow(local=10, host=40)
    for number in range(4):
        own.put(f"t{number}", 7, number + 1)
    assert num_kept_by(rig, "near") + num_kept_by(rig, "far") == 28
    rig.lending.resize("near", 1)
    rig.settle()
    assert num_kept_by(rig, "near") <= 8
    rig.lending.resize("far", 1)
    rig.settle()
    rig.check_integrity()
    assert len(rig.lending.lenders["near"].withdrawn) == len(rig.lending.lenders["far"].withdrawn) == 3
    assert own.tensors._mirrors.tiers[HOST].num_used >= 28 - 16
    for name in own.kept:
        own.check(name)


def test_a_lender_that_reclaims_while_a_tensor_is_fetched_waits_for_the_end(rig_of):
    rig = rig_of(lender=4)
    own = rig.borrow(local=10, host=40)
    for number in range(3):
        own.put(f"t{number}", 8, number + 1)
    own.tensors.prefetch("t0")
    assert own.tensors.num_moves_in_flight
    rig.lending.resize("lender", 1)
    rig.tick()
    own.tensors.reclaim()
    own.check("t0")
    rig.check_integrity()
    rig.settle()
    assert len(rig.lending.lenders["lender"].withdrawn) == 3
    for name in own.kept:
        own.check(name)


def test_where_no_tier_has_room_the_device_keeps_the_tensor_and_gives_it_up_for_none(rig_of):
    rig = rig_of(lender=4)
    own = rig.borrow(local=12, host=0)
    own.put("first", 5, 1)
    own.put("second", 5, 2)
    rig.lending.resize("lender", 1)
    rig.settle()
    assert len(rig.lending.lenders["lender"].withdrawn) == 3
    with pytest.raises(ElasticFull, match="no room in the tiers"):
        own.put("third", 5, 3)
    own.check("first")
    own.check("second")
    rig.lending.resize("lender", 4)
    rig.lending.restore("lender", rig.lending.lenders["lender"].withdrawn.copy())
    own.put("third", 8, 3)
    assert all(tensor.is_kept for tensor in own.tensors._tensors.values())
    for name in own.kept:
        own.check(name)
    rig.check_integrity()


def test_what_finds_no_room_anywhere_stays_until_there_is_some(rig_of):
    rig = rig_of(lender=4)
    own = rig.borrow(local=10, host=4)
    for number in range(4):
        own.put(f"t{number}", 8, number + 1)
    rig.lending.resize("lender", 1)
    rig.settle(ticks=5)
    rig.check_integrity()
    assert rig.lending.lenders["lender"].recalls
    for name in own.kept:
        own.check(name)
    for name in ("t0", "t1", "t2"):
        own.tensors.drop(name)
        del own.kept[name]
    rig.settle()
    assert not rig.lending.lenders["lender"].recalls
    own.check("t3")


def test_memory_that_is_gone_costs_what_was_nowhere_else(rig_of):
    rig = rig_of(lender=4)
    own = rig.borrow(local=10, host=40)
    own.put("away", 8, 1)
    own.put("here", 8, 2)
    rig.settle()
    rig.lose("lender", is_gone=True)
    own.check("here")
    with pytest.raises(ElasticLost, match="away: the memory that held it is gone"):
        own.tensors.get("away")
    own.put("away", 8, 3)
    own.check("away")
    rig.settle()
    rig.check_integrity()


def test_what_was_fetched_from_memory_that_is_gone_is_not_trusted(rig_of):
    rig = rig_of(lender=4)
    own = rig.borrow(local=10, host=40)
    own.put("away", 8, 1)
    own.put("here", 8, 2)
    own.tensors.prefetch("away")
    assert own.tensors.num_moves_in_flight
    rig.lose("lender", is_gone=False)
    with pytest.raises(ElasticLost):
        own.tensors.get("away")
    rig.settle()
    rig.check_integrity()


def test_a_tensor_whose_new_place_is_gone_stays_where_it_is(rig_of):
    rig = rig_of(near=2, far=4)
    own = rig.borrow(local=16, host=0)
    own.put("here", 16, 2)
    own.put("away", 16, 1)
    own.tensors.get("here")
    places = {name: tensor.kept.extents[0].segment.pool for name, tensor in own.tensors._tensors.items()}
    pools = {name: lender.pools[own.name] for name, lender in rig.lending.lenders.items()}
    assert places == {"here": pools["far"], "away": pools["near"]}
    rig.lending.resize("near", 1)
    rig.tick()
    own.tensors.reclaim()
    (relocation,) = own.tensors._tensors["away"].relocations
    assert relocation[1][0].segment.pool is pools["far"]
    rig.lose("far", is_gone=False)
    rig.check_integrity()
    own.tensors._moves.wait(own.tensors._tensors["away"])
    rig.memory["far"][:] = 251
    rig.settle()
    for name in ("here", "away"):
        own.check(name)
    rig.check_integrity()


def test_the_only_copy_stays_on_the_device_while_the_other_that_was_being_made_is_gone(rig_of):
    rig = rig_of(lender=4)
    own = rig.borrow(local=10, host=40)
    own.put("first", 8, 1)
    assert own.tensors.num_moves_in_flight
    rig.lose("lender", is_gone=True)
    with pytest.raises(ElasticFull, match="pool has room for 2"):
        own.put("second", 8, 2)
    rig.settle()
    own.put("second", 8, 2)
    own.check("first")
    rig.check_integrity()


@pytest.mark.parametrize("seed", range(6))
def test_random_use_of_lenders_that_come_and_go(rig_of, seed):
    """Two borrowers with pages of different sizes have the same memory in turn: a byte that belonged to both
    would be wrong in one of them."""
    source = random.Random(seed)
    rig = rig_of(one=4, two=6)
    host = source.choice([0, 6, 40])
    for page_bytes in (64, 96):
        rig.borrow(local=10, host=host, page_bytes=page_bytes)
    lenders = list(rig.lending.lenders.values())
    for number in range(1200):
        choice = source.random()
        if choice < 0.85:
            source.choice(rig.borrowers).step(source, may_lose=rig.has_lost)
        elif choice < 0.95:
            rig.tick()
        elif choice < 0.99:
            lender = source.choice(lenders)
            rig.lending.resize(lender.name, source.randint(1, lender.num_segments))
            missing = lender.wanted_segments - lender.num_present
            rig.lending.restore(lender.name, set(sorted(lender.withdrawn)[: max(0, missing)]))
        elif choice < 0.991:
            rig.lose(source.choice(lenders).name, is_gone=source.random() < 0.3)
        if number % 5 == 0:
            rig.check_integrity()
    for borrower in rig.borrowers:
        for name in list(borrower.kept):
            borrower.tensors.drop(name)
    for _ in range(3):
        rig.tick()
    assert not any(lender.recalls or num_kept_by(rig, lender.name) for lender in lenders)
    assert rig.lending.counters.returned > 5
    rig.check_integrity()
