"""Who issues a move, and which moves wait for one another."""

import pytest
import torch

from engine.memory.transfer_paths import CudaPool, Path, path_of, sender_of

EVERY = frozenset({0, 1, 2})


def a_pool(device: int | None, *, is_local: bool = False, reached_by: frozenset[int] = EVERY) -> CudaPool:
    pages = torch.zeros(2, 16, dtype=torch.uint8)
    return CudaPool(pages, device, is_local=is_local, reached_by=reached_by)


LOCAL, PEER, OTHER, HOST = a_pool(0, is_local=True), a_pool(1), a_pool(2), a_pool(None)


@pytest.mark.parametrize(
    ("src", "dst", "path", "sender"),
    [
        (PEER, LOCAL, Path.PEER_IN, 1),
        (OTHER, LOCAL, Path.PEER_IN, 2),
        (LOCAL, PEER, Path.PEER_OUT, 0),
        (LOCAL, LOCAL, Path.PEER_OUT, 0),
        (PEER, OTHER, Path.RELAY, 1),
        (OTHER, PEER, Path.RELAY, 2),
        (PEER, PEER, Path.RELAY, 1),
        (HOST, LOCAL, Path.HOST_IN, 0),
        (HOST, PEER, Path.HOST_IN, 0),
        (LOCAL, HOST, Path.HOST_OUT, 0),
        (PEER, HOST, Path.HOST_OUT, 0),
    ],
)
def test_between_gpus_the_one_with_the_source_sends(
    src: CudaPool, dst: CudaPool, path: Path, sender: int
) -> None:
    assert path_of(src, dst) is path
    assert sender_of(src, dst, 0) == sender


def test_a_gpu_that_does_not_reach_both_pools_does_not_send() -> None:
    near = a_pool(1, reached_by=frozenset({0, 1}))
    assert sender_of(near, LOCAL, 0) == 1
    assert sender_of(OTHER, near, 0) == 0
    assert sender_of(near, a_pool(0, is_local=True, reached_by=frozenset({0})), 0) == 0
    assert sender_of(a_pool(1, reached_by=frozenset()), LOCAL, 0) == 0
