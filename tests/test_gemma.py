"""The embedded model, for real: the engine's answers under preemption are those of transformers alone."""

import os
import subprocess
import sys

import pytest
import torch

from engine.model_runner.loading import load_model
from tests.engine.engine_process import Client

PROMPTS = {
    "france": "The capital of France is",
    "story": "Once upon a time, there was a",
    "count": "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve,",
    "code": "def fibonacci(n):\n    ",
}
NUM_TOKENS = 24
CONFIG = """
[[models]]
name = "tiny"
max_model_len = 64
dtype = "float32"
[[devices]]
name = "cpu"
memory = "5MiB"
[scheduler]
slice_ms = 200
min_slice_ms = 5
[memory]
host = "64MiB"
[engine]
socket = "{socket}"
"""


@pytest.fixture(scope="module")
def reference() -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Input ids, and what `generate` answers in float32."""
    from transformers import AutoTokenizer

    loaded = load_model(
        None,
        device="cpu",
        dtype="float32",
        max_model_len=None,
        cache_dir=None,
        served_name="gemma",
        seed=0,
        on_progress=lambda _stage, _fraction: None,
    )
    tokenizer = AutoTokenizer.from_pretrained(loaded.card.tokenizer)
    inputs = {name: tokenizer(text)["input_ids"] for name, text in PROMPTS.items()}
    answers = {}
    for name, ids in inputs.items():
        with torch.inference_mode():
            out = loaded.model.generate(
                torch.tensor([ids]), max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, do_sample=False
            )
        answers[name] = out[0, len(ids) :].tolist()
    return inputs, answers


def test_preempted_prompts_answer_as_generate_does(tmp_path, reference):
    inputs, answers = reference
    config = tmp_path / "fairslice.toml"
    config.write_text(CONFIG.format(socket=tmp_path / "engine.sock"))
    process = subprocess.Popen([sys.executable, "-m", "engine", "--config", str(config)], env=os.environ)
    client = None
    try:
        client = Client(str(tmp_path / "engine.sock"))
        for name, ids in inputs.items():
            client.submit(name, ids, NUM_TOKENS)
        client.wait()
        assert client.tokens == answers
        assert client.metric("fairslice:preemptions") > 0
        assert client.metric("fairslice:recomputed_tokens") == 0
    finally:
        if client is not None:
            client.close()
        process.terminate()
        process.wait(60)
