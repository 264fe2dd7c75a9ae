"""Pools and moves on real GPUs. With two GPUs, the peer pool lies on the second."""

import gc
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("triton")
pytest.importorskip("cuda.bindings")

import torch
from cuda.bindings import runtime

from engine.memory.cuda_calls import CudaError, unwrap
from engine.memory.cuda_copy import driver_batch_copy
from engine.memory.cuda_host import pin
from engine.memory.cuda_stream import CudaMoveStream
from engine.memory.regions import create_region, map_region
from engine.memory.transfer_cuda import CudaTransfers, MoveTuning
from engine.messages import Attach, Move, PoolSpec
from engine.model_runner.cuda_device import move_stream
from engine.model_runner.devices import Attached, Device, open_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LOCAL, PEER, HOST = 0, 1, 2
NUM_PAGES, PAGE_BYTES = 600, 64 * 1024
SEGMENT_BYTES = 16 * 2**20
LONG_SLEEP_CYCLES = 2**31  # more than a second

TUNINGS = {
    "served": MoveTuning(),
    "engines": MoveTuning(engine_run_bytes=0, relay_programs=0),
    "kernel": MoveTuning(engine_run_bytes=2**62, kernel_programs=8),
}


def spec(pool: int, kind: str, device: str, region: int | None = None) -> PoolSpec:
    return PoolSpec(
        pool=pool,
        kind=kind,
        device=device,
        num_pages=NUM_PAGES,
        page_bytes=PAGE_BYTES,
        region=region,
        segment_bytes=SEGMENT_BYTES,
    )


def a_move(move_id: int, path: tuple[int, int], src_pages: Sequence[int], dst_pages: Sequence[int]) -> Move:
    (src, dst), (sources, targets) = path, (array("i", pages) for pages in (src_pages, dst_pages))
    return Move(move_id=move_id, src_pool=src, dst_pool=dst, src_pages=sources, dst_pages=targets)


@dataclass(frozen=True)
class Rig:
    """GPU 0 with three pools, and the peer pool as its owner sees it."""

    attached: Attached
    owner: torch.Tensor

    def move(
        self, move_id: int, src: int, dst: int, src_pages: Sequence[int], dst_pages: Sequence[int]
    ) -> None:
        """Make a move and wait for it."""
        self.attached.transfers.submit(a_move(move_id, (src, dst), src_pages, dst_pages))
        done: list[int] = []
        while not done:
            done = [each.move_id for each in self.attached.transfers.completed()]
        assert done == [move_id]


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    peer_name = f"cuda:{torch.cuda.device_count() - 1}"
    peer_device: Device = open_device(peer_name, threads=None)
    owner = peer_device.attach(Attach(local=LOCAL, pools=[spec(LOCAL, "cuda", peer_name)]), [])
    assert owner.exported is not None
    descriptors = [*owner.exported, create_region("host", NUM_PAGES * PAGE_BYTES)]
    specs = [
        spec(LOCAL, "cuda", "cuda:0"),
        spec(PEER, "cuda", peer_name, region=0),
        spec(HOST, "host", "host", region=len(owner.exported)),
    ]
    attached = open_device("cuda:0", threads=None).attach(Attach(local=LOCAL, pools=specs), descriptors)
    yield Rig(attached, owner.local)
    attached.transfers.close()
    owner.transfers.close()
    for descriptor in descriptors:
        os.close(descriptor)


