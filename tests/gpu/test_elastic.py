"""Elastic tensors between a GPU's pool, another GPU's and pinned host memory."""

import os

import torch

from engine.memory.elastic import ElasticTensors, LocalPool
from engine.memory.pool import PagePool
from engine.memory.regions import create_region
from engine.messages import Attach, PoolSpec
from engine.model_runner.devices import open_device

LOCAL, PEER, HOST = 1, 2, 3
PAGE_BYTES = 64 * 1024
NUM_PAGES = {LOCAL: 512, PEER: 512, HOST: 2048}


def spec(pool: int, kind: str, device: str, region: int | None) -> PoolSpec:
    return PoolSpec(
        pool=pool, kind=kind, device=device, num_pages=NUM_PAGES[pool], page_bytes=PAGE_BYTES, region=region
    )


def test_tensors_go_out_and_come_back_the_same() -> None:
    peer_name = f"cuda:{torch.cuda.device_count() - 1}"
    owner = open_device(peer_name, threads=None).attach(
        Attach(local=PEER, pools=[spec(PEER, "cuda", peer_name, None)]), []
    )
    assert owner.exported is not None
    descriptors = [*owner.exported, create_region("host", NUM_PAGES[HOST] * PAGE_BYTES)]
    specs = [
        spec(LOCAL, "cuda", "cuda:0", None),
        spec(PEER, "cuda", peer_name, 0),
        spec(HOST, "host", "host", len(owner.exported)),
    ]
    attached = open_device("cuda:0", threads=None).attach(Attach(local=LOCAL, pools=specs), descriptors)
    pools = {pool: PagePool(pool, count, PAGE_BYTES) for pool, count in NUM_PAGES.items()}
    local = LocalPool(pools[LOCAL], attached.local)
    tensors = ElasticTensors(local, [pools[PEER], pools[HOST]], attached.transfers)
    kept = {f"t{n}": torch.randn(1024, 2048 + n, device="cuda:0") for n in range(8)}  # 8 MiB each, 32 fit
    for name, value in kept.items():
        tensors.put(name, value)
    for name, value in kept.items():
        tensors.prefetch(name)
        assert torch.equal(tensors.get(name), value)
    tensors.check_integrity()
    attached.transfers.close()
    owner.transfers.close()
    for descriptor in (*descriptors, *(attached.exported or ())):
        os.close(descriptor)
