"""Memory of a pool on a GPU that is given back and made again, in place."""

import os

import pytest
import torch

from engine.messages import Attach, PoolSpec
from engine.model_runner.devices import open_device

LOCAL = 1
SEGMENT_BYTES, PAGE_BYTES = 32 * 2**20, 2**20
NUM_PAGES = 8 * SEGMENT_BYTES // PAGE_BYTES
PAGES_PER_SEGMENT = SEGMENT_BYTES // PAGE_BYTES


def spec(region: int | None = None, missing: list[int] | None = None) -> PoolSpec:
    return PoolSpec(
        pool=LOCAL,
        kind="cuda",
        device="cuda:0",
        num_pages=NUM_PAGES,
        page_bytes=PAGE_BYTES,
        region=region,
        segment_bytes=SEGMENT_BYTES,
        missing=missing or [],
    )


def free_bytes() -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(0)[0]


def test_segments_are_free_for_others_and_come_back_where_they_were() -> None:
    device = open_device("cuda:0", threads=None)
    attached = device.attach(Attach(local=LOCAL, pools=[spec()]), [])
    descriptors = attached.exported
    assert descriptors is not None
    assert len(descriptors) == 8
    attached.local.fill_(7)
    before, gone = free_bytes(), [5, 7]
    device.unmap(LOCAL, gone)
    for number in gone:
        os.close(descriptors[number])
    assert free_bytes() - before == len(gone) * SEGMENT_BYTES
    stays = [page for page in range(NUM_PAGES) if page // PAGES_PER_SEGMENT not in gone]
    assert attached.local[stays[0]].unique().tolist() == [7]
    assert attached.local[stays[-1]].unique().tolist() == [7]

    left = [d for number, d in enumerate(descriptors) if number not in gone]
    successor = open_device("cuda:0", threads=None)
    again = successor.attach(Attach(local=LOCAL, pools=[spec(0, gone)]), left)
    assert again.local[stays[-1]].unique().tolist() == [7]

    made = device.make_segments(LOCAL, gone)
    successor.remap(LOCAL, gone, made)
    page = 7 * PAGES_PER_SEGMENT + 3
    assert attached.local[page].unique().tolist() == [0]
    again.local[page] = 9
    torch.cuda.synchronize()
    assert attached.local[page].unique().tolist() == [9]
    for descriptor in (*left, *made):
        os.close(descriptor)
    for each in (attached, again):
        each.transfers.close()


def test_more_than_there_is_changes_nothing() -> None:
    device = open_device("cuda:0", threads=None)
    attached = device.attach(Attach(local=LOCAL, pools=[spec()]), [])
    assert attached.exported is not None
    device.unmap(LOCAL, [6, 7])
    for number in (6, 7):
        os.close(attached.exported[number])
    hog = [torch.empty(free_bytes() - 2**25, dtype=torch.uint8, device="cuda:0")]
    with pytest.raises(Exception) as raised:
        device.make_segments(LOCAL, [6, 7])
    assert device.is_out_of_memory(raised.value)
    hog.clear()
    for descriptor in (*attached.exported[:6], *device.make_segments(LOCAL, [6, 7])):
        os.close(descriptor)
    attached.transfers.close()
