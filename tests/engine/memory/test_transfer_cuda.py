"""Transfers of a GPU over memory of this process, on streams that do their work when the test says so."""

import ctypes
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from engine.memory import transfer_cuda, transfer_paths
from engine.memory.cuda_copy import Words
from engine.memory.transfer import TransferError
from engine.memory.transfer_cuda import CudaTransfers, MoveTuning
from engine.memory.transfer_lanes import PageList
from engine.memory.transfer_paths import CudaPool
from engine.messages import Move

LOCAL, PEER, OTHER, HOST = 0, 1, 2, 3
NUM_PAGES, PAGE_BYTES = 64, 64
SMALL, LARGE = MoveTuning(engine_run_bytes=8 * PAGE_BYTES), MoveTuning(engine_run_bytes=PAGE_BYTES)


@dataclass
class FakeMark:
    is_passed: bool = False

    def query(self) -> bool:
        return self.is_passed

    def elapsed_time(self, end_event: "FakeMark") -> float:
        return 1.0


@dataclass
class FakeStream:
    """Work that was launched on GPU `device`, and its names; done at once if it `is_prompt`."""

    device: int
    is_prompt: bool = False
    work: list[Callable[[], None]] = field(default_factory=list)
    launched: list[str] = field(default_factory=list)

    def mark(self) -> FakeMark:
        mark = FakeMark()
        self.work.append(lambda: setattr(mark, "is_passed", True))
        if self.is_prompt:
            self.synchronize()
        return mark

    def copy(self, dst: Words, src: Words, sizes: Words) -> None:
        self.launched.append(f"{len(sizes)} copies")
        triples = list(zip(dst.tolist(), src.tolist(), sizes.tolist(), strict=True))
        self.work += [lambda each=each: ctypes.memmove(*each) for each in triples]

    def move_pages(
        self, src: torch.Tensor, dst: torch.Tensor, pages: tuple[PageList, PageList], programs: int
    ) -> None:
        self.launched.append(f"kernel of {programs}")
        from_pages, to_pages = (torch.from_numpy(each.astype(np.int64)) for each in pages)
        self.work.append(lambda: dst.__setitem__(to_pages, src[from_pages]))

    def synchronize(self) -> None:
        for each in self.work:
            each()
        self.work.clear()


@dataclass
class FakeCompute:
    is_idle: bool = True

    def query(self) -> bool:
        return self.is_idle


