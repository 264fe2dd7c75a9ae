"""Elastic tensors over shared-memory pools: bytes come back right, through slow links and full tiers."""

import random

import numpy as np
import pytest
import torch

from engine.memory.elastic import ElasticFull, ElasticTensors, LocalPool
from engine.memory.pool import PagePool
from engine.memory.transfer_cpu import CpuTransfers
from engine.messages import LinkSpec

LOCAL, PEER, HOST, PAGE = 1, 2, 3, 64


@pytest.fixture
def tensors():
    sizes = {LOCAL: 16, PEER: 10, HOST: 40}
    bytes_of = {pool: np.zeros((count, PAGE), np.uint8) for pool, count in sizes.items()}
    slow = [LinkSpec(src=PEER, dst=LOCAL, delay_s=0.005), LinkSpec(src=LOCAL, dst=PEER, delay_s=0.005)]
    transfers = CpuTransfers(bytes_of, slow)
    pools = {pool: PagePool(pool, count, PAGE) for pool, count in sizes.items()}
    local = LocalPool(pools[LOCAL], torch.from_numpy(bytes_of[LOCAL]))
    yield ElasticTensors(local, [pools[PEER], pools[HOST]], transfers)
    transfers.close()


def test_what_was_put_comes_back_in_its_shape_and_type(tensors):
    weights = torch.randn(7, 9, dtype=torch.bfloat16)
    tensors.put("weights", weights)
    assert torch.equal(tensors.get("weights"), weights)
    tensors.put("weights", weights * 2)
    out = torch.empty_like(weights)
    assert tensors.get("weights", out=out) is out
    assert torch.equal(out, weights * 2)
    tensors.check_integrity()


def test_tensors_leave_the_device_and_are_prefetched(tensors):
    values = {f"t{number}": torch.arange(number, number + 60) for number in range(5)}
    for name, value in values.items():
        tensors.put(name, value)  # 8 pages each, 16 on the device
    for name, value in values.items():
        tensors.prefetch(name)
        assert torch.equal(tensors.get(name), value)
    tensors.check_integrity()


def test_what_finds_no_room_is_refused_and_changes_nothing(tensors):
    tensors.put("large", torch.zeros(16 * PAGE, dtype=torch.uint8))
    with pytest.raises(ElasticFull, match="pool has room for 16"):
        tensors.put("larger", torch.zeros(17 * PAGE, dtype=torch.uint8))
    for number in range(2):
        tensors.put(f"more {number}", torch.zeros(16 * PAGE, dtype=torch.uint8))
    with pytest.raises(ElasticFull, match="no room"):
        tensors.put("one too many", torch.zeros(3 * PAGE, dtype=torch.uint8))
    assert "one too many" not in tensors
    tensors.drop("large")
    tensors.put("one too many", torch.ones(3 * PAGE, dtype=torch.uint8))
    tensors.check_integrity()


def test_random_use(tensors):
    source = random.Random(3)
    kept: dict[str, torch.Tensor] = {}
    for number in range(300):
        name = f"t{source.randrange(6)}"
        choice = source.random()
        if choice < 0.4:
            value = torch.full((source.randint(1, 7 * PAGE),), number % 251, dtype=torch.uint8)
            try:
                tensors.put(name, value)
                kept[name] = value
            except ElasticFull:
                pass
        elif name in kept and choice < 0.6:
            tensors.prefetch(name)
        elif name in kept and choice < 0.9:
            assert torch.equal(tensors.get(name), kept[name])
        elif name in kept:
            tensors.drop(name)
            del kept[name]
        tensors.check_integrity()
