"""The engine with runners on two GPUs, one of which faults: its pool is not trusted, nothing else is lost."""

from pathlib import Path

import pytest
import torch

from tests.engine.engine_process import engine
from tests.engine.test_engine_fault import make_fail

PROMPTS = {f"p{number}": [(7 * number + i) % 256 for i in range(3 + 5 * number)] for number in range(10)}
NUM_TOKENS = 150
DEVICES = (("cuda:0", "512MiB"), ("cuda:1", "512MiB"))

# Read by every Python process that finds it on its path: a runner for whose process id a file is there makes
# its GPU fault, by an index that is checked on the device.
FAULT = """
import os, sys
from pathlib import Path

flag = Path(__file__).parent / str(os.getpid())

def fault(device):
    import torch
    torch.zeros(1, device=device)[torch.full((1,), 2**20, device=device)]
    torch.cuda.synchronize(device)

if "engine.model_runner" in sys.orig_argv:
    from engine.model_runner.runner import Runner
    step = Runner.step
    Runner.step = lambda runner: fault("cuda") if flag.exists() else step(runner)
"""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_contexts_on_a_gpu_that_faulted_are_recomputed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAULT)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    with engine(tmp_path, devices=DEVICES, more="[prefix_cache]\nenabled = false\n") as client:
        client.wait_for(lambda: client.metric("fairslice:device_up") == 2)
        for prompt_id, ids in PROMPTS.items():
            client.submit(prompt_id, ids, NUM_TOKENS)
        client.wait()
        alone = {prompt_id: client.tokens[prompt_id] for prompt_id in PROMPTS}
        for prompt_id, ids in PROMPTS.items():
            client.submit(f"{prompt_id} again", ids, NUM_TOKENS)
        client.wait_for(lambda: sum(len(client.tokens[f"{p} again"]) for p in PROMPTS) >= 150)
        make_fail(client, "cuda:0", 1, tmp_path)
        client.wait()
        assert {p: client.tokens[f"{p} again"] for p in PROMPTS} == alone
        assert client.metric("fairslice:recomputed_tokens") > 0
        client.wait_for(lambda: client.metric("fairslice:device_up") == 2)
