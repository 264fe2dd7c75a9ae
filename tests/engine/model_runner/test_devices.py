import os
from pathlib import Path

import pytest
import torch

from engine.memory.page import make_layout
from engine.memory.regions import create_region
from engine.messages import Attach, Load, PoolSpec
from engine.model_runner.devices import DeviceError, map_host_pools, open_device, page_view
from engine.model_runner.families import UnsupportedModel
from engine.model_runner.families import layout as layout_of
from engine.model_runner.loading import load_model
from engine.model_runner.scratch import Scratch
from engine.model_runner.sources.progress import ignore_progress
from tests.engine.model_runner.tiny import PAGE_TOKENS, tiny_config


def spec(pool: int, num_pages: int, *, kind: str = "cpu", region: int | None = 0) -> PoolSpec:
    return PoolSpec(pool=pool, kind=kind, device="cpu", num_pages=num_pages, page_bytes=64, region=region)


def test_pools_may_share_a_region() -> None:
    region = create_region("pool", 10 * 64)
    pools = map_host_pools([spec(0, 6), spec(2, 10)], [region])
    os.close(region)
    pools[0][5] = 5
    assert pools[2].shape == (10, 64)
    assert pools[2][:, 0].tolist() == [0, 0, 0, 0, 0, 5, 0, 0, 0, 0]


def test_a_pool_of_no_pages_needs_no_memory() -> None:
    assert map_host_pools([spec(0, 0, region=None)], [])[0].shape == (0, 64)


@pytest.mark.parametrize("bad", [spec(3, 1, region=None), spec(3, 11)])
def test_a_pool_larger_than_its_memory_is_refused(bad: PoolSpec) -> None:
    region = create_region("pool", 10 * 64)
    with pytest.raises(DeviceError, match=r"pool 3 of .* bytes came without memory"):
        map_host_pools([bad], [region])
    os.close(region)


def test_bytes_are_viewed_as_pages_of_the_models_dtype() -> None:
    layout = make_layout([None, None], page_tokens=4, kv_heads=2, head_dim=8, element_bytes=2)
    pages = torch.zeros(5, layout.page_bytes, dtype=torch.uint8)
    view = page_view(pages, layout, torch.bfloat16)
    assert view.shape == (5, 2, 2, 4, 2, 8)
    view[3, 1, 1, 3, 1, 7] = 1.0
    assert pages[3].view(torch.bfloat16)[-1] == 1.0


def test_a_cpu_names_the_pools_that_it_cannot_reach() -> None:
    region = create_region("pool", 10 * 64)
    attach = Attach(local=0, pools=[spec(0, 10), spec(1, 10, kind="cuda")])
    attached = open_device("cpu:1", threads=1).attach(attach, [region])
    attached.transfers.close()
    os.close(region)
    assert attached.local.shape == (10, 64)
    assert attached.unreachable == {1: "a cpu device"}
    assert attached.exported is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(DeviceError, match=r"^cuda:1: torch finds no NVIDIA GPU here$"):
        open_device("cuda:1", threads=1)


def test_a_deterministic_mixture_of_experts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(tiny_config("mixtral", vocab_size=320).to_json_string())
    source = f"dummy:{tmp_path}"
    load = Load(
        model="tiny",
        source=source,
        device="cpu",
        dtype=None,
        page_tokens=PAGE_TOKENS,
        max_model_len=64,
        max_batch=4,
        max_step_tokens=32,
        deterministic=True,
    )
    device = open_device("cpu", threads=1)
    loaded = load_model(source, device="cpu", max_model_len=64)
    layout = layout_of(loaded.config, PAGE_TOKENS, torch.float32)
    pool = Scratch(layout, 1, 16).pool(torch.float32, device.place)
    with pytest.raises(UnsupportedModel, match="mixtral cannot be deterministic"):
        device.make_executor(loaded, layout, pool, load, None, ignore_progress)
