"""Pools and moves on real GPUs. With two GPUs, the peer pool lies on the second."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch

from engine.memory.regions import create_region
from engine.messages import Attach, Move, PoolSpec
from engine.model_runner.devices import Attached, Device, open_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LOCAL, PEER, HOST = 0, 1, 2
NUM_PAGES, PAGE_BYTES = 600, 64 * 1024
SEGMENT_BYTES = 16 * 2**20


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


@dataclass(frozen=True)
class Rig:
    """GPU 0 with three pools, and the peer pool as its owner sees it."""

    attached: Attached
    owner: torch.Tensor

    def move(
        self, move_id: int, src: int, dst: int, src_pages: Sequence[int], dst_pages: Sequence[int]
    ) -> None:
        """Make a move and wait for it."""
        move = Move(
            move_id=move_id, src_pool=src, dst_pool=dst, src_pages=list(src_pages), dst_pages=list(dst_pages)
        )
        self.attached.transfers.submit(move)
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


def test_a_copy_out_waits_for_the_steps_before_it(rig: Rig) -> None:
    torch.cuda.set_device(0)
    compute = rig.attached.transfers._compute  # type: ignore[attr-defined]
    with torch.cuda.stream(compute):
        torch.cuda._sleep(50_000_000)
        rig.attached.local[3] = 17
    rig.move(5, LOCAL, HOST, [3], [3])
    rig.attached.local[3] = 0
    torch.cuda.synchronize()
    rig.move(6, HOST, LOCAL, [3], [4])
    assert rig.attached.local[4].unique().tolist() == [17]
