"""GPUs that send for another one's runner: what becomes of bytes, and of runners that must do without."""

import logging
import os
from array import array
from collections.abc import Callable, Iterator, Sequence

import pytest

pytest.importorskip("triton")
pytest.importorskip("cuda.bindings")

import torch

from engine.memory import cuda_senders
from engine.memory.transfer_cuda import CudaTransfers
from engine.messages import Attach, Move, PoolSpec
from engine.model_runner.devices import Attached, open_device

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

LOCAL, PEER, OTHER = 0, 1, 2
NUM_PAGES, PAGE_BYTES, SEGMENT_BYTES = 64, 2**20, 2**24
LAST = max(1, torch.cuda.device_count() - 1)

Lend = Callable[[int], tuple[Attached, list[int]]]


def spec(pool: int, index: int, region: int | None = None, missing: Sequence[int] = ()) -> PoolSpec:
    return PoolSpec(
        pool=pool,
        kind="cuda",
        device=f"cuda:{index}",
        num_pages=NUM_PAGES,
        page_bytes=PAGE_BYTES,
        region=region,
        segment_bytes=SEGMENT_BYTES,
        missing=list(missing),
    )


@pytest.fixture
def lend() -> Iterator[Lend]:
    """Makes a pool on a GPU, as its owner sees it, and its descriptors."""
    made: list[tuple[Attached, list[int]]] = []

    def make(index: int) -> tuple[Attached, list[int]]:
        device = open_device(f"cuda:{index}", threads=None)
        owner = device.attach(Attach(local=LOCAL, pools=[spec(LOCAL, index)]), [])
        assert owner.exported is not None
        pages = owner.local.view(torch.int32)
        pages.copy_(torch.randint(0, 2**31 - 1, pages.shape, dtype=torch.int32))
        torch.cuda.synchronize(index)
        made.append((owner, owner.exported))
        return made[-1]

    yield make
    for owner, descriptors in made:
        owner.transfers.close()
        for descriptor in descriptors:
            os.close(descriptor)


def transfers_of(attached: Attached) -> CudaTransfers:
    assert attached.unreachable == {}
    assert isinstance(attached.transfers, CudaTransfers)
    return attached.transfers


def move(attached: Attached, src: int, dst: int) -> set[int]:
    """Move every page to the same place of another pool; the GPUs that issued something."""
    transfers = transfers_of(attached)
    pages = array("i", [*range(0, NUM_PAGES, 2), *range(1, NUM_PAGES, 2)])
    transfers.submit(Move(move_id=1, src_pool=src, dst_pool=dst, src_pages=pages, dst_pages=pages))
    while transfers.num_open:
        transfers.completed()
    return {sender for lanes in transfers._lanes.values() for sender in lanes}


def attach(*lenders: tuple[int, int, list[int]]) -> Attached:
    """A runner of GPU 0 that borrows `(pool, GPU, descriptors)`."""
    specs, descriptors = [spec(LOCAL, 0)], []
    for pool, index, own in lenders:
        specs.append(spec(pool, index, len(descriptors)))
        descriptors += own
    attached = open_device("cuda:0", threads=None).attach(Attach(local=LOCAL, pools=specs), descriptors)
    for descriptor in attached.exported or ():
        os.close(descriptor)
    return attached


def test_the_lender_sends_what_is_fetched(lend: Lend) -> None:
    owner, descriptors = lend(LAST)
    attached = attach((PEER, LAST, descriptors))
    assert transfers_of(attached).pools[LOCAL].reached_by == {0, LAST}
    assert transfers_of(attached).pools[PEER].device == LAST
    assert move(attached, PEER, LOCAL) == {LAST}
    assert torch.equal(attached.local.cpu(), owner.local.cpu())
    attached.transfers.close()


def test_a_lender_that_comes_later_sends_too_and_memory_that_comes_later_is_sent(lend: Lend) -> None:
    owner, descriptors = lend(LAST)
    device = open_device("cuda:0", threads=None)
    attached = device.attach(Attach(local=LOCAL, pools=[spec(LOCAL, 0)]), [])
    assert attached.exported is not None
    device.unmap(LOCAL, [1])
    there = [each for number, each in enumerate(descriptors) if number != 2]
    late = Attach(local=LOCAL, pools=[spec(PEER, LAST, 0, missing=[2])])
    assert device.attach_more(attached, late, there) == {}
    os.close(attached.exported[1])
    remade = device.make_segments(LOCAL, [1])
    device.remap(PEER, [2], [descriptors[2]])
    assert move(attached, PEER, LOCAL) == {LAST}
    assert torch.equal(attached.local.cpu(), owner.local.cpu())
    attached.transfers.close()
    for descriptor in (attached.exported[0], *attached.exported[2:], *remade):
        os.close(descriptor)


def test_a_lender_passes_pages_on_to_another(lend: Lend) -> None:
    """Of two GPUs the other lender's pool is a second one on GPU 0, which is not the runner's own."""
    owner, descriptors = lend(LAST)
    other, other_descriptors = lend(LAST - 1)
    attached = attach((PEER, LAST, descriptors), (OTHER, LAST - 1, other_descriptors))
    expected = owner.local.cpu()
    assert move(attached, PEER, OTHER) == {LAST}
    assert torch.equal(other.local.cpu(), expected)
    owner.local.zero_()
    torch.cuda.synchronize(LAST)
    assert move(attached, OTHER, PEER) == {LAST, LAST - 1}
    assert torch.equal(owner.local.cpu(), expected)
    attached.transfers.close()


@pytest.mark.parametrize("reason", ["no peer access", "MiB of its memory free"])
def test_where_a_lender_cannot_send_its_memory_is_read_from_here(
    lend: Lend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    owner, descriptors = lend(LAST)
    if reason == "no peer access":
        monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda device, peer: device == 0)
    else:
        monkeypatch.setattr(cuda_senders, "LEAVE_BYTES", 2**50)
    with caplog.at_level(logging.WARNING):
        attached = attach((PEER, LAST, descriptors))
    warnings = [each.getMessage() for each in caplog.records if each.name == cuda_senders.__name__]
    assert [reason in warning for warning in warnings] == [True]
    assert move(attached, PEER, LOCAL) == {0}
    assert torch.equal(attached.local.cpu(), owner.local.cpu())
    attached.transfers.close()
