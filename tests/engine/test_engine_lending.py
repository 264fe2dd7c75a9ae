"""The engine as a process, with devices that lend their memory: the same tokens, whatever goes wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.messages import Resize, Resizing
from engine.questions import Questions
from tests.engine.engine_process import Client, children, engine, kill

PROMPTS = {f"p{number}": [(7 * number + i) % 256 for i in range(3 + 5 * number)] for number in range(10)}
NUM_TOKENS = 60
SERVES, LENDS = (("cpu:0", "192KiB"),), (("cpu:1", "512KiB"), ("cpu:2", "512KiB"))
SLOW = """
[[memory.links]]
between = ["cpu:0", "cpu:1"]
delay_ms = 15
[[memory.links]]
between = ["cpu:0", "cpu:2"]
delay_ms = 40
"""
RANKED = """
[[memory.links]]
between = ["cpu:0", "cpu:1"]
bytes_per_s = "2GiB"
[[memory.links]]
between = ["cpu:0", "cpu:2"]
bytes_per_s = "1GiB"
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """What every prompt gets when nothing else runs."""
    with engine(tmp_path_factory.mktemp("alone"), devices=(("cpu", "32MiB"),)) as client:
        for prompt_id, ids in PROMPTS.items():
            client.submit(prompt_id, ids, NUM_TOKENS)
            client.wait()
        return client.tokens


def submit_all(client: Client) -> None:
    for prompt_id, ids in PROMPTS.items():
        client.submit(prompt_id, ids, NUM_TOKENS)


def moved(client: Client, src: str, dst: str) -> float:
    """Bytes that were moved from one device to another."""
    labels = {"src": src, "dst": dst}
    samples = [s for s in client.get_stats().samples if s.name == "fairslice:moved_bytes"]
    return sum(s.value for s in samples if labels.items() <= s.labels.items())


def wait_moved(client: Client, src: str, dst: str, num_bytes: int) -> None:
    client.wait_for(lambda: moved(client, src, dst) >= num_bytes)


def test_contexts_live_with_lenders_and_come_back_exact(tmp_path: Path, alone: dict[str, list[int]]) -> None:
    """Moves are late on purpose: a page that were read too early would be full of other tokens."""
    with engine(tmp_path, devices=SERVES, lenders=LENDS, more=SLOW) as client:
        submit_all(client)
        client.wait()
        assert client.tokens == alone
        assert sum(moved(client, "cpu:0", lender) for lender in ("cpu:1", "cpu:2")) > 0
        assert sum(moved(client, lender, "cpu:0") for lender in ("cpu:1", "cpu:2")) > 0
        assert moved(client, "cpu:0", "host") == 0
        assert client.metric("fairslice:recomputed_tokens") == 0
        assert client.metric("fairslice:leased_segments") > 0


def test_from_local_to_a_peer_to_another_peer_to_the_host_and_back(
    tmp_path: Path, alone: dict[str, list[int]]
) -> None:
    """The nearer lender needs its memory, then the other: each has one segment left."""
    with engine(tmp_path, devices=SERVES, lenders=LENDS, more=RANKED) as client:
        for copy in range(2):
            for prompt_id, ids in PROMPTS.items():
                client.submit(f"{prompt_id} {copy}", ids, NUM_TOKENS)
        wait_moved(client, "cpu:0", "cpu:1", 200 * 2**10)
        for lender, next_tier in (("cpu:1", "cpu:2"), ("cpu:2", "host")):
            assert moved(client, lender, next_tier) == 0
            give_back(client, lender)
            wait_moved(client, lender, next_tier, 100 * 2**10)
        client.wait()
        assert all(tokens == alone[prompt_id.split()[0]] for prompt_id, tokens in client.tokens.items())
        assert moved(client, "host", "cpu:0") > 0
        assert client.metric("fairslice:recomputed_tokens") == 0
        assert client.metric("fairslice:dropped_contexts") == 0


def give_back(client: Client, lender: str) -> None:
    with Questions(client.path, "a tool") as questions:
        answer = questions.ask(Resize(serial=1, device=lender, num_bytes=2**15), Resizing)
    assert answer.error is None


@pytest.mark.slow
def test_a_killed_runner_finds_its_contexts_with_lenders(tmp_path: Path, alone: dict[str, list[int]]) -> None:
    with engine(tmp_path, devices=SERVES, lenders=LENDS, more=SLOW) as client:
        submit_all(client)
        client.wait_for(lambda: sum(map(len, client.tokens.values())) >= 200)
        (runner,) = children(os.getpid(), "engine.model_runner")
        kill(runner)
        client.wait()
        assert client.tokens == alone
        assert client.metric("fairslice:dropped_contexts") == 0


@pytest.mark.slow
def test_two_devices_that_serve_share_two_that_lend(tmp_path: Path, alone: dict[str, list[int]]) -> None:
    serves = (("cpu:0", "192KiB"), ("cpu:3", "192KiB"))
    with engine(tmp_path, devices=serves, lenders=LENDS, more=SLOW) as client:
        for copy in range(3):
            for prompt_id, ids in PROMPTS.items():
                client.submit(f"{prompt_id} {copy}", ids, NUM_TOKENS)
        client.wait()
        assert all(tokens == alone[prompt_id.split()[0]] for prompt_id, tokens in client.tokens.items())
        assert moved(client, "cpu:3", "cpu:1") + moved(client, "cpu:3", "cpu:2") > 0


@pytest.mark.slow
def test_everything_full_costs_recomputation_only(tmp_path: Path, alone: dict[str, list[int]]) -> None:
    with engine(tmp_path, devices=SERVES, lenders=(("cpu:1", "64KiB"),), more="") as client:
        submit_all(client)
        client.wait()
        assert client.tokens == alone


@pytest.mark.slow
def test_the_report_shows_pools_paths_and_leases(tmp_path: Path) -> None:
    with engine(tmp_path, devices=SERVES, lenders=LENDS) as client:
        submit_all(client)
        client.wait()
        command = [sys.executable, "-m", "engine.memory_report", "--config", str(tmp_path / "fairslice.toml")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    for words in ("tiny: pages of", "lent by cpu:1", "cpu:0 -> cpu:", "lender cpu:2: ", "GPU"):
        assert words in done.stdout, done.stdout