def random_pages(seed: int, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    pages: list[int] = torch.randperm(NUM_PAGES, generator=generator)[:count].tolist()
    return pages


def test_a_pool_is_made_in_segments_of_zeros(rig: Rig) -> None:
    assert rig.attached.unreachable == {}
    assert rig.attached.exported is not None
    assert len(rig.attached.exported) == -(-NUM_PAGES * PAGE_BYTES // SEGMENT_BYTES)
    assert rig.attached.local.shape == (NUM_PAGES, PAGE_BYTES)
    assert rig.attached.local.device == torch.device("cuda", 0)
    assert not rig.owner.any()


def test_pages_go_from_the_peer_by_the_host_and_back_unchanged(rig: Rig) -> None:
    local, owner = rig.attached.local, rig.owner
    owner.view(torch.int32).copy_(torch.arange(NUM_PAGES * PAGE_BYTES // 4).view(NUM_PAGES, -1))
    torch.cuda.synchronize(owner.device)
    expected = owner.cpu()
    first, second, third, fourth = (random_pages(seed, 256) for seed in range(4))
    rig.move(1, PEER, LOCAL, first, second)
    assert torch.equal(local[second].cpu(), expected[first])
    rig.move(2, LOCAL, HOST, second, third)
    local.zero_()
    torch.cuda.synchronize()
    rig.move(3, HOST, LOCAL, third, fourth)
    assert torch.equal(local[fourth].cpu(), expected[first])
    owner.zero_()
    torch.cuda.synchronize(owner.device)
    rig.move(4, LOCAL, PEER, fourth, first)
    assert torch.equal(owner[first].cpu(), expected[first])
    untouched = sorted(set(range(NUM_PAGES)) - set(first))
    assert not owner[untouched].any()


def test_a_pool_is_mapped_again_from_its_descriptors(rig: Rig) -> None:
    rig.attached.local[7] = 42
    torch.cuda.synchronize()
    exported = rig.attached.exported
    assert exported is not None
    attach = Attach(local=LOCAL, pools=[spec(LOCAL, "cuda", "cuda:0", region=0)])
    again = open_device("cuda:0", threads=None).attach(attach, exported)
    assert again.exported is None
    assert again.local[7].unique().tolist() == [42]
    again.transfers.close()


def memory_of(rig: Rig, pool: int) -> torch.Tensor:
    """A pool as torch may work on it: the peer's as its owner sees it."""
    if pool == PEER:
        return rig.owner
    transfers = rig.attached.transfers
    assert isinstance(transfers, CudaTransfers)
    return transfers.pools[pool].pages


def synchronize() -> None:
    for index in range(torch.cuda.device_count()):
        torch.cuda.synchronize(index)


def transfers_with(rig: Rig, tuning: MoveTuning) -> CudaTransfers:
    """Other transfers between the rig's pools."""
    served = rig.attached.transfers
    assert isinstance(served, CudaTransfers)
    compute = torch.cuda.Stream(0)
    return CudaTransfers(0, served.pools, compute, move_stream, tuning)


def wait_for(transfers: CudaTransfers, count: int) -> list[int]:
    """Ids of the next `count` moves to be complete."""
    done: list[int] = []
    while len(done) < count:
        done += [each.move_id for each in transfers.completed()]
    return done


def streams_of(transfers: CudaTransfers) -> list[torch.cuda.Stream]:
    """Those on which moves were or will be launched."""
    streams = []
    for each in transfers._all_lanes():
        for launcher in {id(each.copies): each.copies, id(each.kernels): each.kernels}.values():
            assert isinstance(launcher, CudaMoveStream)
            streams.append(launcher.stream)
    return streams


@pytest.mark.parametrize("tuning", TUNINGS.values(), ids=TUNINGS)
def test_moves_of_all_paths_at_once_keep_their_bytes(rig: Rig, tuning: MoveTuning) -> None:
    transfers = transfers_with(rig, tuning)
    pools = {pool: memory_of(rig, pool) for pool in (LOCAL, PEER, HOST)}
    for pages in pools.values():
        pages.copy_(torch.randint(0, 256, pages.shape, dtype=torch.uint8))
    synchronize()
    before = {pool: pages.cpu() for pool, pages in pools.items()}
    paths = [
        (PEER, LOCAL),
        (LOCAL, PEER),
        (HOST, LOCAL),
        (LOCAL, HOST),
        (PEER, HOST),
        (PEER, PEER),
        (LOCAL, LOCAL),
    ]
    free = {pool: random_pages(pool, NUM_PAGES) for pool in pools}
    moves = []
    for move_id, (src, dst) in enumerate(paths):
        src_pages, dst_pages = ([free[pool].pop() for _ in range(80)] for pool in (src, dst))
        src_pages[:33], dst_pages[:33] = sorted(src_pages[:33]), sorted(dst_pages[:33])
        moves.append(a_move(move_id, (src, dst), src_pages, dst_pages))
        transfers.submit(moves[-1])
    assert sorted(wait_for(transfers, len(moves))) == list(range(len(moves)))
    for each in moves:
        found = pools[each.dst_pool][each.dst_pages].cpu()
        assert torch.equal(found, before[each.src_pool][each.src_pages]), paths[each.move_id]
    transfers.close()


@pytest.mark.parametrize("path", [(PEER, LOCAL), (LOCAL, PEER), (HOST, LOCAL), (LOCAL, HOST)], ids=str)
@pytest.mark.parametrize("tuning", TUNINGS.values(), ids=TUNINGS)
def test_a_delayed_move_is_not_reported_before_its_bytes_are_there(
    rig: Rig, tuning: MoveTuning, path: tuple[int, int]
) -> None:
    transfers = transfers_with(rig, tuning)
    src, dst = (memory_of(rig, pool) for pool in path)
    src[7], dst[9] = 2, 1
    synchronize()
    transfers.submit(a_move(1, path, [7], [9]))
    streams = streams_of(transfers)
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(LONG_SLEEP_CYCLES)
    assert transfers.completed() == []
    assert transfers.completed() == []
    assert dst[9].cpu().unique().tolist() == [1]
    assert not any(stream.query() for stream in streams), "the delay was too short to show anything"
    assert transfers.num_open == 1
    assert wait_for(transfers, 1) == [1]
    assert dst[9].cpu().unique().tolist() == [2]
    assert transfers.num_open == 0
    transfers.close()


def test_a_mirror_does_not_wait_for_steps_in_flight(rig: Rig) -> None:
    transfers = rig.attached.transfers
    assert isinstance(transfers, CudaTransfers)
    rig.attached.local[3] = 17
    torch.cuda.synchronize()
    with torch.cuda.stream(transfers._compute):
        torch.cuda._sleep(LONG_SLEEP_CYCLES)
    rig.move(5, LOCAL, HOST, [3], [3])
    rig.move(6, LOCAL, PEER, [3], [3])
    assert not transfers._compute.query()
    transfers._compute.synchronize()
    rig.move(7, HOST, LOCAL, [3], [4])
    rig.move(8, PEER, LOCAL, [3], [5])
    assert rig.attached.local[[4, 5]].unique().tolist() == [17]


def test_large_copies_of_both_ways_at_once_keep_their_bytes(rig: Rig) -> None:
    transfers = transfers_with(rig, TUNINGS["engines"])
    pools = {pool: memory_of(rig, pool) for pool in (LOCAL, PEER)}
    for pages in pools.values():
        pages.copy_(torch.randint(0, 256, pages.shape, dtype=torch.uint8))
    synchronize()
    before = {pool: pages.cpu() for pool, pages in pools.items()}
    half, num_moves, each = NUM_PAGES // 2, 40, 15
    lower = [page for page in random_pages(5, NUM_PAGES) if page < half]
    for number in range(num_moves):
        path = ((PEER, LOCAL), (LOCAL, PEER))[number % 2]
        first = number // 2 * each
        pages = [page + number % 2 * half for page in lower[first : first + each]]
        transfers.submit(a_move(number, path, pages, pages))
    assert sorted(wait_for(transfers, num_moves)) == list(range(num_moves))
    assert torch.equal(pools[LOCAL][:half].cpu(), before[PEER][:half])
    assert torch.equal(pools[PEER][half:].cpu(), before[LOCAL][half:])
    assert {stream.device_index for stream in streams_of(transfers)} == {0, rig.owner.device.index}
    transfers.close()


def test_host_memory_is_unpinned_before_it_is_unmapped() -> None:
    descriptor = create_region("host", 2**24)
    pages = torch.frombuffer(map_region(descriptor), dtype=torch.uint8).view(-1, 4096)
    os.close(descriptor)
    address = pages.data_ptr()
    view = pages[1:]
    pin(pages)
    assert memory_type(address) == runtime.cudaMemoryType.cudaMemoryTypeHost
    del pages
    gc.collect()
    assert memory_type(address) == runtime.cudaMemoryType.cudaMemoryTypeUnregistered
    view.fill_(3)  # what somebody still refers to is mapped


def memory_type(address: int) -> runtime.cudaMemoryType:
    return unwrap("cudaPointerGetAttributes", runtime.cudaPointerGetAttributes(address)).type


def test_the_driver_says_what_is_wrong_with_a_batch() -> None:
    words = np.array([4096], dtype=np.uint64)
    with pytest.raises(CudaError, match="CUDA_ERROR_INVALID"):
        driver_batch_copy()(words, words, words, 0)  # the legacy default stream
