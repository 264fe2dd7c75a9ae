"""The engine with runners on two GPUs, one of which is killed: its successor goes on with its contexts."""

import os
from pathlib import Path

import pytest
import torch

from tests.engine.engine_process import children, engine, kill

PROMPTS = {f"p{number}": [(7 * number + i) % 256 for i in range(3 + 5 * number)] for number in range(10)}
NUM_TOKENS = 150
NUM_FED = sum(len(ids) + NUM_TOKENS - 1 for ids in PROMPTS.values())  # positions, each computed once
DEVICES = (("cuda:0", "512MiB"), ("cuda:1", "512MiB"))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_contexts_are_served_on_without_a_prefill(tmp_path: Path) -> None:
    more = "[prefix_cache]\nenabled = false\n"  # both rounds compute everything
    with engine(tmp_path, devices=DEVICES, more=more) as client:
        client.wait_for(lambda: client.metric("fairslice:device_up") == 2)
        for prompt_id, ids in PROMPTS.items():
            client.submit(prompt_id, ids, NUM_TOKENS)
        client.wait()
        undisturbed = {prompt_id: client.tokens[prompt_id] for prompt_id in PROMPTS}
        for prompt_id, ids in PROMPTS.items():
            client.submit(f"{prompt_id} again", ids, NUM_TOKENS)
        client.wait_for(lambda: sum(len(client.tokens[f"{p} again"]) for p in PROMPTS) >= 150)
        runners = children(os.getpid(), "engine.model_runner")
        assert len(runners) == 2
        kill(runners[0])
        client.wait()
        assert {p: client.tokens[f"{p} again"] for p in PROMPTS} == undisturbed
        client.wait_for(lambda: client.metric("fairslice:runners_lost") == 1)
        assert client.metric("fairslice:recomputed_tokens") == 0
        assert client.metric("fairslice:computed_tokens") == 2 * NUM_FED
        assert client.metric("fairslice:dropped_contexts") == 0
