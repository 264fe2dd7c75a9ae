import pytest

pytest.importorskip("triton")

import torch

from engine.model_runner.kernels.to_host import to_host


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1,), (257,), (64, 20), (0,)], ids=str)
def test_is_the_tensor_once_the_stream_has_passed(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.randint(-100, 100, shape, device="cuda").to(dtype)
    host = to_host(tensor)
    torch.cuda.current_stream().synchronize()
    assert host.is_pinned() or not host.numel()
    assert torch.equal(host, tensor.cpu())


def test_takes_every_other_column() -> None:
    tensor = torch.arange(40, device="cuda").view(4, 10)[:, ::2]
    host = to_host(tensor)
    torch.cuda.current_stream().synchronize()
    assert torch.equal(host, tensor.cpu())