@pytest.fixture
def begins_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moves of eight pages are large, and so are batches between GPUs of as many."""
    monkeypatch.setattr(transfer_cuda, "LARGE_MOVE_BYTES", 8 * PAGE_BYTES)
    monkeypatch.setattr(transfer_paths, "BATCH_PEER_BYTES", 8 * PAGE_BYTES)


class Rig:
    """GPU 0 with a pool, two lenders' and the host's; `senders` may send for it."""

    def __init__(self, tuning: MoveTuning = LARGE, *, senders: tuple[int, ...] = (1, 2)) -> None:
        self.compute = FakeCompute()
        self.streams: list[FakeStream] = []
        reached_by = frozenset({0, *senders})
        devices = {LOCAL: 0, PEER: 1, OTHER: 2, HOST: None}
        self.pools = {
            pool: CudaPool(
                torch.randint(0, 256, (NUM_PAGES, PAGE_BYTES), dtype=torch.uint8),
                device,
                is_local=pool == LOCAL,
                reached_by=reached_by if device is not None else frozenset(),
            )
            for pool, device in devices.items()
        }
        self.transfers = CudaTransfers(0, self.pools, self.compute, self._make_stream, tuning)
        self._num_moves = 0

    def _make_stream(self, device: int) -> FakeStream:
        self.streams.append(FakeStream(device))
        return self.streams[-1]

    def submit(self, src: int, dst: int, src_pages: list[int], dst_pages: list[int]) -> int:
        self._num_moves += 1
        self.transfers.submit(
            Move(
                move_id=self._num_moves,
                src_pool=src,
                dst_pool=dst,
                src_pages=array("i", src_pages),
                dst_pages=array("i", dst_pages),
            )
        )
        return self._num_moves

    def completed(self) -> list[int]:
        return [each.move_id for each in self.transfers.completed()]

    def launched(self) -> dict[int, list[str]]:
        """What was launched, by GPU, since the last call."""
        found: dict[int, list[str]] = {}
        for stream in self.streams:
            if stream.launched:
                found.setdefault(stream.device, []).extend(stream.launched)
                stream.launched.clear()
        return found

    def finish(self) -> list[int]:
        """Have all streams do their work until nothing is open; what was completed."""
        done = []
        while self.transfers.num_open:
            for stream in self.streams:
                stream.synchronize()
            done += self.completed()
        return done


def scattered(first: int) -> tuple[list[int], list[int]]:
    """Eight pages of which none are neighbours, from there to elsewhere."""
    return list(range(first, first + 16, 2)), list(range(first + 30, first + 14, -2))


def test_both_ways_of_a_link_have_a_sender_at_their_end() -> None:
    rig = Rig()
    rig.submit(PEER, LOCAL, *scattered(0))
    rig.submit(LOCAL, PEER, *scattered(1))
    rig.submit(OTHER, LOCAL, *scattered(32))
    assert rig.completed() == []
    assert rig.launched() == {0: ["8 copies"], 1: ["8 copies"], 2: ["8 copies"]}
    assert len(rig.finish()) == 3


@pytest.mark.parametrize("tuning", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("senders", [(), (1,), (1, 2)], ids=str)
def test_bytes_arrive_whoever_sends(tuning: MoveTuning, senders: tuple[int, ...]) -> None:
    rig = Rig(tuning, senders=senders)
    before = {pool: each.pages.clone() for pool, each in rig.pools.items()}
    ways = [(PEER, LOCAL), (LOCAL, PEER), (PEER, OTHER), (OTHER, PEER), (HOST, LOCAL), (PEER, HOST)]
    free = {pool: torch.randperm(NUM_PAGES).tolist() for pool in rig.pools}
    moves = []
    for src, dst in ways:
        lists = [sorted(free[pool].pop() for _ in range(8)) for pool in (src, dst)]
        rig.submit(src, dst, *lists)
        moves.append((src, dst, *lists))
    assert sorted(rig.finish()) == list(range(1, len(ways) + 1))
    for src, dst, src_pages, dst_pages in moves:
        assert torch.equal(rig.pools[dst].pages[dst_pages], before[src][src_pages]), (src, dst)


def test_a_lender_that_cannot_send_is_read_from_here() -> None:
    rig = Rig(senders=(2,))
    rig.submit(PEER, LOCAL, *scattered(0))
    rig.completed()
    assert rig.launched() == {0: ["8 copies"]}
    rig.submit(PEER, OTHER, *scattered(0))
    rig.completed()
    assert rig.launched() == {0: ["kernel of 16"]}
    assert rig.finish() == [1, 2]


def test_a_lender_passes_large_pages_on_by_its_own_engines_and_small_ones_by_our_kernel() -> None:
    rig = Rig(LARGE)
    rig.submit(PEER, OTHER, *scattered(0))
    rig.completed()
    assert rig.launched() == {1: ["8 copies"]}
    rig.finish()
    rig = Rig(SMALL)
    rig.compute.is_idle = False
    rig.submit(PEER, OTHER, *scattered(0))
    rig.completed()
    assert rig.launched() == {0: ["kernel of 16"]}
    neighbours = list(range(16))
    rig.submit(OTHER, PEER, neighbours, neighbours)
    rig.completed()
    assert rig.launched() == {2: ["1 copies"]}
    rig.finish()


def test_small_pages_go_by_a_kernel_of_this_gpu_while_it_computes_nothing() -> None:
    rig = Rig(SMALL)
    rig.submit(PEER, LOCAL, *scattered(0))
    rig.completed()
    assert rig.launched() == {0: ["kernel of 64"]}
    rig.compute.is_idle = False
    rig.submit(PEER, LOCAL, *scattered(32))
    rig.completed()
    assert rig.launched() == {1: ["8 copies"]}
    assert rig.finish() == [1, 2]


def test_lenders_that_become_senders_send_what_is_submitted_then() -> None:
    rig = Rig(senders=())
    rig.submit(PEER, LOCAL, *scattered(0))
    reached_by = {0, 1}
    pages = torch.zeros(NUM_PAGES, PAGE_BYTES, dtype=torch.uint8)
    late = CudaPool(pages, 1, reached_by=reached_by)
    local = CudaPool(rig.pools[LOCAL].pages, 0, is_local=True, reached_by=reached_by)
    rig.transfers.pools.update({PEER: late, LOCAL: local})
    rig.submit(PEER, LOCAL, *scattered(32))
    rig.completed()
    assert rig.launched() == {0: ["8 copies"], 1: ["8 copies"]}
    rig.finish()


def test_lenders_on_one_path_take_turns_at_being_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_paths, "BATCH_PEER_BYTES", 8 * PAGE_BYTES)
    monkeypatch.setattr(transfer_cuda, "TURN_COPIES", 24)
    rig = Rig()
    for lender in (PEER, OTHER):
        for _ in range(3):
            rig.submit(lender, LOCAL, *scattered(0))
    rig.completed()
    assert rig.launched() == {1: ["8 copies", "8 copies"], 2: ["8 copies"]}
    rig.completed()
    assert rig.launched() == {1: ["8 copies"], 2: ["8 copies", "8 copies"]}
    rig.finish()


@pytest.mark.usefixtures("begins_at_once")
def test_a_large_move_begins_at_once_and_what_arrives_is_told_before_the_rest_is_launched() -> None:
    rig = Rig()
    first, second, *others = (rig.submit(PEER, LOCAL, *scattered(0)) for _ in range(6))
    assert rig.launched() == {1: ["8 copies"]}, "the first, at once"
    remote = next(stream for stream in rig.streams if stream.device == 1)
    remote.is_prompt = True
    assert rig.completed() == [first, second]
    assert rig.launched() == {1: ["8 copies"]}, "it arrived, so no more was launched"
    remote.is_prompt = False
    assert rig.completed() == []
    assert rig.launched() == {1: ["8 copies"] * 4}, "nothing arrived, so all was launched"
    assert rig.finish() == others


@pytest.mark.usefixtures("begins_at_once")
def test_what_arrived_while_more_was_queued_is_told_before_more_than_one_batch_is_launched() -> None:
    rig = Rig()
    first, *others = (rig.submit(PEER, LOCAL, *scattered(0)) for _ in range(6))
    assert rig.launched() == {1: ["8 copies"]}
    for stream in rig.streams:
        stream.synchronize()
    assert rig.completed() == [first]
    assert rig.launched() == {1: ["8 copies"]}, "the link is not left with nothing to do"
    assert rig.completed() == []
    assert rig.launched() == {1: ["8 copies"] * 4}
    assert rig.finish() == others


@pytest.mark.usefixtures("begins_at_once")
def test_a_large_move_begins_with_no_more_than_a_part_and_a_small_one_waits_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer_paths, "BATCH_HOST_BYTES", 2 * PAGE_BYTES)
    monkeypatch.setattr(transfer_cuda, "BEGIN_BYTES", 4 * PAGE_BYTES)
    rig = Rig()
    large = [rig.submit(HOST, LOCAL, *scattered(0)) for _ in range(2)]
    assert rig.launched() == {0: ["2 copies"] * 2}
    small = [rig.submit(PEER, LOCAL, [page], [page + 1]) for page in (0, 2, 4)]
    assert rig.launched() == {}
    rig.completed()
    assert rig.launched()[1] == ["3 copies"]
    assert sorted(rig.finish()) == large + small


def test_where_looks_are_rare_all_is_launched_whatever_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_paths, "BATCH_PEER_BYTES", 8 * PAGE_BYTES)
    now_ns = iter(range(0, 10**12, 10**8))
    monkeypatch.setattr(transfer_cuda, "monotonic_ns", lambda: next(now_ns))
    rig = Rig()
    rig.submit(PEER, LOCAL, *scattered(0))
    rig.finish()
    moves = [rig.submit(PEER, LOCAL, *scattered(0)) for _ in range(4)]
    next(stream for stream in rig.streams if stream.device == 1).is_prompt = True
    assert rig.completed() == moves


def test_pools_and_pages_that_are_not_there_are_refused() -> None:
    rig = Rig()
    with pytest.raises(TransferError, match="pool 9"):
        rig.submit(LOCAL, 9, [0], [0])
    assert rig.transfers.num_open == 0
    rig.submit(PEER, LOCAL, [1, NUM_PAGES], [0, 1])
    with pytest.raises(TransferError, match=f"page {NUM_PAGES} of pool {PEER}"):
        rig.completed()


def test_what_was_launched_is_finished_at_the_end() -> None:
    rig = Rig()
    before = rig.pools[PEER].pages[[3]].clone()
    rig.submit(PEER, LOCAL, [3], [4])
    rig.completed()
    rig.transfers.close()
    assert torch.equal(rig.pools[LOCAL].pages[[4]], before)
